package e2e_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// TestNeed plays how the need for agents comes and goes: builds that are cancelled
// or run by somebody else, limits, and what people are told meanwhile.
func TestNeed(t *testing.T) {
	s := newStage(t, env.Options{Seed: seedOf(t), Classes: overlapping(), Scaler: quick(nil)})
	s.scenario(t, "cancelled before its agent starts", s.cancelledEarly)
	s.scenario(t, "cancelled while its pod starts", s.cancelledStarting)
	s.scenario(t, "cancelled while it runs", s.cancelledRunning)
	s.scenario(t, "somebody else's agent takes a build", s.foreign)
	s.scenario(t, "people ask why a build waits", s.explained)
	s.scenario(t, "the pool and the organisation have limits", s.limits)
	s.judge(t)
	if left := s.Service.Placeholders(); len(left) > 0 {
		t.Errorf("the cleanup left placeholders of %v", left)
	}
}

// goneLimit is how long after its build was cancelled an agent may be there: a
// poll, the idle limit, and what a busy machine takes to end a pod.
const goneLimit = 6*time.Second + 30*time.Second

// gone waits until nothing is left of a build that was cancelled.
func (s *stage) gone(t *testing.T, build env.Queued) {
	t.Helper()
	canceled := time.Now()
	waitUntil(t.Context(), t, "the Job of "+build.Name+" is gone", func() (string, bool) {
		for _, job := range s.jobs.of(build.RequestID) {
			if job.gone.IsZero() {
				return job.name, false
			}
		}
		return "", true
	})
	if took := time.Since(canceled); took > goneLimit {
		t.Errorf("the agent went %s after the cancellation, want at most %s", took.Round(time.Second), goneLimit)
	}
	status, err := s.Service.Build(build.RequestID)
	if err != nil || status.Result != "canceled" || status.AgentName != "" {
		t.Errorf("the build is %+v (%v), want it cancelled without an agent", status, err)
	}
	if jobs := s.jobs.of(build.RequestID); len(jobs) != 1 {
		t.Errorf("%d Jobs for one build that was cancelled: %+v", len(jobs), jobs)
	}
}

func (s *stage) cancelledEarly(t *testing.T) {
	build := s.queue(t, env.Build{Name: "given-up", Demands: demandsJava()})[0]
	s.waitJobs(t, build)
	if err := s.Service.Cancel(build.RequestID); err != nil {
		t.Fatal(err)
	}
	s.gone(t, build)
}

func (s *stage) cancelledStarting(t *testing.T) {
	build := s.queue(t, env.Build{Name: "given-up-later", Demands: demandsJava()})[0]
	s.waitJobs(t, build)
	waitUntil(t.Context(), t, "its pod has begun to start", func() (string, bool) {
		pods, err := s.Admin.CoreV1().Pods(env.AgentsNamespace).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err.Error(), false
		}
		for _, pod := range pods.Items {
			for _, container := range pod.Status.InitContainerStatuses {
				if container.State.Running != nil {
					return "", true
				}
			}
		}
		return fmt.Sprintf("%d pods", len(pods.Items)), false
	})
	if err := s.Service.Cancel(build.RequestID); err != nil {
		t.Fatal(err)
	}
	s.gone(t, build)
}

func (s *stage) cancelledRunning(t *testing.T) {
	gate := s.gate(t)
	build := s.queue(t, env.Build{Name: "stopped", Steps: []string{gate.Step()}, Want: "canceled"})[0]
	waitArrived(t, gate, 1)
	if err := s.Service.Cancel(build.RequestID); err != nil {
		t.Fatal(err)
	}
	s.finish(t, build)
	if jobs := s.jobs.of(build.RequestID); len(jobs) != 1 {
		t.Errorf("%d Jobs for one build: %+v", len(jobs), jobs)
	}
}

