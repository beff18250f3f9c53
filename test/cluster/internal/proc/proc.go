// Package proc starts processes that end when the process that started them
// ends, however that happens, and that are told from later processes with the
// same number.
package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// ID names one process for as long as the machine is up: numbers are used
// again, a number together with a start time is not.
type ID struct {
	PID int
	// Start is the process's start in clock ticks since boot (proc(5), stat, field 22).
	Start uint64
}

// Identify reads the identity of the running process pid.
func Identify(pid int) (ID, error) {
	_, start, err := readStat(pid)
	if err != nil {
		return ID{}, err
	}
	return ID{PID: pid, Start: start}, nil
}

// Alive tells whether the process still runs. One that has ended and only
// waits to be collected by its parent does not.
func (id ID) Alive() bool {
	state, start, err := readStat(id.PID)
	return err == nil && start == id.Start && state != "Z" && state != "X"
}

func readStat(pid int) (state string, start uint64, err error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	text, err := os.ReadFile(path)
	if err != nil {
		return "", 0, fmt.Errorf("reading the state of process %d: %w", pid, err)
	}
	// The program's name stands in brackets and may itself hold spaces and
	// brackets, so the fields are counted from the last one.
	_, rest, found := cutLast(string(text), ") ")
	fields := strings.Fields(rest)
	if !found || len(fields) < 20 {
		return "", 0, fmt.Errorf("%s does not have the form that proc(5) describes", path)
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return "", 0, fmt.Errorf("%s: start time %q: %w", path, fields[19], err)
	}
	return fields[0], start, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// Process is a running child.
type Process struct {
	name string
	id   ID
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Start runs cmd and ties its life to ours: the kernel kills it when we die.
// The caller must not call cmd.Wait; Start's own goroutine does, and ends with
// the child.
func Start(name string, cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	p := &Process{name: name, cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The kernel sends the signal when the starting *thread* ends, so this
		// goroutine keeps its thread until the child is gone, and gives it up
		// then: a locked thread ends with its goroutine.
		runtime.LockOSThread()
		if err := cmd.Start(); err != nil {
			started <- fmt.Errorf("starting %s: %w", name, err)
			return
		}
		id, err := Identify(cmd.Process.Pid)
		if err != nil {
			// Cannot fail before Wait has collected the child, except where
			// /proc is missing; without an identity it must not run.
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			started <- err
			return
		}
		p.id = id
		started <- nil
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// Name is the name given to Start.
func (p *Process) Name() string { return p.name }

// ID is the child's identity.
func (p *Process) ID() ID { return p.id }

// Done is closed when the child has ended and been collected.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err tells how the child ended; only after Done. A nil error means exit code 0.
func (p *Process) Err() error { return p.err }

// Kill ends the child with SIGKILL and waits until it is collected or ctx ends.
func (p *Process) Kill(ctx context.Context) error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("killing %s (process %d): %w", p.name, p.id.PID, err)
	}
	return p.wait(ctx)
}

// Terminate asks the child to end with SIGTERM and waits until it is collected
// or ctx ends.
func (p *Process) Terminate(ctx context.Context) error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping %s (process %d): %w", p.name, p.id.PID, err)
	}
	return p.wait(ctx)
}

func (p *Process) wait(ctx context.Context) error {
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the end of %s (process %d): %w", p.name, p.id.PID, context.Cause(ctx))
	}
}
