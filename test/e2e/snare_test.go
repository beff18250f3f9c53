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

// callID names one call.
type callID struct {
	server string
	n      int
}

func idOf(call interpose.Call) callID { return callID{call.Server, call.N} }

// hit is a caller that is held up at a call, to be killed.
type hit struct {
	by     env.Caller
	moment interpose.Moment
}

// snare holds callers up until they are dead: so nothing that one does later can slip through.
type snare struct {
	t      *testing.T
	env    atomic.Pointer[env.Env]
	sprung chan hit
	dead   chan struct{}
	over   chan struct{} // Closed when nobody waits for sprung any more.
	end    sync.Once
}

func newSnare(t *testing.T) *snare {
	t.Helper()
	return &snare{t: t, sprung: make(chan hit), dead: make(chan struct{}), over: make(chan struct{})}
}

// watch has it know the callers of a system, until the test ends.
func (s *snare) watch(system *env.Env) {
	s.env.Store(system)
	s.t.Cleanup(s.stop)
}

// stop has it let every caller go.
func (s *snare) stop() { s.end.Do(func() { close(s.over) }) }

// caller tells who makes a call, if it is one of the system's processes.
func (s *snare) caller(call interpose.Call) (env.Caller, bool) {
	system := s.env.Load()
	if system == nil {
		return env.Caller{}, false // It is being set up.
	}
	by, err := system.Caller(call)
	if err != nil && !errors.Is(err, env.ErrNoCaller) {
		s.t.Errorf("%s: %v", call, err)
	}
	return by, err == nil
}

// hold waits until the caller is dead, and tells whether it is.
func (s *snare) hold(call interpose.Call, target hit) bool {
	if target.moment == interpose.Answered {
		s.awaitDrained(call)
	}
	select {
	case s.sprung <- target:
	case <-s.over:
		return false
	}
	select {
	case <-s.dead:
	case <-s.over:
	}
	return true
}

// drainLimit is how long a caller may leave an answer unread: it may be busy.
const drainLimit = 2 * time.Second

// awaitDrained waits until the client has read the answer.
func (s *snare) awaitDrained(call interpose.Call) {
	for deadline := time.Now().Add(drainLimit); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		drained, err := env.Drained(call)
		if err != nil {
			s.t.Errorf("%s: %v", call, err)
		}
		if drained || err != nil {
			return
		}
	}
}
