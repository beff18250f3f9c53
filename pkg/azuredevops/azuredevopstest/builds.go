package azuredevopstest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

// planType is the kind of plan that a pipeline's build belongs to.
const planType = "Build"

// Errors that callers of the control API may want to tell apart.
var (
	// ErrUnknown means that there is no such pool, agent, request or fault.
	ErrUnknown = errors.New("unknown")
	// ErrFinished means that a build has its result already.
	ErrFinished = errors.New("already finished")
)

// Build describes a build to queue.
type Build struct {
	// PoolID names the pool; 0 means to look for Pool, whose name must be unique.
	PoolID int    `json:"poolId,omitempty"`
	Pool   string `json:"pool,omitempty"`
	// Name is the job's display name.
	Name string `json:"name"`
	// Steps are shell commands, run one after the other until one fails.
	Steps []string `json:"steps,omitempty"`
	// Demands are conditions in the service's grammar, to which it adds its own
	// on the agent's version.
	Demands   []string          `json:"demands,omitempty"`
	Variables map[string]string `json:"variables,omitempty"`
	// Secrets are variables marked as secret.
	Secrets map[string]string `json:"secrets,omitempty"`
	// Env is the environment of every step.
	Env      map[string]string `json:"env,omitempty"`
	Priority int               `json:"priority,omitempty"`
}

// BuildStatus is what became of a build.
type BuildStatus struct {
	RequestID int64  `json:"requestId"`
	PoolID    int    `json:"poolId"`
	Name      string `json:"name"`
	// State is queued, assigned, running or finished.
	State  string `json:"state"`
	Result string `json:"result,omitempty"`
	// Message says why a build failed, where the service and not a step knows.
	Message   string       `json:"message,omitempty"`
	AgentID   int          `json:"agentId,omitempty"`
	AgentName string       `json:"agentName,omitempty"`
	Queued    time.Time    `json:"queued"`
	Assigned  time.Time    `json:"assigned,omitzero"`
	Received  time.Time    `json:"received,omitzero"`
	Finished  time.Time    `json:"finished,omitzero"`
	Steps     []StepStatus `json:"steps,omitempty"`
}

// StepStatus is what the worker reported of one record of the timeline.
type StepStatus struct {
	Name   string `json:"name"`
	Type   string `json:"type,omitempty"`
	State  string `json:"state,omitempty"`
	Result string `json:"result,omitempty"`
}

// CreatePool adds a pool and returns its id. Two may have one name, as in
// organisations with a pool that someone re-created.
func (s *Server) CreatePool(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &pool{id: s.nextPool, name: name, created: time.Now(), agents: make(map[int]*agent), unfinished: make(map[int64]*request)}
	s.nextPool++
	s.pools[p.id] = p
	s.audit.record(Event{Event: "pool-created", Pool: p.id, By: byControl, Detail: name})
	return p.id
}

// AddHistory gives a pool a past of so many finished requests. They take no
// memory: each is made up when it is asked for.
func (s *Server) AddHistory(poolID, rows int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pools[poolID]
	if p == nil {
		return fmt.Errorf("add history to pool %d: %w", poolID, ErrUnknown)
	}
	if rows < 0 {
		return fmt.Errorf("add history to pool %d: %d rows: use a number from 0", poolID, rows)
	}
	p.history = append(p.history, historyBlock{first: s.nextRequest, rows: rows})
	s.nextRequest += int64(rows)
	return nil
}

