// Package e2e holds the end-to-end tests: the whole system on a real Kubernetes,
// judged by the independent auditor. They need no rights but run on a real node
// only as root; see test/e2e/env for what stands in for what.
package e2e
