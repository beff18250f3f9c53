package scaler

import (
	"context"
	"strings"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// sweep ends what a crash has left in the cluster. What it left in the pool is
// found whenever the agents are listed.
func (s *Scaler) sweep(ctx context.Context) {
	if s.now().Before(s.due.sweep) || ctx.Err() != nil {
		return
	}
	s.due.sweep = s.now().Add(s.config.SweepEvery)
	call, cancel := context.WithTimeout(ctx, s.config.PollTimeout)
	defer cancel()
	removed, err := s.cluster.Sweep(call, s.config.SweepGrace)
	for kind, n := range removed {
		s.metrics.swept(s.config.Pool.Name, kind, n)
		if n > 0 {
			s.log.Info("swept what a crash had left", "kind", kind, "count", n)
		}
	}
	text := ""
	if err != nil {
		text = err.Error()
	}
	if s.complain.isNew("sweep", text) {
		s.log.Warn("sweeping is not whole, what can't be judged is kept", "error", err)
	}
}

// sweepRegistrations removes agents of ours whose Job has been gone, or has ended, for the
// grace. A live read of the Jobs decides; any doubt keeps them. One that is online belongs to
// a pod that outlives its Job, as on a node that is cut off from the cluster and not from the
// service: once it is withdrawn it gets no build any more. One that has a build is disabled and
// stays, and is looked at again.
func (s *Scaler) sweepRegistrations(ctx context.Context, agents []agentpool.Agent, jobs []agentpool.AgentJob) {
	alive := liveNames(jobs)
	suspects := map[string]bool{}
	var due []agentpool.Agent
	for _, agent := range agents {
		if !strings.HasPrefix(agent.Name, agentjob.NamePrefix(s.config.Instance)) || alive[agent.Name] {
			continue
		}
		suspects[agent.Name] = true
		if s.memory.orphaned(agent.Name, s.now()) >= s.config.SweepGrace {
			due = append(due, agent)
		}
	}
	s.memory.forgetOrphans(func(name string) bool {
		return !strings.HasPrefix(name, agentjob.NamePrefix(s.config.Instance)) || suspects[name]
	})
	if len(due) == 0 {
		return
	}
	call, cancel := context.WithTimeout(ctx, s.config.CallTimeout)
	defer cancel()
	live, err := s.cluster.LiveJobs(call)
	if err != nil {
		s.log.Warn("registrations without a Job are kept, as the Jobs can't be listed", "error", err)
		return
	}
	alive = liveNames(live)
	run(ctx, s, due, func(ctx context.Context, agent agentpool.Agent) {
		if alive[agent.Name] {
			return
		}
		gone, err := s.service.WithdrawAgent(ctx, s.config.Pool.ID, agentpool.AgentRef{ID: agent.ID, Name: agent.Name})
		if err != nil {
			s.log.Warn("a registration without a Job can't be removed, trying again", "agent", agent.Name, "error", err)
			return
		}
		if !gone {
			if agent.Enabled {
				s.log.Info("an agent without a Job has a build: it is disabled, and removed when that has ended", "agent", agent.Name, "request", agent.AssignedRequest)
			}
			return
		}
		s.memory.removed(agent.Name)
		s.metrics.swept(s.config.Pool.Name, "registration", 1)
		s.log.Info("removed a registration whose Job is gone or has ended", "agent", agent.Name)
	})
}

// liveNames gives the names of the Jobs whose agents may still be at work. A
// finished Job's sidecar may still be removing its registration; the grace
// is what leaves it the time.
func liveNames(jobs []agentpool.AgentJob) map[string]bool {
	names := map[string]bool{}
	for _, job := range jobs {
		if !job.Finished() {
			names[job.Name] = true
		}
	}
	return names
}
