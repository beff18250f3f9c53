package plan_test

import (
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// TestPlanServesAsManyAsCanBe compares with the reference whom capacity is counted for,
// and what becomes of everybody else.
func TestPlanServesAsManyAsCanBe(t *testing.T) {
	check(t, func(t *rapid.T) {
		s := draw{T: t}.snapshot()
		r := newReference(s)
		r.match()
		got := map[int64]outcome{}
		p := plan.Make(s)
		for _, c := range p.Create {
			if c.Request.ID != agentpool.WarmRequest {
				got[c.Request.ID] = outcome{Class: c.Class}
			}
		}
		for _, skip := range p.Skipped {
			o := outcome{Class: skip.Class, Reason: skip.Reason}
			if o.Reason == plan.SkipHeld {
				o.Reason = plan.SkipServed // An agent is counted for it all the same.
			}
			got[skip.Request.ID] = o
		}
		if diff := gocmp.Diff(r.fate, got); diff != "" {
			t.Fatalf("what becomes of requests (-want +got):\n%s", diff)
		}
	})
}

// TestRareAgentsAreKeptForRareRequests says that no agent is counted for a request while
// that leaves another waiting who could have had it, if others could do the former's work.
func TestRareAgentsAreKeptForRareRequests(t *testing.T) {
	common, rare := class("a-common"), class("rare", "gpu")
	for name, jobs := range map[string][]agentpool.AgentJob{
		"rare first":   {job(1, ofClass(rare, idle)), job(2, ofClass(common, starting))},
		"common first": {job(1, ofClass(common, idle)), job(2, ofClass(rare, starting))},
	} {
		// The common request is the more urgent one, and either agent can take it.
		s := inClasses(snapshot([]agentpool.JobRequest{demanding(1, "Agent.OS"), demanding(2, "gpu")}, jobs...), common, rare)
		p := plan.Make(s)
		want := map[int64]plan.SkipReason{1: plan.SkipServed, 2: plan.SkipServed}
		if diff := gocmp.Diff(want, skipped(p)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	check(t, func(t *rapid.T) {
		s := draw{T: t}.snapshot()
		r := newReference(s)
		p := plan.Make(s)
		var counted, left []agentpool.JobRequest
		for _, request := range r.queued {
			switch skipped(p)[request.ID] {
			case plan.SkipServed, plan.SkipHeld:
				counted = append(counted, request)
			case plan.SkipParallelJobs: // No agent would help it.
			default:
				left = append(left, request)
			}
		}
		for _, request := range left {
			full := s.Limits.ParallelJobs > 0 && r.working()+len(counted)+forRequests(p) >= s.Limits.ParallelJobs
			if able := r.able(append(slices.Clone(counted), request)); able > len(counted) && !full {
				t.Fatalf("request %d is left waiting, and agents could serve it beside all others", request.ID)
			}
		}
	})
}

// forRequests is how many Jobs are made for a request.
func forRequests(p plan.Plan) int {
	n := 0
	for _, c := range p.Create {
		if c.Request.ID != agentpool.WarmRequest {
			n++
		}
	}
	return n
}

// able is how many of the requests can have an agent at once.
func (r *reference) able(requests []agentpool.JobRequest) int {
	given, n := map[int]agentpool.JobRequest{}, 0
	var give func(request agentpool.JobRequest, tried map[int]bool) bool
	give = func(request agentpool.JobRequest, tried map[int]bool) bool {
		for i, job := range r.capacity {
			if tried[i] || !satisfies(r.offered(job), request) {
				continue
			}
			tried[i] = true
			holder, taken := given[i]
			if !taken || give(holder, tried) {
				given[i] = request
				return true
			}
		}
		return false
	}
	for _, request := range requests {
		if give(request, map[int]bool{}) {
			n++
		}
	}
	return n
}

// outcome is what becomes of a request: a Job of the class where there is no reason
// against it.
type outcome struct {
	Class  string
	Reason plan.SkipReason
}

// match goes through all that is needed, requests first. An agent is counted for each that
// can have one beside those before it, who are never worse off for it; for the others Jobs
// are made until a cap is reached.
func (r *reference) match() {
	unfinished, inClass, working, made, roomless := 0, map[string]int{}, r.working(), 0, 0
	for _, job := range r.Jobs {
		if r.phase(job) != agentpool.PhaseFinished {
			unfinished++
			inClass[job.Class]++
		}
	}
	reached := func(n, limit int) bool { return limit > 0 && n >= limit }
	for _, u := range r.units() {
		if u.request == agentpool.WarmRequest {
			r.augment(u, map[int]bool{})
			continue
		}
		class, reason := r.classFor(r.request(u.request))
		o := outcome{Class: class, Reason: reason}
		switch full := reached(working, r.Limits.ParallelJobs); {
		case !full && r.augment(u, map[int]bool{}):
			if o.Reason = plan.SkipServed; reason != "" {
				o.Class = "" // An agent of an earlier version, say, serves it.
			}
			working++
		case reason != "":
		case r.Blocked[class] != "":
			o.Reason = plan.SkipBlocked
		case r.backingOff(u.request, class):
			o.Reason = plan.SkipBackoff
		case full:
			o.Reason = plan.SkipParallelJobs
		case reached(inClass[class], r.classOf(class).MaxAgents) || reached(unfinished, r.Limits.PoolAgents):
			switch {
			case reached(working+roomless, r.Limits.ParallelJobs):
				o.Reason = plan.SkipParallelJobs
			case reached(inClass[class], r.classOf(class).MaxAgents):
				o.Reason = plan.SkipClassCap
				roomless++
			default:
				o.Reason = plan.SkipPoolCap
				roomless++
			}
		case reached(made, r.Limits.CreationsPerCycle):
			o.Reason = plan.SkipPerCycle
		default:
			made++
			working++
			unfinished++
			inClass[class]++
		}
		r.fate[u.request] = o
	}
}

// request gives the queued request of that number.
func (r *reference) request(id int64) agentpool.JobRequest {
	return r.queued[slices.IndexFunc(r.queued, func(request agentpool.JobRequest) bool { return request.ID == id })]
}

// elsewhere counts what runs on agents of somebody else, and in other pools.
func (r *reference) elsewhere() int {
	n := r.OtherPools
	for _, request := range r.Requests {
		given := request.State() == agentpool.RequestAssigned || request.State() == agentpool.RequestRunning
		if given && !slices.ContainsFunc(r.Jobs, func(job agentpool.AgentJob) bool { return job.Name == request.Reserved.Name }) {
			n++
		}
	}
	return n
}

func (r *reference) classOf(name string) agentpool.AgentClass {
	for _, class := range r.classes {
		if class.Name == name {
			return class
		}
	}
	return agentpool.AgentClass{}
}
