package e2e_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/test/e2e/env"
	"github.com/azp-scaler/azp-scaler/test/e2e/interpose"
)

// trap tells calls apart, and holds a caller up at one of them until it is dead: so nothing that it
// does later can slip through.
type trap struct {
	t   *testing.T
	env atomic.Pointer[env.Env]

	mu     sync.Mutex
	armed  *plan
	lost   bool          // An answer was, as planned.
	seen   map[place]int // By place without the number.
	order  []place       // Since the trap was set.
	known  map[callID]caught
	sprung chan env.Caller
	dead   chan struct{}
	over   chan struct{} // Closed when nobody waits for the trap any more.
}

// callID names one call.
type callID struct {
	server string
	n      int
}

type caught struct {
	by    env.Caller
	place place
}

func newTrap(t *testing.T) *trap {
	t.Helper()
	snare := &trap{t: t, sprung: make(chan env.Caller), dead: make(chan struct{}), over: make(chan struct{})}
	snare.set(nil)
	return snare
}

// watch has the trap tell the callers of a system, until the test ends.
func (t *trap) watch(system *env.Env) {
	t.env.Store(system)
	t.t.Cleanup(func() { close(t.over) })
}

// set arms the trap, or has it record only, and forgets the calls before.
func (t *trap) set(armed *plan) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.armed, t.lost, t.seen, t.order, t.known = armed, false, map[place]int{}, nil, map[callID]caught{}
}

// recorded are the calls since the trap was set, in order.
func (t *trap) recorded() []place {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]place(nil), t.order...)
}

// hasLost tells whether an answer was lost, as planned.
func (t *trap) hasLost() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lost
}

// hook is the interpose.Hook.
func (t *trap) hook(call interpose.Call, moment interpose.Moment) bool {
	system := t.env.Load()
	if system == nil {
		return false // It is being set up.
	}
	if moment == interpose.Before && !t.meet(system, call) {
		return false
	}
	by, ending, hit := t.hits(call, moment)
	switch {
	case !hit:
		return false
	case ending == endLost:
		return true
	case ending == endAnswered:
		awaitDrained(t.t, call)
	}
	select {
	case t.sprung <- by:
	case <-t.over:
		return true
	}
	select {
	case <-t.dead:
	case <-t.over:
	}
	return true
}

// meet notes a call.
func (t *trap) meet(system *env.Env, call interpose.Call) bool {
	by, err := system.Caller(call)
	if err != nil {
		if !errors.Is(err, env.ErrNoCaller) {
			t.t.Errorf("%s: %v", call, err)
		}
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	at := place{actor: by.Actor, kind: call.Kind()}
	t.seen[at]++
	numbered := at
	numbered.nth = t.seen[at]
	t.order = append(t.order, numbered)
	t.known[callID{call.Server, call.N}] = caught{by: by, place: numbered}
	return true
}

// hits tells whether a call is where the trap is set.
func (t *trap) hits(call interpose.Call, moment interpose.Moment) (env.Caller, ending, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	id := callID{call.Server, call.N}
	known, found := t.known[id]
	if moment == interpose.Answered {
		delete(t.known, id)
	}
	if !found || t.armed == nil || t.armed.place != known.place || t.armed.ending.moment() != moment {
		return env.Caller{}, "", false
	}
	ending := t.armed.ending
	t.armed, t.lost = nil, ending == endLost
	return known.by, ending, true
}

// drainLimit is how long a caller may leave an answer unread: it may be busy.
const drainLimit = 2 * time.Second

// awaitDrained waits until the client has read the answer.
func awaitDrained(t *testing.T, call interpose.Call) {
	t.Helper()
	for deadline := time.Now().Add(drainLimit); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		drained, err := env.Drained(call)
		if err != nil {
			t.Errorf("%s: %v", call, err)
		}
		if drained || err != nil {
			return
		}
	}
}
