package plan_test

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// apply gives the pool as it is when all that is planned has been done, at once and
// without a failure.
func apply(s plan.Snapshot, p plan.Plan) plan.Snapshot {
	s.Jobs, s.Disabled, s.Attempts = slices.Clone(s.Jobs), maps.Clone(s.Disabled), maps.Clone(s.Attempts)
	for _, job := range p.Disable {
		s.Disabled[job.Name] = true
	}
	for _, e := range p.End {
		s.Attempts[e.Job.RequestID] = max(s.Attempts[e.Job.RequestID], e.Job.Attempt)
		s.Jobs = slices.DeleteFunc(s.Jobs, func(job agentpool.AgentJob) bool { return job.Name == e.Job.Name })
	}
	for i := range s.Jobs {
		for _, job := range p.Complete {
			if s.Jobs[i].Name == job.Name {
				s.Jobs[i].Suspended = false
			}
		}
	}
	for _, c := range p.Create {
		i := slices.IndexFunc(s.Classes, func(class agentpool.AgentClass) bool { return class.Name == c.Class })
		name := fmt.Sprintf("azp-test-7-%d-%d", c.Request.ID, c.Attempt)
		s.Jobs = append(s.Jobs, agentpool.AgentJob{
			Name: name, UID: "made-" + name, PoolID: 7, RequestID: c.Request.ID, Attempt: c.Attempt, Failures: c.Failures,
			Class: c.Class, ClassVersion: s.Classes[i].Version, Capabilities: s.Classes[i].Capabilities,
			CreatedAt: s.Now, QueuedAt: c.Request.QueueTime,
		})
	}
	return s
}

// TestPlanIsStable says that a plan that is carried out leaves nothing to do, unless it
// has moved something: what was ended leaves room, the creations of one cycle are bounded,
// and a request that can have no agent of its own is counted for one of another. Even
// then it comes to an end, and never makes more than one agent for each that is needed.
func TestPlanIsStable(t *testing.T) {
	check(t, func(t *rapid.T) {
		s := draw{T: t}.snapshot()
		r := newReference(s)
		needed, made := len(r.units()), 0
		for cycle := range 100 {
			p := plan.Make(s)
			s = apply(s, p)
			again := plan.Make(s)
			made += len(p.Create)
			if made > needed {
				t.Fatalf("%d agents are made and %d are needed", made, needed)
			}
			if len(again.Complete)+len(again.Disable) > 0 {
				t.Fatalf("cycle %d: carried out, the plan goes on with %d and disables %d", cycle, len(again.Complete), len(again.Disable))
			}
			if len(again.Create)+len(again.End) == 0 {
				return
			}
			most := mayGoOn(p, again)
			if len(spared(again)) > most {
				t.Fatalf("cycle %d: carried out, the plan ends %v, want %d at most; it skipped %v, and now skips %v",
					cycle, spared(again), most, skipped(p), skipped(again))
			}
			if len(again.Create) > most {
				t.Fatalf("cycle %d: carried out, the plan makes Jobs for %v, want %d at most; it made %v and skipped %v, and now skips %v",
					cycle, created(again), most, created(p), skipped(p), skipped(again))
			}
		}
		t.Fatalf("the plan does not come to an end: %v, %v", created(plan.Make(s)), ended(plan.Make(s)))
	})
}

// mayGoOn is how many Jobs may be made once the plan has been carried out: one for each
// that the cycle's creations were used up for, and one for each request, or agent to keep
// waiting, that was held back and that an agent is now counted for which was meant for
// somebody else. As many agents may be spare, where somebody else then has no parallel job.
// Where agents have gone there is room for any number.
func mayGoOn(p, again plan.Plan) int {
	if len(p.End) > 0 {
		return math.MaxInt
	}
	before, after, n := skipped(p), skipped(again), 0
	for id, reason := range before {
		counted := after[id] == plan.SkipServed || after[id] == plan.SkipHeld
		if reason == plan.SkipPerCycle || (counted && reason != plan.SkipServed && reason != plan.SkipHeld) {
			n++
		}
	}
	for class, warm := range p.View.Warm {
		if warm.Held == plan.SkipPerCycle {
			n += warm.Want - warm.Have
		} else if warm.Held != "" {
			n += max(0, again.View.Warm[class].Have-warm.Have)
		}
	}
	return n
}

// spared are the agents that end though nobody takes their place.
func spared(p plan.Plan) []string {
	var names []string
	for _, e := range p.End {
		if e.Reason != plan.EndMakeRoom && e.Reason != plan.EndClassChanged && e.Reason != plan.EndMaxIdleAge {
			names = append(names, e.Job.Name)
		}
	}
	return names
}
