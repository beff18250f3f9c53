//go:build !race

package main

// buildFlags are those of the entrypoint under test.
func buildFlags() []string { return nil }
