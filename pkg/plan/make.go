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
	u := newSupply(s, classes, capacity)
	b := settle(n, u)

	p.answer(s, n, b, newBudget(s, history, agents))
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
			if a.job.Suspended {
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
			if !a.job.Deleting {
				p.End = append(p.End, Ending{Job: *a.job, Reason: EndWithdrawn})
			}
		case agentpool.PhaseFinished:
		}
	}
	return capacity
}

// answer makes a Job for each request that no capacity is left for, the most urgent
// first, and then for each agent that is to wait, as far as the caps allow.
func (p *Plan) answer(s Snapshot, n need, b balance, caps *budget) {
	for i := range n.requests {
		if b.served[i] {
			caps.running++
		}
	}
	p.Skipped = make([]Skip, 0, len(n.requests))
	for i, request := range n.requests {
		group := n.groups[n.group[i]]
		switch {
		case b.served[i]:
			p.Skipped = append(p.Skipped, Skip{Request: *request, Class: group.className(), Reason: SkipServed})
		case group.class == nil:
			p.Skipped = append(p.Skipped, group.skip(*request))
		default:
			if creation, skip, ok := caps.admit(*request, *group.class); ok {
				p.Create = append(p.Create, creation)
			} else {
				p.Skipped = append(p.Skipped, skip)
			}
		}
	}
	for i := len(n.requests); i < len(n.group); i++ {
		class := *n.groups[n.group[i]].class
		warm := p.View.Warm[class.Name]
		warm.Want++
		if b.served[i] {
			warm.Have++
		} else if creation, skip, ok := caps.admit(agentpool.JobRequest{ID: agentpool.WarmRequest, PoolID: s.Pool.ID}, class); ok {
			p.Create = append(p.Create, creation)
			warm.Have++
		} else {
			warm.Held, warm.Detail = skip.Reason, skip.Detail
		}
		p.View.Warm[class.Name] = warm
	}
}

// order makes the plan independent of the order things were met in.
func (p *Plan) order() {
	slices.SortStableFunc(p.End, func(a, b Ending) int {
		return cmp.Or(cmp.Compare(endRank(a.Job), endRank(b.Job)), compareJobs(&a.Job, &b.Job))
	})
	slices.SortFunc(p.Inspect, func(a, b agentpool.AgentJob) int { return compareJobs(&a, &b) })
}

// endRank puts what costs nothing to end first.
func endRank(job agentpool.AgentJob) int {
	if job.Started {
		return 1
	}
	return 0
}
