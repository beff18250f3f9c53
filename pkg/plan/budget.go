package plan

import (
	"fmt"
	"math"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// budget is what the caps leave room for.
type budget struct {
	s       Snapshot
	history *history
	live    int
	ofClass map[string]int
	running int // Builds that run or will, of those that are queued: on our agents or on others of the pool.
	created int
	// roomless counts the requests that a cap of class or pool holds back. A parallel job
	// is kept for each, or an agent would make room for one that may not run even then.
	roomless int
}

func newBudget(s Snapshot, h *history, agents []agent) *budget {
	b := &budget{s: s, history: h, ofClass: map[string]int{}, running: elsewhere(s) + s.OtherPools}
	for _, a := range agents {
		if a.phase == agentpool.PhaseFinished {
			continue
		}
		b.live++
		b.ofClass[a.job.Class]++
		if a.phase == agentpool.PhaseBusy {
			b.running++
		}
	}
	return b
}

// headroom is how many builds the organisation can run beside those that run already. It is
// the total that was bought less what is seen to run, never less what the service says is
// used: that is out of date, and our own agents are in it.
func (b *budget) headroom() int {
	if b.s.Limits.ParallelJobs <= 0 {
		return math.MaxInt
	}
	return max(0, b.s.Limits.ParallelJobs-b.running)
}

// elsewhere counts the requests that run, or are about to, on agents of somebody else. Where
// parallel jobs are no limit, nobody needs to know.
func elsewhere(s Snapshot) int {
	if s.Limits.ParallelJobs <= 0 {
		return 0
	}
	ours := make(map[string]bool, len(s.Jobs))
	for i := range s.Jobs {
		ours[s.Jobs[i].Name] = true
	}
	n := 0
	for i := range s.Requests {
		if s.Requests[i].UnderWay() && !ours[s.Requests[i].Reserved.Name] {
			n++
		}
	}
	return n
}

// admit gives a request a Job of the class, or says what holds it back. An agent to
// keep waiting has no request.
func (b *budget) admit(request agentpool.JobRequest, class agentpool.AgentClass) (Creation, Skip, bool) {
	if reason, detail := b.holds(request.ID, class); reason != "" {
		if request.ID != agentpool.WarmRequest && (reason == SkipClassCap || reason == SkipPoolCap) {
			b.roomless++
		}
		return Creation{}, Skip{Request: request, Class: class.Name, Reason: reason, Detail: detail}, false
	}
	b.live++
	b.ofClass[class.Name]++
	b.created++
	if request.ID != agentpool.WarmRequest {
		b.running++
	}
	return Creation{
		Request:  request,
		Class:    class.Name,
		Attempt:  b.history.nextAttempt(request.ID),
		Failures: b.history.request[cause{request: request.ID, class: class.Name}].Count,
	}, Skip{}, true
}

func (b *budget) holds(requestID int64, class agentpool.AgentClass) (SkipReason, string) {
	limits := b.s.Limits
	if why, blocked := b.s.Blocked[class.Name]; blocked {
		return SkipBlocked, why
	}
	if until := b.history.notBefore(requestID, class.Name, limits); until.After(b.s.Now) {
		return SkipBackoff, "after failed agents, not before " + until.UTC().Format(time.RFC3339)
	}
	// Agents that only wait take no parallel job. What is left of these comes before the caps
	// that an agent can make room under: it would be ended for nothing, and made again.
	headroom := b.headroom()
	if requestID == agentpool.WarmRequest {
		headroom = math.MaxInt
	}
	if headroom == 0 {
		return SkipParallelJobs, fmt.Sprintf("the organisation has %d parallel jobs", limits.ParallelJobs)
	}
	if reason, detail := b.full(class); reason != "" {
		if headroom <= b.roomless {
			return SkipParallelJobs, fmt.Sprintf("the organisation has %d parallel jobs, which those before it take", limits.ParallelJobs)
		}
		return reason, detail
	}
	if n := limits.CreationsPerCycle; n > 0 && b.created >= n {
		return SkipPerCycle, fmt.Sprintf("a cycle makes at most %d Jobs", n)
	}
	return "", ""
}

// full says that there are as many agents as there may be, of the class or in the pool.
func (b *budget) full(class agentpool.AgentClass) (SkipReason, string) {
	if n := class.MaxAgents; n > 0 && b.ofClass[class.Name] >= n {
		return SkipClassCap, fmt.Sprintf("class %s may have %d agents", class.Name, n)
	}
	if n := b.s.Limits.PoolAgents; n > 0 && b.live >= n {
		return SkipPoolCap, fmt.Sprintf("the pool may have %d agents", n)
	}
	return "", ""
}
