package scaler

import (
	"cmp"
	"slices"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// Invariants are numbers that are 0 as long as the scaler keeps its promises. They are made
// from what a cycle has seen, and not from what the loop believes to have done.
type Invariants struct {
	// Leaked counts what should be gone by now: finished Jobs with rights, Jobs that were
	// deleted and are still there, and registrations of ours without an unfinished Job, each
	// for twice the grace of a sweep.
	Leaked int
	// Duplicates counts, by class, the agents without a build that were made for a request
	// that had one already, when no other request had taken that one's place.
	Duplicates map[string]int
	// Surplus counts, by class, the agents that have been beyond need, the ones kept waiting
	// included, for the idle limit and surplusMargin.
	Surplus map[string]int
}

// surplusMargin is what ending an agent may take: a live look, the end of a pod that has not
// started, and the calls of the service.
const surplusMargin = time.Minute

// invariants judges a snapshot and the plan that was made from it.
func (s *Scaler) invariants(snapshot plan.Snapshot, p plan.Plan) Invariants {
	in := Invariants{
		Leaked:     s.memory.leaked(snapshot.Jobs, 2*s.config.SweepGrace, snapshot.Now),
		Duplicates: map[string]int{}, Surplus: map[string]int{},
	}
	for _, class := range snapshot.Classes {
		in.Duplicates[class.Name], in.Surplus[class.Name] = 0, 0
	}
	spare := map[string]bool{}
	for _, uid := range p.Spare {
		since, known := snapshot.SpareSince[uid]
		spare[uid] = known && snapshot.Now.Sub(since) >= s.config.Limits.IdleLimit+surplusMargin
	}
	for _, job := range snapshot.Jobs {
		if spare[job.UID] {
			in.Surplus[job.Class]++
		}
	}
	for _, job := range s.memory.judge(waiting(snapshot), p) {
		in.Duplicates[job.Class]++
	}
	return in
}

// waiting gives the agents that have no build yet and may get one, in the order in which
// they were made.
func waiting(snapshot plan.Snapshot) []agentpool.AgentJob {
	reserved := map[string]bool{}
	for _, request := range snapshot.Requests {
		reserved[request.Reserved.Name] = true
	}
	var jobs []agentpool.AgentJob
	for _, job := range snapshot.Jobs {
		phase := plan.PhaseOf(job, reserved[job.Name], snapshot.Disabled[job.Name])
		if phase == agentpool.PhaseStarting || phase == agentpool.PhaseIdle {
			jobs = append(jobs, job)
		}
	}
	slices.SortFunc(jobs, func(a, b agentpool.AgentJob) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.Attempt, b.Attempt), cmp.Compare(a.Name, b.Name))
	})
	return jobs
}

// judge gives those of the agents that are one too many. An agent is judged when it is first
// seen, as what explains it may be cancelled later: it is one too many if an older one was
// made for the same request, and no request without an agent of its own has that one counted
// for it, as one does whose agent was given another build. A verdict holds while the agent
// waits.
func (m *memory) judge(waiting []agentpool.AgentJob, p plan.Plan) []agentpool.AgentJob {
	made := map[int64]bool{}
	for _, job := range waiting {
		made[job.RequestID] = true
	}
	queued := map[int64]bool{}
	swapped := 0 // Requests that another one's agent is counted for.
	for _, skip := range p.Skipped {
		queued[skip.Request.ID] = true
		if skip.Reason == plan.SkipServed && !made[skip.Request.ID] {
			swapped++
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	verdicts := make(map[string]bool, len(waiting))
	var tooMany []agentpool.AgentJob
	first := map[int64]bool{}
	for _, job := range waiting {
		guilty, judged := m.verdicts[job.UID]
		if !judged && first[job.RequestID] && queued[job.RequestID] && !job.Warm() {
			guilty = swapped == 0
			swapped = max(0, swapped-1)
		}
		first[job.RequestID] = true
		verdicts[job.UID] = guilty
		if guilty {
			tooMany = append(tooMany, job)
		}
	}
	m.verdicts = verdicts
	return tooMany
}

// leaked counts what should have been gone for the age.
func (m *memory) leaked(jobs []agentpool.AgentJob, age time.Duration, now time.Time) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, job := range jobs {
		deleted, ended := m.ending[job.UID]
		rights := job.Finished() && !job.Ended.IsZero() && !m.rightless[job.UID] && now.Sub(job.Ended) >= age
		if rights || ended && now.Sub(deleted) >= age {
			n++
		}
	}
	for _, since := range m.orphans {
		if now.Sub(since) >= age {
			n++
		}
	}
	return n
}
