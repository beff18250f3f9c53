package azuredevopstest

import (
	"fmt"
	"maps"
	"time"
)

// AgentStatus is a registration as the service sees it.
type AgentStatus struct {
	ID           int               `json:"id"`
	PoolID       int               `json:"poolId"`
	Name         string            `json:"name"`
	Version      string            `json:"version"`
	Enabled      bool              `json:"enabled"`
	Online       bool              `json:"online"`
	RequestID    int64             `json:"requestId,omitempty"`
	CreatedOn    time.Time         `json:"createdOn"`
	Capabilities map[string]string `json:"capabilities,omitempty"`
}

// Agents returns a pool's registrations by id.
func (s *Server) Agents(poolID int) []AgentStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pools[poolID]
	if p == nil {
		return nil
	}
	all := []AgentStatus{}
	for _, a := range p.sortedAgents() {
		status := AgentStatus{
			ID: a.id, PoolID: p.id, Name: a.name, Version: a.version, Enabled: a.enabled,
			Online: s.online(a, time.Now()), CreatedOn: a.created, Capabilities: maps.Clone(a.systemCapabilities),
		}
		if a.assigned != nil {
			status.RequestID = a.assigned.id
		}
		all = append(all, status)
	}
	return all
}

// RequestUpdate tells an online agent to update itself to a version.
func (s *Server) RequestUpdate(poolID, agentID int, version string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pools[poolID]
	if p == nil || p.agents[agentID] == nil {
		return fmt.Errorf("update agent %d of pool %d: %w", agentID, poolID, ErrUnknown)
	}
	a := p.agents[agentID]
	switch {
	case !versionNumber.MatchString(version):
		return fmt.Errorf("update agent %d of pool %d: version %q: use three numbers such as 4.260.0", agentID, poolID, version)
	case a.session == nil:
		return fmt.Errorf("update agent %d of pool %d: it is offline: only an agent with a session gets messages", agentID, poolID)
	}
	s.refresh(a, version, byControl)
	return nil
}

// AddToken makes a personal access token known, or changes one that is.
func (s *Server) AddToken(t Token) error {
	if err := t.validate(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[t.Secret] = t.withDefaults()
	return nil
}

// RemoveToken makes a personal access token unknown, as if it was revoked.
func (s *Server) RemoveToken(secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tokens, secret)
}

// SetSignInFailure changes the answer to unknown tokens.
func (s *Server) SetSignInFailure(f SignInFailure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settings.signInFailure = f
}

// SetParallelJobs changes how many jobs may run at once; 0 means no limit.
func (s *Server) SetParallelJobs(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settings.parallelJobs = max(n, 0)
}

// SetSecondJob opens or closes the window for a second job.
func (s *Server) SetSecondJob(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settings.secondJob = on
}

// Polls returns how many polls for messages are open in a pool.
func (s *Server) Polls(poolID int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, session := range s.sessions {
		if session.agent.pool.id == poolID {
			n += session.polls
		}
	}
	return n
}
