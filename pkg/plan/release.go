package plan

import (
	"slices"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// release ends what is beyond need: agents that have waited longer than the idle
// limit, agents that a newer one replaces, and agents in whose place a request that a
// cap holds back can have one that serves it.
func (p *Plan) release(s Snapshot, classes []agentpool.AgentClass, agents []agent, u supply, b balance) {
	keeping := map[string]*keep{}
	for _, class := range classes {
		if class.MinIdle > 0 {
			warm := p.View.Warm[class.Name]
			keeping[class.Name] = &keep{version: class.Version, old: class.MinIdle}
			if warm.Held == SkipClassCap || warm.Held == SkipPoolCap {
				keeping[class.Name].short = warm.Want - warm.Have
			}
		}
	}
	warm := warmOnes(u, b)
	for i, job := range u.agents {
		if k := keeping[job.Class]; k != nil && warm[i] && job.Ready {
			k.old--
		}
	}
	var stay []agentpool.AgentJob // Spare for now, the first to end last.
	for i, job := range u.agents {
		if u.used[i] {
			continue
		}
		p.Spare = append(p.Spare, job.UID)
		group := u.groups[u.group[i]]
		k := keeping[job.Class]
		switch {
		case k != nil && !group.fresh:
			if k.old > k.short {
				k.old--
				stay = append(stay, *job)
				continue
			}
			reason := EndMaxIdleAge
			if job.ClassVersion != k.version {
				reason = EndClassChanged
			}
			p.End = append(p.End, Ending{Job: *job, Reason: reason})
		case spareFor(s, *job) >= s.Limits.IdleLimit:
			p.End = append(p.End, Ending{Job: *job, Reason: EndSurplus})
		default:
			stay = append(stay, *job)
		}
	}
	// What waits on purpose is given up after what merely has not gone yet.
	var yield []agentpool.AgentJob
	for i, job := range u.agents {
		if warm[i] {
			yield = append(yield, *job)
		}
	}
	p.makeRoom(agents, append(yield, stay...))
}

// spareFor is how long an agent has been beyond need. The need of a moment is not enough to
// go by: the queue and the pods are never seen at the same time.
func spareFor(s Snapshot, job agentpool.AgentJob) time.Duration {
	since, known := s.SpareSince[job.UID]
	if !known {
		return 0
	}
	return s.Now.Sub(since)
}

// keep is what to keep of the agents of a class that a newer one is to replace: as
// many as new ones are not ready yet, but for those in whose place alone a new one can
// be made.
type keep struct {
	version string
	old     int
	short   int
}

// warmOnes tells which of the agents count as waiting on purpose: of those that are
// alike, the ones that would be ready last.
func warmOnes(u supply, b balance) []bool {
	left := slices.Clone(b.warm)
	warm := make([]bool, len(u.agents))
	for i := len(u.agents) - 1; i >= 0; i-- {
		if group := u.group[i]; u.used[i] && left[group] > 0 {
			left[group]--
			warm[i] = true
		}
	}
	return warm
}

// makeRoom ends one agent without need for each request that a cap holds back, unless
// as many are leaving already. The last of those to yield goes first.
func (p *Plan) makeRoom(agents []agent, yield []agentpool.AgentJob) {
	held := map[string]int{} // By class; the empty name is the pool.
	for _, skip := range p.Skipped {
		switch skip.Reason { //nolint:exhaustive // The other reasons are not for lack of room.
		case SkipClassCap:
			held[skip.Class]++
		case SkipPoolCap:
			held[""]++
		}
	}
	if len(held) == 0 {
		return
	}
	leave := func(job agentpool.AgentJob) {
		if held[job.Class] > 0 {
			held[job.Class]--
		} else {
			held[""]--
		}
	}
	for _, a := range agents {
		if a.phase == agentpool.PhaseLeaving && a.job.Deleting {
			leave(*a.job)
		}
	}
	for _, ending := range p.End {
		// What is being deleted is counted already, and what has ended takes no room.
		if !ending.Job.Deleting && !ending.Job.Finished() {
			leave(ending.Job)
		}
	}
	for i := len(yield) - 1; i >= 0; i-- {
		if held[yield[i].Class] > 0 || held[""] > 0 {
			leave(yield[i])
			p.End = append(p.End, Ending{Job: yield[i], Reason: EndMakeRoom})
		}
	}
}
