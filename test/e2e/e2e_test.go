package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/test/cluster"
	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// seedVariable repeats a run: the tests log the seed that they draw without it.
const seedVariable = "E2E_SEED"

// seedOf gives the run's seed and logs it.
func seedOf(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv(seedVariable); text != "" {
		given, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("%s=%q: want a number from 0 on", seedVariable, text)
		}
		seed = given
	}
	t.Logf("to repeat: %s=%d", seedVariable, seed)
	return seed
}

// closeLimit is for the end of a system, with the search for secrets in what it has left, which
// takes minutes after thousands of builds.
const closeLimit = 10 * time.Minute

// startEnv sets a system up for a test and ends it with the test. When the test
// fails, the logs stay and their place is told.
func startEnv(t *testing.T, options env.Options) *env.Env {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a cluster")
	}
	dir, err := os.MkdirTemp("", "azp-scaler-e2e-") //nolint:usetesting // It stays when the test fails.
	if err != nil {
		t.Fatal(err)
	}
	options.Dir = dir
	if options.Progress == nil {
		options.Progress = t.Output()
	}
	e, err := env.Start(t.Context(), options)
	if err != nil {
		t.Fatalf("%v\nlogs: %s", err, dir)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
		defer cancel()
		if err := e.Close(ctx); err != nil {
			t.Errorf("closing the system: %v", err)
		}
		if t.Failed() {
			t.Logf("logs: %s", dir)
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("removing the logs: %v", err)
		}
	})
	return e
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
	var text strings.Builder
	if err := report.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	t.Log(text.String())
	if !report.Clean() {
		t.Errorf("the auditor has findings; logs: %s", filepath.Dir(e.ScalerLog))
	}
}

// TestMainJob is the promise itself: builds of every kind, each with exactly one
// agent, and nothing of them left.
func TestMainJob(t *testing.T) { registered(t, bothWays(), mainJob) }

func mainJob(t *testing.T, way string) {
	builds := 20
	seed := seedOf(t)
	e := startEnv(t, env.Options{Seed: seed, Registration: way})
	ctx := t.Context()
	if err := e.StartScaler(ctx); err != nil {
		t.Fatal(err)
	}
	workload := env.Workload(seed, builds)
	played, wantNoHits := make(chan error, 1), func(*testing.T) {}
	if e.Node() == cluster.Real { // Elsewhere containers have nothing between them.
		intruder := newIntruder(t, e, seed)
		workload = append(workload, intruder.builds()...)
		builds += len(intruder.builds())
		wantNoHits = intruder.wantNoHits
		go func() { played <- intruder.play(ctx) }()
	} else {
		played <- nil
	}
	queued, err := e.Queue(ctx, workload)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-played; err != nil {
		t.Error(err)
	}
	if err := e.WaitAtRest(ctx, 5*time.Minute); err != nil {
		t.Error(err)
	}
	if err := e.Check(ctx, queued); err != nil {
		t.Error(err)
	}
	wantInvariants(ctx, t, e)
	wantOneLineEach(ctx, t, e, queued)
	report, err := e.Audit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	if err := report.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	t.Log(text.String())
	if !report.Clean() {
		t.Errorf("the auditor has findings; logs: %s", filepath.Dir(e.ScalerLog))
	}
	if want := fmt.Sprintf("%d builds: %d succeeded, 1 failed, 1 canceled", builds, builds-2); !strings.HasPrefix(text.String(), want) {
		t.Errorf("the auditor does not say %q", want)
	}
	wantNoHits(t)
	if e.Node() == cluster.Real && way == fromPods {
		allInOne(t, e)
	}
}
