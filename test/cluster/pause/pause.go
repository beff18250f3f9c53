// Package pause carries the source of the program in its directory cmd, which
// the cluster builds for its node: a machine that only runs the cluster has no
// other way to come by a static process 1.
package pause

import _ "embed" // For the program's source.

// Source is a complete Go program.
//
//go:embed cmd/main.go
var Source []byte
