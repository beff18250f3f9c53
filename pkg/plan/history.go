package plan

import (
	"cmp"
	"slices"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// cause is what failures in a row are counted for: one request in one class.
type cause struct {
	request int64
	class   string
}

// history is what went before: attempts and failures.
type history struct {
	attempts map[int64]int
	request  map[cause]Failure
	class    map[string]Failure
}

func newHistory(s Snapshot, agents []agent) *history {
	h := &history{
		attempts: make(map[int64]int, len(s.Attempts)+len(agents)),
		request:  map[cause]Failure{}, class: map[string]Failure{},
	}
	for id, n := range s.Attempts {
		h.attempts[id] = n
	}
	failures := slices.Clone(s.Failures)
	lastSuccess := map[string]time.Time{}
	for _, a := range agents {
		job := a.job
		if n, ok := h.attempts[job.RequestID]; !ok || job.Attempt > n {
			h.attempts[job.RequestID] = job.Attempt
		}
		switch {
		case job.Failed():
			failures = append(failures, Failure{
				RequestID: job.RequestID, Class: job.Class, Count: job.Failures + 1, At: endOf(*job), Disrupted: job.Reason.Disruption(),
			})
		case job.RanBuild || job.Started:
			if job.CreatedAt.After(lastSuccess[job.Class]) {
				lastSuccess[job.Class] = job.CreatedAt
			}
		}
	}
	slices.SortFunc(failures, func(a, b Failure) int {
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.RequestID, b.RequestID), cmp.Compare(a.Class, b.Class), cmp.Compare(a.Count, b.Count))
	})
	type event struct {
		cause
		count int
	}
	counted := map[event]bool{}
	for _, f := range failures {
		if f.RequestID == agentpool.WarmRequest && lastSuccess[f.Class].After(f.At) {
			continue // Made for no request, it can't be followed up to its success but by its class.
		}
		c := cause{request: f.RequestID, class: f.Class}
		h.request[c] = later(h.request[c], f)
		// A class is in trouble only while nothing made since then has started, and not for
		// what became of its agents' nodes: one that is drained takes many at a time.
		if f.Disrupted || lastSuccess[f.Class].After(f.At) {
			continue
		}
		// What is remembered of a Job that was given up, the Job may show as well. Agents
		// that are to wait may fail several at a time.
		if e := (event{c, f.Count}); f.RequestID != agentpool.WarmRequest {
			if counted[e] {
				continue
			}
			counted[e] = true
		}
		f.Count = h.class[f.Class].Count + 1
		h.class[f.Class] = f
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

// notBefore gives the moment from which the request may have a Job of the class
// again. A class's failures hold back only those requests that have failed in it, and
// new ones only while the class has just failed several times over: one broken
// build environment must not stop the others.
func (h *history) notBefore(requestID int64, class string, limits Limits) time.Time {
	var until time.Time
	if f, ok := h.request[cause{request: requestID, class: class}]; ok {
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

// nextAttempt gives a number that no Job of the request has had, and counts it as
// given.
func (h *history) nextAttempt(requestID int64) int {
	n, before := h.attempts[requestID]
	if before {
		n++
	}
	h.attempts[requestID] = n
	return n
}
