// Command supervise runs one container of a node of processes: a command and
// everything it starts. What a container runtime gets from a PID namespace it
// gets from being the reaper of its descendants: when the command has ended, or
// when the node is gone, it kills all that is left of them.
//
// usage: supervise COMMAND [ARGUMENT...]
//
// SIGTERM and SIGINT go on to the command. SIGHUP kills everything at once; the
// node has the kernel send it when the node dies. The exit status is the
// command's, or 128 and the number of the signal that ended it.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/azp-scaler/azp-scaler/test/e2e/process"
)

const (
	// exitUnable is what shells say of a command that could not be run.
	exitUnable = 127
	// killLimit bounds the killing: a process in the kernel's hands may not go.
	killLimit = 5 * time.Second
	killEvery = 10 * time.Millisecond
)

func main() { os.Exit(supervise(os.Args[1:])) }

func supervise(arguments []string) int {
	if len(arguments) == 0 {
		fmt.Fprintln(os.Stderr, "supervise: no command: give one with its arguments")
		return exitUnable
	}
	// The command's parent-death signal is tied to the thread that starts it.
	runtime.LockOSThread()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintf(os.Stderr, "supervise: become the reaper of descendants: %v\n", err)
		return exitUnable
	}
	command := exec.Command(arguments[0], arguments[1:]...)
	command.Stdin, command.Stdout, command.Stderr = nil, os.Stdout, os.Stderr
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := command.Start(); err != nil {
		fmt.Fprintf(os.Stderr, "supervise: %v\n", err)
		return exitUnable
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	for {
		select {
		case err := <-ended:
			killDescendants()
			return status(err)
		case got := <-signals:
			if got == syscall.SIGHUP {
				killDescendants()
				return 128 + int(syscall.SIGKILL)
			}
			if err := command.Process.Signal(got); err != nil && !errors.Is(err, os.ErrProcessDone) {
				fmt.Fprintf(os.Stderr, "supervise: pass %s on: %v\n", got, err)
			}
		}
	}
}

// status gives the exit status that stands for a command's end.
func status(err error) int {
	if err == nil {
		return 0
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return exitUnable
	}
	if wait, ok := exit.Sys().(syscall.WaitStatus); ok && wait.Signaled() {
		return 128 + int(wait.Signal())
	}
	return exit.ExitCode()
}

// killDescendants kills until none is left. The dead are not waited for: they go
// to the machine's init process when this one ends.
func killDescendants() {
	deadline := time.Now().Add(killLimit)
	for time.Now().Before(deadline) {
		living := 0
		for _, pid := range process.Descendants(os.Getpid()) {
			if isZombie(pid) {
				continue
			}
			living++
			// One that is gone by now needs no killing.
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if living == 0 {
			return
		}
		time.Sleep(killEvery)
	}
}

func isZombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true // It is gone.
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(rest, "Z")
}
