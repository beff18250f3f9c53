package agentpool_test

import (
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

func TestRequestState(t *testing.T) {
	at := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	agent := agentpool.AgentRef{ID: 5, Name: "a"}
	for name, test := range map[string]struct {
		request agentpool.JobRequest
		want    agentpool.RequestState
	}{
		"queued":                    {agentpool.JobRequest{QueueTime: at}, agentpool.RequestQueued},
		"assigned":                  {agentpool.JobRequest{AssignTime: at, Reserved: agent}, agentpool.RequestAssigned},
		"running":                   {agentpool.JobRequest{AssignTime: at, Reserved: agent, ReceiveTime: at}, agentpool.RequestRunning},
		"finished":                  {agentpool.JobRequest{ReceiveTime: at, Result: "failed"}, agentpool.RequestFinished},
		"finished without a result": {agentpool.JobRequest{ReceiveTime: at, FinishTime: at}, agentpool.RequestFinished},
		"cancelled while queued":    {agentpool.JobRequest{QueueTime: at, Result: "canceled"}, agentpool.RequestFinished},
	} {
		if got := test.request.State(); got != test.want {
			t.Errorf("%s: want %v, got %v", name, test.want, got)
		}
	}
}

func TestFailedJobs(t *testing.T) {
	at := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	for name, test := range map[string]struct {
		job  agentpool.AgentJob
		want bool
	}{
		"running":            {agentpool.AgentJob{Reason: agentpool.ReasonImagePull}, false},
		"crashed":            {agentpool.AgentJob{Ended: at, Reason: agentpool.ReasonCrashed}, true},
		"crashed in a build": {agentpool.AgentJob{Ended: at, RanBuild: true, Reason: agentpool.ReasonCrashed}, false},
		"no build came":      {agentpool.AgentJob{JobDone: true, Reason: agentpool.ReasonNoBuild}, false},
		"done":               {agentpool.AgentJob{JobDone: true, RanBuild: true}, false},
	} {
		if got := test.job.Failed(); got != test.want {
			t.Errorf("%s: want %v, got %v", name, test.want, got)
		}
	}
}

func TestNamesAreDistinct(t *testing.T) {
	seen := map[string]bool{}
	for _, phase := range agentpool.Phases() {
		if name := phase.String(); seen[name] || name == "unknown" {
			t.Errorf("phase %d has no name of its own: %q", phase, name)
		}
		seen[phase.String()] = true
	}
	for _, reason := range agentpool.Reasons() {
		if seen[string(reason)] || reason == agentpool.ReasonNone {
			t.Errorf("reason %q stands twice or is empty", reason)
		}
		seen[string(reason)] = true
	}
}
