package e2e_test

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// TestLeaving uninstalls under the scaler's feet: it runs, with agents that wait, a build
// that runs, and what crashes have left. Nothing may be left but the scaler, which makes
// nothing any more.
func TestLeaving(t *testing.T) { registered(t, []string{fromPods}, leaving) }

func leaving(t *testing.T, way string) {
	s := newStage(t, env.Options{Seed: seedOf(t), Registration: way, Scaler: map[string]string{"AZP_MIN_IDLE": "1"}})
	s.Warm = 1
	ctx := t.Context()
	first := s.queue(t, env.Build{Name: "first"})[0]
	s.finish(t, first)
	gone := s.agentOf(t, first)
	waitUntil(ctx, t, "nothing is left of the first build", func() (string, bool) {
		_, still := s.Service.Agent(gone)
		return gone, !still && !s.jobs.job(t, gone).gone.IsZero()
	})
	gate := s.gate(t)
	build := s.queue(t, env.Build{Name: "running", Steps: []string{gate.Step()}})[0]
	waitArrived(t, gate, 1)
	s.metric(t, `azp_scaler_agents{class="default",phase="idle",pool="kubernetes"} 1`)
	s.metric(t, `azp_scaler_agents{class="default",phase="busy",pool="kubernetes"} 1`)
	running := s.agentOf(t, build)
	s.leaveBehind(t, gone, running)

	out, err := s.Scaler.Command(ctx, "cleanup", "--wait", "0")
	var failed *exec.ExitError
	if !errors.As(err, &failed) || failed.ExitCode() != 1 {
		t.Fatalf("a cleanup that leaves a build ended with %v:\n%s", err, out)
	}
	t.Log(out)
	for _, want := range []string{"replica one works", "LEFT     agent " + running + ": its build runs", "which had no build", "1 of kind rolebinding", "removed  placeholder", "cancel them in Azure DevOps"} {
		if !strings.Contains(out, want) {
			t.Errorf("the first cleanup does not say %q", want)
		}
	}
	s.metric(t, `azp_scaler_leading{pool="kubernetes"} 0`)

	done := make(chan string, 1)
	go func() {
		out, err := s.Scaler.Command(ctx, "cleanup", "--wait", "50s")
		done <- fmt.Sprintf("%v\n%s", err, out)
	}()
	gate.Open()
	told := <-done
	t.Log(told)
	if !strings.HasPrefix(told, "<nil>\n") || !strings.Contains(told, "done     nothing is left") {
		t.Errorf("the second cleanup: %s", told)
	}
	if err := s.Check(ctx, []env.Queued{first, build}); err != nil {
		t.Error(err)
	}
	if agents := s.Service.Agents(s.Service.PoolID); len(agents) > 0 {
		t.Errorf("the pool has %+v", agents)
	}
	s.metric(t, `azp_scaler_leading{pool="kubernetes"} 0`)
	clean(ctx, t, s.Env)
}

// leaveBehind has what a crash leaves of an agent that is gone: its registration, and a
// RoleBinding like that of one that runs.
func (s *stage) leaveBehind(t *testing.T, gone, running string) {
	t.Helper()
	bindings := s.Admin.RbacV1().RoleBindings(env.TargetNamespace)
	list, err := bindings.List(t.Context(), metav1.ListOptions{LabelSelector: "azp-scaler.github.io/job=" + running})
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("RoleBindings of agent %s: %v, %v", running, list, err)
	}
	left := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: gone, Namespace: env.TargetNamespace, Labels: list.Items[0].Labels}, RoleRef: list.Items[0].RoleRef,
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: gone, Namespace: env.AgentsNamespace}},
	}
	left.Labels["azp-scaler.github.io/job"], left.Labels["azp-scaler.github.io/job-uid"] = gone, "00000000-0000-0000-0000-000000000000"
	if _, err := bindings.Create(t.Context(), left, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := s.LeaveRegistration(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
}
