package simulate_test

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/azp-scaler/azp-scaler/test/simulate"
)

// run lets a history take its course.
func run(t *testing.T, setup simulate.Setup) (history simulate.History) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var err error
		if history, err = simulate.Run(setup); err != nil {
			t.Errorf("a loop ended with %v", err)
		}
	})
	return history
}

// TestHistories judges one history for each seed. SIMULATE_SEED gives one seed,
// SIMULATE_SEEDS how many there are, SIMULATE_FIRST the first, and SIMULATE_BUILDS how many
// builds are queued in each.
func TestHistories(t *testing.T) {
	first, seeds := number(t, "SIMULATE_FIRST", 1), number(t, "SIMULATE_SEEDS", 200)
	if testing.Short() {
		seeds = min(seeds, 20)
	}
	if seed := number(t, "SIMULATE_SEED", 0); seed > 0 {
		first, seeds = seed, 1
	}
	builds := number(t, "SIMULATE_BUILDS", 20)
	var tally tally
	began := time.Now()
	t.Run("seed", func(t *testing.T) {
		for seed := first; seed < first+seeds; seed++ {
			t.Run(strconv.Itoa(seed), func(t *testing.T) {
				t.Parallel()
				setup := simulate.NewSetup(uint64(seed), builds) //nolint:gosec // Seeds are not negative.
				history := run(t, setup)
				verdict := simulate.Check(history)
				tally.add(history, verdict)
				for _, violation := range verdict.Violations {
					t.Error(violation)
				}
				if t.Failed() {
					t.Log("to see this one again: " + history.Replay())
				}
				if os.Getenv("SIMULATE_SEED") != "" {
					t.Log(text(history))
				}
			})
		}
	})
	took := time.Since(began)
	t.Logf("%d seeds of %d builds in %v, %.1f seeds/s", seeds, builds, took.Round(time.Second), float64(seeds)/took.Seconds())
	t.Log(tally.String())
	if seeds < varied {
		return
	}
	for _, what := range mustBeSeen() {
		if tally.seen[what] == 0 {
			t.Errorf("in %d histories it was never seen: %s", seeds, what)
		}
	}
}

// varied is how many histories are enough for everything to happen in one of them.
const varied = 200

// mustBeSeen lists what a model that has gone soft would no longer do.
func mustBeSeen() []string {
	return []string{
		"cancelled", "stopped", "swapped", "crashes", "stops", "two lead", "finished abandoned", "finished lost", "ended agent-crashed",
		"ended out-of-memory", "ended node-lost", "ended evicted", "ended no-build", "pod dies evicted", "cut node-lost",
		"fault unavailable", "fault lost answer", "fault time-out before it counted", "fault time-out after it counted", "fault throttled",
		"fault sign-in page", "fault unexpected answer", "fault conflict", "fault quota", "fault forbidden", "fault a row can't be read",
		"fault the answer is truncated", "reasons back-off", "reasons class-cap", "reasons pool-cap", "reasons parallel-jobs", "reasons foreign-agent",
		"reasons class-blocked", "reasons creations-per-cycle", "deregistered by a scaler", "gone by a scaler", "made and not told", "live look",
	}
}

func text(history simulate.History) string {
	lines := make([]string, len(history.Events))
	for i, event := range history.Events {
		lines[i] = event.String()
	}
	return strings.Join(lines, "\n")
}

func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s is %q: want a number, from 1", name, text)
	}
	return n
}

// tally is what was met in all histories together.
type tally struct {
	mu                                       sync.Mutex
	events, jobs, duplicates, losses, leaked int
	settled                                  time.Duration
	seen                                     map[string]int
}

func (c *tally) add(history simulate.History, verdict simulate.Verdict) {
	c.mu.Lock()
	defer c.mu.Unlock()
	duplicate, lost, leak := verdict.Counts()
	c.duplicates, c.losses, c.leaked = c.duplicates+duplicate, c.losses+lost, c.leaked+leak
	c.settled = max(c.settled, verdict.Settled)
	if c.seen == nil {
		c.seen = map[string]int{}
	}
	lead, untold, wanted := 0, map[string]bool{}, map[string]int64{}
	for _, event := range history.Events {
		c.events++
		c.seen[string(event.Kind)]++
		_, how, _ := strings.Cut(event.Text, ": ")
		switch event.Kind { //nolint:exhaustive // Of the others, the kind says enough.
		case simulate.Made:
			c.jobs++
			untold[event.UID], wanted[event.Job] = true, event.Request
		case simulate.Learns:
			delete(untold, event.UID)
		case simulate.Assigned:
			if wanted[event.Job] != event.Request {
				c.seen["swapped"]++
			}
		case simulate.Starts:
			if lead++; lead > 1 {
				c.seen["two lead"]++
			}
		case simulate.Stops, simulate.Crashes:
			lead--
		case simulate.Fault:
			c.seen["fault "+how]++
		case simulate.Looks:
			c.seen[event.Text+" look"]++
		case simulate.Ended, simulate.Finished, simulate.Cut, simulate.PodDies, simulate.Reasons:
			c.seen[string(event.Kind)+" "+event.Text]++
		case simulate.Deregistered, simulate.Gone:
			if strings.HasPrefix(event.By, "scaler-") {
				c.seen[string(event.Kind)+" by a scaler"]++
			}
		}
	}
	c.seen["made and not told"] += len(untold)
}

func (c *tally) String() string {
	return strings.Join([]string{
		"events " + strconv.Itoa(c.events), "Jobs " + strconv.Itoa(c.jobs), "duplicates " + strconv.Itoa(c.duplicates),
		"lost " + strconv.Itoa(c.losses), "leaked " + strconv.Itoa(c.leaked), "last write after calm " + c.settled.Round(time.Second).String(),
	}, ", ")
}
