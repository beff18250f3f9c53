package azuredevopstest

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"
)

// sortedPools returns the pools by id. The caller holds the mutex.
func (s *Server) sortedPools() []*pool {
	return slices.SortedFunc(maps.Values(s.pools), func(a, b *pool) int { return a.id - b.id })
}

// online tells whether an agent has a session that was polled lately. The
// caller holds the mutex.
func (s *Server) online(a *agent, now time.Time) bool {
	return a.session != nil && (a.session.polls > 0 || now.Sub(a.session.lastPoll) < s.opts.OnlineTimeout)
}

// idleAgent tells whether an agent may be given a job. The caller holds the mutex.
func (s *Server) idleAgent(a *agent, now time.Time) bool {
	return a.enabled && a.assigned == nil && a.updating == "" && s.online(a, now)
}

// used counts the jobs that hold one of the organisation's parallel jobs. The
// caller holds the mutex.
func (s *Server) used() int {
	n := 0
	for _, p := range s.pools {
		for _, r := range p.unfinished {
			if r.state() != StateQueued {
				n++
			}
		}
	}
	return n
}

// tick does all that the service does by itself. The caller holds the mutex.
func (s *Server) tick(now time.Time) {
	for _, p := range s.sortedPools() {
		for _, a := range p.sortedAgents() {
			if a.session != nil && a.session.polls == 0 && now.Sub(a.session.lastPoll) > s.opts.SessionTimeout {
				s.endSession(a, "session-expired", byService, "")
			}
		}
		for _, r := range p.sortedUnfinished() {
			s.lapse(r, now)
		}
	}
	for _, p := range s.sortedPools() {
		s.assignPool(p, now)
	}
}

// lapse gives a request up whose agent has fallen silent. The caller holds the
// mutex.
func (s *Server) lapse(r *request, now time.Time) {
	switch r.state() {
	case StateAssigned:
		if now.After(r.receiveBy) {
			s.abandon(r, "the agent never took it up")
			return
		}
	case StateRunning:
		if now.After(r.lockedUntil) {
			s.abandon(r, "the agent stopped renewing its lock")
			return
		}
	default:
		return
	}
	if !r.cancelBy.IsZero() && now.After(r.cancelBy) {
		s.abandon(r, "the agent ignored the cancellation")
	}
}

// abandon ends a request that lost its agent. A worker that had reported the
// job's result before is believed [made]. The caller holds the mutex.
func (s *Server) abandon(r *request, why string) {
	if r.reported != "" {
		s.finish(r, r.reported, "request-finished", byService, why+" after the worker had reported the result")
		return
	}
	r.status = fmt.Sprintf("We stopped hearing from agent %s. Verify the agent machine is running and has a healthy network connection. Anything that terminates an agent process, starves it for CPU, or blocks its network access can cause this error. For more information, see: https://go.microsoft.com/fwlink/?linkid=846610", r.agentName)
	s.finish(r, ResultAbandoned, "request-abandoned", byService, why)
}

// finish gives a request its result and frees its agent. The caller holds the
// mutex.
func (s *Server) finish(r *request, result, event, by, detail string) {
	if r.result != "" {
		return
	}
	now := time.Now()
	r.result = result
	r.finishedAt = now
	delete(r.pool.unfinished, r.id)
	r.pool.finished = append(r.pool.finished, r)
	if a := r.pool.agents[r.agentID]; a != nil && a.assigned == r {
		a.assigned = nil
		a.lastCompleted = r
		if a.session != nil && r.message != nil && !r.message.delivered {
			a.session.drop(r.message)
		}
	}
	s.requestEvent(event, r, by, result, detail)
	close(r.done)
	close(s.idle)
	s.idle = make(chan struct{})
}

// receive notes that the agent has taken a job up. The caller holds the mutex.
func (s *Server) receive(r *request, now time.Time) {
	if r.state() != StateAssigned {
		return
	}
	r.received = now
	r.lockedUntil = now.Add(s.opts.LockDuration)
	s.requestEvent("request-received", r, "agent:"+r.agentName, "", "")
}

