package plan

import (
	"cmp"
	"slices"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// Make plans for one pool. Its work grows with the number of requests and Jobs, and
// with the product of the kinds of need and of agents there are.
func Make(s Snapshot) Plan {
	agents := classify(s)
	p := Plan{View: view(s, agents)}
	capacity := p.attend(s, agents)
	classes := sortedClasses(s.Classes)
	history := newHistory(s, agents)
	n := newNeed(s, classes, history)
	u := newSupply(s, classes, capacity, n.demanded())
	b := p.answer(s, n, u, newBudget(s, history, agents))
	p.release(s, classes, agents, u, b)
	p.Mismatches = mismatches(s, classes)
	p.inspect(s, n, u, b, agents)
	if s.NoDeletions {
		p.End = nil
	}
	p.order()
	return p
}

// attend sees to the Jobs one by one, and gives those that are capacity.
func (p *Plan) attend(s Snapshot, agents []agent) []*agentpool.AgentJob {
	var capacity []*agentpool.AgentJob
	for _, a := range agents {
		switch a.phase {
		case agentpool.PhaseStarting:
			if reason, end := overdue(s, *a.job); end {
				p.End = append(p.End, Ending{Job: *a.job, Reason: reason})
				continue
			}
			if a.job.Suspended && !a.job.Unregistered() {
				p.Complete = append(p.Complete, *a.job)
			}
			capacity = append(capacity, a.job)
		case agentpool.PhaseIdle:
			capacity = append(capacity, a.job)
		case agentpool.PhaseBusy:
			if !s.Disabled[a.job.Name] {
				p.Disable = append(p.Disable, *a.job)
			}
		case agentpool.PhaseLeaving:
			switch {
			case !a.job.Deleting:
				p.End = append(p.End, Ending{Job: *a.job, Reason: EndWithdrawn})
			case s.Lost[a.job.Name]:
				p.End = append(p.End, Ending{Job: *a.job, Reason: EndLost})
			}
		case agentpool.PhaseFinished:
			if lingers(s, *a.job) {
				p.End = append(p.End, Ending{Job: *a.job, Reason: EndLingering})
			}
		}
	}
	return capacity
}

// answer goes through the need, the most urgent first. What capacity can be counted for
// has it; for the rest a Job is made, as far as the caps allow. It then says which agents
// the need is counted against.
func (p *Plan) answer(s Snapshot, n need, u supply, caps *budget) balance {
	c := newCount(n, u)
	p.Skipped = make([]Skip, len(n.requests))
	for _, i := range n.order {
		group := n.groups[n.group[i]]
		switch {
		case group.warm:
			p.keepWarm(s, *group.class, c.serve(i), caps)
		case caps.headroom() > 0 && c.serve(i):
			caps.running++
			p.Skipped[i] = Skip{Request: *n.requests[i], Class: group.className(), Reason: SkipServed}
		case group.class == nil:
			p.Skipped[i] = group.skip(*n.requests[i])
		default:
			if creation, skip, ok := caps.admit(*n.requests[i], *group.class); ok {
				p.Create = append(p.Create, creation)
			} else {
				p.Skipped[i] = skip
			}
		}
	}
	p.Skipped = slices.DeleteFunc(p.Skipped, func(skip Skip) bool { return skip.Reason == "" })
	return c.settle()
}

// keepWarm sees to one agent that a class is to keep waiting: it has it already, or one is
// made, or a cap is in the way.
func (p *Plan) keepWarm(s Snapshot, class agentpool.AgentClass, served bool, caps *budget) {
	warm := p.View.Warm[class.Name]
	warm.Want++
	if served {
		warm.Have++
	} else if creation, skip, ok := caps.admit(agentpool.JobRequest{ID: agentpool.WarmRequest, PoolID: s.Pool.ID}, class); ok {
		p.Create = append(p.Create, creation)
		warm.Have++
	} else {
		warm.Held, warm.Detail = skip.Reason, skip.Detail
	}
	p.View.Warm[class.Name] = warm
}

// order makes the plan independent of the order things were met in.
func (p *Plan) order() {
	slices.SortStableFunc(p.End, func(a, b Ending) int {
		return cmp.Or(cmp.Compare(endRank(a.Job), endRank(b.Job)), compareJobs(&a.Job, &b.Job))
	})
	slices.Sort(p.Spare)
	slices.SortFunc(p.Inspect, func(a, b agentpool.AgentJob) int { return compareJobs(&a, &b) })
}

// endRank puts what costs nothing to end first.
func endRank(job agentpool.AgentJob) int {
	if job.Started {
		return 1
	}
	return 0
}
