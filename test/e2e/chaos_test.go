package e2e_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/audit"
	"github.com/azp-scaler/azp-scaler/test/cluster"
	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

const (
	// chaosBuilds is how many builds there are for each way to register.
	chaosBuilds    = "CHAOS_BUILDS"
	fewChaosBuilds = 20
	// chaosOut is the file for the figures, if any.
	chaosOut = "CHAOS_OUT"
	// buildsPerKill is the mean.
	buildsPerKill = 20
	// mostOpen is how many builds have not ended at one time.
	mostOpen = 24
	// chaosLook is how often the test looks at builds and agents.
	chaosLook = 200 * time.Millisecond
	// noBuildLimit is how long no build may begin or end: a killed agent is given up, and a call that
	// hangs is, in less than half of it.
	noBuildLimit = 4 * time.Minute
)

// TestChaos runs builds of all kinds while the scaler and the containers of the agents' pods are
// killed at calls that the seed draws, and while the service fails in every way it can. At the end
// the auditor must find nothing.
func TestChaos(t *testing.T) {
	seed, builds := seedOf(t), numberOf(t, chaosBuilds, fewChaosBuilds)
	figures := &chaosRuns{Runs: map[string]*chaosFigures{}}
	t.Cleanup(func() { figures.write(t) })
	registered(t, []string{byScaler}, func(t *testing.T, way string) {
		c := newChaos(t, way, seed, builds)
		c.run(t)
		figures.add(way, c.conclude(t))
	})
}

// chaosRuns are the figures of all runs, by the way to register.
type chaosRuns struct {
	mu   sync.Mutex
	Runs map[string]*chaosFigures `json:"runs"`
}

func (r *chaosRuns) add(way string, figures *chaosFigures) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Runs[way] = figures
}

func (r *chaosRuns) write(t *testing.T) {
	path := os.Getenv(chaosOut)
	if path == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	text, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = os.WriteFile(path, append(text, '\n'), 0o644)
	}
	if err != nil {
		t.Error(err)
	}
}

// chaosFigures is what a run was and came to.
type chaosFigures struct {
	Seed    uint64         `json:"seed"`
	Builds  int            `json:"builds"`
	Seconds float64        `json:"seconds"`
	Kills   map[string]int `json:"kills"`   // By the actor.
	Moments map[string]int `json:"moments"` // Of the kills.
	Faults  map[string]int `json:"faults"`  // By their kind.
	// GaveUp is how often the scaler ended by itself at its start, as it does when its token is refused.
	GaveUp int `json:"scaler_gave_up"`
	// Undisabled is the longest that a build waited for its agent to be disabled.
	Undisabled float64      `json:"longest_until_disabled_seconds"`
	Audit      audit.Report `json:"audit"`
}

// chaos is a run.
type chaos struct {
	*env.Env
	killer  *killer
	gate    *politeGate
	random  *rand.Rand
	figures chaosFigures
	begun   time.Time

	queued   []env.Queued
	open     []env.Queued
	cancels  map[int64]time.Time
	nextKill int // As many builds must have been queued.
}

