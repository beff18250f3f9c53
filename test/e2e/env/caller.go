package env

import (
	"errors"
	"time"

	"github.com/azp-scaler/azp-scaler/test/e2e/hostnode"
	"github.com/azp-scaler/azp-scaler/test/e2e/interpose"
	"github.com/azp-scaler/azp-scaler/test/e2e/process"
)

// The servers that Options.Interpose is told of.
const (
	ServerKubernetes  = "kubernetes"
	ServerAzureDevOps = "service"
)

// agentContainer is that in which the agent runs.
const agentContainer = "agent"

// ActorScaler is the scaler as a caller.
const ActorScaler = "scaler"

// Caller is a process of the system that calls a server.
type Caller struct {
	Actor string // The scaler or the name of a container, with a mark behind it for its preStop hook.
	Job   string // Of the container.

	running *hostnode.Running // Nil for the scaler.
}

// ErrNoCaller says that a call is by none of the processes: one of the tests, or one that has
// ended meanwhile.
var ErrNoCaller = errors.New("no process of the scaler or of a pod has the connection open")

// Caller finds out who makes a call, by the connection. Containers are known where they are
// processes of this machine.
func (e *Env) Caller(call interpose.Call) (Caller, error) {
	socket, found, err := process.SocketAt(call.Remote)
	if err != nil {
		return Caller{}, err
	}
	if found && e.Scaler.has(socket) {
		return Caller{Actor: ActorScaler}, nil
	}
	if !found || e.node == nil {
		return Caller{}, ErrNoCaller
	}
	for _, running := range e.node.Running() {
		if running.Has(socket) {
			return caller(running), nil
		}
	}
	return Caller{}, ErrNoCaller
}

// Containers lists the processes of all pods, where they are processes of this machine.
func (e *Env) Containers() []Caller {
	if e.node == nil {
		return nil
	}
	var all []Caller
	for _, running := range e.node.Running() {
		all = append(all, caller(running))
	}
	return all
}

func caller(running hostnode.Running) Caller {
	actor := running.Container
	if running.Hook {
		actor += "/preStop"
	}
	return Caller{Actor: actor, Job: running.Job, running: &running}
}

// Kill ends the caller with SIGKILL and waits until it is gone. It is called from the goroutine
// that has the scaler's other methods.
func (e *Env) Kill(c Caller) error {
	if c.running == nil {
		return e.Scaler.Kill()
	}
	if c.Actor == agentContainer {
		e.Lose(c.Job, time.Now())
	}
	c.running.Kill()
	return nil
}

// Lose tells the auditor of an agent that was ended from outside, and when.
func (e *Env) Lose(agent string, at time.Time) {
	if e.Killed == nil {
		e.Killed = map[string]time.Time{}
	}
	e.Killed[agent] = at
}

// Drained tells whether the client of a call has read all that was sent to it, or is gone.
func Drained(call interpose.Call) (bool, error) {
	socket, found, err := process.SocketAt(call.Remote)
	return !found || socket.Unread == 0, err
}
