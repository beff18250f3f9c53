package e2e_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/cluster"
	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// TestTroubleIsShownAndPasses brings an installation into the troubles that
// people meet, sees that each is told with its reason, and that the build runs
// once the trouble is over.
func TestTroubleIsShownAndPasses(t *testing.T) { registered(t, bothWays(), trouble) }

func trouble(t *testing.T, way string) {
	// Where pods register agents they download the program here, too: the other tests have
	// it in the image.
	e := startEnv(t, env.Options{Seed: seedOf(t), Registration: way, Download: way == fromPods, Scaler: map[string]string{"AZP_STARTUP_LIMIT": "15s"}})
	ctx := t.Context()
	build := func(name string) []env.Build {
		return []env.Build{{Name: name, Kind: env.KindPlain, Steps: []string{"true"}, Want: "succeeded"}}
	}
	finish := func(t *testing.T, queued []env.Queued) {
		t.Helper()
		if err := e.WaitFinished(ctx, 3*time.Minute); err != nil {
			t.Fatal(err)
		}
		if err := e.Check(ctx, queued); err != nil {
			t.Error(err)
		}
	}
	queue := func(t *testing.T, name string) []env.Queued {
		t.Helper()
		queued, err := e.Queue(ctx, build(name))
		if err != nil {
			t.Fatal(err)
		}
		return queued
	}

	t.Run("the image is wrong", func(t *testing.T) {
		if e.Node() != cluster.Real {
			t.Skip("images are pulled by a real node alone")
		}
		restore := e.Scaler.Set("AZP_AGENT_IMAGE", "azp-scaler.local/absent:1")
		if err := e.StartScaler(ctx); err != nil {
			t.Fatal(err)
		}
		queued := queue(t, "wrong-image")
		waitForMetric(ctx, t, e.Scaler, `azp_scaler_agents_held_up{class="default",pool="kubernetes",reason="image-pull"} 1`)
		waitForEvent(ctx, t, e, "image-pull", "azp-scaler.local/absent:1")
		if err := e.Scaler.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		restore()
		if err := e.StartScaler(ctx); err != nil {
			t.Fatal(err)
		}
		finish(t, queued)
	})

	t.Run("the quota is used up", func(t *testing.T) {
		ensureRunning(ctx, t, e)
		quotas := e.Admin.CoreV1().ResourceQuotas(env.AgentsNamespace)
		quota := &corev1.ResourceQuota{
			ObjectMeta: metav1.ObjectMeta{Name: "none"},
			Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")}},
		}
		if _, err := quotas.Create(ctx, quota, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		waitUntil(ctx, t, "the quota is in force", func() (string, bool) {
			got, err := quotas.Get(ctx, quota.Name, metav1.GetOptions{})
			return "", err == nil && len(got.Status.Hard) > 0
		})
		queued := queue(t, "no-quota")
		waitForMetric(ctx, t, e.Scaler, `azp_scaler_agents_held_up{class="default",pool="kubernetes",reason="quota-exceeded"} 1`)
		waitForEvent(ctx, t, e, "quota-exceeded", "exceeded quota")
		if err := quotas.Delete(ctx, quota.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		finish(t, queued)
	})

	t.Run("the role is taken away", func(t *testing.T) {
		ensureRunning(ctx, t, e)
		bindings := e.Admin.RbacV1().RoleBindings(env.TargetNamespace)
		list, err := bindings.List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, binding := range list.Items {
			if err := bindings.Delete(ctx, binding.Name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		queued := queue(t, "no-rights")
		waitForReady(ctx, t, e, http.StatusServiceUnavailable, env.TargetNamespace)
		for _, binding := range list.Items {
			binding.ResourceVersion, binding.UID = "", ""
			if _, err := bindings.Create(ctx, &binding, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		finish(t, queued)
		waitForReady(ctx, t, e, http.StatusOK, "ok")
	})

	t.Run("the service can't be reached for a while", func(t *testing.T) {
		ensureRunning(ctx, t, e)
		if _, err := e.Service.Inject(azuredevopstest.Fault{Operation: "jobrequests.list", Kind: azuredevopstest.FaultStatus, Status: http.StatusServiceUnavailable}); err != nil {
			t.Fatal(err)
		}
		queued := queue(t, "unreachable")
		waitForMetric(ctx, t, e.Scaler, `azp_scaler_polls_total{outcome="error",pool="kubernetes"}`)
		e.Service.ClearFaults()
		finish(t, queued)
	})
	clean(ctx, t, e)
}

// ensureRunning starts the scaler where an earlier part has not left it running.
func ensureRunning(ctx context.Context, t *testing.T, e *env.Env) {
	t.Helper()
	if e.Scaler.Running() {
		return
	}
	if err := e.StartScaler(ctx); err != nil {
		t.Fatal(err)
	}
}

// troubleLimit is how long a trouble may take to show or to pass.
const troubleLimit = 2 * time.Minute

// waitUntil asks until done says so, and fails with what it last told.
func waitUntil(ctx context.Context, t *testing.T, what string, done func() (string, bool)) {
	t.Helper()
	var last string
	for deadline := time.Now().Add(troubleLimit); time.Now().Before(deadline) && ctx.Err() == nil; {
		var ok bool
		if last, ok = done(); ok {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Fatalf("it never came to this: %s; last seen:\n%s", what, last)
}

func waitForMetric(ctx context.Context, t *testing.T, scaler *env.Scaler, line string) {
	t.Helper()
	waitUntil(ctx, t, line, func() (string, bool) {
		_, body := get(ctx, scaler.URL()+"/metrics")
		name, _, _ := strings.Cut(line, "{")
		return grep(body, name), grep(body, line) != ""
	})
}

// grep gives the lines that begin so.
func grep(text, prefix string) string {
	var found strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, prefix) {
			found.WriteString(line)
		}
	}
	return found.String()
}

func waitForReady(ctx context.Context, t *testing.T, e *env.Env, status int, text string) {
	t.Helper()
	waitUntil(ctx, t, "readiness "+http.StatusText(status)+" with "+text, func() (string, bool) {
		code, body := get(ctx, e.Scaler.URL()+"/readyz")
		return body, code == status && strings.Contains(body, text)
	})
}

func waitForEvent(ctx context.Context, t *testing.T, e *env.Env, reason, text string) {
	t.Helper()
	waitUntil(ctx, t, "an Event "+reason+" with "+text, func() (string, bool) {
		events, err := e.Admin.CoreV1().Events(env.AgentsNamespace).List(ctx, metav1.ListOptions{FieldSelector: "reason=" + reason})
		if err != nil {
			return err.Error(), false
		}
		var seen []string
		for _, event := range events.Items {
			if strings.Contains(event.Message, text) {
				return "", true
			}
			seen = append(seen, event.Message)
		}
		return strings.Join(seen, "\n"), false
	})
}

func get(ctx context.Context, url string) (int, string) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err.Error()
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err.Error()
	}
	body, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		return 0, err.Error()
	}
	return response.StatusCode, string(body)
}
