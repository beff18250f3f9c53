// Package scaler is the loop: it polls a pool's queue, makes a snapshot of it
// and of our Jobs, lets package plan decide, and applies the plan.
//
// Every cycle starts afresh from what is there. The pods are read from the cache
// before the queue is read from the service, so that a claim is never newer than
// the pod that made it; a poll that fails or is not whole makes no plan at all.
// What the loop remembers between cycles bridges its own caches and spares
// calls; losing it costs some calls and a shorter back-off, never a build.
package scaler

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// Service is what the loop needs of Azure DevOps.
type Service interface {
	// JobRequests visits every unfinished request of the pool and returns how
	// many rows could not be read. On an error the visit was not whole.
	JobRequests(ctx context.Context, poolID int, visit func(agentpool.JobRequest) error) (malformed int, err error)
	// Agents lists every registration of the pool.
	Agents(ctx context.Context, poolID int) ([]agentpool.Agent, error)
	// DisableAgent makes the service assign nothing more to the agent. The id may
	// be 0, then it is looked up by name. An agent that is gone is no error.
	DisableAgent(ctx context.Context, poolID int, agent agentpool.AgentRef) error
	// WithdrawAgent stops an idle agent safely: it disables it and removes its
	// registration unless it has a build. It reports whether the registration is
	// gone.
	WithdrawAgent(ctx context.Context, poolID int, agent agentpool.AgentRef) (gone bool, err error)
	// AgentCapabilities gives what an agent has registered with, and whether it is
	// registered.
	AgentCapabilities(ctx context.Context, poolID int, name string) (agentpool.Capabilities, bool, error)
	// AddPlaceholder registers an agent that never comes online, so that the service
	// queues requests that demand what it offers instead of failing them. It is no
	// error if there is one of that name.
	AddPlaceholder(ctx context.Context, poolID int, name string, claims map[string]string) error
	// ParallelJobs is how many builds the organisation may run at once, where that
	// is known.
	ParallelJobs(ctx context.Context) (total int, known bool, err error)
}

// Cluster is what the loop needs of Kubernetes.
type Cluster interface {
	// Synced reports whether Jobs and Classes show everything there is.
	Synced() bool
	// Jobs gives our Jobs from the cache, finished ones included.
	Jobs() []agentpool.AgentJob
	// Classes gives the classes of agent that are there for the pool now.
	Classes() Classes
	// LiveJobs gives them from the API server.
	LiveJobs(ctx context.Context) ([]agentpool.AgentJob, error)
	// Create makes the Job and everything it needs, and lets it go. A Job that
	// exists already is gone on with. With an error the returned Job has a UID
	// when a half-made one may be there, and a name alone when one was there and is gone.
	Create(ctx context.Context, creation plan.Creation) (agentpool.AgentJob, error)
	// Complete goes on with a half-made Job.
	Complete(ctx context.Context, job agentpool.AgentJob) error
	// DeleteUnstarted deletes the Job if a live read shows that its agent has not
	// started, and reports whether it did.
	DeleteUnstarted(ctx context.Context, job agentpool.AgentJob) (bool, error)
	// Delete deletes the Job and all it owns.
	Delete(ctx context.Context, job agentpool.AgentJob) error
	// EndRights takes from the Job's ServiceAccount what its build could do.
	EndRights(ctx context.Context, job agentpool.AgentJob) error
	// Sweep removes what a crash has left, older than grace, and counts it by kind.
	Sweep(ctx context.Context, grace time.Duration) (map[string]int, error)
	// Check tells, for each class that can't be served now, why and what to do.
	Check(ctx context.Context) map[string]string
	// Report makes a fact about a Job visible to people who look at the cluster.
	Report(job agentpool.AgentJob, warning bool, reason, message string)
	// ReportClass does the same for a class of agent.
	ReportClass(class string, warning bool, reason, message string)
}

// Classes are the classes of agent that serve a pool, at one moment.
type Classes struct {
	Usable []agentpool.AgentClass
	// Broken says, for each class that can't be used because of how it is written,
	// what is wrong and how it would be right.
	Broken map[string]string
}

// Config is what the loop is set to. The zero value of a field is not a default.
type Config struct {
	Pool          agentpool.Pool
	Limits        plan.Limits
	Instance      string        // As agentjob.InstanceID gives it; it is part of every agent's name.
	PollBusy      time.Duration // Between polls while something waits or starts.
	PollIdle      time.Duration
	AgentsEvery   time.Duration // Between reads of the agents list that nothing else asks for.
	SweepEvery    time.Duration
	SweepGrace    time.Duration // How old a leftover must be.
	CheckEvery    time.Duration // Between checks of what the classes need.
	RecheckEvery  time.Duration // The same while a class is blocked.
	AssumeLimit   time.Duration // How long an own write may stay unseen before the cache counts as stale.
	CallTimeout   time.Duration // For one operation on the cluster or the service.
	PollTimeout   time.Duration
	Concurrency   int // Operations of one plan at once.
	UseParallel   bool
	ParallelEvery time.Duration
	// OtherPools gives how many builds run in the pools of the other loops; nil is none.
	OtherPools func() int
	// Mark gives what tells this cluster and namespace from every other, empty where nothing
	// does; nil does without the check.
	Mark func(ctx context.Context) (string, error)
	// History tells how builds have ended, for their lines in the log; nil writes none.
	History History
}