// Queue adds a build to a pool's queue and returns its request's id. A build
// that no registered agent could ever run fails at once, as with the service;
// that is no error of this call.
func (s *Server) Queue(b Build) (int64, error) {
	demands := []demand{}
	for _, text := range b.Demands {
		d, err := parseDemand(text)
		if err != nil {
			return 0, fmt.Errorf("queue build %q: %w", b.Name, err)
		}
		demands = append(demands, d)
	}
	if !slices.ContainsFunc(demands, func(d demand) bool { return strings.EqualFold(d.name, capAgentVersion) }) {
		demands = append(demands, demand{capAgentVersion, opGTVersion, s.opts.MinAgentVersion})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.findPool(b.PoolID, b.Pool)
	if err != nil {
		return 0, fmt.Errorf("queue build %q: %w", b.Name, err)
	}
	r := s.newRequest(p, b, demands)
	s.requestEvent("request-queued", r, byControl, "", r.name)
	registered := slices.ContainsFunc(p.sortedAgents(), func(a *agent) bool {
		return a.satisfies(demands) || a.satisfiesButVersion(demands) && s.updatable(a, demands)
	})
	if !registered {
		r.status = fmt.Sprintf("No agent found in pool %s which satisfies the specified demands: %s", p.name, joinDemands(demands))
		s.finish(r, ResultFailed, "request-failed-no-agent", byService, r.status)
	}
	return r.id, nil
}

// updatable tells whether an update would give an agent the version demanded.
func (s *Server) updatable(a *agent, demands []demand) bool {
	v := s.packages.newest("")
	if v == "" || a.session == nil {
		return false
	}
	updated := *a
	updated.folded = maps.Clone(a.folded)
	updated.folded[strings.ToLower(capAgentVersion)] = v
	return updated.satisfies(demands)
}

func joinDemands(demands []demand) string {
	var texts []string
	for _, d := range demands {
		texts = append(texts, d.String())
	}
	return strings.Join(texts, ", ")
}

// newRequest makes a request and registers it. The caller holds the mutex.
func (s *Server) newRequest(p *pool, b Build, demands []demand) *request {
	r := &request{
		id: s.nextRequest, pool: p, name: b.Name, priority: b.Priority,
		demands: demands, demandKey: joinDemands(demands),
		env: maps.Clone(b.Env), variables: make(map[string]variable),
		scopeID: uuid.NewSHA1(s.hostID, []byte("project")), planID: s.newID(), timelineID: s.newID(), jobID: s.newID(),
		definitionID: 1 + int(s.noise("definition:"+b.Name, 0)%900),
		progress:     progress{queued: time.Now()},
		done:         make(chan struct{}),
	}
	r.runID = int(r.id) + 5000
	if r.name == "" {
		r.name = fmt.Sprintf("Job %d", r.id)
	}
	for name, value := range b.Variables {
		r.variables[name] = variable{Value: value}
	}
	for name, value := range b.Secrets {
		r.variables[name] = variable{Value: value, IsSecret: true}
	}
	for i, script := range b.Steps {
		r.steps = append(r.steps, step{id: s.newID(), name: fmt.Sprintf("CmdLine%d", i+1), script: script})
	}
	// Ids of requests have gaps, as other pools of the organisation draw from
	// the same numbers.
	s.nextRequest += 1 + int64(s.random.requests.IntN(3))
	s.requests[r.id] = r
	s.plans[r.planID] = r
	p.unfinished[r.id] = r
	return r
}

// findPool resolves a pool by id or by unique name. The caller holds the mutex.
func (s *Server) findPool(id int, name string) (*pool, error) {
	if id != 0 {
		if p := s.pools[id]; p != nil {
			return p, nil
		}
		return nil, fmt.Errorf("pool %d: %w", id, ErrUnknown)
	}
	var found *pool
	for _, p := range s.pools {
		if !strings.EqualFold(p.name, name) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("pool %q: there are two of this name, say which by its id", name)
		}
		found = p
	}
	if found == nil {
		return nil, fmt.Errorf("pool %q: %w", name, ErrUnknown)
	}
	return found, nil
}