func newChaos(t *testing.T, way string, seed uint64, builds int) *chaos {
	t.Helper()
	c := &chaos{
		killer: newKiller(t, way, seed), random: rand.New(rand.NewPCG(seed, 7)), begun: time.Now(), cancels: map[int64]time.Time{},
		figures: chaosFigures{Seed: seed, Builds: builds, Kills: map[string]int{}, Moments: map[string]int{}, Faults: map[string]int{}},
	}
	c.Env = startEnv(t, env.Options{
		Seed: seed, Registration: way, Node: cluster.Simulated, Interpose: c.killer.hook, ControllerManagerQPS: 200,
		// The agent renews its lock every minute.
		Service: azuredevopstest.Options{LockDuration: 90 * time.Second, ReceiveTimeout: 30 * time.Second, OnlineTimeout: 15 * time.Second},
		Scaler: quick(map[string]string{
			"AZP_MAX_AGENTS": "20", "AZP_BACKOFF_MIN": "1s", "AZP_BACKOFF_MAX": "2s", "AZP_JOB_TTL": "4s",
		}),
	})
	if err := c.StartScaler(t.Context()); err != nil {
		t.Fatal(err)
	}
	var err error
	if c.gate, err = newPoliteGate(c.Env); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.gate.close)
	c.killer.watch(c.Env)
	for _, fault := range chaosFaults(c.Name) {
		if _, err := c.Service.Inject(fault); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// chaosFaults are all ways in which the service fails whoever has the pool's token: the scaler and
// the pods that register themselves. One call of eight or so meets one of them.
func chaosFaults(identity string) []azuredevopstest.Fault {
	faults := []azuredevopstest.Fault{
		{Kind: azuredevopstest.FaultStatus, Probability: .02},
		{Kind: azuredevopstest.FaultStatus, Status: 500, Probability: .005},
		{Kind: azuredevopstest.FaultThrottle, Probability: .01},
		{Kind: azuredevopstest.FaultRetryAfter, Probability: .01},
		{Kind: azuredevopstest.FaultRateHeaders, Probability: .005},
		{Kind: azuredevopstest.FaultTruncate, Probability: .01},
		{Kind: azuredevopstest.FaultCut, Probability: .005},
		{Kind: azuredevopstest.FaultSlowBody, Probability: .005},
		{Kind: azuredevopstest.FaultReset, Probability: .01},
		{Kind: azuredevopstest.FaultLostAnswer, Probability: .01},
		{Kind: azuredevopstest.FaultHang, Probability: .0005},
		{Kind: azuredevopstest.FaultHangAnswer, Probability: .0005},
		{Kind: azuredevopstest.FaultLatency, Probability: .02, Delay: 700 * time.Millisecond},
		{Kind: azuredevopstest.FaultHTML, Probability: .003},
		{Kind: azuredevopstest.FaultSignIn203, Probability: .005},
		{Kind: azuredevopstest.FaultSignIn302, Probability: .002},
		{Kind: azuredevopstest.FaultSignIn401, Probability: .002},
		{Kind: azuredevopstest.FaultMalformedRow, Operation: "jobrequests.list", Probability: .01},
		{Kind: azuredevopstest.FaultCountMismatch, Operation: "jobrequests.list", Probability: .01},
		{Kind: azuredevopstest.FaultWrongShape, Operation: "jobrequests.list", Probability: .01},
	}
	for i := range faults {
		faults[i].Identity = identity
	}
	return faults
}

// run has all builds queued and run.
func (c *chaos) run(t *testing.T) {
	t.Helper()
	progress := time.Now()
	for len(c.queued) < c.figures.Builds || len(c.open) > 0 {
		select {
		case hit := <-c.killer.sprung:
			c.kill(t, hit)
		case <-time.After(chaosLook):
		}
		if !c.Scaler.Running() {
			c.figures.GaveUp++
			c.startScaler(t)
		}
		before := len(c.open)
		c.look(t)
		c.feed(t)
		if len(c.open) != before {
			progress = time.Now()
		}
		if time.Since(progress) > noBuildLimit {
			t.Fatalf("no build has ended for %s, and %d have not, such as %s", noBuildLimit, len(c.open), c.open[0].Name)
		}
	}
	t.Logf("%d builds took %s", len(c.queued), time.Since(c.begun).Round(time.Second))
}

// feed queues builds, in bursts, and plans the next kill.
func (c *chaos) feed(t *testing.T) {
	t.Helper()
	if room := min(mostOpen-len(c.open), c.figures.Builds-len(c.queued)); room > 0 && c.random.IntN(3) == 0 {
		for range 1 + c.random.IntN(room) {
			c.queue(t)
		}
	}
	if len(c.queued) >= c.nextKill && c.killer.idle() {
		c.nextKill = len(c.queued) + 1 + int(c.random.ExpFloat64()*(buildsPerKill-1))
		c.killer.arm()
	}
}

// queue queues a build of a kind that is drawn.
func (c *chaos) queue(t *testing.T) {
	t.Helper()
	name := fmt.Sprintf("chaos-%05d", len(c.queued))
	build := env.Build{Name: name, Kind: env.KindPlain, Steps: []string{c.gate.step(name)}, Want: azuredevopstest.ResultSucceeded}
	cancel := false
	switch c.random.IntN(10) {
	case 0:
		build.Steps = append(build.Steps, "exit 3")
		build.Want = azuredevopstest.ResultFailed
	case 1:
		build.Steps = append([]string{
			fmt.Sprintf("kubectl create configmap %s --namespace %s && kubectl delete configmap %s --namespace %s", name, env.TargetNamespace, name, env.TargetNamespace),
		}, build.Steps...)
	case 2:
		cancel = true
	}
	queued, err := c.Queue(t.Context(), []env.Build{build})
	if err != nil {
		t.Fatal(err)
	}
	c.queued, c.open = append(c.queued, queued...), append(c.open, queued...)
	if cancel {
		c.cancels[queued[0].RequestID] = time.Now().Add(time.Duration(c.random.Int64N(int64(8 * time.Second))))
	}
}

// look cancels what is due, lets builds end whose agents are disabled, and forgets what has ended.
func (c *chaos) look(t *testing.T) {
	t.Helper()
	enabled := map[string]bool{}
	for _, agent := range c.Service.Agents(c.Service.PoolID) {
		enabled[agent.Name] = agent.Enabled
	}
	c.open = slices.DeleteFunc(c.open, func(build env.Queued) bool {
		status, err := c.Service.Build(build.RequestID)
		if err != nil {
			t.Fatal(err)
		}
		if due, cancelled := c.cancels[build.RequestID]; cancelled && time.Now().After(due) && status.Result == "" {
			if err := c.Service.Cancel(build.RequestID); err != nil {
				t.Logf("%s was over before it was cancelled: %v", build.Name, err)
			}
		}
		if status.AgentName != "" && !enabled[status.AgentName] {
			c.figures.Undisabled = max(c.figures.Undisabled, c.gate.pass(build.Name).Seconds())
		}
		return status.Result != ""
	})
}

// kill ends a caller that the killer holds.
func (c *chaos) kill(t *testing.T, hit hit) {
	t.Helper()
	err := c.Kill(hit.by)
	c.killer.dead <- struct{}{}
	if err != nil {
		t.Fatal(err)
	}
	c.figures.Kills[hit.by.Actor]++
	c.figures.Moments[hit.moment.String()]++
	if hit.by.Actor == env.ActorScaler {
		c.startScaler(t)
	}
}

// startScaler starts the scaler as often as it ends by itself, as a Deployment does.
func (c *chaos) startScaler(t *testing.T) {
	t.Helper()
	const tries = 20
	for range tries {
		if !c.Scaler.Running() {
			if err := c.Scaler.Start(); err != nil {
				t.Fatal(err)
			}
		}
		err := c.Scaler.WaitReady(t.Context())
		if err == nil {
			return
		}
		t.Log(err)
		if !c.Scaler.Running() {
			c.figures.GaveUp++
		}
	}
	t.Fatalf("the scaler was not ready in %d starts", tries)
}

// conclude has the service do well again, waits for rest, and has the auditor judge.
func (c *chaos) conclude(t *testing.T) *chaosFigures {
	t.Helper()
	kills := 0
	for _, n := range c.figures.Kills {
		kills += n
	}
	for _, fault := range c.Service.Faults() {
		c.figures.Faults[string(fault.Fault.Kind)] += fault.Struck
	}
	c.Service.ClearFaults()
	c.killer.stop()
	if err := c.WaitAtRest(t.Context(), 5*time.Minute); err != nil {
		t.Errorf("%v; logs: %s", err, filepath.Dir(c.ScalerLog))
	}
	for _, build := range c.queued {
		if err := c.ended(build); err != nil {
			t.Error(err)
		}
	}
	report, err := c.Audit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.figures.Audit, c.figures.Seconds = report, time.Since(c.begun).Seconds()
	var text strings.Builder
	if err := report.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	t.Logf("kills %v at %v, faults %v, longest until disabled %.1f s, the scaler gave up %d times\n%s",
		c.figures.Kills, c.figures.Moments, c.figures.Faults, c.figures.Undisabled, c.figures.GaveUp, text.String())
	if !report.Clean() {
		t.Errorf("the auditor has findings; logs: %s", filepath.Dir(c.ScalerLog))
	}
	if least := c.figures.Builds / (3 * buildsPerKill); kills < least {
		t.Errorf("%d processes were killed, want at least %d", kills, least)
	}
	return &c.figures
}

// ended says what is wrong with the result of a build.
func (c *chaos) ended(build env.Queued) error {
	status, err := c.Service.Build(build.RequestID)
	if err != nil {
		return err
	}
	allowed := []string{build.Want}
	if _, cancelled := c.cancels[build.RequestID]; cancelled {
		allowed = append(allowed, azuredevopstest.ResultCanceled)
	}
	if _, agentKilled := c.Killed[status.AgentName]; agentKilled {
		allowed = append(allowed, azuredevopstest.ResultAbandoned)
	}
	if slices.Contains(allowed, status.Result) {
		return nil
	}
	return fmt.Errorf("build %s (request %d, agent %q) ended %q, want %v: %s", build.Name, build.RequestID, status.AgentName, status.Result, allowed, status.Message)
}
