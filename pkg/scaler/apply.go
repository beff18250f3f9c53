package scaler

import (
	"context"
	"fmt"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// apply does what the plan says. Agents are taken out of the queue first, as a
// claimed one that is still enabled may be handed a second build at any moment.
func (s *Scaler) apply(ctx context.Context, p plan.Plan) {
	run(ctx, s, p.Disable, func(ctx context.Context, job agentpool.AgentJob) { s.disable(ctx, job) })
	run(ctx, s, p.Create, s.create)
	run(ctx, s, p.Complete, s.complete)
	run(ctx, s, p.End, s.end)
}

func (s *Scaler) create(ctx context.Context, creation plan.Creation) {
	job, err := s.cluster.Create(ctx, creation)
	switch {
	case job.UID != "":
		// It is there even if it could not be completed: it is gone on with later.
		s.memory.assume(job, s.now())
	case job.Name != "":
		s.memory.used(job)
	}
	log := s.log.With("job", job.Name, "request", creation.Request.ID, "class", creation.Class, "attempt", creation.Attempt)
	if err != nil {
		reason := reasonOf(err)
		s.metrics.jobFailed(s.config.Pool.Name, creation.Class, reason)
		if job.UID == "" {
			s.memory.fail(creation.Request.ID, creation.Class, creation.Failures, s.now())
		}
		if blocks(reason) {
			s.recheck.Store(true)
		}
		if s.complain.isNew("create "+creation.Class, string(reason)) {
			log.Error("a Job can't be made", "reason", reason, "error", err)
		} else {
			log.Debug("a Job can't be made", "reason", reason, "error", err)
		}
		return
	}
	s.complain.isNew("create "+creation.Class, "")
	if creation.Request.ID == agentpool.WarmRequest {
		s.metrics.jobCreated(s.config.Pool.Name, creation.Class)
		log.Info("made a Job to keep an agent waiting")
		return
	}
	wait := max(0, s.now().Sub(creation.Request.QueueTime))
	s.metrics.jobCreated(s.config.Pool.Name, creation.Class)
	s.metrics.jobWaited(s.config.Pool.Name, creation.Class, wait)
	log.Info("made a Job for a queued build", "pipeline", creation.Request.Definition.Name, "waited", wait.Round(time.Millisecond))
}

// blocks reports whether a failure is likely to stop the whole class, so that it
// is worth looking at what the class needs again.
func blocks(reason agentpool.Reason) bool {
	return reason == agentpool.ReasonForbidden || reason == agentpool.ReasonMissingObject
}

func (s *Scaler) complete(ctx context.Context, job agentpool.AgentJob) {
	if err := s.cluster.Complete(ctx, job); err != nil {
		if s.complain.isNew("job "+job.UID+" half-made", string(reasonOf(err))) {
			s.log.Warn("a half-made Job can't be completed", "job", job.Name, "request", job.RequestID, "reason", reasonOf(err), "error", err)
		}
		return
	}
	s.log.Info("completed a half-made Job", "job", job.Name, "request", job.RequestID)
}

// end takes out an agent that has no build, if that is still so.
func (s *Scaler) end(ctx context.Context, ending plan.Ending) {
	job := ending.Job
	log := s.log.With("job", job.Name, "request", job.RequestID, "reason", ending.Reason)
	ended, err := s.takeOut(ctx, job)
	if err != nil {
		log.Warn("an agent can't be ended, trying again", "error", err)
		return
	}
	if !ended {
		log.Info("an agent that was to end has been given a build: it ends after that")
		return
	}
	s.memory.end(job, s.now())
	s.metrics.agentEnded(job, s.config.Pool.Name, ending.Reason)
	switch ending.Reason { //nolint:exhaustive // The other reasons are no trouble.
	case plan.EndStartupLimit, plan.EndHalfMade:
		s.fail(job, ending.Reason)
	case plan.EndLost:
		s.cluster.Report(job, true, string(agentpool.ReasonNodeLost), "the pod is being deleted and does not end, and its agent is neither online nor has a build: its registration and its Job are removed")
	case plan.EndLingering:
		s.cluster.Report(job, true, string(ending.Reason), "the agent has ended and other containers of its pod have not: its Job is removed. A sidecar should be an init container with restartPolicy Always, which Kubernetes ends with the others")
	}
	log.Info("ended an agent without a build", "class", job.Class)
}

// takeOut ends an agent and deletes its Job unless it has a build. Nothing is ended
// on the word of a cache: first the cluster is asked whether the agent has
// started, then the service whether it has a build.
func (s *Scaler) takeOut(ctx context.Context, job agentpool.AgentJob) (ended bool, err error) {
	deleted, err := s.cluster.DeleteUnstarted(ctx, job)
	if err != nil {
		return false, fmt.Errorf("its agent has not started, and its Job can't be deleted: %w", err)
	}
	if deleted {
		if job.Registration == agentpool.RegistrationJIT {
			s.deregister(ctx, job)
		}
		return true, nil
	}
	// Whatever comes of this call, it may have disabled the agent.
	s.memory.giveUp(job.Name)
	gone, err := s.service.WithdrawAgent(ctx, job.PoolID, agentOf(job))
	if err != nil {
		return false, fmt.Errorf("its agent can't be withdrawn: %w", err)
	}
	if !gone {
		// It stays disabled and ends after its build. Enabling it again would let
		// the service hand it a second one.
		s.memory.setDisabled(job.Name)
		s.memory.atWork(job.Name)
		return false, nil
	}
	s.memory.setWithdrawn(job.Name)
	if err := s.cluster.Delete(ctx, job); err != nil {
		return false, fmt.Errorf("its agent is withdrawn, and its Job can't be deleted: %w", err)
	}
	return true, nil
}

// fail counts a Job that was given up.
func (s *Scaler) fail(job agentpool.AgentJob, why plan.EndReason) {
	reason := job.Reason
	if reason == agentpool.ReasonNone {
		reason = agentpool.ReasonStartupLimit
		if why == plan.EndHalfMade {
			reason = agentpool.ReasonHalfMade
		}
	}
	s.metrics.jobFailed(s.config.Pool.Name, job.Class, reason)
	s.memory.fail(job.RequestID, job.Class, job.Failures, s.now())
	s.cluster.Report(job, true, string(reason), job.Message)
}

// agentOf names the agent of a Job. Where the Job records its number, nobody has to look for
// it, which is a call less before an agent with a build is disabled.
func agentOf(job agentpool.AgentJob) agentpool.AgentRef {
	return agentpool.AgentRef{ID: job.AgentID, Name: job.Name}
}

func (s *Scaler) disable(ctx context.Context, job agentpool.AgentJob) (done bool) {
	if s.memory.isDisabled(job.Name) {
		return true
	}
	if s.claims.isDone(job.UID) { // Its pod was quicker.
		s.memory.setDisabled(job.Name)
		return true
	}
	if err := s.service.DisableAgent(ctx, job.PoolID, agentOf(job)); err != nil {
		s.log.Warn("an agent with a build can't be disabled, trying again", "job", job.Name, "error", err)
		return false
	}
	s.memory.setDisabled(job.Name)
	return true
}

// inspect finds out what an agent has registered with.
func (s *Scaler) inspect(ctx context.Context, job agentpool.AgentJob) {
	offered, registered, err := s.service.AgentCapabilities(ctx, job.PoolID, job.Name)
	switch {
	case err != nil:
		if s.complain.isNew("job "+job.UID+" capabilities", err.Error()) {
			s.log.Warn("what an agent has registered with can't be read, trying again", "job", job.Name, "error", err)
		}
	case registered:
		s.memory.inspected(job, offered, s.now())
	}
}
