package plan

import (
	"fmt"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// budget is what the caps leave room for.
type budget struct {
	s       Snapshot
	history *history
	live    int
	ofClass map[string]int
	running int // Agents that run a build, or will run one that is queued.
	created int
}

func newBudget(s Snapshot, h *history, agents []agent) *budget {
	b := &budget{s: s, history: h, ofClass: map[string]int{}}
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

// admit gives a request a Job of the class, or says what holds it back. An agent to
// keep waiting has no request.
func (b *budget) admit(request agentpool.JobRequest, class agentpool.AgentClass) (Creation, Skip, bool) {
	if reason, detail := b.holds(request.ID, class); reason != "" {
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
	if n := class.MaxAgents; n > 0 && b.ofClass[class.Name] >= n {
		return SkipClassCap, fmt.Sprintf("class %s may have %d agents", class.Name, n)
	}
	if n := limits.PoolAgents; n > 0 && b.live >= n {
		return SkipPoolCap, fmt.Sprintf("the pool may have %d agents", n)
	}
	// The total that was bought, never total minus used: what the service says is
	// used is out of date, and our own agents are in it. Agents that only wait take
	// none.
	if n := limits.ParallelJobs; n > 0 && requestID != agentpool.WarmRequest && b.running >= n {
		return SkipParallelJobs, fmt.Sprintf("the organisation has %d parallel jobs", n)
	}
	if n := limits.CreationsPerCycle; n > 0 && b.created >= n {
		return SkipPerCycle, fmt.Sprintf("a cycle makes at most %d Jobs", n)
	}
	return "", ""
}
