package simulate

import (
	"fmt"
	"sync"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// world is the model: a pool and a cluster in which things happen by themselves, and in
// which nothing is known at once.
type world struct {
	setup Setup
	begun time.Time

	mu       sync.Mutex // Held for all that follows, and while something happens.
	events   []Event
	requests map[int64]*request
	agents   map[string]*agent // Registrations, by name.
	jobs     map[string]*job   // By name.
	rights   map[string]right  // By UID of the Job.
	classes  []agentpool.AgentClass
	replicas []*replica // Those at work.
	killed   []*replica
	outages  []outage
	queues   bool // Builds are still being queued.
	calm     bool // Nothing fails any more.

	lastRequest int64
	lastAgent   int
	lastJob     int
	lastReplica int
	tempted     int

	diceMu sync.Mutex
	thrown map[string]uint64
}

// request is a build as the service has it.
type request struct {
	agentpool.JobRequest
	stop chan struct{} // Closed when it is cancelled while it runs.
}

// agent is a registration.
type agent struct {
	agentpool.Agent
	uid string // Of the Job that it is for, empty for a placeholder.
	job *job   // From when it comes online.
}

// right is what a build may do.
type right struct {
	job     string
	granted time.Time
}

// outage is a time in which all calls of a kind fail.
type outage struct {
	of          target
	how         trouble
	begin, over time.Time
}

func newWorld(setup Setup) *world {
	w := &world{
		setup: setup, begun: time.Now(), queues: true, classes: setup.Classes,
		requests: map[int64]*request{}, agents: map[string]*agent{}, jobs: map[string]*job{}, rights: map[string]right{},
		thrown: map[string]uint64{},
	}
	w.record(Event{Kind: Serves, Classes: w.classes})
	return w
}

// record adds to the history. The caller holds the lock.
func (w *world) record(event Event) {
	event.At = time.Since(w.begun)
	w.events = append(w.events, event)
}

func (w *world) with(do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	do()
}

func read[T any](w *world, look func() T) T {
	w.mu.Lock()
	defer w.mu.Unlock()
	return look()
}

// later does something after a while, under the lock.
func (w *world) later(after time.Duration, do func()) { time.AfterFunc(after, func() { w.with(do) }) }

// fails tells whether there is trouble of a kind. When all builds have ended there is
// none any more, so that there is a rest to be judged. The caller holds the lock.
func (w *world) fails(kind bool) bool { return kind && !w.calm }

// class gives a class by its name, as it is now. The caller holds the lock.
func (w *world) class(name string) (agentpool.AgentClass, bool) {
	for _, class := range w.classes {
		if class.Name == name {
			return class, true
		}
	}
	return agentpool.AgentClass{}, false
}

func jobName(requestID int64, attempt int) string {
	return fmt.Sprintf("azp-%s-%d-%d-%d", instance, poolID, requestID, attempt)
}
