package plan_test

import (
	"cmp"
	"slices"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// reference is the plan's rules once more, written to be plainly right and not to be
// fast: every question is answered by looking at everything.
type reference struct {
	plan.Snapshot
	classes  []agentpool.AgentClass // In the order in which they are asked.
	queued   []agentpool.JobRequest // In the order in which they are served.
	capacity []agentpool.AgentJob
	// given tells for each request, then for each unit of warm need, which agent is
	// counted for it.
	given map[unit]int
	// fate is what becomes of each queued request.
	fate map[int64]outcome
}

// unit is one agent that is needed: for a request, or the n-th that a class keeps warm.
type unit struct {
	request int64
	class   string
	n       int
}

func newReference(s plan.Snapshot) *reference {
	r := &reference{Snapshot: s, classes: slices.Clone(s.Classes), given: map[unit]int{}, fate: map[int64]outcome{}}
	slices.SortFunc(r.classes, func(a, b agentpool.AgentClass) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(len(a.Capabilities), len(b.Capabilities)), cmp.Compare(a.Name, b.Name))
	})
	for _, request := range s.Requests {
		if request.State() == agentpool.RequestQueued {
			r.queued = append(r.queued, request)
		}
	}
	slices.SortFunc(r.queued, func(a, b agentpool.JobRequest) int {
		return cmp.Or(cmp.Compare(r.rank(a), r.rank(b)), cmp.Compare(b.Priority, a.Priority), a.QueueTime.Compare(b.QueueTime), cmp.Compare(a.ID, b.ID))
	})
	for _, job := range s.Jobs {
		phase := r.phase(job)
		if phase == agentpool.PhaseIdle || (phase == agentpool.PhaseStarting && r.overdue(job) == "") {
			r.capacity = append(r.capacity, job)
		}
	}
	return r
}

// rank puts requests that may have no Job of their own yet after all others.
func (r *reference) rank(request agentpool.JobRequest) int {
	if class, reason := r.classFor(request); reason == "" && r.backingOff(request.ID, class) {
		return 1
	}
	return 0
}

func (r *reference) phase(job agentpool.AgentJob) agentpool.Phase {
	reserved := slices.ContainsFunc(r.Requests, func(request agentpool.JobRequest) bool {
		return request.Reserved.Name == job.Name && request.State() != agentpool.RequestFinished
	})
	return plan.PhaseOf(job, reserved, r.Disabled[job.Name])
}

// overdue is why a starting agent is given up; empty where it is not.
func (r *reference) overdue(job agentpool.AgentJob) plan.EndReason {
	forgotten := r.Abandoned[job.UID] || r.Now.Sub(job.CreatedAt) >= r.Limits.UnregisteredLimit
	switch {
	case job.Suspended && job.Registration == agentpool.RegistrationJIT && job.AgentID == 0 && forgotten:
		return plan.EndUnregistered
	case job.Suspended && r.Now.Sub(job.CreatedAt) >= r.Limits.HalfMadeLimit:
		return plan.EndHalfMade
	case !job.Suspended && job.PodName == "" && job.Reason != "" && job.Reason != agentpool.ReasonQuota &&
		r.Now.Sub(job.CreatedAt) >= r.Limits.HalfMadeLimit:
		return plan.EndHalfMade
	case !job.Ready && !job.Scheduled.IsZero() && r.Now.Sub(job.Scheduled) >= r.Limits.StartupLimit:
		return plan.EndStartupLimit
	default:
		return ""
	}
}

func satisfies(c agentpool.Capabilities, request agentpool.JobRequest) bool {
	_, missing := c.Missing(request.Demands)
	return !missing && len(request.UnknownDemands) == 0
}

// classFor gives the class that serves a request, or why none does. Of those that were
// found not to offer what they claim it names the first.
func (r *reference) classFor(request agentpool.JobRequest) (string, plan.SkipReason) {
	claimed := ""
	for _, class := range r.classes {
		if satisfies(r.offersOf(class.Name), request) {
			return class.Name, ""
		}
		if claimed == "" && satisfies(class.Capabilities, request) {
			claimed = class.Name
		}
	}
	switch {
	case request.Foreign != (agentpool.AgentRef{}):
		return "", plan.SkipForeign
	case claimed != "":
		return claimed, plan.SkipMismatch
	default:
		return "", plan.SkipUnmatched
	}
}

// offersOf is what an agent made from the class now can be expected to do.
func (r *reference) offersOf(name string) agentpool.Capabilities {
	class := r.classOf(name)
	if offers, known := r.Offers[plan.ClassVersion{Class: name, Version: class.Version}]; known {
		return offers
	}
	return class.Capabilities
}

// offered is what an agent can be expected to do.
func (r *reference) offered(job agentpool.AgentJob) agentpool.Capabilities {
	if c, known := r.Registered[job.Name]; known {
		return c
	}
	if c, known := r.Offers[plan.ClassVersion{Class: job.Class, Version: job.ClassVersion}]; known {
		return c
	}
	if job.Capabilities != nil {
		return job.Capabilities
	}
	for _, class := range r.classes {
		if class.Name == job.Class && class.Version == job.ClassVersion {
			return class.Capabilities
		}
	}
	return nil
}

// fresh says that an agent may be one of those that its class keeps warm.
func (r *reference) fresh(job agentpool.AgentJob) bool {
	return slices.ContainsFunc(r.classes, func(c agentpool.AgentClass) bool {
		return c.Name == job.Class && c.Version == job.ClassVersion
	}) && (!job.Ready || r.Limits.MaxIdleAge <= 0 || r.waits(job) < r.Limits.MaxIdleAge)
}

