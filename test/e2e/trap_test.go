package e2e_test

import (
	"sync"
	"testing"

	"github.com/azp-scaler/azp-scaler/test/e2e/env"
	"github.com/azp-scaler/azp-scaler/test/e2e/interpose"
)

// trap tells calls apart, and holds a caller up at one of them.
type trap struct {
	*snare

	mu    sync.Mutex
	armed *plan
	lost  bool          // An answer was, as planned.
	seen  map[place]int // By place without the number.
	order []place       // Since the trap was set.
	known map[callID]caught
}

type caught struct {
	by    env.Caller
	place place
}

func newTrap(t *testing.T) *trap {
	t.Helper()
	made := &trap{snare: newSnare(t)}
	made.set(nil)
	return made
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
	if moment == interpose.Before && !t.meet(call) {
		return false
	}
	by, ending, hits := t.hits(call, moment)
	if !hits || ending == endLost {
		return hits
	}
	return t.hold(call, hit{by: by, moment: moment})
}

// meet notes a call.
func (t *trap) meet(call interpose.Call) bool {
	by, found := t.caller(call)
	if !found {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	at := place{actor: by.Actor, kind: call.Kind()}
	t.seen[at]++
	numbered := at
	numbered.nth = t.seen[at]
	t.order = append(t.order, numbered)
	t.known[idOf(call)] = caught{by: by, place: numbered}
	return true
}

// hits tells whether a call is where the trap is set.
func (t *trap) hits(call interpose.Call, moment interpose.Moment) (env.Caller, ending, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	id := idOf(call)
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
