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
		want, got := r.outcomes(), map[int64]outcome{}
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
		if diff := gocmp.Diff(want, got); diff != "" {
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
			if reason := skipped(p)[request.ID]; reason == plan.SkipServed || reason == plan.SkipHeld {
				counted = append(counted, request)
			} else {
				left = append(left, request)
			}
		}
		for _, request := range left {
			if able := r.able(append(slices.Clone(counted), request)); able > len(counted) {
				t.Fatalf("request %d is left waiting, and agents could serve it beside all others", request.ID)
			}
		}
	})
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

// outcomes goes through the requests that no agent is counted for and makes Jobs until
// a cap is reached.
func (r *reference) outcomes() map[int64]outcome {
	unfinished, inClass, busy, served := 0, map[string]int{}, 0, 0
	for _, job := range r.Jobs {
		if phase := r.phase(job); phase != agentpool.PhaseFinished {
			unfinished++
			inClass[job.Class]++
			if phase == agentpool.PhaseBusy {
				busy++
			}
		}
	}
	for _, request := range r.queued {
		if r.served(request.ID) {
			served++
		}
	}
	made := 0
	reached := func(n, limit int) bool { return limit > 0 && n >= limit }
	all := map[int64]outcome{}
	for _, request := range r.queued {
		class, reason := r.classFor(request)
		o := outcome{Class: class, Reason: reason}
		switch {
		case r.served(request.ID) && reason != "":
			o = outcome{Reason: plan.SkipServed} // By an agent of an earlier version, say.
		case r.served(request.ID):
			o.Reason = plan.SkipServed
		case reason != "":
		case r.Blocked[class] != "":
			o.Reason = plan.SkipBlocked
		case r.backingOff(request.ID, class):
			o.Reason = plan.SkipBackoff
		case reached(inClass[class], r.classOf(class).MaxAgents):
			o.Reason = plan.SkipClassCap
		case reached(unfinished, r.Limits.PoolAgents):
			o.Reason = plan.SkipPoolCap
		case reached(busy+served+made, r.Limits.ParallelJobs):
			o.Reason = plan.SkipParallelJobs
		case reached(made, r.Limits.CreationsPerCycle):
			o.Reason = plan.SkipPerCycle
		default:
			made++
			unfinished++
			inClass[class]++
		}
		all[request.ID] = o
	}
	return all
}

func (r *reference) classOf(name string) agentpool.AgentClass {
	for _, class := range r.classes {
		if class.Name == name {
			return class
		}
	}
	return agentpool.AgentClass{}
}
