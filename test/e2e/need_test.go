package e2e_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// TestNeed plays how the need for agents comes and goes: builds that are cancelled
// or run by somebody else, limits, and what people are told meanwhile.
func TestNeed(t *testing.T) { registered(t, []string{byScaler}, need) }

func need(t *testing.T, way string) {
	s := newStage(t, env.Options{Seed: seedOf(t), Registration: way, Classes: overlapping(), Scaler: quick(nil)})
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

const (
	// endLimit is how long after its build was cancelled an agent may go on: a poll, the
	// idle limit, and what a cycle of the scaler and a look of the test take. One that
	// comes online only then begins to be idle there.
	endLimit = env.PollIdle + env.IdleLimit + 2*time.Second
	// podEndLimit is for what is not the scaler's to hasten: a node ends the pod of an
	// agent that has not started, and Kubernetes deletes what the Job owns.
	podEndLimit = 6 * time.Second
)

// gone waits until nothing is left of a build that was cancelled just now.
func (s *stage) gone(t *testing.T, build env.Queued) {
	t.Helper()
	idle, online := time.Now(), false
	waitUntil(t.Context(), t, "the agent for "+build.Name+" begins to end", func() (string, bool) {
		for _, job := range s.jobs.of(build.RequestID) {
			if agent, _ := s.Service.Agent(job.name); agent.Online && !online {
				idle, online = time.Now(), true
			}
			if still := s.goingOn(t, job); still != "" {
				return still, false
			}
		}
		return "", true
	})
	begun := time.Now()
	if took := begun.Sub(idle); took > endLimit {
		t.Errorf("the agent was idle for %s before it began to end (online: %t), want at most %s", took.Round(100*time.Millisecond), online, endLimit)
	}
	waitUntil(t.Context(), t, "the Job of "+build.Name+" is gone", func() (string, bool) {
		for _, job := range s.jobs.of(build.RequestID) {
			if job.gone.IsZero() {
				return job.name, false
			}
		}
		return "", true
	})
	if took := time.Since(begun); took > podEndLimit {
		t.Errorf("the agent's end took %s, want at most %s", took.Round(100*time.Millisecond), podEndLimit)
	}
	t.Logf("idle for %s (online: %t), gone after %s more", begun.Sub(idle).Round(100*time.Millisecond), online, time.Since(begun).Round(100*time.Millisecond))
	status, err := s.Service.Build(build.RequestID)
	if err != nil || status.Result != "canceled" || status.AgentName != "" {
		t.Errorf("the build is %+v (%v), want it cancelled without an agent", status, err)
	}
	if jobs := s.jobs.of(build.RequestID); len(jobs) != 1 {
		t.Errorf("%d Jobs for one build that was cancelled: %+v", len(jobs), jobs)
	}
}

// goingOn tells what of a Job goes on as if its build was still there, if anything.
func (s *stage) goingOn(t *testing.T, job made) string {
	t.Helper()
	if !job.gone.IsZero() {
		return ""
	}
	if agent, registered := s.Service.Agent(job.name); registered && !agent.Enabled {
		return ""
	}
	pods, err := s.Admin.CoreV1().Pods(job.namespace).List(t.Context(), metav1.ListOptions{LabelSelector: batchv1.JobNameLabel + "=" + job.name})
	if err != nil {
		return err.Error()
	}
	for _, pod := range pods.Items {
		if pod.DeletionTimestamp != nil {
			return ""
		}
	}
	return fmt.Sprintf("Job %s with %d pods", job.name, len(pods.Items))
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
		return fmt.Sprintf("%d pods", len(pods.Items)), slices.ContainsFunc(pods.Items, starting)
	})
	if err := s.Service.Cancel(build.RequestID); err != nil {
		t.Fatal(err)
	}
	s.gone(t, build)
}

// starting tells whether a node is at work on a pod: an init container runs, or where it has
// none, which is so if the scaler registers the agent, its sandbox is there.
func starting(pod corev1.Pod) bool {
	for _, container := range pod.Status.InitContainerStatuses {
		if container.State.Running != nil {
			return true
		}
	}
	return len(pod.Spec.InitContainers) == 0 && slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReadyToStartContainers && c.Status == corev1.ConditionTrue
	})
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
