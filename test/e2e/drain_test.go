package e2e_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/cluster"
	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// TestDrain cordons and drains a node, as an upgrade does, and has a build use more memory
// than there is for it.
func TestDrain(t *testing.T) { registered(t, bothWays(), drain) }

func drain(t *testing.T, way string) {
	s := newStage(t, env.Options{
		Seed: seedOf(t), Registration: way, Classes: overlapping(), Scaler: quick(nil),
		Service: azuredevopstest.Options{LockDuration: 10 * time.Second}, AgentFaults: []string{"renew-interval=2s"},
	})
	if s.Node() != cluster.Real {
		t.Skip("a simulated node ends pods without a grace period")
	}
	s.Warm = 1
	s.scenario(t, "a node is cordoned and drained while a build runs", s.drainedBuild)
	s.scenario(t, "an agent that waits is evicted", s.evictedIdle)
	if way == fromPods {
		// Nothing of it depends on the way, and the auditor would take the build for lost, as
		// it is.
		s.scenario(t, "a build runs out of memory", s.outOfMemory)
		return
	}
	s.judge(t)
}

// podOf gives the one pod of an agent's Job.
func (s *stage) podOf(t *testing.T, agent string) corev1.Pod {
	t.Helper()
	list, err := s.Admin.CoreV1().Pods(env.AgentsNamespace).List(t.Context(), metav1.ListOptions{LabelSelector: batchv1.JobNameLabel + "=" + agent})
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != 1 {
		t.Fatalf("agent %s has %d pods, want 1", agent, len(list.Items))
	}
	return list.Items[0]
}

// evict asks for a pod's eviction, as kubectl drain does.
func (s *stage) evict(t *testing.T, pod corev1.Pod) {
	t.Helper()
	if err := s.Admin.PolicyV1().Evictions(pod.Namespace).Evict(t.Context(), &policyv1.Eviction{
		ObjectMeta: metav1.ObjectMeta{Name: pod.Name, Namespace: pod.Namespace},
	}); err != nil {
		t.Fatal(err)
	}
}

// cordon says whether the scheduler may use a node.
func (s *stage) cordon(t *testing.T, node string, unschedulable bool) {
	t.Helper()
	patch := fmt.Appendf(nil, `{"spec":{"unschedulable":%t}}`, unschedulable)
	if _, err := s.Admin.CoreV1().Nodes().Patch(t.Context(), node, types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// drainedBuild has a node cordoned, which does nothing to a build, and then drained, which
// lets it have its grace period.
func (s *stage) drainedBuild(t *testing.T) {
	gate := s.gate(t)
	build := s.queue(t, env.Build{Name: "drained", Demands: demandsJava(), Steps: []string{gate.Step()}})[0]
	waitArrived(t, gate, 1)
	agent := s.agentOf(t, build)
	before := s.podOf(t, agent)
	s.cordon(t, before.Spec.NodeName, true)
	defer s.cordon(t, before.Spec.NodeName, false)
	// A build that comes now finds no node, and waits for one.
	behind := s.queue(t, env.Build{Name: "behind", Demands: demandsJava()})[0]
	waitForEvent(t.Context(), t, s.Env, "unschedulable", "unschedulable")
	if pod := s.podOf(t, agent); pod.UID != before.UID || pod.DeletionTimestamp != nil {
		t.Error("a cordon has ended a pod with a build")
	}
	s.evict(t, before)
	waitUntil(t.Context(), t, "the agent holds TERM back", func() (string, bool) {
		log, err := s.Admin.CoreV1().Pods(before.Namespace).GetLogs(before.Name, &corev1.PodLogOptions{Container: "agent"}).DoRaw(t.Context())
		if err != nil {
			return err.Error(), false
		}
		return "", strings.Contains(string(log), "asked to stop")
	})
	gate.Open()
	s.cordon(t, before.Spec.NodeName, false)
	s.finish(t, build, behind)
	if after := s.agentOf(t, build); after != agent || len(s.jobs.of(build.RequestID)) != 1 {
		t.Errorf("the build ran on %s, and another agent was made for it: %+v", after, s.jobs.of(build.RequestID))
	}
}

// evictedIdle evicts an agent that waits: it leaves the pool at once, and another comes.
func (s *stage) evictedIdle(t *testing.T) {
	class := env.Class{Name: "stock", Variables: map[string]string{"stock": "1"}, MinIdle: 1}
	s.apply(t, class)
	waiting := s.idle(t, class, 1)[0]
	waitUntil(t.Context(), t, "its pod is ready", func() (string, bool) {
		pod := s.podOf(t, waiting)
		return fmt.Sprintf("%+v", pod.Status.Conditions), slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
	})
	s.evict(t, s.podOf(t, waiting))
	waitUntil(t.Context(), t, "its registration is withdrawn, and another agent waits", func() (string, bool) {
		if agent, registered := s.Service.Agent(waiting); registered {
			return fmt.Sprintf("%+v", agent), false
		}
		return "", slices.ContainsFunc(s.jobs.ofClass(s.Installation, class.Name), func(job made) bool { return job.name != waiting })
	})
	if after := s.idle(t, class, 1); after[0] == waiting {
		t.Error("the agent that was evicted is back")
	}
	_, metrics := get(t.Context(), s.Scaler.URL()+"/metrics")
	if failed := grep(metrics, `azp_scaler_jobs_failed_total{class="stock"`); failed != "" {
		t.Errorf("an agent that was told to leave counts as failed: %s", failed)
	}
	class.MinIdle = 0
	s.apply(t, class)
	s.idle(t, class, 0)
	s.remove(t, class.Name)
}

// outOfMemory has a build use more memory than its container may.
func (s *stage) outOfMemory(t *testing.T) {
	class := env.Class{Name: "tight", Variables: map[string]string{"tight": "1"}, MemoryLimit: "96Mi"}
	s.apply(t, class)
	s.greedy(t, s.metric)
	s.remove(t, class.Name)
}

// greedy has a build of the class tight use more memory than there is for it. Where the kernel
// kills all of the container, as with control groups of version 2, the service abandons the build
// when its lock lapses; where it kills the step alone, the agent lives and tells that the build
// has failed. Both are told with the reason, and no other agent is made. It gives what became of
// the build, and a time at which it had its agent and had not taken anything yet.
func (s *stage) greedy(t *testing.T, metric func(t *testing.T, line string)) (status azuredevopstest.BuildStatus, begun time.Time) {
	t.Helper()
	build := s.queue(t, env.Build{Name: "greedy", Demands: []string{"tight"}, Steps: []string{
		`sleep 3; greed=x; while true; do greed=$greed$greed; done`,
	}})[0]
	waitUntil(t.Context(), t, "the build has an agent", func() (string, bool) { return "", s.agentOf(t, build) != "" })
	begun = time.Now()
	metric(t, `azp_scaler_builds_lost_total{class="tight",pool="kubernetes",reason="out-of-memory"} 1`)
	waitForEvent(t.Context(), t, s.Env, "out-of-memory", "more memory than its limit")
	ctx, cancel := context.WithTimeout(t.Context(), troubleLimit)
	defer cancel()
	status, err := s.Service.Wait(ctx, build.RequestID)
	if err != nil || status.Result != "abandoned" && status.Result != "failed" {
		t.Errorf("the build is %+v, %v, want it abandoned or failed", status, err)
	}
	if jobs := s.jobs.of(build.RequestID); len(jobs) != 1 {
		t.Errorf("a build that ran out of memory got %d Jobs, want 1: %+v", len(jobs), jobs)
	}
	return status, begun
}