// waits is how long an agent has been there without a build.
func (r *reference) waits(job agentpool.AgentJob) time.Duration {
	if job.Ready {
		return r.Now.Sub(job.ReadySince)
	}
	return r.Now.Sub(job.CreatedAt)
}

// backingOff says that failures keep the request from having a Job of the class.
func (r *reference) backingOff(requestID int64, class string) bool {
	failures := slices.Clone(r.Failures)
	var success time.Time // When the last one was made that came up.
	for _, job := range r.Jobs {
		if job.Failed() {
			failures = append(failures, plan.Failure{
				RequestID: job.RequestID, Class: job.Class, Count: job.Failures + 1, At: job.Ended,
				Disrupted: job.Reason == agentpool.ReasonEvicted || job.Reason == agentpool.ReasonNodeLost,
			})
		} else if job.Class == class && (job.Started || job.RanBuild) && job.CreatedAt.After(success) {
			success = job.CreatedAt
		}
	}
	var own, last plan.Failure
	inARow := 0
	// In the order of time: the first of those that are the same failure counts.
	slices.SortStableFunc(failures, func(a, b plan.Failure) int { return a.At.Compare(b.At) })
	var seen []plan.Failure
	for _, f := range failures {
		if f.Class != class {
			continue
		}
		since := !success.After(f.At)
		if f.RequestID == requestID && (requestID != agentpool.WarmRequest || since) &&
			(f.Count > own.Count || (f.Count == own.Count && f.At.After(own.At))) {
			own = f
		}
		again := f.RequestID != agentpool.WarmRequest && slices.ContainsFunc(seen, func(other plan.Failure) bool {
			return other.RequestID == f.RequestID && other.Count == f.Count
		})
		if since && !again && !f.Disrupted {
			seen = append(seen, f)
			inARow++
			if f.At.After(last.At) {
				last = f
			}
		}
	}
	wait := func(f plan.Failure, count int) bool {
		return r.Now.Before(f.At.Add(plan.Backoff(count, r.Limits.BackoffMin, r.Limits.BackoffMax)))
	}
	return (own.Count > 0 && wait(own, own.Count)) || (inARow >= 3 && wait(last, inARow-2))
}

// working counts the builds that run or are about to, on whatever agent.
func (r *reference) working() int {
	n := r.elsewhere()
	for _, job := range r.Jobs {
		if r.phase(job) == agentpool.PhaseBusy {
			n++
		}
	}
	return n
}

// units are all that is needed, requests first.
func (r *reference) units() []unit {
	var units []unit
	for _, request := range r.queued {
		units = append(units, unit{request: request.ID})
	}
	for _, class := range r.classes {
		for n := range class.MinIdle {
			units = append(units, unit{class: class.Name, n: n})
		}
	}
	return units
}

// augment finds an agent for the unit, if need be by giving another unit's holder a
// different one.
func (r *reference) augment(u unit, tried map[int]bool) bool {
	for i := range r.capacity {
		if tried[i] || !r.fits(u, r.capacity[i]) {
			continue
		}
		tried[i] = true
		holder, taken := r.holder(i)
		if !taken || r.augment(holder, tried) {
			r.given[u] = i
			return true
		}
	}
	return false
}

func (r *reference) holder(agent int) (unit, bool) {
	for u, i := range r.given {
		if i == agent {
			return u, true
		}
	}
	return unit{}, false
}

func (r *reference) fits(u unit, job agentpool.AgentJob) bool {
	if u.request == agentpool.WarmRequest {
		return job.Class == u.class && r.fresh(job)
	}
	return satisfies(r.offered(job), r.request(u.request))
}

func (r *reference) served(requestID int64) bool {
	_, ok := r.given[unit{request: requestID}]
	return ok
}

// warm is how many agents of the class are kept.
func (r *reference) warm(class string) int {
	n := 0
	for u := range r.given {
		if u.request == agentpool.WarmRequest && u.class == class {
			n++
		}
	}
	return n
}

// spare are the agents that need can do without. Each in its turn, the one that is ready
// first before the others, is given something to do, if need be by giving another agent
// something different; whoever once has something to do keeps something. It comes after
// match, which says what there is to do.
func (r *reference) spare() map[string]bool {
	capacity := slices.Clone(r.capacity)
	slices.SortFunc(capacity, func(a, b agentpool.AgentJob) int {
		return cmp.Or(cmp.Compare(readiness(a), readiness(b)), a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.Name, b.Name))
	})
	doing, spare := map[unit]agentpool.AgentJob{}, map[string]bool{}
	for _, job := range capacity {
		spare[job.Name] = !r.employ(job, doing, map[unit]bool{})
	}
	return spare
}

func (r *reference) employ(job agentpool.AgentJob, doing map[unit]agentpool.AgentJob, tried map[unit]bool) bool {
	for _, u := range r.units() {
		if _, counts := r.given[u]; !counts || tried[u] || !r.fits(u, job) {
			continue
		}
		tried[u] = true
		holder, taken := doing[u]
		if !taken || r.employ(holder, doing, tried) {
			doing[u] = job
			return true
		}
	}
	return false
}

func readiness(job agentpool.AgentJob) int {
	switch {
	case job.Ready:
		return 0
	case job.Started:
		return 1
	case job.PodName != "":
		return 2
	default:
		return 3
	}
}
