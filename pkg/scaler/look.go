package scaler

import (
	"context"
	"fmt"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// Look makes a snapshot of pool and cluster as they are now, without a cache, and
// changes nothing. What only a running loop remembers is not in it: failures that no
// Job shows, and agents it has disabled in this moment.
func Look(ctx context.Context, config Config, service Service, cluster Cluster, now func() time.Time) (plan.Snapshot, error) {
	// The Jobs first, as the loop does: a claim must not be newer than the pod.
	call, cancel := context.WithTimeout(ctx, config.CallTimeout)
	defer cancel()
	jobs, err := cluster.LiveJobs(call)
	if err != nil {
		return plan.Snapshot{}, fmt.Errorf("the Jobs can't be read: %w", err)
	}
	read, cancelRead := context.WithTimeout(ctx, config.PollTimeout)
	defer cancelRead()
	classes := cluster.Classes()
	agents, err := service.Agents(read, config.Pool.ID)
	if err != nil {
		return plan.Snapshot{}, fmt.Errorf("the agents of pool %s can't be listed: %w", config.Pool.Name, err)
	}
	known := newMemory()
	known.learn(agents, config)
	// Rows that can't be read are left out, as the loop does; it counts and logs them.
	requests, _, err := readQueue(read, service, config, known.somebodyElse())
	if err != nil {
		return plan.Snapshot{}, fmt.Errorf("the queue of pool %s can't be read: %w", config.Pool.Name, err)
	}
	snapshot := plan.Snapshot{
		Now: now(), Pool: config.Pool, Requests: requests, Jobs: jobs, Classes: classes.Usable, Broken: classes.Broken,
		Blocked: cluster.Check(read), Limits: config.Limits,
	}
	if config.UseParallel {
		// Unknown is no cap, and so is what can't be asked.
		if total, ok, err := service.ParallelJobs(read); err == nil && ok {
			snapshot.Limits.ParallelJobs = total
		}
	}
	for _, job := range jobs {
		// Who has waited for so long has as a rule been spare for as long.
		known.spareSince[job.UID] = job.WaitingSince()
	}
	known.remind(&snapshot)
	snapshot.Disabled = known.uncounted()
	return snapshot, lookAtAgents(read, service, known, &snapshot)
}

// lookAtAgents adds what the agents that a plan would ask about have registered with.
func lookAtAgents(ctx context.Context, service Service, known *memory, snapshot *plan.Snapshot) error {
	for _, job := range plan.Make(*snapshot).Inspect {
		offered, registered, err := service.AgentCapabilities(ctx, job.PoolID, job.Name)
		if err != nil {
			return fmt.Errorf("what agent %s has registered with can't be read: %w", job.Name, err)
		}
		if registered {
			known.inspected(job, offered, snapshot.Now)
		}
	}
	known.remind(snapshot)
	return nil
}
