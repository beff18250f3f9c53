package scaler

import (
	"context"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// followRetry is how soon what failed is tried again when no Job changes.
const followRetry = time.Second

// follow acts on what pods do, without waiting for a poll: an agent that has
// claimed a build is disabled, and the rights of a build that has ended are
// taken away.
func (s *Scaler) follow(ctx context.Context) error {
	tick := time.NewTicker(followRetry)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.notify:
		case <-tick.C:
		}
		s.attend(ctx, s.cluster.Jobs())
	}
}

// attend goes through the Jobs once.
func (s *Scaler) attend(ctx context.Context, jobs []agentpool.AgentJob) {
	var claimed, ended []agentpool.AgentJob
	for _, job := range jobs {
		s.observe(job)
		switch {
		case job.Finished():
			if !s.memory.isRightless(job.UID) {
				ended = append(ended, job)
			}
		case job.RanBuild && !s.memory.isDisabled(job.Name):
			claimed = append(claimed, job)
		}
	}
	run(ctx, s, claimed, s.disable)
	run(ctx, s, ended, s.endRights)
}

// observe counts what is new about a Job.
func (s *Scaler) observe(job agentpool.AgentJob) {
	started, finished := s.memory.sight(job)
	if started && !job.QueuedAt.IsZero() {
		at := s.now()
		if !job.ReadySince.IsZero() {
			at = job.ReadySince
		}
		s.metrics.agentStarted(s.config.Pool.Name, job.Class, max(0, at.Sub(job.QueuedAt)))
	}
	if !finished {
		return
	}
	if job.Failed() {
		s.metrics.jobFailed(s.config.Pool.Name, job.Class, job.Reason)
		s.cluster.Report(job, true, string(job.Reason), job.Message)
		s.log.Warn("an agent failed before it ran a build", "job", job.Name, "request", job.RequestID, "class", job.Class,
			"reason", job.Reason, "detail", job.Message, "exit_code", job.ExitCode)
		s.Wake()
		return
	}
	s.log.Info("an agent has ended", "job", job.Name, "request", job.RequestID, "ran_build", job.RanBuild, "reason", job.Reason)
}

func (s *Scaler) endRights(ctx context.Context, job agentpool.AgentJob) {
	if err := s.cluster.EndRights(ctx, job); err != nil {
		if s.complain.isNew("job "+job.UID+" rights", err.Error()) {
			s.log.Warn("the rights of a build that has ended can't be taken away, trying again", "job", job.Name, "error", err)
		}
		return
	}
	s.memory.setRightless(job.UID)
}
