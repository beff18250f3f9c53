// Package process runs children that cannot outlive the process that started
// them, whatever becomes of it.
package process

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// groupLimit is how long a killed group may take to be gone.
const groupLimit = 10 * time.Second

// Process is a running child and the process group it leads. The kernel kills
// the child when the thread that started it ends, and that thread is kept for as
// long as the child runs.
type Process struct {
	command *exec.Cmd
	done    chan struct{} // Closed once the child is gone; err is set before.
	err     error
}

// Start starts a command, whose SysProcAttr it sets.
func Start(command *exec.Cmd) (*Process, error) { return StartWith(command, syscall.SIGKILL) }

// StartWith is Start with another signal for the child to get when this process
// dies. A child that is given one to clean up by must obey it.
func StartWith(command *exec.Cmd, death syscall.Signal) (*Process, error) {
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: death, Setpgid: true}
	p := &Process{command: command, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := command.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = command.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", command.Path, err)
	}
	return p, nil
}

// PID is the child's number.
func (p *Process) PID() int { return p.command.Process.Pid }

// Done is closed when the child is gone.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running tells whether the child is still there.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Err is what the child ended with: nil for exit status 0, and as long as it runs.
func (p *Process) Err() error {
	if p.Running() {
		return nil
	}
	return p.err
}

// ExitCode is the child's exit status, or 128 and the signal that killed it, as
// a container runtime gives it. It is -1 as long as the child runs.
func (p *Process) ExitCode() int {
	if p.Running() || p.command.ProcessState == nil {
		return -1
	}
	if status, ok := p.command.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return p.command.ProcessState.ExitCode()
}

// Stop asks the child to end and kills it when it does not within the limit. It
// gives what the child ended with.
func (p *Process) Stop(ctx context.Context, limit time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		if err := p.Kill(); err != nil {
			return err
		}
		return fmt.Errorf("%s did not end within %s of SIGTERM and was killed", p.command.Path, limit)
	}
}

// Kill ends the child and its process group with SIGKILL and waits until the
// child is gone.
func (p *Process) Kill() error {
	if err := syscall.Kill(-p.command.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill %s: %w", p.command.Path, err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(groupLimit):
		return fmt.Errorf("kill %s: process %d is still there after %s", p.command.Path, p.command.Process.Pid, groupLimit)
	}
}

// Signal sends a signal to the child alone; one that is gone already is no error.
func (p *Process) Signal(signal syscall.Signal) error {
	if !p.Running() {
		return nil
	}
	if err := syscall.Kill(p.command.Process.Pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("send %s to %s: %w", signal, p.command.Path, err)
	}
	return nil
}
