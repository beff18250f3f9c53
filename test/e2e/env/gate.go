package env

import (
	"errors"
	"fmt"
	"net"
	"sync"
)

// Gate holds builds up for as long as a test wants them to run: their step waits
// for the end of a connection to it, and takes no time from the machine.
type Gate struct {
	listener net.Listener
	done     chan struct{}

	mu      sync.Mutex
	open    bool
	waiting []net.Conn
	arrived int
}

// NewGate opens a closed gate, which pods can reach.
func (e *Env) NewGate() (*Gate, error) {
	listener, err := net.Listen("tcp", net.JoinHostPort(e.cluster.HostAddress(), "0"))
	if err != nil {
		return nil, fmt.Errorf("a gate for builds: %w", err)
	}
	g := &Gate{listener: listener, done: make(chan struct{})}
	go g.serve()
	return g, nil
}

func (g *Gate) serve() {
	defer close(g.done)
	for {
		conn, err := g.listener.Accept()
		if err != nil {
			return // Close has been called.
		}
		g.mu.Lock()
		g.arrived++
		if g.open {
			_ = conn.Close() // The build sees its end either way.
		} else {
			g.waiting = append(g.waiting, conn)
		}
		g.mu.Unlock()
	}
}

// Step is what a build does to wait at the gate.
func (g *Gate) Step() string {
	host, port, _ := net.SplitHostPort(g.listener.Addr().String()) // It is the address of a listener.
	return fmt.Sprintf("exec 3<>/dev/tcp/%s/%s && cat <&3 >/dev/null; true", host, port)
}

// Arrived is how many builds have come to the gate so far.
func (g *Gate) Arrived() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.arrived
}

// Open lets all builds go on, those that come later too.
func (g *Gate) Open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = true
	for _, conn := range g.waiting {
		_ = conn.Close() // The build sees its end either way.
	}
	g.waiting = nil
}

// Close opens the gate and takes it away.
func (g *Gate) Close() error {
	g.Open()
	err := g.listener.Close()
	<-g.done
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close the gate: %w", err)
	}
	return nil
}