// foreign has an agent on a machine of its own take builds: one that the scaler
// could serve as well, and one that only this agent can run.
func (s *stage) foreign(t *testing.T) {
	machine, err := s.StartForeign(t.Context(), "static-vm", map[string]string{"mainframe": "1"})
	if err != nil {
		t.Fatal(err)
	}
	waitUntil(t.Context(), t, "the foreign agent is online", func() (string, bool) { return "", machine.Online() })
	gate := s.gate(t)
	taken := s.queue(t, env.Build{Name: "taken", Steps: []string{gate.Step()}})[0]
	waitArrived(t, gate, 1)
	if agent := s.agentOf(t, taken); agent != machine.Name {
		t.Errorf("the build ran on %s, want the agent that was waiting already", agent)
	}
	foreignOnly := s.queue(t, env.Build{Name: "foreign-only", Demands: []string{"mainframe"}})[0]
	s.metric(t, `azp_scaler_requests_skipped{pool="kubernetes",reason="foreign-agent"} 1`)
	ours := s.queue(t, env.Build{Name: "ours", Demands: demandsJava()})[0]
	s.finish(t, ours)
	if agent := s.agentOf(t, ours); agent == machine.Name {
		t.Errorf("a build that the foreign agent can't run ran on it")
	}
	gate.Open()
	s.finish(t, taken, foreignOnly)
	if jobs := s.jobs.of(foreignOnly.RequestID); len(jobs) != 0 {
		t.Errorf("a build that no class serves got the Jobs %+v", jobs)
	}
	if err := machine.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

// explained asks about a build that a class's limit holds back.
func (s *stage) explained(t *testing.T) {
	s.apply(t, env.Class{Name: "single", Variables: map[string]string{"single": "1"}, MaxAgents: 1})
	gate := s.gate(t)
	running := s.queue(t, env.Build{Name: "in-front", Demands: []string{"single"}, Steps: []string{gate.Step()}})[0]
	waitArrived(t, gate, 1)
	waiting := s.queue(t, env.Build{Name: "behind", Demands: []string{"single"}})[0]
	s.metric(t, `azp_scaler_requests_skipped{pool="kubernetes",reason="class-cap"} 1`)

	out := s.command(t, "plan", "-o", "json")
	var decoded any
	if err := json.Unmarshal([]byte(out), &decoded); err != nil {
		t.Errorf("the plan is no JSON: %v:\n%s", err, out)
	}
	says(t, "scaler plan -o json", out, `"class-cap"`, fmt.Sprint(waiting.RequestID))
	says(t, "scaler plan", s.command(t, "plan"), "class-cap", fmt.Sprint(waiting.RequestID), "single")
	says(t, "scaler explain", s.command(t, "explain", fmt.Sprint(waiting.RequestID)), "class-cap", "single", "heavy", "LACKS")
	says(t, "scaler explain", s.command(t, "explain", fmt.Sprint(running.RequestID)), s.agentOf(t, running))
	if out, err := s.Scaler.Command(t.Context(), "explain", "987654321"); err == nil || !strings.Contains(err.Error(), "987654321") {
		t.Errorf("an unknown request is no error that names it: %v\n%s", err, out)
	}
	if made := s.madeFor([]env.Queued{waiting}); made != 0 {
		t.Errorf("being asked made the scaler create %d Jobs", made)
	}
	gate.Open()
	s.finish(t, running, waiting)
	s.remove(t, "single")
}

func (s *stage) command(t *testing.T, arguments ...string) string {
	t.Helper()
	out, err := s.Scaler.Command(t.Context(), arguments...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

func says(t *testing.T, what, text string, wanted ...string) {
	t.Helper()
	for _, want := range wanted {
		if !strings.Contains(text, want) {
			t.Errorf("%s does not say %q:\n%s", what, want, text)
		}
	}
}

// limits has the pool's cap hold builds back, and then the organisation's number
// of parallel jobs.
func (s *stage) limits(t *testing.T) {
	s.restart(t, func() { s.Scaler.Set("AZP_MAX_AGENTS", "2") })
	s.heldBack(t, "pool-cap")
	s.restart(t, func() {
		s.Scaler.Set("AZP_MAX_AGENTS", "100")
		s.Service.SetParallelJobs(2)
	})
	s.heldBack(t, "parallel-jobs")
	s.Service.SetParallelJobs(0)
}

// heldBack queues five builds under a limit of two.
func (s *stage) heldBack(t *testing.T, reason string) {
	t.Helper()
	gate := s.gate(t)
	builds := make([]env.Build, 5)
	for i := range builds {
		builds[i] = env.Build{Name: fmt.Sprintf("%s-%d", reason, i), Demands: demandsJava(), Steps: []string{gate.Step()}}
	}
	queued := s.queue(t, builds...)
	waitArrived(t, gate, 2)
	s.metric(t, fmt.Sprintf(`azp_scaler_requests_skipped{pool="kubernetes",reason=%q} 3`, reason))
	if made := s.madeFor(queued); made != 2 {
		t.Errorf("%d Jobs where 2 may be", made)
	}
	gate.Open()
	s.finish(t, queued...)
}

// restart ends the scaler, changes something, and starts it again.
func (s *stage) restart(t *testing.T, change func()) {
	t.Helper()
	if err := s.Scaler.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	change()
	if err := s.StartScaler(t.Context()); err != nil {
		t.Fatal(err)
	}
}
