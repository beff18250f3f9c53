package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/test/e2e/env"
	"github.com/azp-scaler/azp-scaler/test/e2e/interpose"
)

// point is a place in the scaler's work at which it is killed.
type point struct {
	write  int // Counted from when the trap was set.
	moment interpose.Moment
}

func (p point) String() string { return fmt.Sprintf("%s write %d", p.moment, p.write) }

// trap ends the scaler at a point. The proxy's goroutine waits in it until the
// process is dead, so nothing that the scaler does later can slip through.
type trap struct {
	mu     sync.Mutex
	armed  *point
	index  map[int]int // Of a write among those since the trap was set.
	writes []string
	sprung chan string
	dead   chan struct{}
}

func newTrap() *trap {
	return &trap{index: map[int]int{}, sprung: make(chan string), dead: make(chan struct{})}
}

// set arms the trap and forgets the writes before.
func (t *trap) set(at *point) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.armed, t.index, t.writes = at, map[int]int{}, nil
}

// seen gives the writes since the trap was set.
func (t *trap) seen() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]string(nil), t.writes...)
}

func (t *trap) cut(w interpose.Write, moment interpose.Moment) bool {
	t.mu.Lock()
	if moment == interpose.Before {
		t.index[w.N] = len(t.writes)
		t.writes = append(t.writes, w.Method+" "+resourceOf(w.Path))
	}
	n, known := t.index[w.N]
	hit := known && t.armed != nil && t.armed.moment == moment && t.armed.write == n
	if hit {
		t.armed = nil
	}
	t.mu.Unlock()
	if !hit {
		return false
	}
	t.sprung <- moment.String() + " " + w.String()
	<-t.dead
	return true
}

// resourceOf gives the kind of object that a path of the API leads to.
func resourceOf(path string) string {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	for i, part := range parts {
		if part == "namespaces" && i+2 < len(parts) {
			return parts[i+2]
		}
	}
	return path
}

// TestScalerKilled kills the scaler at every write that it makes for a build,
// both before the write is sent and after it is committed, and then at seeded
// points of a burst, and has it started again each time.
func TestScalerKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a cluster")
	}
	const total = 20
	seed := seedOf(t)
	snare := newTrap()
	e := startEnv(t, env.Options{Seed: seed, Interpose: snare.cut})
	ctx := t.Context()
	if err := e.StartScaler(ctx); err != nil {
		t.Fatal(err)
	}

	// A build that nobody disturbs tells which writes there are.
	snare.set(nil)
	buildAlone(ctx, t, e, "undisturbed")
	writes := snare.seen()
	if len(writes) < 4 {
		t.Fatalf("one build took only these writes, so this test sees nothing: %v", writes)
	}
	t.Logf("one build takes %d writes: %s", len(writes), strings.Join(writes, ", "))

	killed := 0
	for write := range writes {
		for _, moment := range []interpose.Moment{interpose.Before, interpose.After} {
			at := point{write: write, moment: moment}
			snare.set(&at)
			queueAndKill(ctx, t, e, snare, at)
			killed++
		}
	}

	random := rand.New(rand.NewPCG(seed, 1))
	burst := env.Workload(seed, 12)
	done := make(chan error, 1)
	go func() {
		_, err := e.Queue(ctx, burst)
		done <- err
	}()
	for killed < max(total, 2*len(writes)+4) {
		at := point{write: random.IntN(6), moment: interpose.Moment(random.IntN(2))}
		snare.set(&at)
		if !spring(ctx, t, e, snare, 20*time.Second) {
			// The burst is over before this point: what has been hit is what counts.
			break
		}
		killed++
	}
	snare.set(nil)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Logf("killed %d times", killed)
	if killed < total {
		t.Errorf("killed only %d times, want at least %d", killed, total)
	}
	clean(ctx, t, e)
}

// queueAndKill queues one build, kills the scaler at the point, and waits until
// all is done.
func queueAndKill(ctx context.Context, t *testing.T, e *env.Env, snare *trap, at point) {
	t.Helper()
	if _, err := e.Queue(ctx, []env.Build{{Name: strings.ReplaceAll(at.String(), " ", "-"), Kind: env.KindPlain, Steps: []string{"true"}, Want: "succeeded"}}); err != nil {
		t.Fatal(err)
	}
	if !spring(ctx, t, e, snare, 90*time.Second) {
		t.Fatalf("%s: the scaler never came there", at)
	}
	if err := e.WaitAtRest(ctx, 2*time.Minute); err != nil {
		t.Fatalf("%s: %v", at, err)
	}
}

// spring waits for the trap, kills the scaler in it and starts it again.
func spring(ctx context.Context, t *testing.T, e *env.Env, snare *trap, limit time.Duration) bool {
	t.Helper()
	select {
	case where := <-snare.sprung:
		t.Logf("kill %s", where)
	case <-time.After(limit):
		snare.set(nil)
		select {
		case <-snare.sprung: // It came at the last moment.
		default:
			return false
		}
	}
	err := e.Scaler.Kill()
	snare.dead <- struct{}{}
	if err != nil {
		t.Fatal(err)
	}
	if err := e.StartScaler(ctx); err != nil {
		t.Fatal(err)
	}
	return true
}

// buildAlone runs one build and waits until nothing of it is left.
func buildAlone(ctx context.Context, t *testing.T, e *env.Env, name string) {
	t.Helper()
	if _, err := e.Queue(ctx, []env.Build{{Name: name, Kind: env.KindPlain, Steps: []string{"true"}, Want: "succeeded"}}); err != nil {
		t.Fatal(err)
	}
	if err := e.WaitAtRest(ctx, 2*time.Minute); err != nil {
		t.Fatal(err)
	}
}

// clean waits for rest and has the auditor judge the whole run.
func clean(ctx context.Context, t *testing.T, e *env.Env) {
	t.Helper()
	if err := e.WaitAtRest(ctx, 4*time.Minute); err != nil {
		t.Fatal(err)
	}
	report, err := e.Audit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !report.Clean() {
		var text strings.Builder
		if err := report.WriteText(&text); err != nil {
			t.Fatal(err)
		}
		t.Errorf("the auditor has findings:\n%s\nlogs: %s", text.String(), filepath.Dir(e.ScalerLog))
	}
}
