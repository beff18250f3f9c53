package plan_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// TestPlanKeepsCaps says that no Job is made above a cap, for a class that is blocked or
// held back by failures, or under a name that has been used.
func TestPlanKeepsCaps(t *testing.T) {
	check(t, func(t *rapid.T) {
		s := draw{T: t}.snapshot()
		r := newReference(s)
		r.match()
		p := plan.Make(s)
		unfinished, working, inClass, attempts := 0, r.working(), map[string]int{}, map[int64]int{}
		for _, job := range s.Jobs {
			attempts[job.RequestID] = max(attempts[job.RequestID], job.Attempt+1)
			if r.phase(job) != agentpool.PhaseFinished {
				unfinished++
				inClass[job.Class]++
			}
		}
		for id, n := range s.Attempts {
			attempts[id] = max(attempts[id], n+1)
		}
		for _, request := range r.queued {
			if r.served(request.ID) {
				working++
			}
		}
		over := func(n, limit int) bool { return limit > 0 && n > limit }
		for i, c := range p.Create {
			unfinished++
			inClass[c.Class]++
			if c.Request.ID != agentpool.WarmRequest {
				working++
			}
			switch {
			case over(i+1, s.Limits.CreationsPerCycle), over(unfinished, s.Limits.PoolAgents),
				over(inClass[c.Class], r.classOf(c.Class).MaxAgents),
				c.Request.ID != agentpool.WarmRequest && over(working, s.Limits.ParallelJobs):
				t.Fatalf("creation %d for request %d in %q is above a cap", i, c.Request.ID, c.Class)
			case s.Blocked[c.Class] != "" || r.backingOff(c.Request.ID, c.Class):
				t.Fatalf("creation %d for request %d is in %q, which is held back", i, c.Request.ID, c.Class)
			case c.Attempt < attempts[c.Request.ID]:
				t.Fatalf("creation %d for request %d takes attempt %d, which there has been", i, c.Request.ID, c.Attempt)
			}
			attempts[c.Request.ID] = c.Attempt + 1
		}
	})
}

// TestPlanKeepsAgentsWarm says that each class has the agents it is to keep waiting, or
// that there is a reason for each that it lacks.
func TestPlanKeepsAgentsWarm(t *testing.T) {
	check(t, func(t *rapid.T) {
		s := draw{T: t}.snapshot()
		r := newReference(s)
		r.match()
		p := plan.Make(s)
		made := map[string]int{}
		for _, c := range p.Create {
			if c.Request.ID == agentpool.WarmRequest {
				made[c.Class]++
			}
		}
		for _, class := range s.Classes {
			have := r.warm(class.Name) + made[class.Name]
			shown := p.View.Warm[class.Name]
			if made[class.Name] > 0 && have > class.MinIdle {
				t.Fatalf("%q keeps %d agents and gets %d more, want %d", class.Name, r.warm(class.Name), made[class.Name], class.MinIdle)
			}
			if shown.Want != class.MinIdle || (class.MinIdle > 0 && shown.Have != have) {
				t.Fatalf("%q wants %d agents and has %d, shown are %+v", class.Name, class.MinIdle, have, shown)
			}
			if (shown.Held == "") != (have >= class.MinIdle) {
				t.Fatalf("%q has %d agents of %d: held by %q", class.Name, have, class.MinIdle, shown.Held)
			}
		}
	})
}

// replaced says that an agent makes room only for a request that a cap holds back, and
// that one which is outdated goes only when another is ready in its place or can be.
func (r *reference) replaced(t *rapid.T, p plan.Plan, ends map[string]plan.EndReason) {
	held, makingRoom, going, onlyPool := 0, 0, 0, true
	for _, ending := range p.End {
		if !ending.Job.Finished() && !ending.Job.Deleting { // The one takes no room, and the other is counted below.
			going++
		}
	}
	for _, skip := range p.Skipped {
		if skip.Reason == plan.SkipClassCap || skip.Reason == plan.SkipPoolCap {
			held++
			onlyPool = onlyPool && skip.Reason == plan.SkipPoolCap
		}
	}
	for _, job := range r.Jobs {
		if job.Deleting && !job.Finished() {
			going++
		}
	}
	there, leaving := map[string]int{}, map[string]bool{}
	for _, job := range r.capacity {
		switch ends[job.Name] {
		case plan.EndMakeRoom:
			makingRoom++
		case plan.EndClassChanged, plan.EndMaxIdleAge:
			leaving[job.Class] = true
		default:
			if job.Ready || !r.fresh(job) {
				there[job.Class]++
			}
		}
	}
	if makingRoom > held || (onlyPool && makingRoom > max(0, held-(going-makingRoom))) {
		t.Fatalf("%d agents make room for %d requests, and %d go as it is", makingRoom, held, going-makingRoom)
	}
	for class := range leaving {
		shown := p.View.Warm[class]
		capped := shown.Held == plan.SkipClassCap || shown.Held == plan.SkipPoolCap
		if makingRoom == 0 && !capped && there[class] < shown.Want {
			t.Fatalf("%q has %d agents that wait or will not go, of %d, and one of them goes: %v", class, there[class], shown.Want, ends)
		}
	}
}

