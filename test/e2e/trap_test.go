package e2e_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/audit"
	"github.com/azp-scaler/azp-scaler/test/e2e/interpose"
)

// point is a place in the scaler's work at which it can be held up, and killed.
type point struct {
	name string
	step string // Of the build that takes the scaler there.
	// set has the scaler held up when it comes there the next time.
	set func(t *testing.T)
	// reached waits until it is, and gives up after a time.
	reached func(t *testing.T, limit time.Duration) bool
	// release lets go of what was held up, when the scaler is dead.
	release func()
}

// The steps of builds that the scaler sees running, and surely disables the agent of
// meanwhile.
const (
	stepSeen     = "sleep 2"
	stepDisabled = "sleep 6"
)

// place is a write to the API server.
type place struct {
	write  string // Method and kind of object.
	nth    int    // Among those since the trap was set, from 0.
	moment interpose.Moment
}

// trap holds the scaler up at a place, or takes the answer away there. The proxy's goroutine
// waits in it until the process is dead, so nothing that the scaler does later can slip
// through.
type trap struct {
	mu     sync.Mutex
	armed  *place
	loses  string      // The write whose next answer is lost.
	lost   int         // How many were.
	nth    map[int]int // Of a write among those of its kind since the trap was set.
	writes []string    // Since then, in order.
	sprung chan string
	dead   chan struct{}
}

func newTrap() *trap {
	return &trap{nth: map[int]int{}, sprung: make(chan string), dead: make(chan struct{})}
}

// set arms the trap and forgets the writes before.
func (t *trap) set(at *place) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.armed, t.nth, t.writes = at, map[int]int{}, nil
}

// lose has the answer to the next write of a kind be lost, and the scaler live on.
func (t *trap) lose(write string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.loses, t.lost = write, 0
}

// hasLost tells whether that has come to pass.
func (t *trap) hasLost() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lost > 0
}

// seen gives the writes since the trap was set.
func (t *trap) seen() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.writes)
}

func (t *trap) cut(w interpose.Write, moment interpose.Moment) bool {
	if resourceOf(w.Path) == "leases" {
		return false // Renewed all the time, and for no build.
	}
	write := w.Method + " " + resourceOf(w.Path)
	t.mu.Lock()
	if moment == interpose.Before {
		t.nth[w.N] = count(t.writes, write)
		t.writes = append(t.writes, write)
	}
	nth, known := t.nth[w.N]
	hit := known && t.armed != nil && *t.armed == place{write: write, nth: nth, moment: moment}
	if hit {
		t.armed = nil
	}
	loses := moment == interpose.After && t.loses == write
	if loses {
		t.loses = ""
		t.lost++
	}
	t.mu.Unlock()
	if !hit {
		return loses
	}
	t.sprung <- moment.String() + " " + w.String()
	<-t.dead
	return true
}

// count is how often something is in a list.
func count(list []string, what string) (n int) {
	for _, one := range list {
		if one == what {
			n++
		}
	}
	return n
}

// resourceOf gives the kind of object that a path of the API leads to.
func resourceOf(path string) string {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	for i, part := range parts {
		if part == "namespaces" && i+2 < len(parts) {
			return parts[i+2]
		}
	}
	return path
}

// atWrite is a write to the API server: the n-th of its kind.
func (k *killing) atWrite(write string, nth int, moment interpose.Moment) point {
	return point{
		name: fmt.Sprintf("%s %s %d", moment, write, nth),
		step: stepSeen,
		set:  func(*testing.T) { k.trap.set(&place{write: write, nth: nth, moment: moment}) },
		reached: func(t *testing.T, limit time.Duration) bool {
			t.Helper()
			select {
			case where := <-k.trap.sprung:
				t.Log(where)
				return true
			case <-time.After(limit):
			}
			k.trap.set(nil)
			select {
			case <-k.trap.sprung: // It came at the last moment.
				return true
			default:
				return false
			}
		},
		release: func() { k.trap.dead <- struct{}{} },
	}
}

// The operations of the service by which agents are registered, disabled and removed.
const (
	opRegister = "agents.add"
	opChange   = "agents.update"
	opRemove   = "agents.delete"
)

// atCall is a call of the service: the n-th of those for an operation.
func (k *killing) atCall(operation string, nth int, moment interpose.Moment) point {
	kind := azuredevopstest.FaultHang
	if moment == interpose.After {
		kind = azuredevopstest.FaultHangAnswer
	}
	fault, step := 0, stepSeen
	if nth > 0 {
		step = stepDisabled
	}
	return point{
		name: fmt.Sprintf("%s %s %d", moment, operation, nth),
		step: step,
		set: func(t *testing.T) {
			t.Helper()
			k.trap.set(nil)
			var err error
			fault, err = k.Service.Inject(azuredevopstest.Fault{Operation: operation, Identity: k.Name, Kind: kind, Skip: nth, Count: 1})
			if err != nil {
				t.Fatal(err)
			}
		},
		reached: func(t *testing.T, limit time.Duration) bool {
			t.Helper()
			for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
				if k.struck(fault) {
					return true
				}
			}
			k.Service.RemoveFault(fault)
			return false
		},
		release: func() { k.Service.RemoveFault(fault) },
	}
}

// struck tells whether a fault of the service has come to pass.
func (k *killing) struck(fault int) bool {
	return slices.ContainsFunc(k.Service.Faults(), func(f azuredevopstest.FaultStatusReport) bool { return f.ID == fault && f.Struck > 0 })
}

// serviceWrites gives the operations by which the scaler has changed agents so far. Where
// pods have its token there is no telling who did.
func (k *killing) serviceWrites(t *testing.T) []string {
	t.Helper()
	if k.way != byScaler {
		return nil
	}
	file, err := os.Open(k.Service.AuditLog)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	events, err := audit.ReadServiceLog(file)
	if err != nil {
		t.Fatal(err)
	}
	operations := map[string]string{"POST": opRegister, "PATCH": opChange, "DELETE": opRemove}
	var calls []string
	for _, event := range events {
		method, path, _ := strings.Cut(event.Detail, " ")
		operation, changes := operations[method]
		if event.Event == "http" && event.By == k.Name && changes && strings.Contains(path, "/agents") {
			calls = append(calls, operation)
		}
	}
	return calls
}

// loseAnswers has what makes an agent be done and not answered, and the scaler live on: it
// is to take back what it can't go on with, and make another.
func (k *killing) loseAnswers(t *testing.T) {
	t.Helper()
	for _, write := range []string{"POST jobs", "POST serviceaccounts", "POST rolebindings", "POST secrets", "PATCH jobs"} {
		k.trap.lose(write)
		k.build(t, "lost answer to "+write, stepSeen)
		if !k.trap.hasLost() {
			t.Fatalf("%s: the scaler never came there", write)
		}
	}
	for _, operation := range []string{opRegister, opRemove} {
		fault, err := k.Service.Inject(azuredevopstest.Fault{Operation: operation, Identity: k.Name, Kind: azuredevopstest.FaultLostAnswer, Count: 1})
		if err != nil {
			t.Fatal(err)
		}
		k.build(t, "lost answer to "+operation, stepSeen)
		if !k.struck(fault) {
			t.Fatalf("%s: the scaler never came there", operation)
		}
		k.Service.RemoveFault(fault)
	}
}
