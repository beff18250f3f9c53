//go:build race

package main

// buildFlags makes the entrypoint under test watch for data races as its tests do.
func buildFlags() []string { return []string{"-race"} }
