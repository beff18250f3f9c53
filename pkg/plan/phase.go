package plan

import (
	"cmp"
	"slices"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// PhaseOf gives the phase of one Job. reserved says that an unfinished request
// names its agent, disabled that the service will assign it nothing more.
func PhaseOf(job agentpool.AgentJob, reserved, disabled bool) agentpool.Phase {
	switch {
	case job.Finished():
		return agentpool.PhaseFinished
	case job.Deleting:
		return agentpool.PhaseLeaving
	case reserved, job.RanBuild:
		return agentpool.PhaseBusy
	case disabled:
		return agentpool.PhaseLeaving
	case !job.Started, !job.Ready:
		// Started and not ready without having been ready: the first readiness
		// probe is still to come. A claim in that moment shows in the request.
		return agentpool.PhaseStarting
	default:
		return agentpool.PhaseIdle
	}
}

// agent is one Job and its phase.
type agent struct {
	job   *agentpool.AgentJob
	phase agentpool.Phase
}

// classify gives the Jobs in a fixed order, each with its phase.
func classify(s Snapshot) []agent {
	reserved := make(map[string]bool, len(s.Requests))
	for i := range s.Requests {
		request := &s.Requests[i]
		if request.Reserved.Name != "" && request.State() != agentpool.RequestFinished {
			reserved[request.Reserved.Name] = true
		}
	}
	agents := make([]agent, len(s.Jobs))
	for i := range s.Jobs {
		job := &s.Jobs[i]
		agents[i] = agent{job: job, phase: PhaseOf(*job, reserved[job.Name], s.Disabled[job.Name])}
	}
	slices.SortFunc(agents, func(a, b agent) int { return compareJobs(a.job, b.job) })
	return agents
}

func compareJobs(a, b *agentpool.AgentJob) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
}

func view(s Snapshot, agents []agent) View {
	v := View{Agents: map[string]map[agentpool.Phase]int{}, Warm: map[string]Warm{}}
	for _, class := range s.Classes {
		v.Agents[class.Name] = map[agentpool.Phase]int{}
	}
	for _, a := range agents {
		if v.Agents[a.job.Class] == nil {
			v.Agents[a.job.Class] = map[agentpool.Phase]int{}
		}
		v.Agents[a.job.Class][a.phase]++
		v.Unsettled = v.Unsettled || a.phase == agentpool.PhaseStarting || a.phase == agentpool.PhaseLeaving
	}
	for _, request := range s.Requests {
		switch request.State() {
		case agentpool.RequestQueued:
			v.Queued++
			if v.OldestQueue.IsZero() || request.QueueTime.Before(v.OldestQueue) {
				v.OldestQueue = request.QueueTime
			}
		case agentpool.RequestAssigned:
			v.Assigned++
		case agentpool.RequestRunning:
			v.Running++
		case agentpool.RequestFinished:
		}
	}
	v.Unsettled = v.Unsettled || v.Queued > 0 || v.Assigned > 0
	return v
}
