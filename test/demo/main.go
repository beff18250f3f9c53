// Command demo runs the main job end to end on this machine: builds queued in
// an Azure DevOps pool become Jobs on a real Kubernetes, each with an agent of the
// class that the build's demands call for, which runs one build and is gone
// afterwards. It shows what happens while it happens, has an independent auditor
// judge the run, and writes out/demo.json.
//
// Settings, by environment: DEMO_BUILDS (20), DEMO_SEED (by the clock),
// DEMO_KEEP=1 (leave everything running until interrupted), DEMO_NODE (auto,
// real or simulated), DEMO_OUT (out).
//
// Exit status: 0 if all is well, 1 if the auditor or a build's result says
// otherwise, 2 if the demo could not be run, 130 if it was interrupted.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/azp-scaler/azp-scaler/test/cluster"
)

const (
	exitWell = iota
	exitUnwell
	exitBroken
	exitInterrupted = 130
)

// Bounds of a demo: more builds than this are a load test.
const (
	defaultBuilds = 20
	mostBuilds    = 500
)

// errInterrupted is why the context ends on a signal.
var errInterrupted = errors.New("interrupted")

func main() { os.Exit(realMain()) }

func realMain() int {
	settings, err := parse(os.Getenv)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitBroken
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	stop := onEnd(func() { cancel(errInterrupted) })
	defer stop()

	well, err := run(ctx, settings, os.Stdout)
	switch {
	case errors.Is(context.Cause(ctx), errInterrupted) && !(settings.keep && err == nil):
		fmt.Fprintln(os.Stderr, "Interrupted: everything the demo started is gone.")
		if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, errInterrupted) {
			fmt.Fprintln(os.Stderr, err)
		}
		return exitInterrupted
	case err != nil:
		fmt.Fprintf(os.Stderr, "The demo could not be run: %v\n", err)
		return exitBroken
	case !well:
		return exitUnwell
	default:
		return exitWell
	}
}

// onEnd calls end at an interrupt, and when the process that started the demo
// is gone: nobody is left then who could stop it. The returned function ends
// the watching.
func onEnd(end func()) (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	done, ended := make(chan struct{}), make(chan struct{})
	parent := os.Getppid()
	go func() {
		defer close(ended)
		look := time.NewTicker(time.Second)
		defer look.Stop()
		for {
			select {
			case <-done:
				return
			case <-signals:
				end()
				return
			case <-look.C:
				if os.Getppid() != parent {
					end()
					return
				}
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		close(done)
		<-ended
	}
}

// settings are what the environment says.
type settings struct {
	builds int
	seed   uint64
	keep   bool
	node   cluster.NodeKind
	out    string
}

// parse reads the settings and tells everything that is wrong with them.
func parse(getenv func(string) string) (settings, error) {
	s := settings{builds: defaultBuilds, seed: uint64(time.Now().UnixNano()), out: "out"}
	var wrong []error
	if text := getenv("DEMO_BUILDS"); text != "" {
		builds, err := strconv.Atoi(text)
		if err != nil || builds < 1 || builds > mostBuilds {
			wrong = append(wrong, fmt.Errorf("DEMO_BUILDS=%q: want a number from 1 to %d", text, mostBuilds))
		}
		s.builds = builds
	}
	if text := getenv("DEMO_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("DEMO_SEED=%q: want a number from 0 on", text))
		}
		s.seed = seed
	}
	switch text := getenv("DEMO_KEEP"); text {
	case "", "0":
	case "1":
		s.keep = true
	default:
		wrong = append(wrong, fmt.Errorf("DEMO_KEEP=%q: want 1 or 0", text))
	}
	if text := getenv("DEMO_NODE"); text != "" {
		node, err := cluster.ParseNodeKind(text)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("DEMO_NODE: %w", err))
		}
		s.node = node
	}
	if text := getenv("DEMO_OUT"); text != "" {
		s.out = text
	}
	return s, errors.Join(wrong...)
}
