package scaler_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// model is a small pool and a small cluster behind the loop's two interfaces. A
// test moves it by hand: nothing happens in it by itself but what the loop does.
type model struct {
	mu       sync.Mutex
	requests map[int64]agentpool.JobRequest
	agents   map[string]agentpool.Agent
	jobs     map[string]agentpool.AgentJob // The truth, by name.
	cached   []agentpool.AgentJob          // What the cache shows while frozen.
	frozen   bool
	unsynced bool
	rights   map[string]bool // Names of Jobs whose build has rights.

	pollError, createError, liveError, disableError, rightsError error
	partial                                                      bool          // The poll fails after its first rows.
	pollTakes                                                    time.Duration // From the look at the queue until the answer is there.
	initial                                                      []int64       // To be queued when virtual time begins.
	blocked                                                      map[string]string
	classes                                                      scaler.Classes
	parallel                                                     int
	created                                                      []string
	reports                                                      []string
	rightsTime                                                   time.Duration
	polls, nextAgent, withdrawn, disablings                      int
	before                                                       func()   // Called when virtual time begins.
	lacking                                                      []string // What agents do not register with, in small letters.
	placeholderError, deleteError, withdrawError, parallelError  error
	unstartedError                                               error
	away                                                         error // Of every call to the service.
}

func newModel(queued ...int64) *model {
	return &model{
		initial:  queued,
		requests: map[int64]agentpool.JobRequest{}, agents: map[string]agentpool.Agent{},
		jobs: map[string]agentpool.AgentJob{}, rights: map[string]bool{},
		classes: scaler.Classes{Usable: []agentpool.AgentClass{{Name: "default"}}},
	}
}