// assignPool hands a pool's queue out, as far as it goes. Among requests of
// one priority the order is drawn. The caller holds the mutex.
func (s *Server) assignPool(p *pool, now time.Time) {
	var idle []*agent
	for _, a := range p.sortedAgents() {
		if s.idleAgent(a, now) {
			idle = append(idle, a)
		}
	}
	if len(idle) == 0 {
		return
	}
	queue := s.queue(p)
	free := s.freeJobs()
	for _, r := range queue {
		if free == 0 || len(idle) == 0 {
			return
		}
		a := s.leastConvenient(r, idle)
		if a == nil {
			s.offerUpdate(r, idle)
			continue
		}
		idle = slices.DeleteFunc(idle, func(other *agent) bool { return other == a })
		s.assign(r, a, now, "")
		free--
	}
}

// queue returns what waits in a pool in the order of service.
func (s *Server) queue(p *pool) []*request {
	waiting := slices.DeleteFunc(p.sortedUnfinished(), func(r *request) bool { return r.state() != StateQueued })
	s.random.assign.Shuffle(len(waiting), func(i, j int) { waiting[i], waiting[j] = waiting[j], waiting[i] })
	slices.SortStableFunc(waiting, func(a, b *request) int { return cmp.Compare(b.priority, a.priority) })
	return waiting
}

// freeJobs is how many more jobs may run; negative means any number.
func (s *Server) freeJobs() int {
	if s.settings.parallelJobs <= 0 {
		return -1
	}
	return max(0, s.settings.parallelJobs-s.used())
}

// leastConvenient picks from the agents that fit: none whose name carries the
// request's id while there are others, then those with the most capabilities,
// which others may need more, then by lot. The caller holds the mutex.
func (s *Server) leastConvenient(r *request, idle []*agent) *agent {
	var best []*agent
	var rank [2]int
	for _, a := range idle {
		if !a.satisfies(r.demands) {
			continue
		}
		this := [2]int{1, len(a.folded)}
		if a.carriesID(r.id) {
			this[0] = 0
		}
		switch order := slices.Compare(this[:], rank[:]); {
		case best == nil || order > 0:
			best, rank = []*agent{a}, this
		case order == 0:
			best = append(best, a)
		}
	}
	if best == nil {
		return nil
	}
	return best[s.random.assign.IntN(len(best))]
}

// assign reserves an agent for a request and sends it the job. The caller
// holds the mutex.
func (s *Server) assign(r *request, a *agent, now time.Time, detail string) {
	r.assignedAt = now
	r.receiveBy = now.Add(s.opts.ReceiveTimeout)
	r.agentID, r.agentName, r.agentVer = a.id, a.name, a.version
	a.assigned = r
	r.jobToken = s.newSecret("job")
	s.jobs[r.jobToken] = r
	r.message = &message{kind: messageJob, body: s.jobBody(r, a), request: r}
	s.requestEvent("request-assigned", r, byService, "", detail)
	a.session.send(r.message)
}

// assignSecond uses the window between the end of a job and the end of its
// agent: whoever has not disabled the agent is given another job at once. The
// caller holds the mutex.
func (s *Server) assignSecond(a *agent, now time.Time) {
	if !s.settings.secondJob || !s.idleAgent(a, now) || s.freeJobs() == 0 {
		return
	}
	for _, r := range s.queue(a.pool) {
		if a.satisfies(r.demands) {
			s.assign(r, a, now, "second-job")
			return
		}
	}
}

// offerUpdate tells an idle agent to update itself when its version is all
// that keeps it from a request and there is a newer package. The caller holds
// the mutex.
func (s *Server) offerUpdate(r *request, idle []*agent) {
	for _, a := range idle {
		if a.updating != "" || !a.satisfiesButVersion(r.demands) {
			continue
		}
		if v := s.packages.newest(""); v != "" && compareVersions(v, a.version) > 0 {
			s.refresh(a, v, byService)
			return
		}
	}
}

// refresh sends the message that makes an agent update itself. The caller
// holds the mutex.
func (s *Server) refresh(a *agent, version, by string) {
	a.updating = version
	a.session.send(&message{kind: messageRefresh, body: mustJSON(refreshBody{
		AgentID: a.id, Timeout: timeSpan(5 * time.Minute), TargetVersion: version,
	})})
	s.agentEvent("agent-refresh-sent", a, by, "to "+version)
}

func (s *Server) requestEvent(event string, r *request, by, result, detail string) {
	s.audit.record(Event{
		Event: event, Pool: r.pool.id, RequestID: r.id, AgentID: r.agentID, AgentName: r.agentName,
		By: by, Result: result, Detail: detail,
	})
}
