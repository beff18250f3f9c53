package plan

import (
	"fmt"
	"slices"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// budget is what the caps leave room for.
type budget struct {
	s          Snapshot
	live       int
	unfinished map[string]int
	created    int
}

func newBudget(s Snapshot, live int, unfinished map[string]int) *budget {
	return &budget{s: s, live: live, unfinished: unfinished}
}

// admit turns a candidate into a creation, or says what holds it back.
func (b *budget) admit(c candidate, h history) (Creation, Skip, bool) {
	reason, detail := b.holds(c, h)
	if reason != "" {
		return Creation{}, Skip{Request: c.request, Class: c.class.Name, Reason: reason, Detail: detail}, false
	}
	b.live++
	b.unfinished[c.class.Name]++
	b.created++
	return Creation{
		Request:  c.request,
		Class:    c.class.Name,
		Attempt:  h.nextAttempt(c.request.ID),
		Failures: h.request[c.request.ID].Count,
	}, Skip{}, true
}

func (b *budget) holds(c candidate, h history) (SkipReason, string) {
	limits := b.s.Limits
	if why, blocked := b.s.Blocked[c.class.Name]; blocked {
		return SkipBlocked, why
	}
	if until := h.notBefore(c.request.ID, c.class.Name, limits); until.After(b.s.Now) {
		return SkipBackoff, "after failed agents, not before " + until.UTC().Format(time.RFC3339)
	}
	if n := c.class.MaxAgents; n > 0 && b.unfinished[c.class.Name] >= n {
		return SkipClassCap, fmt.Sprintf("class %s may have %d agents", c.class.Name, n)
	}
	if n := limits.PoolAgents; n > 0 && b.live >= n {
		return SkipPoolCap, fmt.Sprintf("the pool may have %d agents", n)
	}
	// The total that was bought, never total minus used: what the service says is
	// used is out of date, and our own agents are in it.
	if n := limits.ParallelJobs; n > 0 && b.live >= n {
		return SkipParallelJobs, fmt.Sprintf("the organisation has %d parallel jobs", n)
	}
	if n := limits.CreationsPerCycle; n > 0 && b.created >= n {
		return SkipPerCycle, fmt.Sprintf("a cycle makes at most %d Jobs", n)
	}
	return "", ""
}

// history is what went before: attempts and failures.
type history struct {
	attempts map[int64]int
	request  map[int64]Failure
	class    map[string]Failure
}

func newHistory(s Snapshot, jobs []agentpool.AgentJob) history {
	h := history{attempts: map[int64]int{}, request: map[int64]Failure{}, class: map[string]Failure{}}
	for id, n := range s.Attempts {
		h.attempts[id] = n
	}
	failures := slices.Clone(s.Failures)
	lastSuccess := map[string]time.Time{}
	for _, job := range jobs {
		if n, ok := h.attempts[job.RequestID]; !ok || job.Attempt > n {
			h.attempts[job.RequestID] = job.Attempt
		}
		switch {
		case job.Failed():
			failures = append(failures, Failure{
				RequestID: job.RequestID, Class: job.Class, Count: job.Failures + 1, At: endOf(job),
			})
		case job.RanBuild || job.Started:
			if at := job.CreatedAt; at.After(lastSuccess[job.Class]) {
				lastSuccess[job.Class] = at
			}
		}
	}
	slices.SortFunc(failures, func(a, b Failure) int {
		if c := a.At.Compare(b.At); c != 0 {
			return c
		}
		return int(a.RequestID - b.RequestID)
	})
	for _, f := range failures {
		h.request[f.RequestID] = later(h.request[f.RequestID], f)
		// A class is in trouble only while nothing made since then has started.
		if !lastSuccess[f.Class].After(f.At) {
			previous := h.class[f.Class]
			f.Count = previous.Count + 1
			h.class[f.Class] = f
		}
	}
	return h
}

func later(a, b Failure) Failure {
	if b.Count > a.Count || (b.Count == a.Count && b.At.After(a.At)) {
		return b
	}
	return a
}

func endOf(job agentpool.AgentJob) time.Time {
	if job.Ended.IsZero() {
		return job.CreatedAt
	}
	return job.Ended
}

// notBefore gives the moment from which the request may have a Job again. A
// class's failures hold back only those requests that have failed in it, and
// new ones only while the class has just failed several times over: one broken
// build environment must not stop the others.
func (h history) notBefore(requestID int64, class string, limits Limits) time.Time {
	var until time.Time
	if f, ok := h.request[requestID]; ok {
		until = f.At.Add(Backoff(f.Count, limits.BackoffMin, limits.BackoffMax))
	}
	if f, ok := h.class[class]; ok && f.Count >= classTrouble {
		if t := f.At.Add(Backoff(f.Count-classTrouble+1, limits.BackoffMin, limits.BackoffMax)); t.After(until) {
			until = t
		}
	}
	return until
}

// classTrouble is how many agents in a row must fail before their whole class is
// held back.
const classTrouble = 3

// Backoff is the wait after the count-th failure in a row: it doubles from least
// to most.
func Backoff(count int, least, most time.Duration) time.Duration {
	if count <= 0 {
		return 0
	}
	wait := least
	for i := 1; i < count && wait < most; i++ {
		wait *= 2
	}
	return min(wait, most)
}

func (h history) nextAttempt(requestID int64) int {
	if n, ok := h.attempts[requestID]; ok {
		return n + 1
	}
	return 0
}