func (m *model) with(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

func (m *model) queue(ids ...int64) {
	m.with(func() {
		for _, id := range ids {
			m.requests[id] = agentpool.JobRequest{ID: id, PoolID: 7, QueueTime: time.Now()}
		}
	})
}

// start lets the agent of a Job come online and wait.
func (m *model) start(name string) {
	m.with(func() {
		job := m.jobs[name]
		job.PodName, job.Scheduled, job.Started, job.Ready, job.ReadySince = name+"-pod", time.Now(), true, true, time.Now()
		m.jobs[name] = job
		id := job.AgentID
		if id == 0 {
			m.nextAgent++
			id = m.nextAgent
		}
		m.agents[name] = agentpool.Agent{ID: id, Name: name, Online: true, Enabled: true, Capabilities: m.offered(job)}
	})
}

// offered is what an agent registers with: all that its class claims, but for what the
// image lacks.
func (m *model) offered(job agentpool.AgentJob) agentpool.Capabilities {
	offered := maps.Clone(job.Capabilities)
	for _, name := range m.lacking {
		delete(offered, name)
	}
	return offered
}

// claim gives a request to an agent.
func (m *model) claim(id int64, name string) {
	m.with(func() {
		request := m.requests[id]
		agent := m.agents[name]
		request.AssignTime, request.ReceiveTime = time.Now(), time.Now()
		request.Reserved = agentpool.AgentRef{ID: agent.ID, Name: name}
		m.requests[id] = request
		agent.AssignedRequest = id
		m.agents[name] = agent
		job := m.jobs[name]
		job.Ready, job.RanBuild = false, true
		m.jobs[name] = job
	})
}

// finish ends a build, its agent and its registration, as the sidecar does.
func (m *model) finish(id int64) {
	m.with(func() {
		name := m.requests[id].Reserved.Name
		delete(m.requests, id)
		delete(m.agents, name)
		job := m.jobs[name]
		job.Ended, job.JobDone = time.Now(), true
		m.jobs[name] = job
	})
}

func (m *model) names() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for name := range m.jobs {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// read gives what look sees, under the lock.
func read[T any](m *model, look func() T) T {
	m.mu.Lock()
	defer m.mu.Unlock()
	return look()
}

func (m *model) made() []string { return read(m, func() []string { return slices.Clone(m.created) }) }

func (m *model) reported() []string {
	return read(m, func() []string { return slices.Clone(m.reports) })
}
func (m *model) rightsLeft() int { return read(m, func() int { return len(m.rights) }) }

// registered counts the agents that are no placeholders.
func (m *model) registered() int {
	return read(m, func() int {
		n := 0
		for name := range m.agents {
			if !strings.HasPrefix(name, agentjob.PlaceholderPrefix("test")) {
				n++
			}
		}
		return n
	})
}

func (m *model) disabledCount() int { return read(m, func() int { return m.disablings }) }
func (m *model) withdrawals() int   { return read(m, func() int { return m.withdrawn }) }

func (m *model) pollCount() int { return read(m, func() int { return m.polls }) }

func (m *model) agent(name string) agentpool.Agent {
	return read(m, func() agentpool.Agent { return m.agents[name] })
}

func (m *model) job(name string) agentpool.AgentJob {
	return read(m, func() agentpool.AgentJob { return m.jobs[name] })
}

// The service.

func (m *model) JobRequests(_ context.Context, _ int, visit func(agentpool.JobRequest) error) (int, error) {
	if err := read(m, func() error { return m.away }); err != nil {
		return 0, err
	}
	malformed, err := m.visit(visit)
	time.Sleep(read(m, func() time.Duration { return m.pollTakes }))
	return malformed, err
}

func (m *model) visit(visit func(agentpool.JobRequest) error) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.polls++
	if m.pollError != nil {
		return 0, m.pollError
	}
	for _, request := range m.requests {
		if err := visit(request); err != nil {
			return 0, err
		}
		if m.partial {
			return 0, errors.New("the answer ended early")
		}
	}
	return 0, nil
}

func (m *model) Agents(context.Context, int) ([]agentpool.Agent, error) {
	if err := read(m, func() error { return m.away }); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []agentpool.Agent
	for _, agent := range m.agents {
		list = append(list, agent)
	}
	return list, nil
}

func (m *model) DisableAgent(_ context.Context, _ int, agent agentpool.AgentRef) error {
	if err := read(m, func() error { return m.away }); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.disablings++
	if m.disableError != nil {
		return m.disableError
	}
	m.disable(agent.Name)
	return nil
}

func (m *model) disable(name string) {
	if agent, ok := m.agents[name]; ok {
		agent.Enabled = false
		m.agents[name] = agent
	}
}

func (m *model) WithdrawAgent(_ context.Context, _ int, ref agentpool.AgentRef) (bool, error) {
	if err := read(m, func() error { return m.away }); err != nil {
		return false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.withdrawn++
	if m.withdrawError != nil {
		return false, m.withdrawError
	}
	m.disable(ref.Name)
	if m.agents[ref.Name].AssignedRequest != 0 {
		return false, nil
	}
	delete(m.agents, ref.Name)
	return true, nil
}

func (m *model) AgentCapabilities(_ context.Context, _ int, name string) (agentpool.Capabilities, bool, error) {
	if err := read(m, func() error { return m.away }); err != nil {
		return nil, false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	agent, registered := m.agents[name]
	return agent.Capabilities, registered, nil
}

func (m *model) AddPlaceholder(_ context.Context, _ int, name string, claims map[string]string) error {
	if err := read(m, func() error { return m.away }); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.placeholderError != nil {
		return m.placeholderError
	}
	if _, there := m.agents[name]; !there {
		m.nextAgent++
		m.agents[name] = agentpool.Agent{ID: m.nextAgent, Name: name, Enabled: true, Capabilities: agentpool.NewCapabilities(claims)}
	}
	return nil
}

func (m *model) ParallelJobs(context.Context) (int, bool, error) {
	if err := read(m, func() error { return m.away }); err != nil {
		return 0, false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.parallel, m.parallel > 0, m.parallelError
}

// The cluster.

// safeBuffer is a log that the loop writes while a test reads it.
type safeBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func (m *model) Synced() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.unsynced
}

func (m *model) list() []agentpool.AgentJob {
	var jobs []agentpool.AgentJob
	for _, job := range m.jobs {
		jobs = append(jobs, job)
	}
	return jobs
}

func (m *model) freeze() { m.with(func() { m.cached, m.frozen = m.list(), true }) }

func (m *model) Jobs() []agentpool.AgentJob {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.frozen {
		return slices.Clone(m.cached)
	}
	return m.list()
}

func (m *model) Classes() scaler.Classes {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.classes
}

func (m *model) LiveJobs(context.Context) ([]agentpool.AgentJob, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.list(), m.liveError
}

func (m *model) Create(_ context.Context, c plan.Creation) (agentpool.AgentJob, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.createError != nil {
		return agentpool.AgentJob{}, m.createError
	}
	job := m.create(c)
	if job.Registration == agentpool.RegistrationJIT {
		m.nextAgent++
		job.AgentID = m.nextAgent
		m.jobs[job.Name] = job
		m.agents[job.Name] = agentpool.Agent{ID: job.AgentID, Name: job.Name, Enabled: true, Capabilities: m.offered(job)}
	}
	return job, nil
}

// create makes a Job, whose agent is not registered yet. The caller holds the lock.
func (m *model) create(c plan.Creation) agentpool.AgentJob {
	name := jobName(c.Request.ID, c.Attempt)
	job := agentpool.AgentJob{
		Name: name, UID: fmt.Sprintf("uid-%s-%d", name, len(m.created)), Class: c.Class, PoolID: 7,
		RequestID: c.Request.ID, Attempt: c.Attempt, Failures: c.Failures, CreatedAt: time.Now(), QueuedAt: c.Request.QueueTime,
	}
	for _, class := range m.classes.Usable {
		if class.Name == c.Class {
			job.ClassVersion, job.Capabilities, job.Registration = class.Version, class.Capabilities, class.Registration
		}
	}
	m.created = append(m.created, job.Name)
	m.jobs[job.Name] = job
	m.rights[job.Name] = true
	return job
}

func jobName(request int64, attempt int) string {
	return fmt.Sprintf("azp-test-7-%d-%d", request, attempt)
}

func (m *model) Complete(_ context.Context, job agentpool.AgentJob) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	job.Suspended = false
	m.jobs[job.Name] = job
	return nil
}

func (m *model) DeleteUnstarted(_ context.Context, job agentpool.AgentJob) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.unstartedError != nil || m.jobs[job.Name].Started {
		return false, m.unstartedError
	}
	delete(m.jobs, job.Name)
	delete(m.rights, job.Name)
	return true, nil
}

func (m *model) Delete(_ context.Context, job agentpool.AgentJob) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.deleteError != nil {
		return m.deleteError
	}
	delete(m.jobs, job.Name)
	delete(m.rights, job.Name)
	return nil
}

func (m *model) EndRights(_ context.Context, job agentpool.AgentJob) error {
	time.Sleep(m.rightsTime)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rightsError != nil {
		return m.rightsError
	}
	delete(m.rights, job.Name)
	return nil
}

func (m *model) Sweep(context.Context, time.Duration) (map[string]int, error) {
	return map[string]int{"rolebinding": 0}, nil
}

func (m *model) Check(context.Context) map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.blocked
}

func (m *model) ReportClass(class string, _ bool, reason, _ string) {
	m.with(func() { m.reports = append(m.reports, class+" "+reason) })
}

func (m *model) Report(job agentpool.AgentJob, _ bool, reason, _ string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reports = append(m.reports, job.Name+" "+reason)
}
