// Command startup measures what it takes to bring an agent up, for each way to register
// it, side by side in one run on one machine: from the pod with config.sh, and by the
// scaler just in time. Builds run one at a time, and the modes take turns, so that they
// meet the same machine and do not wait for each other's processors.
//
// The figures come from the audit logs of the API server and of the service's stand-in,
// not from the product. They are written to out/bench-startup.json, and as a table.
//
// Settings, by environment: BENCH_BUILDS (10, of each mode), BENCH_SEED (by the clock),
// BENCH_NODE (auto, real or simulated), BENCH_OUT (out).
//
// Exit status: 0 if it was measured, 2 if it could not be, 130 if it was interrupted.
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
	exitMeasured    = 0
	exitBroken      = 2
	exitInterrupted = 130
)

const (
	defaultBuilds = 10
	mostBuilds    = 200
)

func main() { os.Exit(realMain()) }

func realMain() int {
	settings, err := parse(os.Getenv)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitBroken
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	switch err := run(ctx, settings, os.Stdout); {
	case err == nil:
		return exitMeasured
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "Interrupted: nothing was measured, and everything that was started is gone.")
		return exitInterrupted
	default:
		fmt.Fprintf(os.Stderr, "The start of agents could not be measured: %v\n", err)
		return exitBroken
	}
}

// settings are what the environment says.
type settings struct {
	builds int // Of each mode.
	seed   uint64
	node   cluster.NodeKind
	out    string
}

// parse reads the settings and tells everything that is wrong with them.
func parse(getenv func(string) string) (settings, error) {
	s := settings{builds: defaultBuilds, seed: uint64(time.Now().UnixNano()), out: "out"}
	var wrong []error
	if text := getenv("BENCH_BUILDS"); text != "" {
		builds, err := strconv.Atoi(text)
		if err != nil || builds < 1 || builds > mostBuilds {
			wrong = append(wrong, fmt.Errorf("BENCH_BUILDS=%q: want a number from 1 to %d", text, mostBuilds))
		}
		s.builds = builds
	}
	if text := getenv("BENCH_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("BENCH_SEED=%q: want a number from 0 on", text))
		}
		s.seed = seed
	}
	if text := getenv("BENCH_NODE"); text != "" {
		node, err := cluster.ParseNodeKind(text)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("BENCH_NODE: %w", err))
		}
		s.node = node
	}
	if text := getenv("BENCH_OUT"); text != "" {
		s.out = text
	}
	return s, errors.Join(wrong...)
}
