package e2e_test

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/cluster"
	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

const (
	// killPlan replays one plan, as a failed one tells it.
	killPlan = "KILL_PLAN"
	// killPlans is how many plans are tried for each way to register, or all. Which of them follows
	// from the seed.
	killPlans = "KILL_PLANS"
	fewPlans  = 8
	// killSystems is how many systems share the plans of each way.
	killSystems = "KILL_SYSTEMS"
	// planLimit is longer than a build whose agent is killed takes to be given up, and another to run.
	planLimit = 90 * time.Second
	// missLimit is how many plans of a hundred may find nothing to kill: not every call comes each time.
	missLimit = 5
)

// TestKilledAtEachCall kills the scaler, and each container of the agent's pod, at calls to the API
// server and to the service: before the server has seen the call, when it was done and the answer is
// on its way, and when the answer has come. The calls are those that a run in which nobody is killed
// makes, reads included. Who is killed is started again as Kubernetes would, and all builds must
// end as if nothing had happened, but those whose own agent was killed: these must be reported.
func TestKilledAtEachCall(t *testing.T) {
	if text := os.Getenv(killPlan); text != "" {
		one, err := parsePlan(text)
		if err != nil {
			t.Fatalf("%s: %v", killPlan, err)
		}
		k := newKilling(t, one.way, seedOf(t))
		k.try(t, one)
		if len(k.missed) > 0 {
			t.Error("nobody came there")
		}
		k.judge(t)
		return
	}
	seed, systems := seedOf(t), numberOf(t, killSystems, 1)
	registered(t, bothWays(), func(t *testing.T, way string) {
		for system := range systems {
			t.Run(fmt.Sprintf("system %d of %d", system+1, systems), func(t *testing.T) {
				t.Parallel()
				newKilling(t, way, seed).tryAll(t, system, systems)
			})
		}
	})
}

// tryAll tries those of the plans that are a system's.
func (k *killing) tryAll(t *testing.T, system, systems int) {
	t.Helper()
	begun := time.Now()
	plans := k.record(t)
	all := len(plans)
	plans = slices.DeleteFunc(plans, func(p plan) bool { return p.lot(0)%uint64(systems) != uint64(system) })
	// What is tried first depends on the seed, and on nothing else that is recorded.
	slices.SortFunc(plans, func(a, b plan) int { return cmp.Compare(a.lot(k.seed), b.lot(k.seed)) })
	plans = plans[:min(len(plans), wantedPlans(t)/systems)]
	t.Logf("the calls were recorded in %s; of %d plans this system tries %d", time.Since(begun).Round(time.Second), all, len(plans))
	begun = time.Now()
	for _, next := range plans {
		k.try(t, next)
	}
	took := time.Since(begun)
	t.Logf("%d plans in %s, %.1f a minute; %d found nothing to kill", len(plans), took.Round(time.Second), float64(len(plans))/took.Minutes(), len(k.missed))
	if len(k.missed) > 1 && len(k.missed)*100 > len(plans)*missLimit {
		t.Errorf("more than %d%% of the plans found nothing to kill:\n%s", missLimit, strings.Join(k.missed, "\n"))
	}
	k.judge(t)
}

// wantedPlans is how many of the plans are to be tried.
func wantedPlans(t *testing.T) int {
	t.Helper()
	if os.Getenv(killPlans) == "all" {
		return math.MaxInt
	}
	return numberOf(t, killPlans, fewPlans)
}

// numberOf reads a number from the environment.
func numberOf(t *testing.T, variable string, usual int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: want a number from 1 on", variable, text)
	}
	return n
}

// killing is a system whose processes are killed.
type killing struct {
	*env.Env
	trap   *trap
	jobs   *recorder
	way    string
	seed   uint64
	plans  map[int64]plan // By the request of each build.
	missed []string
}

// newKilling sets the system up. A build that lost its agent is given up after seconds, and so is
// an agent that does not poll any more.
func newKilling(t *testing.T, way string, seed uint64) *killing {
	t.Helper()
	k := &killing{trap: newTrap(t), way: way, seed: seed, plans: map[int64]plan{}}
	k.Env = startEnv(t, env.Options{
		Seed: k.seed, Registration: way, Node: cluster.Simulated, Interpose: k.trap.hook, ControllerManagerQPS: 200,
		Service: azuredevopstest.Options{LockDuration: 15 * time.Second, ReceiveTimeout: 10 * time.Second, CancelTimeout: 10 * time.Second, OnlineTimeout: 10 * time.Second},
		Scaler:  quick(map[string]string{"AZP_BACKOFF_MIN": "1s", "AZP_BACKOFF_MAX": "1s", "AZP_JOB_TTL": "2s", "AZP_IDLE_LIMIT": "3s", "AZP_POLL_BUSY": "500ms", "AZP_POLL_IDLE": "1s"}),
	})
	k.jobs = record(t, k.Env)
	if err := k.StartScaler(t.Context()); err != nil {
		t.Fatal(err)
	}
	k.trap.watch(k.Env)
	return k
}

// record plays each scenario with nobody killed and makes the plans of the calls that it sees.
func (k *killing) record(t *testing.T) []plan {
	t.Helper()
	var plans []plan
	for _, scenario := range sortedScenarios() {
		k.trap.set(nil)
		k.play(t, plan{way: k.way, scenario: scenario})
		made := plansOf(k.way, scenario, k.trap.recorded())
		t.Logf("%s: %d plans for the calls of\n%s", scenario, len(made), summary(made))
		plans = append(plans, made...)
	}
	return plans
}

