// Command worker is built as the stand-in agent's bin/Agent.Worker.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/worker"
)

func main() {
	if len(os.Args) != 3 || os.Args[1] != "spawnclient" {
		fmt.Fprintln(os.Stderr, "worker: the listener starts it, with `spawnclient FD`")
		os.Exit(1)
	}
	fd, err := strconv.Atoi(os.Args[2])
	if err != nil {
		fmt.Fprintf(os.Stderr, "worker: %q is not a file descriptor\n", os.Args[2])
		os.Exit(1)
	}
	// What the steps start must not hold the pipe.
	syscall.CloseOnExec(fd)
	// An interrupt to the whole group is the listener's business: it tells us. It is
	// caught, not ignored, for steps would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT)
	env := map[string]string{}
	for _, entry := range os.Environ() {
		if name, value, found := strings.Cut(entry, "="); found {
			env[name] = value
		}
	}
	os.Exit(worker.Main(worker.Process{
		Listener: os.NewFile(uintptr(fd), "listener"),
		Env:      env,
		Stderr:   os.Stderr,
		Kill: func() {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		},
	}))
}
