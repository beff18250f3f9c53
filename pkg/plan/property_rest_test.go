package plan_test

import (
	"cmp"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// pool is a pool that lives: plans are carried out, agents come up, and a service that
// is free to choose gives requests to any agent that satisfies them.
type pool struct {
	draw
	plan.Snapshot
	ran     map[int64]int
	made    int
	swapped int // Requests that ran on an agent that was made for another.
}

// TestEveryRequestRunsOnce lets a pool live until nothing changes any more: each request
// that a class serves has run once, on an agent of its own but for those that were taken
// by another, and no agent is left.
func TestEveryRequestRunsOnce(t *testing.T) {
	check(t, func(t *rapid.T) {
		p := newPool(draw{T: t})
		want := map[int64]int{}
		r := newReference(p.Snapshot)
		for _, request := range r.queued {
			if _, reason := r.classFor(request); reason == "" {
				want[request.ID] = 1
			}
		}
		for range 40 + 4*len(want) {
			p.carryOut()
			p.comeUp()
			p.assign()
			p.finish()
			p.Now = p.Now.Add(2 * time.Second)
		}
		if diff := gocmp.Diff(want, p.ran); diff != "" {
			t.Fatalf("how often requests have run (-want +got):\n%s\nskipped: %v", diff, skipped(plan.Make(p.Snapshot)))
		}
		if p.made > len(want)+p.swapped {
			t.Fatalf("%d agents were made for %d requests, of which %d ran on another's", p.made, len(want), p.swapped)
		}
		p.carryOut()
		p.Now = p.Now.Add(p.Limits.IdleLimit)
		p.carryOut()
		for _, job := range p.Jobs {
			if !job.Finished() {
				t.Fatalf("%s is left over", job.Name)
			}
		}
	})
}

func newPool(d draw) *pool {
	p := &pool{draw: d, Snapshot: snapshot(nil), ran: map[int64]int{}}
	p.Limits.IdleLimit = 10 * time.Minute // No agent is late here.
	p.Limits.PoolAgents = d.upTo(6, "pool cap")
	p.Limits.ParallelJobs = d.upTo(4, "parallel jobs")
	p.Limits.CreationsPerCycle = d.upTo(3, "creations")
	p.Disabled, p.Attempts = map[string]bool{}, map[int64]int{}
	p.Classes = nil
	for i := range 1 + d.upTo(4, "classes") {
		p.Classes = append(p.Classes, d.class(i, false))
	}
	for i := range d.upTo(12, "requests") {
		p.Requests = append(p.Requests, d.request(int64(i+1)))
	}
	return p
}

func (p *pool) carryOut() {
	todo := plan.Make(p.Snapshot)
	p.made += len(todo.Create)
	p.Snapshot = apply(p.Snapshot, todo)
	since := map[string]time.Time{}
	for _, uid := range todo.Spare {
		since[uid] = p.Now
		if before, was := p.SpareSince[uid]; was {
			since[uid] = before
		}
	}
	p.SpareSince = since
}

func (p *pool) comeUp() {
	for i := range p.Jobs {
		if job := &p.Jobs[i]; !job.Started && !p.one(4, "slow") {
			job.PodName, job.Scheduled = "pod", p.Now
			job.Started, job.Ready, job.ReadySince = true, true, p.Now
		}
	}
}

// assign gives requests to agents, in any order, and by preference the agent that could
// have done most.
func (p *pool) assign() {
	p.Requests = rapid.Permutation(p.Requests).Draw(p.T, "order of assignment")
	for i := range p.Requests {
		request := &p.Requests[i]
		if request.State() != agentpool.RequestQueued {
			continue
		}
		var able []*agentpool.AgentJob
		for k := range p.Jobs {
			if job := &p.Jobs[k]; job.Ready && !p.Disabled[job.Name] && satisfies(job.Capabilities, *request) {
				able = append(able, job)
			}
		}
		if len(able) == 0 {
			continue
		}
		slices.SortFunc(able, func(a, b *agentpool.AgentJob) int {
			return cmp.Or(cmp.Compare(len(b.Capabilities), len(a.Capabilities)), cmp.Compare(a.Name, b.Name))
		})
		job := able[p.upTo(len(able)-1, "agent")]
		job.Ready, job.RanBuild = false, true
		request.Reserved = agentpool.AgentRef{ID: 1, Name: job.Name}
		request.AssignTime, request.ReceiveTime = p.Now, p.Now
		p.ran[request.ID]++
		if job.RequestID != request.ID {
			p.swapped++
		}
	}
}

func (p *pool) finish() {
	for i := range p.Requests {
		request := &p.Requests[i]
		if request.State() != agentpool.RequestRunning || p.one(3, "long build") {
			continue
		}
		request.Result, request.FinishTime = "succeeded", p.Now
		for k := range p.Jobs {
			if p.Jobs[k].Name == request.Reserved.Name {
				p.Jobs[k].Ended, p.Jobs[k].JobDone = p.Now, true
			}
		}
	}
}