// TestPlanEndsOnlyWhatIsSpare says that nothing is ended that runs a build or is counted
// for one, and that all is ended that should be.
func TestPlanEndsOnlyWhatIsSpare(t *testing.T) {
	check(t, func(t *rapid.T) {
		s := draw{T: t}.snapshot()
		r := newReference(s)
		r.match()
		p := plan.Make(s)
		if s.NoDeletions && len(p.End) > 0 {
			t.Fatalf("nothing may be ended, %d are", len(p.End))
		}
		ends := map[string]plan.EndReason{}
		for _, e := range p.End {
			if ends[e.Job.Name] != "" {
				t.Fatalf("%s is ended twice", e.Job.Name)
			}
			ends[e.Job.Name] = e.Reason
		}
		for _, job := range p.Complete {
			if !job.Suspended || job.Unregistered() || r.phase(job) != agentpool.PhaseStarting {
				t.Fatalf("%s is gone on with and is not half-made", job.Name)
			}
		}
		for _, job := range p.Disable {
			if r.phase(job) != agentpool.PhaseBusy || s.Disabled[job.Name] {
				t.Fatalf("%s is disabled and runs no build, or is disabled already", job.Name)
			}
		}
		spare := r.spare()
		for _, job := range s.Jobs {
			if problem := r.wrongEnd(job, spare[job.Name], ends[job.Name]); problem != "" {
				t.Fatalf("%s (%s, %v, waits for %v): %s", job.Name, job.Class, r.phase(job), r.waits(job), problem)
			}
		}
		r.withoutThem(t, ends)
		r.replaced(t, p, ends)
	})
}

// wrongEnd looks at one agent and the reason it is ended for, if any.
func (r *reference) wrongEnd(job agentpool.AgentJob, spare bool, got plan.EndReason) string {
	phase, want := r.phase(job), plan.EndReason("")
	minIdle := r.classOf(job.Class).MinIdle
	switch {
	case r.NoDeletions, phase == agentpool.PhaseBusy:
	case phase == agentpool.PhaseFinished:
		if !job.JobDone && r.Now.Sub(job.Ended) >= 10*time.Minute {
			want = plan.EndLingering
		}
	case job.Deleting:
		if r.Lost[job.Name] {
			want = plan.EndLost
		}
	case phase == agentpool.PhaseLeaving:
		want = plan.EndWithdrawn
	case phase == agentpool.PhaseStarting && r.overdue(job) != "":
		want = r.overdue(job)
	case got == plan.EndMakeRoom:
		return "" // Who makes room is looked at for all of them together.
	case spare && minIdle > 0 && !r.fresh(job):
		if got == "" || got == plan.EndMaxIdleAge || (got == plan.EndClassChanged && job.ClassVersion != r.classOf(job.Class).Version) {
			return "" // So is who replaces whom.
		}
	case spare && !r.SpareSince[job.UID].IsZero() && r.Now.Sub(r.SpareSince[job.UID]) >= r.Limits.IdleLimit:
		want = plan.EndSurplus
	}
	if got != want {
		return fmt.Sprintf("want end %q, got %q", want, got)
	}
	return ""
}

// withoutThem says that who is served now is served without the ended agents too, and
// that as many are kept warm, but for what makes room. Of which class these are missed is
// for the next plan to say: its agents may have to stand in for those that have gone.
func (r *reference) withoutThem(t *rapid.T, ends map[string]plan.EndReason) {
	room := 0
	after := newReference(r.Snapshot)
	after.capacity = nil
	for _, job := range r.capacity {
		if ends[job.Name] == "" {
			after.capacity = append(after.capacity, job)
		}
		if ends[job.Name] == plan.EndMakeRoom {
			room++
		}
	}
	after.match()
	for _, request := range r.queued {
		if r.served(request.ID) != after.served(request.ID) {
			t.Fatalf("request %d loses its agent: %v", request.ID, ends)
		}
	}
	missed := 0
	for _, class := range r.classes {
		missed += max(0, r.warm(class.Name)-after.warm(class.Name))
	}
	if missed > room {
		t.Fatalf("%d agents that are kept warm are missed, and %d make room: %v", missed, room, ends)
	}
}

// TestOutdatedAgentsAreReplaced says how many agents that are to be replaced stay in a pool
// where no request waits: as many as fresh ones are not ready yet, but for those that
// cannot be made as long as these are there.
func TestOutdatedAgentsAreReplaced(t *testing.T) {
	check(t, func(t *rapid.T) {
		s := draw{T: t}.snapshot()
		s.NoDeletions = false
		s.Requests = slices.DeleteFunc(s.Requests, func(request agentpool.JobRequest) bool {
			return request.State() == agentpool.RequestQueued
		})
		r := newReference(s)
		p := plan.Make(s)
		ends := ended(p)
		for _, class := range s.Classes {
			if class.MinIdle == 0 {
				continue
			}
			fresh, outdated, kept := 0, 0, 0
			for _, job := range r.capacity {
				switch {
				case job.Class != class.Name:
				case !r.fresh(job):
					outdated++
					if ends[job.Name] == "" {
						kept++
					}
				case job.Ready:
					fresh++
				}
			}
			want := class.MinIdle - fresh
			if shown := p.View.Warm[class.Name]; shown.Held == plan.SkipClassCap || shown.Held == plan.SkipPoolCap {
				want -= shown.Want - shown.Have
			}
			if want = min(outdated, max(0, want)); kept != want {
				t.Fatalf("%q keeps %d of %d outdated agents beside %d fresh ones, want %d: %+v",
					class.Name, kept, outdated, fresh, want, p.View.Warm[class.Name])
			}
		}
	})
}
