package agent

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// process is a program started in a process group of its own. The group makes it
// possible to end everything the program started, and keeps a terminal's signals
// from reaching it by another way than the entrypoint.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{} // Closed when the program has ended and was waited for.
	code   int           // Valid once exited is closed; 128 + signal for a signalled one.
}

// startProcess starts a program whose output goes to the given files or writers.
func startProcess(cmd *exec.Cmd) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// For what the program leaves behind holding its output open.
	cmd.WaitDelay = 2 * time.Second
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, exited: make(chan struct{})}
	go func() {
		defer close(p.exited)
		// The error tells nothing that the state does not.
		_ = cmd.Wait()
		p.code = exitCode(cmd.ProcessState)
	}()
	return p, nil
}

// exitCode is the code as a shell would give it.
func exitCode(state *os.ProcessState) int {
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return state.ExitCode()
}

// interrupt sends SIGINT to the program alone.
func (p *process) interrupt() error {
	err := p.cmd.Process.Signal(os.Interrupt)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// killGroup ends the program and everything in its process group, also what it left
// behind when it ended.
func (p *process) killGroup() error {
	err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

// listener is Agent.Listener, with its output understood line by line.
type listener struct {
	*process
	// events gives what the listener says; closed at the end of its output, which
	// something it left behind may put off.
	events chan event
	output *os.File
	// quiet is closed when nobody takes events any more.
	quiet     chan struct{}
	quietOnce sync.Once
	copied    chan struct{}
}

// startListener starts Agent.Listener for one build. What it prints is copied to stdout.
func (s *Supervisor) startListener() (*listener, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("listener's output: %w", err)
	}
	// Directly and not by run.sh, so that INT reaches the listener and its exit
	// code reaches us.
	cmd := exec.Command("./"+listenerProgram, "run", "--once")
	cmd.Dir = s.settings.Root
	if cmd.Env, err = s.listenerEnvironment(); err != nil {
		return nil, errors.Join(err, read.Close(), write.Close())
	}
	// A file and not a writer: waiting for the program must not wait for everyone
	// who holds its output open, such as the script of an update.
	cmd.Stdout = write
	cmd.Stderr = write
	p, err := startProcess(cmd)
	_ = write.Close()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("agent program: %w", err), read.Close())
	}
	l := &listener{
		process: p,
		events:  make(chan event),
		output:  read,
		quiet:   make(chan struct{}),
		copied:  make(chan struct{}),
	}
	go func() {
		defer close(l.copied)
		defer close(l.events)
		// A failed read ends the copy as the end of the output does.
		_ = teeLines(read, s.stdout, func(line string) {
			e := parseLine(line)
			if e.kind == lineOther {
				return
			}
			select {
			case l.events <- e:
			case <-l.quiet:
			}
		})
	}()
	return l, nil
}

// ignore stops taking events; the output is copied on.
func (l *listener) ignore() { l.quietOnce.Do(func() { close(l.quiet) }) }

// close ends the copying of the output and waits for it.
func (l *listener) close() {
	l.ignore()
	_ = l.output.Close()
	<-l.copied
}

// listenerEnvironment is the environment that the build inherits.
func (s *Supervisor) listenerEnvironment() ([]string, error) {
	env, leaked := buildEnvironment(s.settings.Environment, s.settings.Hidden, s.tokenSeen)
	if len(leaked) > 0 {
		s.log.Warn("variables that hold the pool's token are kept from the build: take them out of the pod", "names", leaked)
	}
	return s.withNetwork(env)
}
