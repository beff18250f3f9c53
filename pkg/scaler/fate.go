package scaler

import (
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// What is known of agents that their pods do not show: that they have had a build, were
// withdrawn, or are lost.

// reserve records which agents the queue names.
func (m *memory) reserve(requests []agentpool.JobRequest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, request := range requests {
		if request.UnderWay() && request.Reserved.Name != "" {
			m.reserved[request.Reserved.Name] = true
		}
	}
}

// setWithdrawn records that an agent which waited was taken out of the pool by us.
func (m *memory) setWithdrawn(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.withdrawn[name] = true
}

// remember adds to what a Job shows that its agent has had a build, or was withdrawn.
func (m *memory) remember(job agentpool.AgentJob) agentpool.AgentJob {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.recall(job)
}

// recall is remember for who holds the lock. An agent that is ready has not taken what was
// assigned to it, and one that has told how it ended needs nobody to speak for it.
func (m *memory) recall(job agentpool.AgentJob) agentpool.AgentJob {
	switch id, runs := m.unsuspended[job.UID]; {
	case !runs:
	case job.Suspended: // The cache is late, and would make it look like one left half-made.
		job.Suspended, job.AgentID = false, id
	default:
		delete(m.unsuspended, job.UID)
	}
	silent := job.Started && !job.Ready && !job.Finished() || job.Finished() && job.Untold
	if silent && m.reserved[job.Name] {
		job.RanBuild, job.Untold = true, false
	}
	if job.Failed() && m.withdrawn[job.Name] {
		// Its registration is gone before its pod is told to end, and the agent program ends
		// with an error then.
		job.Reason, job.Message = agentpool.ReasonNoBuild, "it was withdrawn while it waited"
	}
	return job
}

// miss looks in the agents list for those that wait for a build as far as their pods tell,
// and for those whose pods are being deleted. The service gives none to an agent that has been
// offline or out of the list for the grace, so it is given up. Where such a pod is being
// deleted, its node is gone: the kubelet would have ended it, or its agent would be at work.
// One that the service says has a build is kept until it says otherwise. The Jobs must have
// been read before the list.
func (m *memory) miss(jobs []agentpool.AgentJob, agents []agentpool.Agent, grace time.Duration, now time.Time) {
	atWork := make(map[string]bool, len(agents))
	for _, agent := range agents {
		atWork[agent.Name] = agent.Online || agent.AssignedRequest != 0
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, job := range jobs {
		// What was deleted by us, or has no pod, only waits for the cache.
		_, ended := m.ending[job.UID]
		leaving := job.Deleting && job.PodName != "" && !ended
		if atWork[job.Name] || job.Finished() || !(job.Ready || leaving) {
			delete(m.lost, job.Name)
			delete(m.gone, job.Name)
			continue
		}
		if met(m.lost, job.Name, now) < grace {
			continue
		}
		m.givenUp[job.Name] = true
		if leaving {
			m.gone[job.Name] = true
		}
	}
}

// atWork records that an agent that was taken for lost has a build.
func (m *memory) atWork(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.lost, name)
	delete(m.gone, name)
}
