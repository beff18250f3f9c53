package plan

import (
	"cmp"
	"slices"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

func compareJobs(a, b agentpool.AgentJob) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
}

// pairing is how the requests of a class fare against its capacity.
type pairing struct {
	served  []agentpool.JobRequest
	waiting []agentpool.JobRequest
}

// pair counts requests against capacity. A request is first thought of as served
// by the Job that was made for it, so that a new Job is made for a request
// that has none; the rest is served in order of urgency. What is left of the
// capacity is spare.
func pair(requests []agentpool.JobRequest, capacity []agentpool.AgentJob) (pairing, []agentpool.AgentJob) {
	own := map[int64]int{}
	for i, job := range capacity {
		if _, taken := own[job.RequestID]; !taken {
			own[job.RequestID] = i
		}
	}
	used := make([]bool, len(capacity))
	var result pairing
	var others []agentpool.JobRequest
	for _, request := range requests {
		if i, ok := own[request.ID]; ok && !used[i] {
			used[i] = true
			result.served = append(result.served, request)
			continue
		}
		others = append(others, request)
	}
	var spare []agentpool.AgentJob
	for i, job := range capacity {
		if !used[i] {
			spare = append(spare, job)
		}
	}
	// Those that wait idle serve before those that have yet to start, so that what
	// is left over is what costs least to end.
	slices.SortStableFunc(spare, func(a, b agentpool.AgentJob) int {
		return cmp.Or(cmp.Compare(readiness(a), readiness(b)), a.CreatedAt.Compare(b.CreatedAt), compareJobs(a, b))
	})
	n := min(len(others), len(spare))
	result.served = append(result.served, others[:n]...)
	result.waiting = others[n:]
	return result, spare[n:]
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

// surplus gives the spare agents of a class that have waited beyond the idle
// limit, those that cost least to end first, after leaving the class its warm
// ones.
func surplus(s Snapshot, class agentpool.AgentClass, spare []agentpool.AgentJob) []Ending {
	// pair leaves the most ready first, and those are the ones to keep.
	kept := min(class.MinIdle, len(spare))
	var endings []Ending
	for _, job := range spare[kept:] {
		if s.Now.Sub(waitingSince(job)) >= s.Limits.IdleLimit {
			endings = append(endings, Ending{Job: job, Reason: EndSurplus})
		}
	}
	for _, job := range spare[:kept] {
		if job.Ready && s.Limits.MaxIdleAge > 0 && s.Now.Sub(waitingSince(job)) >= s.Limits.MaxIdleAge {
			endings = append(endings, Ending{Job: job, Reason: EndMaxIdleAge})
		}
	}
	return endings
}

// waitingSince is the moment from which an agent without a build counts as
// waiting: since it is ready, or, before that, since its Job was made.
func waitingSince(job agentpool.AgentJob) time.Time {
	if job.Ready && !job.ReadySince.IsZero() {
		return job.ReadySince
	}
	return job.CreatedAt
}

// overdue tells whether a starting Job has used up its time. One that no node
// has taken is never overdue: a cluster autoscaler may be at work.
func overdue(s Snapshot, job agentpool.AgentJob) (Ending, bool) {
	switch {
	case job.Suspended && s.Limits.HalfMadeLimit > 0 && s.Now.Sub(job.CreatedAt) >= s.Limits.HalfMadeLimit:
		return Ending{Job: job, Reason: EndHalfMade}, true
	case !job.Started && !job.Scheduled.IsZero() && s.Limits.StartupLimit > 0 &&
		s.Now.Sub(job.Scheduled) >= s.Limits.StartupLimit:
		return Ending{Job: job, Reason: EndStartupLimit}, true
	default:
		return Ending{}, false
	}
}