// Cancel cancels a build: at once while no agent knows of it, else by a
// message to the agent, which has Options.CancelTimeout to obey.
func (s *Server) Cancel(requestID int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.requests[requestID]
	switch {
	case r == nil:
		return fmt.Errorf("cancel request %d: %w", requestID, ErrUnknown)
	case r.result != "":
		return fmt.Errorf("cancel request %d: %w: %s", requestID, ErrFinished, r.result)
	case !r.cancelBy.IsZero():
		return nil
	}
	a := r.pool.agents[r.agentID]
	if r.state() == StateQueued || r.state() == StateAssigned && !r.message.delivered {
		r.status = "The job was cancelled before an agent started it."
		s.finish(r, ResultCanceled, "request-canceled", byControl, "")
		return nil
	}
	r.cancelBy = time.Now().Add(s.opts.CancelTimeout)
	s.requestEvent("request-cancel-requested", r, byControl, "", "")
	if a != nil && a.session != nil {
		a.session.send(&message{kind: messageCancel, request: r, body: mustJSON(cancelBody{
			JobID: r.jobID.String(), Timeout: timeSpan(s.opts.CancelTimeout),
		})})
	}
	return nil
}

// Build returns what has become of a build.
func (s *Server) Build(requestID int64) (BuildStatus, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.requests[requestID]
	if r == nil {
		return BuildStatus{}, fmt.Errorf("request %d: %w", requestID, ErrUnknown)
	}
	return r.buildStatus(), nil
}

// Builds returns all builds of a pool by request id, without the made-up past.
func (s *Server) Builds(poolID int) []BuildStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []BuildStatus{}
	for _, id := range slices.Sorted(maps.Keys(s.requests)) {
		if r := s.requests[id]; r.pool.id == poolID {
			all = append(all, r.buildStatus())
		}
	}
	return all
}

func (r *request) buildStatus() BuildStatus {
	status := BuildStatus{
		RequestID: r.id, PoolID: r.pool.id, Name: r.name, State: r.state(), Result: r.result, Message: r.status,
		AgentID: r.agentID, AgentName: r.agentName,
		Queued: r.queued, Assigned: r.assignedAt, Received: r.received, Finished: r.finishedAt,
	}
	for _, rec := range r.records {
		status.Steps = append(status.Steps, StepStatus{
			Name: rec.text("name"), Type: rec.text("type"), State: rec.enum("state", recordStates()), Result: rec.enum("result", results()),
		})
	}
	return status
}

// Log returns all that a build's worker has written, log by log.
func (s *Server) Log(requestID int64) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.requests[requestID]
	if r == nil {
		return "", fmt.Errorf("log of request %d: %w", requestID, ErrUnknown)
	}
	var all strings.Builder
	for _, l := range r.logs {
		all.WriteString(l.text.String())
	}
	return all.String(), nil
}

// Wait blocks until a build has its result or the context ends.
func (s *Server) Wait(ctx context.Context, requestID int64) (BuildStatus, error) {
	s.mu.Lock()
	r := s.requests[requestID]
	s.mu.Unlock()
	if r == nil {
		return BuildStatus{}, fmt.Errorf("wait for request %d: %w", requestID, ErrUnknown)
	}
	var err error
	select {
	case <-r.done:
	case <-ctx.Done():
		err = fmt.Errorf("wait for request %d: %w", requestID, context.Cause(ctx))
	case <-s.ctx.Done():
		err = fmt.Errorf("wait for request %d: the service was closed", requestID)
	}
	status, statusErr := s.Build(requestID)
	return status, errors.Join(err, statusErr)
}

// WaitIdle blocks until a pool has no unfinished request or the context ends.
func (s *Server) WaitIdle(ctx context.Context, poolID int) error {
	for {
		s.mu.Lock()
		p := s.pools[poolID]
		left, changed := 0, s.idle
		if p != nil {
			left = len(p.unfinished)
		}
		s.mu.Unlock()
		switch {
		case p == nil:
			return fmt.Errorf("wait for pool %d: %w", poolID, ErrUnknown)
		case left == 0:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for pool %d, %d requests unfinished: %w", poolID, left, context.Cause(ctx))
		case <-s.ctx.Done():
			return fmt.Errorf("wait for pool %d, %d requests unfinished: the service was closed", poolID, left)
		}
	}
}
