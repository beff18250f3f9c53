package app

import (
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// TestPlansShareParallelJobs says that what is shown of one pool takes into account what
// runs in the others.
func TestPlansShareParallelJobs(t *testing.T) {
	t.Parallel()
	now := time.Now()
	running := agentpool.JobRequest{ID: 1, AssignTime: now, ReceiveTime: now, Reserved: agentpool.AgentRef{ID: 1, Name: "static-vm"}}
	pool := func(requests ...agentpool.JobRequest) plan.Snapshot {
		return plan.Snapshot{
			Now: now, Requests: requests, Classes: []agentpool.AgentClass{{Name: "default"}}, Limits: plan.Limits{ParallelJobs: 2},
		}
	}
	pools := []plan.Snapshot{pool(running, agentpool.JobRequest{ID: 2}), pool(agentpool.JobRequest{ID: 3}, agentpool.JobRequest{ID: 4})}
	shareParallelJobs(pools)
	for i, want := range []int{1, 1} {
		p := plan.Make(pools[i])
		if got := len(p.Create); got != want {
			t.Errorf("pool %d gets %d agents, want %d: %+v", i, got, want, p.Skipped)
		}
	}
}
