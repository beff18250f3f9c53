package e2e_test

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/test/e2e/env"
	"github.com/azp-scaler/azp-scaler/test/e2e/interpose"
)

// killer holds callers up at calls that are drawn.
type killer struct {
	*snare
	way string

	mu     sync.Mutex
	random *rand.Rand
	role   role   // Whose call is waited for.
	skip   int    // Calls of that role that pass first.
	chosen *hit   // What it will be, at its moment.
	id     callID // Of its call.
	since  time.Time
}

// role is a group of actors.
type role int

const (
	roleNone role = iota
	roleScaler
	rolePod   // The containers that register and remove, where there are any.
	roleAgent // The container of the build.
)

// armedLimit is how long the killer waits for a call: one that it has chosen may find no answer.
const armedLimit = 20 * time.Second

func newKiller(t *testing.T, way string, seed uint64) *killer {
	t.Helper()
	return &killer{snare: newSnare(t), way: way, random: rand.New(rand.NewPCG(seed, 8))}
}

// arm draws the next one to be killed: mostly the scaler, and seldom the agent, with which its
// build goes.
func (k *killer) arm() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.role, k.chosen, k.since = roleScaler, nil, time.Now()
	switch n := k.random.IntN(10); {
	case n == 0:
		k.role = roleAgent
	case n < 4 && k.way == fromPods:
		k.role = rolePod
	}
	k.skip = k.random.IntN(40)
}

// idle tells whether nobody is waited for any more.
func (k *killer) idle() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.role == roleNone && k.chosen == nil || time.Since(k.since) > armedLimit
}

// hook is the interpose.Hook.
func (k *killer) hook(call interpose.Call, moment interpose.Moment) bool {
	if moment == interpose.Before {
		k.choose(call)
	}
	target, hits := k.hits(call, moment)
	return hits && k.hold(call, target)
}

// choose takes a call if it is the one that was drawn.
func (k *killer) choose(call interpose.Call) {
	k.mu.Lock()
	waiting := k.role != roleNone
	k.mu.Unlock()
	if !waiting {
		return // Finding out who calls takes time.
	}
	by, found := k.caller(call)
	if !found {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	is := rolePod
	switch by.Actor {
	case env.ActorScaler:
		is = roleScaler
	case agentActor:
		is = roleAgent
	}
	if k.role != is {
		return
	}
	if k.skip--; k.skip >= 0 {
		return
	}
	k.role = roleNone
	k.chosen = &hit{by: by, moment: interpose.Moment(k.random.IntN(int(interpose.Answered) + 1))}
	k.id = idOf(call)
}

// hits tells whether a call has come where its caller is to be killed.
func (k *killer) hits(call interpose.Call, moment interpose.Moment) (hit, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.chosen == nil || k.id != idOf(call) || k.chosen.moment != moment {
		return hit{}, false
	}
	target := *k.chosen
	k.chosen = nil
	return target, true
}

// politeGate holds each build up until its agent is disabled: where that takes longer than the pod
// holds a build itself, its agent may be given a second one while it ends, as the documentation says,
// which is lost then.
type politeGate struct {
	address string
	close   func()

	mu      sync.Mutex
	passed  map[string]bool
	waiting map[string]waiting
}

type waiting struct {
	conn  net.Conn
	since time.Time
}

func newPoliteGate(e *env.Env) (*politeGate, error) {
	listener, err := net.Listen("tcp", net.JoinHostPort(e.HostAddress(), "0"))
	if err != nil {
		return nil, fmt.Errorf("a gate for builds: %w", err)
	}
	g := &politeGate{address: listener.Addr().String(), passed: map[string]bool{}, waiting: map[string]waiting{}}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // It was closed.
			}
			serving.Go(func() { g.arrive(conn) })
		}
	})
	g.close = func() {
		_ = listener.Close()
		g.mu.Lock()
		for _, one := range g.waiting {
			_ = one.conn.Close()
		}
		g.mu.Unlock()
		serving.Wait()
	}
	return g, nil
}

// arriveLimit is how long a build may take to say its name.
const arriveLimit = 30 * time.Second

func (g *politeGate) arrive(conn net.Conn) {
	_ = conn.SetReadDeadline(time.Now().Add(arriveLimit))
	name, err := bufio.NewReader(conn).ReadString('\n')
	name = strings.TrimSpace(name)
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil || g.passed[name] {
		_ = conn.Close() // The build sees its end either way.
		return
	}
	g.waiting[name] = waiting{conn: conn, since: time.Now()}
}

// step is what a build does to wait at the gate.
func (g *politeGate) step(name string) string {
	host, port, _ := net.SplitHostPort(g.address) // It is the address of a listener.
	return fmt.Sprintf("exec 3<>/dev/tcp/%s/%s && echo %s >&3 && cat <&3 >/dev/null; true", host, port, name)
}

// pass lets a build end, and tells how long it has waited.
func (g *politeGate) pass(name string) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.passed[name] = true
	one, found := g.waiting[name]
	if !found {
		return 0
	}
	delete(g.waiting, name)
	_ = one.conn.Close() // The build sees its end either way.
	return time.Since(one.since)
}
