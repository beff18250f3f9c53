package scaler

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// cycle polls, plans and applies once, and returns the time until the next.
func (s *Scaler) cycle(ctx context.Context) time.Duration {
	now := s.now()
	s.turned.Store(&now)
	s.check(ctx)
	snapshot, stale, ok := s.snapshot(ctx)
	if !ok {
		s.failures++
		return s.retryAfter()
	}
	s.failures = 0
	p := plan.Make(snapshot)
	s.memory.spare(p.Spare, snapshot.Now)
	s.publish(snapshot, p, stale)
	s.apply(ctx, p)
	run(ctx, s, p.Inspect, s.inspect)
	s.tellBuilds(ctx, snapshot)
	s.memory.forget(snapshot.Jobs, snapshot.Requests, s.now())
	s.sweep(ctx)
	if p.View.Unsettled || len(p.Create) > 0 || len(p.End) > 0 {
		return s.config.PollBusy
	}
	return s.config.PollIdle
}

// retryAfter is the wait after a cycle that made no plan: it doubles from the
// busy interval to the idle one, so that a service that is down is not pressed.
func (s *Scaler) retryAfter() time.Duration {
	if s.Status().Rival != "" {
		return s.config.RecheckEvery
	}
	return plan.Backoff(s.failures, s.config.PollBusy, max(s.config.PollIdle, s.config.PollBusy))
}

// snapshot reads what a plan needs: first the pods, then the queue.
func (s *Scaler) snapshot(ctx context.Context) (snapshot plan.Snapshot, stale, ok bool) {
	if !s.cluster.Synced() {
		s.postpone("the cache of Jobs and pods is not filled")
		return plan.Snapshot{}, false, false
	}
	// What is disabled from now on may have claimed a build that neither these Jobs nor
	// the queue show: it must not look like an agent that is leaving without one.
	disabled := s.memory.uncounted()
	jobs, unseen := s.memory.merge(s.cluster.Jobs(), s.now())
	if unseen > s.config.AssumeLimit {
		stale = true
		var err error
		if jobs, err = s.liveJobs(ctx); err != nil {
			s.postpone(fmt.Sprintf("the cache shows none of what was written %v ago, and the API server can't be asked: %v", unseen.Round(time.Second), err))
			return plan.Snapshot{}, true, false
		}
	}
	classes := s.cluster.Classes()
	requests, ok := s.poll(ctx)
	if !ok {
		return plan.Snapshot{}, stale, false
	}
	s.memory.reserve(requests)
	if !s.readAgents(ctx, jobs, classes) {
		return plan.Snapshot{}, stale, false
	}
	s.readParallelJobs(ctx)
	snapshot = plan.Snapshot{
		Now: s.now(), Pool: s.config.Pool, Requests: requests, Jobs: jobs, Classes: classes.Usable, Broken: classes.Broken,
		Blocked: s.blocked, Limits: s.config.Limits, NoDeletions: stale,
	}
	snapshot.Limits.ParallelJobs = s.parallel
	if s.config.OtherPools != nil {
		snapshot.OtherPools = s.config.OtherPools()
	}
	s.memory.remind(&snapshot)
	snapshot.Disabled = disabled
	return snapshot, stale, true
}

// liveJobs asks the API server, after the cache has not shown an own write for
// too long.
func (s *Scaler) liveJobs(ctx context.Context) ([]agentpool.AgentJob, error) {
	call, cancel := context.WithTimeout(ctx, s.config.CallTimeout)
	defer cancel()
	asked := s.now()
	live, err := s.cluster.LiveJobs(call)
	if err != nil {
		return nil, err
	}
	return s.memory.settle(live, asked), nil
}

