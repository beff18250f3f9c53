package plan

import (
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

// classify gives the Jobs in a fixed order, each with its phase.
func classify(s Snapshot) ([]agentpool.AgentJob, []agentpool.Phase) {
	reserved := map[string]bool{}
	for _, request := range s.Requests {
		if request.State() != agentpool.RequestFinished && request.Reserved.Name != "" {
			reserved[request.Reserved.Name] = true
		}
	}
	jobs := slices.Clone(s.Jobs)
	slices.SortFunc(jobs, compareJobs)
	phases := make([]agentpool.Phase, len(jobs))
	for i, job := range jobs {
		phases[i] = PhaseOf(job, reserved[job.Name], s.Disabled[job.Name])
	}
	return jobs, phases
}

func view(s Snapshot, jobs []agentpool.AgentJob, phases []agentpool.Phase) View {
	v := View{Agents: map[string]map[agentpool.Phase]int{}}
	for _, class := range s.Classes {
		v.Agents[class.Name] = map[agentpool.Phase]int{}
	}
	for i, job := range jobs {
		if v.Agents[job.Class] == nil {
			v.Agents[job.Class] = map[agentpool.Phase]int{}
		}
		v.Agents[job.Class][phases[i]]++
		v.Unsettled = v.Unsettled || phases[i] == agentpool.PhaseStarting || phases[i] == agentpool.PhaseLeaving
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
