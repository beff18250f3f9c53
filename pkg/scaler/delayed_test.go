package scaler_test

import (
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// history is what a seed says of the pool, the cluster and the people. What happens in
// it then is thrown as it goes.
type history struct {
	seed        uint64
	config      scaler.Config
	kinds       []agentpool.AgentClass
	lag         time.Duration // The longest between a Job's change and its sight in the cache.
	latency     time.Duration // The longest way of a call.
	failing     bool          // Calls fail or lose their answers, agents crash, sidecars forget.
	second      bool          // An agent that ends after its build may be given another.
	restarts    bool
	changes     bool // Classes get a new version.
	builds      int
	within      time.Duration // How long they are queued over.
	temptations int
}

func newHistory(seed uint64) history {
	d := dice{rand.New(rand.NewPCG(seed, 0))}
	h := history{
		seed: seed, config: config(),
		lag:     pick(d, 300*time.Millisecond, 3*time.Second, 20*time.Second, 20*time.Second, 50*time.Second),
		latency: pick(d, 100*time.Millisecond, time.Second, 4*time.Second),
		failing: d.oneIn(3), second: d.oneIn(3), restarts: d.oneIn(4), changes: d.oneIn(5),
		builds: 1 + d.IntN(20), within: 30*time.Second + d.upTo(5*time.Minute), temptations: max(0, d.IntN(12)-3),
	}
	warm := 0
	for i := range 1 + d.IntN(4) {
		var claims []string
		for _, claim := range []string{"java", "node", "rust"} {
			if i > 0 && d.oneIn(2) {
				claims = append(claims, claim)
			}
		}
		c := class(fmt.Sprintf("class-%d", i), claims...)
		c.Priority = d.IntN(2)
		if d.oneIn(2) {
			c.Registration = agentpool.RegistrationJIT
		}
		if d.oneIn(3) {
			c.MinIdle = 1 + d.IntN(2)
		}
		if d.oneIn(3) {
			c.MaxAgents = max(1, c.MinIdle) + d.IntN(3)
		}
		warm += c.MinIdle
		h.kinds = append(h.kinds, c)
	}
	limits := &h.config.Limits
	limits.IdleLimit = pick(d, 5*time.Second, 20*time.Second, time.Minute)
	limits.StartupLimit = pick(d, 10*time.Minute, 10*time.Minute, 30*time.Second)
	limits.MaxIdleAge = pick(d, time.Hour, time.Hour, 90*time.Second)
	limits.BackoffMax = time.Minute
	// As package app has it: the time for one call, and for taking back what came of it.
	limits.UnregisteredLimit = h.config.CallTimeout + 15*time.Second
	limits.CreationsPerCycle = pick(d, 250, 250, 2)
	if d.oneIn(3) {
		limits.PoolAgents = max(1, warm) + d.IntN(4)
	}
	return h
}

func pick[T any](d dice, from ...T) T { return from[d.IntN(len(from))] }

// ages tells whether warm agents are replaced again and again.
func (h history) ages() bool { return h.config.Limits.MaxIdleAge < time.Hour }

// TestNoClaimedAgentIsEnded lets the loop run in pools where everything is known late,
// and where agents are claimed at the worst of moments.
func TestNoClaimedAgentIsEnded(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]int{}
	seeds := seeds(t)
	t.Run("seed", func(t *testing.T) {
		for _, seed := range seeds {
			t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					for what, n := range newWorld(newHistory(seed)).happen(t) {
						mu.Lock()
						seen[what] += n
						mu.Unlock()
					}
				})
			})
		}
	})
	t.Logf("seen: %v", seen)
	if len(seeds) < varied {
		return
	}
	for _, what := range []string{
		"a Job with a pod that had not started was ended", "a Job without a pod was ended", "a build went to an agent that was made for another",
		"a half-made Job was completed", "a queued build was cancelled", "a running build was cancelled",
		"an agent ended without a build: agent-crashed", "an agent started while its pod was being deleted",
		"an agent that was ending was given a second build", "an agent that was to be withdrawn has a build",
		"an agent was ended that was still wanted", "an idle agent was withdrawn", "Jobs were listed live", "restarted", "tempted",
		"the answer of a creation was lost", "a Job was taken back", "a Job that failed could not be taken back", "a registration was left to the sweep", "an agent was offline for a while", "what was to end unstarted has started",
	} {
		if seen[what] == 0 {
			t.Errorf("in %d histories it was never seen that %s", len(seeds), what)
		}
	}
}

