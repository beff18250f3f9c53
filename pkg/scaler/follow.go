package scaler

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// followRetry is how soon what failed is tried again when no Job changes.
const followRetry = time.Second

// deregisterRetry is how soon the service is asked again to let go of an agent: one whose
// build was cut off keeps it until its lock lapses.
const deregisterRetry = 10 * time.Second

// follow acts on what pods do, without waiting for a poll: an agent that has
// claimed a build is disabled, and the rights of a build that has ended are
// taken away. It ends when what is under way has ended.
func (s *Scaler) follow(ctx context.Context) error {
	tick := time.NewTicker(followRetry)
	defer tick.Stop()
	claimed, ended, leaving := newErrands(s, followRetry), newErrands(s, followRetry), newErrands(s, deregisterRetry)
	defer claimed.wait()
	defer ended.wait()
	defer leaving.wait()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.notify:
		case <-tick.C:
		}
		s.attend(ctx, s.cluster.Jobs(), claimed, ended, leaving)
	}
}

// attend goes through the Jobs once. It waits for nothing: taking away the rights of many
// must not keep an agent with a build enabled.
func (s *Scaler) attend(ctx context.Context, jobs []agentpool.AgentJob, claimed, ended, leaving *errands) {
	failed := false
	for _, job := range jobs {
		job = s.memory.remember(job)
		failed = s.observe(job) || failed
		if s.isToDeregister(job) {
			leaving.start(ctx, job, s.deregister)
		}
		switch {
		case job.Finished():
			if !s.memory.isRightless(job.UID) {
				ended.start(ctx, job, s.endRights)
			}
		case job.RanBuild && !s.memory.isDisabled(job.Name):
			claimed.start(ctx, job, s.disable)
		}
	}
	if failed {
		s.Wake() // Each is to be replaced.
	}
}

// isToDeregister reports whether an agent that the scaler has registered is to be taken out
// of the pool: its container has ended, or its pod is told to end while it waits, and then
// no build may come any more.
func (s *Scaler) isToDeregister(job agentpool.AgentJob) bool {
	over := job.Finished() || (job.Deleting && !job.RanBuild)
	return job.Registration == agentpool.RegistrationJIT && over && !s.memory.isDeregistered(job.UID)
}

// deregister takes an agent that the scaler has registered out of the pool, unless it has a
// build: then, or if it fails, it is tried again. What no Job shows any more is for the sweep.
func (s *Scaler) deregister(ctx context.Context, job agentpool.AgentJob) (done bool) {
	gone, err := s.service.WithdrawAgent(ctx, job.PoolID, agentOf(job))
	subject := "job " + job.UID + " registration"
	switch {
	case err != nil:
		if s.complain.isNew(subject, err.Error()) {
			s.log.Warn("the registration of an agent that ends can't be removed, trying again", "job", job.Name, "error", err)
		}
	case gone:
		s.complain.isNew(subject, "")
		s.memory.setDeregistered(job.UID)
		if !job.Finished() {
			s.memory.setWithdrawn(job.Name)
		}
	default:
		s.memory.setDisabled(job.Name)
	}
	return gone
}

// errands are operations of one kind on Jobs, one at a time for each Job, and a few at once.
type errands struct {
	scaler *Scaler
	retry  time.Duration // After a failure.
	group  sync.WaitGroup

	mu      sync.Mutex
	running map[string]bool      // By UID.
	again   map[string]time.Time // When what failed may be tried again, by UID.
	crowded bool                 // Something waits for a turn.
}

func newErrands(s *Scaler, retry time.Duration) *errands {
	return &errands{scaler: s, retry: retry, running: map[string]bool{}, again: map[string]time.Time{}}
}

// start begins an operation unless one is under way for the Job, or has just failed, or too
// many are under way: then a later look begins it. An operation that has begun is finished
// even when ctx ends, within the call time-out.
func (e *errands) start(ctx context.Context, job agentpool.AgentJob, operate func(context.Context, agentpool.AgentJob) (done bool)) {
	if !e.begin(job.UID) {
		return
	}
	e.group.Go(func() {
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.scaler.config.CallTimeout)
		defer cancel()
		e.end(job.UID, operate(call, job))
	})
}

// begin takes a turn, if there is one to be had.
func (e *errands) begin(uid string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.running[uid] || e.scaler.now().Before(e.again[uid]) {
		return false
	}
	if len(e.running) >= e.scaler.config.Concurrency {
		e.crowded = true
		return false
	}
	e.running[uid] = true
	return true
}

// end leaves the turn to another, and asks for a look if one waits for it.
func (e *errands) end(uid string, done bool) {
	now := e.scaler.now()
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.running, uid)
	maps.DeleteFunc(e.again, func(_ string, at time.Time) bool { return now.After(at) })
	if !done {
		e.again[uid] = now.Add(e.retry)
	}
	if e.crowded {
		e.crowded = false
		e.scaler.Notify()
	}
}

// wait waits for what is under way.
func (e *errands) wait() { e.group.Wait() }

// observe counts what is new about a Job, and reports whether it has failed before it ran a
// build.
func (s *Scaler) observe(job agentpool.AgentJob) (failed bool) {
	started, finished := s.memory.sight(job)
	if started && !job.QueuedAt.IsZero() {
		at := s.now()
		if !job.ReadySince.IsZero() {
			at = job.ReadySince
		}
		s.metrics.agentStarted(s.config.Pool.Name, job.Class, max(0, at.Sub(job.QueuedAt)))
	}
	if !finished {
		return false
	}
	if job.Failed() {
		s.metrics.jobFailed(s.config.Pool.Name, job.Class, job.Reason)
		s.cluster.Report(job, true, string(job.Reason), job.Message)
		s.log.Warn("an agent failed before it ran a build", "job", job.Name, "request", job.RequestID, "class", job.Class,
			"reason", job.Reason, "detail", job.Message, "exit_code", job.ExitCode)
		return true
	}
	if job.LostBuild() {
		// Never replaced: the build has begun, and the service alone says whether it is queued
		// again.
		s.metrics.buildLost(s.config.Pool.Name, job.Class, job.Reason)
		s.cluster.Report(job, true, string(job.Reason), job.Message)
		s.log.Warn("an agent failed while it ran a build", "job", job.Name, "request", job.RequestID, "class", job.Class,
			"reason", job.Reason, "detail", job.Message, "exit_code", job.ExitCode)
		return false
	}
	s.log.Info("an agent has ended", "job", job.Name, "request", job.RequestID, "ran_build", job.RanBuild, "reason", job.Reason)
	return false
}

func (s *Scaler) endRights(ctx context.Context, job agentpool.AgentJob) (done bool) {
	if err := s.cluster.EndRights(ctx, job); err != nil {
		if s.complain.isNew("job "+job.UID+" rights", err.Error()) {
			s.log.Warn("the rights of a build that has ended can't be taken away, trying again", "job", job.Name, "error", err)
		}
		return false
	}
	s.memory.setRightless(job.UID)
	return true
}
