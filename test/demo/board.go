package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

const (
	// redrawEvery is fast enough to follow with the eye and cheap for the API server.
	redrawEvery  = 500 * time.Millisecond
	defaultWidth = 100
	defaultLines = 30
)

// board shows the state of the system while it runs: a table that is drawn over
// itself on a terminal, one line for each change elsewhere.
type board struct {
	environment *env.Env
	ledger      *ledger
	wanted      map[string]string // The class that each build's demands call for, by its name.
	out         io.Writer
	terminal    *os.File // Nil where out is no terminal.
	begun       time.Time
	drawn       int // Lines of the table on the screen.
	last        snapshot
}

func newBoard(environment *env.Env, made *ledger, workload []env.Build, out io.Writer) *board {
	b := &board{environment: environment, ledger: made, wanted: map[string]string{}, out: out, begun: time.Now()}
	for _, build := range workload {
		b.wanted[build.Name] = build.Class
	}
	if file, ok := out.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		b.terminal = file
	}
	return b
}

// show draws until the context ends, and once more then.
func (b *board) show(ctx context.Context) error {
	tick := time.NewTicker(redrawEvery)
	defer tick.Stop()
	for {
		now, err := b.look(ctx)
		switch {
		case err == nil:
			if err := b.draw(now); err != nil {
				return err
			}
		case ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded):
			// A look that fails is missed, no more: the next one is soon.
			if _, err := fmt.Fprintf(b.out, "(the cluster does not answer: %v)\n", err); err != nil {
				return fmt.Errorf("show progress: %w", err)
			}
			b.drawn = 0
		}
		select {
		case <-ctx.Done():
			return b.finish(ctx)
		case <-tick.C:
		}
	}
}

// finish draws the last state, for which the context is too late already: as a
// table on no terminal, too.
func (b *board) finish(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	now, err := b.look(ctx)
	if err != nil {
		return nil //nolint:nilerr // The cluster may be on its way down; the picture before is good enough.
	}
	if err := b.draw(now); err != nil || b.terminal != nil {
		return err
	}
	if _, err := fmt.Fprintf(b.out, "\n%s\n", strings.Join(table(now, defaultWidth, len(now.builds)+headLines), "\n")); err != nil {
		return fmt.Errorf("show progress: %w", err)
	}
	return nil
}

// look takes a snapshot.
func (b *board) look(ctx context.Context) (snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	now := snapshot{elapsed: time.Since(b.begun), builds: b.environment.Service.Builds(b.environment.Service.PoolID), wanted: b.wanted}
	for _, agent := range b.environment.Service.Agents(b.environment.Service.PoolID) {
		now.addAgent(agent)
	}
	jobs, err := b.environment.Admin.BatchV1().Jobs(env.AgentsNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return now, fmt.Errorf("list Jobs: %w", err)
	}
	pods, err := b.environment.Admin.CoreV1().Pods(env.AgentsNamespace).List(ctx, metav1.ListOptions{LabelSelector: labels.Everything().String()})
	if err != nil {
		return now, fmt.Errorf("list pods: %w", err)
	}
	now.addJobs(jobs.Items, pods.Items)
	now.made = b.ledger.made()
	return now, nil
}

func (b *board) draw(now snapshot) error {
	var text string
	if b.terminal == nil {
		text = changes(b.last, now)
	} else {
		width, height, err := term.GetSize(int(b.terminal.Fd()))
		if err != nil || width < 20 || height < 8 {
			width, height = defaultWidth, defaultLines
		}
		lines := table(now, width, height-2)
		text = redraw(lines, b.drawn)
		b.drawn = len(lines)
	}
	b.last = now
	if _, err := io.WriteString(b.out, text); err != nil {
		return fmt.Errorf("show progress: %w", err)
	}
	return nil
}