// varied is how many histories are enough for everything to happen in one of them.
const varied = 100

// seeds gives that of LOOP_SEED alone, or as many as LOOP_SEEDS says.
func seeds(t *testing.T) []uint64 {
	t.Helper()
	if text := os.Getenv("LOOP_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("LOOP_SEED is %q: want a number", text)
		}
		return []uint64{seed}
	}
	text := os.Getenv("LOOP_SEEDS")
	switch {
	case text != "":
	case testing.Short():
		text = "20"
	default:
		text = "200"
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("LOOP_SEEDS is %q: want a number of histories, from 1", text)
	}
	list := make([]uint64, n)
	for i := range list {
		list[i] = uint64(i + 1)
	}
	return list
}

// happen lets the history take its course and judges it. It tells what was seen.
func (w *world) happen(t *testing.T) map[string]int {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("%+v\n%s\nto see this one again: LOOP_SEED=%d go test ./pkg/scaler -run %s", w.history, strings.Join(w.notes, "\n"), w.seed, "TestNoClaimedAgentIsEnded")
		}
	}()
	stop := w.startLoop(t)
	defer func() {
		stop()
		w.with(func() { clear(w.requests) })
		time.Sleep(10 * time.Minute) // What has begun is over by then, as it must be at a test's end.
	}()
	d := w.dice("people", "")
	for range w.builds {
		time.Sleep(d.upTo(2 * w.within / time.Duration(w.builds)))
		w.with(func() { w.request(someDemands(d, pick(d, w.classes.Usable...).Capabilities), d.IntN(2)) })
		if w.changes && d.oneIn(6) {
			w.with(func() { w.renew(d) })
		}
		if w.restarts && d.oneIn(6) {
			stop()
			stop = w.startLoop(t)
		}
	}
	w.with(func() { w.queues = false })
	w.awaitBuilds(t)
	w.calm.Store(true)
	// Whatever the loop learns late, sweeps or backs off from is over by then.
	time.Sleep(10*time.Minute + 4*w.lag)
	w.with(func() { w.judgeRest(t) })
	before := read(w.model, func() int { return w.writes })
	time.Sleep(5 * time.Minute)
	if n := read(w.model, func() int { return w.writes }); n != before && !w.ages() {
		t.Errorf("at rest, %d more writes were made", n-before)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.judgeNumber(t)
	for _, wrong := range w.wrong {
		t.Error(wrong)
	}
	return maps.Clone(w.seen)
}

// startLoop lets a loop begin that knows nothing, and whose cache has just been filled.
func (w *world) startLoop(t *testing.T) (stop func()) {
	t.Helper()
	loop := scaler.New(w.config, w, w, scaler.NewMetrics(prometheus.NewRegistry()), slog.New(slog.DiscardHandler), time.Now)
	w.with(func() {
		if w.loop != nil {
			w.saw("restarted")
		}
		w.loop = loop
		clear(w.ended)
		w.fill()
	})
	return run(t, loop)
}

// renew gives a class another version.
func (w *world) renew(d dice) {
	w.note("a class changes")
	kinds := slices.Clone(w.classes.Usable)
	kinds[d.IntN(len(kinds))].Version += "x"
	w.classes.Usable = kinds
}

// awaitBuilds waits until every request has ended. As long as others do, one may wait.
func (w *world) awaitBuilds(t *testing.T) {
	t.Helper()
	left := func() []int64 { return read(w.model, func() []int64 { return slices.Sorted(maps.Keys(w.requests)) }) }
	before := left()
	for waited := 0; len(before) > 0; waited++ {
		if waited == 20 {
			t.Errorf("in 20 minutes not one of these builds has ended: %v", before)
			return
		}
		time.Sleep(time.Minute)
		if now := left(); len(now) < len(before) {
			before, waited = now, 0
		}
	}
}
