package e2e_test

import (
	"os"
	"testing"
)

// registrationVariable has every test run with agents that are registered in one way, or in
// both: config, jit or both. Without it each test has its usual way, or ways.
const registrationVariable = "E2E_REGISTRATION"

// The ways to register agents.
const (
	fromPods = "config" // By config.sh in their pods, which have the pool's token.
	byScaler = "jit"    // By the scaler; there is no token in the agents' namespace.
)

// waysOf gives the ways that a test is to be played in: its usual ones, or those that the
// environment says.
func waysOf(t *testing.T, usual []string) []string {
	t.Helper()
	switch text := os.Getenv(registrationVariable); text {
	case "":
		return usual
	case fromPods, byScaler:
		return []string{text}
	case "both":
		return bothWays()
	default:
		t.Fatalf("%s=%q: want %s, %s or both", registrationVariable, text, fromPods, byScaler)
		return nil
	}
}

// registered plays a test for each way to register agents that is wanted. Each has a system
// of its own, so they run side by side, with each other and with those of other tests: most
// of the time they wait.
func registered(t *testing.T, usual []string, play func(t *testing.T, way string)) {
	t.Helper()
	t.Parallel()
	for _, way := range waysOf(t, usual) {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			play(t, way)
		})
	}
}

// bothWays is for what differs most with the way to register.
func bothWays() []string { return []string{fromPods, byScaler} }