// poll reads the queue. Anything but a whole answer is no answer.
func (s *Scaler) poll(ctx context.Context) ([]agentpool.JobRequest, bool) {
	call, cancel := context.WithTimeout(ctx, s.config.PollTimeout)
	defer cancel()
	start := s.now()
	requests, malformed, err := readQueue(call, s.service, s.config, s.memory.somebodyElse())
	s.metrics.polled(s.config.Pool.Name, s.now().Sub(start), malformed, err)
	if err != nil {
		if ctx.Err() == nil {
			s.postpone("the queue can't be read: " + err.Error())
		}
		return nil, false
	}
	if s.complain.isNew("malformed", countText(malformed)) {
		s.log.Warn("some rows of the queue can't be read and are left out", "rows", malformed)
	}
	return requests, true
}

// readQueue reads the unfinished requests of the pool. foreign is an agent of somebody
// else in it, where there is one.
func readQueue(ctx context.Context, service Service, config Config, foreign agentpool.AgentRef) (requests []agentpool.JobRequest, malformed int, err error) {
	malformed, err = service.JobRequests(ctx, config.Pool.ID, func(request agentpool.JobRequest) error {
		if request.State() == agentpool.RequestFinished {
			return nil
		}
		request.Foreign = foreignMatch(config, request, foreign)
		// The agents that could take it are as many as the pool has for each
		// request, and the plan has no further use for them.
		request.Matched = nil
		requests = append(requests, request)
		return nil
	})
	return requests, malformed, err
}

// foreignMatch gives an agent of somebody else that satisfies the request, as the
// service sees it. A request that every agent of the pool satisfies names none.
func foreignMatch(config Config, request agentpool.JobRequest, foreign agentpool.AgentRef) agentpool.AgentRef {
	if request.MatchesAll {
		return foreign
	}
	for _, agent := range request.Matched {
		if !config.ours(agent.Name) {
			return agent
		}
	}
	return agentpool.AgentRef{}
}

