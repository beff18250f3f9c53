package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/e2e/env"
	"github.com/azp-scaler/azp-scaler/test/e2e/interpose"
)

// TestScalerKilled kills the scaler at every write that it makes for a build, to the API
// server and, where no pod signs in there with the same token, to the service: before the
// write is done in one system, and after it, with the answer on its way, in another. In a
// third one it does so at seeded points of a burst. The scaler is started again each time.
func TestScalerKilled(t *testing.T) {
	registered(t, bothWays(), func(t *testing.T, way string) {
		for part, play := range map[string]func(t *testing.T, k *killing){
			"before each write": func(t *testing.T, k *killing) { k.atEach(t, interpose.Before) },
			"after each write":  func(t *testing.T, k *killing) { k.atEach(t, interpose.After) },
			"in a burst": func(t *testing.T, k *killing) {
				k.inBurst(t)
				if way == byScaler {
					k.loseAnswers(t)
				}
			},
		} {
			t.Run(part, func(t *testing.T) {
				t.Parallel()
				k := newKilling(t, way)
				play(t, k)
				clean(t.Context(), t, k.Env)
			})
		}
	})
}

// killing is a system whose scaler is killed.
type killing struct {
	*env.Env
	trap *trap
	way  string
	seed uint64
}

// writes are those of the scaler for one build, in the order in which it makes them: to the
// API server, and to the service. Where pods sign in there with its token, the latter are
// left out, as nothing tells who makes them.
func (k *killing) writes() (cluster, service []string) {
	made := []string{"POST jobs", "POST serviceaccounts", "POST rolebindings"}
	ended := []string{"PATCH jobs", "DELETE rolebindings", "DELETE serviceaccounts", "PATCH jobs"}
	if k.way == fromPods {
		return slices.Concat(made, ended), nil
	}
	return slices.Concat(made, []string{"POST secrets"}, ended), []string{opRegister, opChange, opChange, opRemove}
}

// newKilling sets the system up and has it run a build that nobody disturbs, which shows
// that the writes are those that this test is about.
func newKilling(t *testing.T, way string) *killing {
	t.Helper()
	seed := seedOf(t)
	snare := newTrap()
	k := &killing{Env: startEnv(t, env.Options{Seed: seed, Registration: way, Interpose: snare.cut, Scaler: quick(nil)}), trap: snare, way: way, seed: seed}
	if err := k.StartScaler(t.Context()); err != nil {
		t.Fatal(err)
	}
	snare.set(nil)
	before := k.serviceWrites(t)
	k.build(t, "undisturbed", stepDisabled)
	cluster, service := k.writes()
	expect(t, snare.seen(), cluster)
	expect(t, k.serviceWrites(t)[len(before):], service)
	return k
}

// expect says that a build took the writes that it was to, and none of another kind but the
// deletion of a Job that the scaler finds withdrawn, where it hears late of its end.
func expect(t *testing.T, got, want []string) {
	t.Helper()
	for _, write := range want {
		if count(got, write) < count(want, write) {
			t.Fatalf("the build took %v, of which this test expects %v: it would see nothing", got, want)
		}
	}
	for _, write := range got {
		if !slices.Contains(want, write) && write != "DELETE jobs" {
			t.Fatalf("the build took %v, and this test knows nothing of %s", got, write)
		}
	}
}

// atEach kills the scaler at every write of a build.
func (k *killing) atEach(t *testing.T, moment interpose.Moment) {
	t.Helper()
	for _, at := range k.points(moment) {
		k.killAt(t, at)
	}
}

// points are all writes of a build.
func (k *killing) points(moment interpose.Moment) []point {
	var points []point
	cluster, service := k.writes()
	for i, write := range cluster {
		points = append(points, k.atWrite(write, count(cluster[:i], write), moment))
	}
	for i, operation := range service {
		points = append(points, k.atCall(operation, count(service[:i], operation), moment))
	}
	return points
}

// killAt queues one build, kills the scaler at the point, and waits until all is done.
func (k *killing) killAt(t *testing.T, at point) {
	t.Helper()
	for range 3 {
		at.set(t)
		k.queue(t, at.name, at.step)
		sprung := k.spring(t, at, 45*time.Second)
		if err := k.WaitAtRest(t.Context(), 2*time.Minute); err != nil {
			t.Fatalf("%s: %v", at.name, err)
		}
		if sprung {
			return
		}
		// On a busy machine the scaler may hear of an agent's end so late that it first
		// finds the agent gone from the pool, and deletes its Job for that.
	}
	t.Fatalf("%s: the scaler never came there", at.name)
}

// inBurst kills the scaler at points that the seed chooses while it makes agents for many
// builds.
func (k *killing) inBurst(t *testing.T) {
	const least, most = 2, 6
	random := rand.New(rand.NewPCG(k.seed, 1))
	killed := 0
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	workload := env.Workload(random.Uint64(), 12)
	go func() {
		_, err := k.Queue(ctx, workload)
		done <- err
	}()
	for over := false; killed < most && !over; {
		points := k.points(interpose.Moment(random.IntN(2)))
		at := points[random.IntN(len(points))]
		at.set(t)
		if k.spring(t, at, 5*time.Second) {
			killed++
			continue
		}
		over = !k.unfinished() // Otherwise there is no such write at the time.
	}
	k.trap.set(nil)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if killed < least {
		t.Errorf("the burst was over when the scaler had come to %d of the points, want at least %d", killed, least)
	}
	t.Logf("killed %d times", killed)
	if err := k.WaitAtRest(t.Context(), 4*time.Minute); err != nil {
		t.Fatal(err)
	}
}

// unfinished tells whether there are builds that have not ended.
func (k *killing) unfinished() bool {
	return slices.ContainsFunc(k.Service.Builds(k.Service.PoolID), func(b azuredevopstest.BuildStatus) bool { return b.Result == "" })
}

// spring waits until the scaler has come to the point, kills it there and starts it again.
func (k *killing) spring(t *testing.T, at point, limit time.Duration) bool {
	t.Helper()
	if !at.reached(t, limit) {
		return false
	}
	t.Logf("kill %s", at.name)
	err := k.Scaler.Kill()
	at.release()
	if err != nil {
		t.Fatal(err)
	}
	if err := k.StartScaler(t.Context()); err != nil {
		t.Fatal(err)
	}
	return true
}

// queue queues a build.
func (k *killing) queue(t *testing.T, name, step string) {
	t.Helper()
	build := env.Build{Name: strings.ReplaceAll(name, " ", "-"), Kind: env.KindPlain, Steps: []string{step}, Want: "succeeded"}
	if _, err := k.Queue(t.Context(), []env.Build{build}); err != nil {
		t.Fatal(err)
	}
}

// build runs one build and waits until nothing of it is left.
func (k *killing) build(t *testing.T, name, step string) {
	t.Helper()
	k.queue(t, name, step)
	if err := k.WaitAtRest(t.Context(), 2*time.Minute); err != nil {
		t.Fatal(fmt.Errorf("%s: %w", name, err))
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
