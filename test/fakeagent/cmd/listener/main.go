// Command listener is built as the stand-in agent's bin/Agent.Listener.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/listener"
	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/root"
)

// termLimit is how long major version 4 takes for its end once it gets SIGTERM.
const termLimit = 30 * time.Second

func main() {
	executable, err := os.Executable()
	if err != nil {
		fmt.Fprintf(os.Stderr, "find the agent's root: %v\n", err)
		os.Exit(listener.ExitTerminated)
	}
	env := map[string]string{}
	for _, entry := range os.Environ() {
		if name, value, found := strings.Cut(entry, "="); found {
			env[name] = value
		}
	}
	// The name is only for show: without one the agent has to be given its own.
	host, _ := os.Hostname()
	os.Exit(listener.Main(listener.Process{
		Args:    os.Args[1:],
		Env:     env,
		Stdout:  os.Stdout,
		Stderr:  os.Stderr,
		Root:    root.Dir(filepath.Dir(filepath.Dir(executable))),
		Host:    host,
		Signals: listener.Signals{Interrupt: interrupt, IgnoreAll: func() { signal.Ignore(syscall.SIGINT, syscall.SIGTERM) }},
		Kill:    kill,
	}))
}

// interrupt gives a context that ends with SIGINT. SIGTERM is as the agent's major
// version has it: from 5 on it is left alone and kills at once, before it is an
// interrupt with a limit.
func interrupt(version string, deaf func() bool) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT)
	if strings.HasPrefix(version, "4.") || strings.HasPrefix(version, "3.") || strings.HasPrefix(version, "2.") {
		signal.Notify(signals, syscall.SIGTERM)
	}
	// It serves the process for as long as there is one.
	go func() {
		for got := range signals {
			if deaf() {
				continue
			}
			cancel()
			if got == syscall.SIGTERM {
				time.AfterFunc(termLimit, func() { os.Exit(128 + int(syscall.SIGTERM)) })
			}
		}
	}()
	return ctx
}

// kill ends this process the way the kernel does when memory runs out.
func kill() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}