// countText is what to say of a count: nothing when there is nothing to count.
func countText(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// postpone records why this cycle makes no plan.
func (s *Scaler) postpone(why string) {
	if s.complain.isNew("cycle", why) {
		s.log.Warn("no plan this cycle", "reason", why)
	}
	s.updateStatus(func(status *Status) { status.Waiting = why })
}

// readAgents learns from the agents list, now and then and when the classes have
// changed, which agents are disabled, which registrations have no Job any more, and
// which placeholders there have to be. It reports whether this installation may work for the
// pool, as far as that is known.
func (s *Scaler) readAgents(ctx context.Context, jobs []agentpool.AgentJob, classes Classes) bool {
	if !s.identify(ctx) {
		return false
	}
	wanted := s.placeholders(classes.Usable)
	if s.now().Before(s.due.agents) && maps.Equal(wanted, s.standing) && (s.alone || s.mark == "") {
		return true
	}
	agents, err := s.agents(ctx)
	if err != nil {
		if !s.alone && s.mark != "" {
			s.postpone("whether another installation has the same id can't be asked: " + err.Error())
		}
		return s.alone || s.mark == ""
	}
	if !s.isAlone(ctx, agents) {
		return false
	}
	s.memory.learn(agents, s.config)
	s.memory.stillRegistered(jobs, agents)
	s.memory.miss(jobs, agents, s.config.SweepGrace, s.now())
	s.sweepRegistrations(ctx, agents, jobs)
	s.keepPlaceholders(ctx, agents, wanted, classes)
	return true
}

// agents reads the list and says so when it can't.
func (s *Scaler) agents(ctx context.Context) ([]agentpool.Agent, error) {
	call, cancel := context.WithTimeout(ctx, s.config.PollTimeout)
	defer cancel()
	agents, err := s.service.Agents(call, s.config.Pool.ID)
	text := ""
	if err != nil {
		text = err.Error()
	}
	if s.complain.isNew("agents", text) {
		s.log.Warn("the agents of the pool can't be listed", "error", err)
	}
	if err == nil {
		s.due.agents = s.now().Add(s.config.AgentsEvery)
	}
	return agents, err
}

func (s *Scaler) readParallelJobs(ctx context.Context) {
	if !s.config.UseParallel || s.now().Before(s.due.parallel) {
		return
	}
	s.due.parallel = s.now().Add(s.config.ParallelEvery)
	call, cancel := context.WithTimeout(ctx, s.config.CallTimeout)
	defer cancel()
	total, known, err := s.service.ParallelJobs(call)
	switch {
	case err != nil: // What was bought is still so when the service can't be asked.
	case !known:
		// Unknown is no cap: the service holds requests back by itself.
		s.parallel = 0
	default:
		s.parallel = total
	}
}

// check asks now and then whether the classes have what they need.
func (s *Scaler) check(ctx context.Context) {
	if !s.recheck.Swap(false) && s.now().Before(s.due.check) {
		return
	}
	call, cancel := context.WithTimeout(ctx, s.config.PollTimeout)
	defer cancel()
	blocked := s.cluster.Check(call)
	if ctx.Err() != nil {
		return
	}
	s.blocked = blocked
	for _, class := range slices.Sorted(maps.Keys(blocked)) {
		if s.complain.isNew("class "+class, blocked[class]) {
			s.log.Error("a class of agent can't be served", "class", class, "problem", blocked[class])
		}
	}
	s.complain.keep(func(subject string) bool {
		class, isClass := strings.CutPrefix(subject, "class ")
		_, still := blocked[class]
		return !isClass || still
	})
	interval := s.config.CheckEvery
	if len(blocked) > 0 {
		interval = s.config.RecheckEvery
	}
	s.due.check = s.now().Add(interval)
}

// publish tells metrics and people what this cycle saw and wants.
func (s *Scaler) publish(snapshot plan.Snapshot, p plan.Plan, stale bool) {
	s.complain.isNew("cycle", "")
	status := statusOf(snapshot, p, stale)
	status.Invariants = s.invariants(snapshot, p)
	status.LastPoll = s.now()
	s.status.Store(&status)
	inUse := map[string]bool{}
	for _, skip := range p.Skipped {
		subject := fmt.Sprintf("request %d", skip.Request.ID)
		inUse[subject] = true
		if skip.Reason == plan.SkipServed {
			continue
		}
		if s.complain.isNew(subject, string(skip.Reason)+" "+skip.Closest) {
			s.log.Info("a queued build has to wait", "request", skip.Request.ID, "pipeline", skip.Request.Definition.Name,
				"class", skip.Class, "reason", skip.Reason, "detail", skip.Detail)
		}
	}
	s.publishMismatches(p)
	for _, job := range snapshot.Jobs {
		subject := "job " + job.UID
		inUse[subject] = true
		if job.Finished() || job.Reason == agentpool.ReasonNone {
			continue
		}
		if s.complain.isNew(subject, string(job.Reason)) {
			s.log.Warn("an agent is not getting on", "job", job.Name, "request", job.RequestID, "reason", job.Reason, "detail", job.Message)
			s.cluster.Report(job, true, string(job.Reason), job.Message)
		}
	}
	for _, mismatch := range p.Mismatches {
		inUse["mismatch "+mismatch.Class] = true
	}
	s.complain.keep(func(subject string) bool {
		kind, id, _ := strings.Cut(subject, " ")
		if kind != "request" && kind != "job" && kind != "mismatch" {
			return true
		}
		// More words tell apart what is said about the same request or Job.
		id, _, _ = strings.Cut(id, " ")
		return inUse[kind+" "+id]
	})
}

// publishMismatches says once of each class what its agents lack of what it claims.
func (s *Scaler) publishMismatches(p plan.Plan) {
	for _, mismatch := range p.Mismatches {
		lacking := strings.Join(mismatch.Lacking, ", ")
		if !s.complain.isNew("mismatch "+mismatch.Class, lacking) {
			continue
		}
		s.log.Warn("a class of agent claims what its agents lack", "class", mismatch.Class, "lacking", lacking)
		s.cluster.ReportClass(mismatch.Class, true, "Mismatch", "the class claims what its agents do not register with, so that builds that demand it wait: "+
			lacking+". Give it to the image or its environment, or take it out of the claims")
	}
}