// Scaler runs the loop for one pool.
type Scaler struct {
	config  Config
	service Service
	cluster Cluster
	log     *slog.Logger
	metrics *Metrics
	now     func() time.Time

	memory *memory
	wake   chan struct{} // Asks for a cycle soon.
	notify chan struct{} // Says that a pod or Job has changed.
	claims *claims
	// recheck asks for a check of what the classes need before it is due.
	recheck atomic.Bool
	status  atomic.Pointer[Status]
	turned  atomic.Pointer[time.Time] // When the last cycle began.

	// The loop's own, touched by no other goroutine.
	due struct {
		agents, sweep, check, parallel time.Time
	}
	blocked  map[string]string
	standing map[string]string // The placeholders that were last seen to, with their classes.
	parallel int
	failures int // Cycles in a row that made no plan.
	builds   *buildLog
	mark     string         // Of the cluster, once marked says so.
	marks    map[int]string // Of placeholders, by the number of the agent.
	marked   bool
	alone    bool // No other installation has the same id, as the last list of agents shows.
	complain *changes
}

// New makes a Scaler that has not started. The clock is time.Now except in tests.
func New(config Config, service Service, cluster Cluster, metrics *Metrics, log *slog.Logger, now func() time.Time) *Scaler {
	s := &Scaler{
		config: config, service: service, cluster: cluster, metrics: metrics, now: now,
		log:    log.With("pool", config.Pool.Name),
		wake:   make(chan struct{}, 1),
		notify: make(chan struct{}, 1),
		claims: &claims{known: map[string]claim{}},
	}
	s.forget()
	metrics.watch(config.Pool.Name, s.Status, now)
	return s
}

// forget makes the Scaler one that has just been made. What it knew may be untrue by
// the time that it works again, as another may have worked for the pool meanwhile.
func (s *Scaler) forget() {
	s.memory, s.complain = newMemory(), newChanges()
	s.due.agents, s.due.sweep, s.due.check, s.due.parallel = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	s.blocked, s.standing, s.parallel, s.failures = nil, nil, 0, 0
	s.mark, s.marks, s.marked, s.alone = "", nil, false, false
	s.recheck.Store(false)
	s.turned.Store(nil)
	s.status.Store(&Status{Pool: s.config.Pool.Name, Standby: true})
}

// Wake asks for a cycle soon. It never blocks.
func (s *Scaler) Wake() { signal(s.wake) }

// Recheck asks for a cycle soon that looks again at what the classes need. It never blocks.
func (s *Scaler) Recheck() {
	s.recheck.Store(true)
	s.Wake()
}

// Notify tells that a Job or a pod has changed. It never blocks.
func (s *Scaler) Notify() { signal(s.notify) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run polls, plans and applies until ctx ends. It returns nil then, and waits
// for what is under way, each operation being bounded by the call time-out. It may be
// called again when it has returned, and begins anew then.
func (s *Scaler) Run(ctx context.Context) error {
	defer s.forget()
	s.status.Store(&Status{Pool: s.config.Pool.Name, Waiting: "the cache of Jobs and pods is not filled yet"})
	if err := s.waitForSync(ctx); err != nil {
		return ignoreStop(ctx, err)
	}
	jobs := s.cluster.Jobs()
	s.memory.seed(jobs)
	s.builds = newBuildLog(jobs)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.loop(ctx) })
	group.Go(func() error { return s.follow(ctx) })
	return ignoreStop(ctx, group.Wait())
}

// ignoreStop takes the end of ctx for what it is: a wish, not a failure.
func ignoreStop(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

func (s *Scaler) waitForSync(ctx context.Context) error {
	tick := time.NewTicker(syncPoll)
	defer tick.Stop()
	for !s.cluster.Synced() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case <-s.notify:
		}
	}
	return nil
}

// syncPoll is how often the cache is asked whether it is filled.
const syncPoll = 50 * time.Millisecond

func (s *Scaler) loop(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		case <-s.wake:
		}
		timer.Reset(s.cycle(ctx))
	}
}

// run applies one operation for each item, a few at a time, and waits for them.
// One that fails never keeps the others from running. An operation that has begun is
// finished even when ctx ends, within the call time-out; no new one is begun.
func run[T any](ctx context.Context, s *Scaler, items []T, operate func(context.Context, T)) {
	each(ctx, context.WithoutCancel(ctx), s.config, items, operate)
}

// each is run with calls that end with a context of their own.
func each[T any](ctx, calls context.Context, config Config, items []T, operate func(context.Context, T)) {
	var group errgroup.Group
	group.SetLimit(config.Concurrency)
	for _, item := range items {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error {
			call, cancel := context.WithTimeout(calls, config.CallTimeout)
			defer cancel()
			operate(call, item)
			return nil
		})
	}
	_ = group.Wait() // The operations report for themselves.
}

// reasonOf gives the reason that an error stands for.
func reasonOf(err error) agentpool.Reason {
	var reasoned agentpool.ReasonedError
	switch {
	case errors.As(err, &reasoned):
		return reasoned.Reason()
	case errors.Is(err, context.DeadlineExceeded):
		return agentpool.ReasonAPIUnavailable
	default:
		return agentpool.ReasonUnknown
	}
}

// changes remembers what was said about a subject, so that it is said again only
// when it is something else.
type changes struct {
	mu   sync.Mutex
	said map[string]string
}

func newChanges() *changes { return &changes{said: map[string]string{}} }

// isNew reports whether text has not been said about subject last. The empty
// text clears the subject and is never new.
func (c *changes) isNew(subject, text string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if text == "" {
		delete(c.said, subject)
		return false
	}
	if c.said[subject] == text {
		return false
	}
	c.said[subject] = text
	return true
}

// keep forgets every subject that is not in use.
func (c *changes) keep(inUse func(subject string) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for subject := range c.said {
		if !inUse(subject) {
			delete(c.said, subject)
		}
	}
}