// summary lists the places of plans, one a line.
func summary(plans []plan) string {
	var lines []string
	for _, p := range plans {
		lines = append(lines, fmt.Sprintf("  %s: %s %d", p.place.actor, p.place.kind, p.place.nth))
	}
	slices.Sort(lines)
	return strings.Join(slices.Compact(lines), "\n")
}

// try tries a plan, once more where nobody comes to its place: a call may not be made each time.
func (k *killing) try(t *testing.T, p plan) {
	t.Helper()
	begun, hit := time.Now(), false
	for range 2 {
		k.trap.set(&p)
		killed := k.play(t, p)
		if hit = killed || k.trap.hasLost(); hit {
			break
		}
	}
	outcome := "done"
	if !hit {
		outcome = "found nothing to kill"
		k.missed = append(k.missed, p.String())
	}
	t.Logf("%s: %s, %s", p, outcome, time.Since(begun).Round(100*time.Millisecond))
	k.trap.set(nil)
}

// play runs the builds of a scenario to the end, kills whoever comes to the trap, and tells whether
// somebody did.
func (k *killing) play(t *testing.T, p plan) (killed bool) {
	t.Helper()
	fail := func(format string, arguments ...any) {
		t.Helper()
		t.Fatalf("%s: %s\nto repeat: %s", p, fmt.Sprintf(format, arguments...), p.command())
	}
	scene := scenarios()[p.scenario](k)
	queued, err := k.Queue(t.Context(), []env.Build{scene.build})
	if err != nil {
		fail("%v", err)
	}
	k.plans[queued[0].RequestID] = p
	if scene.begin != nil {
		if err := scene.begin(); err != nil {
			fail("%v", err)
		}
	}
	told := false
	for deadline := time.Now().Add(planLimit); ; {
		select {
		case target := <-k.trap.sprung:
			killed = true
			if err := k.end(t, target.by); err != nil {
				fail("%v", err)
			}
		case <-time.After(20 * time.Millisecond):
		}
		if scene.meanwhile != nil {
			if err := scene.meanwhile(queued[0]); err != nil {
				fail("%v", err)
			}
		}
		left, err := k.left(t, queued[0])
		if err != nil {
			fail("%v", err)
		}
		if left == "" {
			break
		}
		switch late := time.Since(deadline); {
		case late > planLimit:
			fail("after %s there is still %s", 2*planLimit, left)
		case late > 0 && !told:
			told = true
			t.Errorf("%s: after %s there is still %s\nto repeat: %s", p, planLimit, left, p.command())
		}
	}
	if err := k.Scaler.WaitReady(t.Context()); err != nil {
		fail("%v", err)
	}
	if p.losesSession() {
		k.excuse(queued[0])
	}
	if err := k.ended(queued[0], scene.allowed); err != nil {
		t.Errorf("%s: %v\nto repeat: %s", p, err, p.command())
	}
	return killed
}

// end kills a caller that the trap holds, and starts the scaler again. Containers are the node's.
func (k *killing) end(t *testing.T, who env.Caller) error {
	t.Helper()
	err := k.Kill(who)
	k.trap.dead <- struct{}{}
	if err == nil && who.Actor == env.ActorScaler {
		err = k.StartScaler(t.Context())
	}
	return err
}

// left tells what is left to do for a build, and nothing at rest.
func (k *killing) left(t *testing.T, build env.Queued) (string, error) {
	t.Helper()
	status, err := k.Service.Build(build.RequestID)
	if err != nil {
		return "", err
	}
	if status.Result == "" {
		return fmt.Sprintf("the build, %s", status.State), nil
	}
	left, err := k.Remaining(t.Context())
	return strings.Join(left, ", "), err
}

// excuse has a build that no session took up count as one whose agent was killed when it was
// assigned.
func (k *killing) excuse(build env.Queued) {
	status, err := k.Service.Build(build.RequestID)
	if err != nil || status.Result != azuredevopstest.ResultAbandoned || !status.Received.IsZero() {
		return // As it is judged then.
	}
	k.Lose(status.AgentName, status.Assigned)
}

// ended says what is wrong with the result of a build.
func (k *killing) ended(build env.Queued, allowed []string) error {
	status, err := k.Service.Build(build.RequestID)
	if err != nil {
		return err
	}
	if _, agentKilled := k.Killed[status.AgentName]; agentKilled {
		// It was the build itself that was killed, if it had begun. It must be reported.
		allowed = append(slices.Clone(allowed), azuredevopstest.ResultAbandoned)
	}
	if !slices.Contains(allowed, status.Result) {
		log, _ := k.Service.Log(build.RequestID) // Without a log the message must do.
		return fmt.Errorf("the build on agent %q ended %q, want %v: %s\n%s", status.AgentName, status.Result, allowed, status.Message, log)
	}
	return nil
}

// judge has the auditor judge the whole run, and tells which plans its findings may be of: each
// speaks of a request, or of an agent or a Job that has its number in the name.
func (k *killing) judge(t *testing.T) {
	t.Helper()
	report, err := k.Audit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	if err := report.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	t.Log(text.String())
	for _, finding := range report.Findings {
		t.Errorf("%s: %s", finding.Verdict, finding.Text)
		for request, p := range k.plans {
			if strings.Contains(finding.Text, fmt.Sprintf("-%d-", request)) || strings.Contains(finding.Text, fmt.Sprintf("request %d ", request)) {
				t.Logf("to repeat: %s", p.command())
			}
		}
	}
}
