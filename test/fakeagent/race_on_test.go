//go:build race

package fakeagent_test

// raceEnabled tells whether the tests detect data races.
const raceEnabled = true
