package cluster

import (
	"testing"

	"github.com/azp-scaler/azp-scaler/pkg/agent"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// TestExitCodesAgreeWithTheEntrypoint holds the two sides of the contract
// together: every code that the entrypoint ends with is read as what it means.
func TestExitCodesAgreeWithTheEntrypoint(t *testing.T) {
	t.Parallel()
	want := map[agent.ExitCode]outcome{
		agent.ExitDone:            {agentpool.ReasonNone, true},
		agent.ExitNoBuild:         {agentpool.ReasonNoBuild, false},
		agent.ExitConfiguration:   {agentpool.ReasonConfiguration, false},
		agent.ExitCredential:      {agentpool.ReasonCredential, false},
		agent.ExitUnreachable:     {agentpool.ReasonUnreachable, false},
		agent.ExitCrashed:         {agentpool.ReasonCrashed, false},
		agent.ExitConfigureFailed: {agentpool.ReasonConfigureFailed, false},
		agent.ExitBuildLost:       {agentpool.ReasonCrashed, true},
	}
	known := 0
	for code := range int32(256) {
		if _, told := outcomeOf(code); told {
			known++
		}
	}
	if known != len(agent.ExitCodes()) {
		t.Errorf("%d codes are read, the entrypoint has %d", known, len(agent.ExitCodes()))
	}
	for _, code := range agent.ExitCodes() {
		got, told := outcomeOf(int32(code)) //nolint:gosec // Exit codes are below 256.
		if expected, ok := want[code]; !ok || !told || got != expected {
			t.Errorf("exit code %d (%s) is read as %+v, want %+v", code, code, got, expected)
		}
	}
}
