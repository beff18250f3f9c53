package app_test

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clienttesting "k8s.io/client-go/testing"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/app"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
)

// renewed is a source of tokens that a test renews.
type renewed struct {
	mu    sync.Mutex
	token azuredevops.Secret
	ends  time.Time
	err   error
}

func (r *renewed) set(token azuredevops.Secret, ends time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.token, r.ends, r.err = token, ends, err
}

// Current gives what the test has set.
func (r *renewed) Current(context.Context) (azuredevops.Secret, time.Time, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.token, r.ends, r.err
}

// tokenWorld is a world that keeps the agents' token, of the source.
func tokenWorld(t *testing.T, source *renewed, classes ...*batchv1.CronJob) *world {
	t.Helper()
	w := newWorld(t, map[string]string{
		"AZP_POOL": "kubernetes", "AZP_POLL_BUSY": "500ms", "AZP_POLL_IDLE": "500ms", "AZP_BACKOFF_MIN": "1s", "AZP_AGENT_VERSION": "4.248.0",
	}, classes...)
	w.UseRenewing(source, 20*time.Millisecond)
	w.clientset.PrependReactor("create", "jobs", func(action clienttesting.Action) (bool, runtime.Object, error) {
		create, isCreate := action.(clienttesting.CreateActionImpl)
		job, isJob := create.Object.(*batchv1.Job)
		if !isCreate || !isJob {
			return false, nil, nil
		}
		if len(create.CreateOptions.DryRun) > 0 {
			return true, job, nil // The cluster of the tests would make it all the same.
		}
		job.UID, job.CreationTimestamp = types.UID("uid-"+job.Name), metav1.Now()
		return false, nil, nil
	})
	return w
}

// start runs the scaler, and gives what stops it.
func (w *world) start(t *testing.T) (done chan error, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done = make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	return done, func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("told to stop, it ended with %v", err)
		}
	}
}

// agentToken is what pods would be given, or nothing.
func (w *world) agentToken(t *testing.T) (string, *corev1.Secret) {
	t.Helper()
	secret, err := w.clientset.CoreV1().Secrets("agents").Get(t.Context(), "azp-token", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(secret.Data["token"]), secret
}

// deleteToken takes away the Secret that newWorld makes, which is an administrator's.
func (w *world) deleteToken(t *testing.T) {
	t.Helper()
	if err := w.clientset.CoreV1().Secrets("agents").Delete(t.Context(), "azp-token", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// jobsOf gives the classes of the Jobs that are there.
func (w *world) jobsOf(t *testing.T) string {
	t.Helper()
	list, err := w.clientset.BatchV1().Jobs("agents").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var classes []string
	for _, job := range list.Items {
		classes = append(classes, job.Labels[agentjob.LabelClass])
	}
	return strings.Join(classes, " ")
}

// TestWithoutATokenOnlyPodsThatNeedOneWait: no Job of a class that registers from its pods is
// made before its token is there, and the others' are.
func TestWithoutATokenOnlyPodsThatNeedOneWait(t *testing.T) {
	source := &renewed{err: errors.New("the issuer is out")}
	w := tokenWorld(t, source, class("java", "java"), class("own", "own", "registration", "jit"))
	w.deleteToken(t)
	done, stop := w.start(t)
	w.waitForPlaceholders(t, "kubernetes", 2)
	w.queue(t, "kubernetes", "java")
	w.queue(t, "kubernetes", "own")
	eventually(t, "the Job that needs no token", func() bool { return w.jobsOf(t) == "own" })
	waitFor(t, w.App, done, "/metrics", http.StatusOK, `azp_scaler_requests_skipped{pool="kubernetes",reason="class-blocked"} 1`)
	waitFor(t, w.App, done, "/readyz", http.StatusOK, "ok")
	if _, secret := w.agentToken(t); secret != nil {
		t.Errorf("there is a Secret %v", secret)
	}

	ends := time.Now().Add(time.Hour)
	source.set("first", ends, nil)
	eventually(t, "the Job that needs a token", func() bool { return strings.Contains(w.jobsOf(t), "java") })
	token, secret := w.agentToken(t)
	if token != "first" || secret.Annotations[agentjob.AnnotationTokenEnds] != ends.UTC().Format(time.RFC3339) {
		t.Errorf("the Secret is %+v", secret)
	}
	waitFor(t, w.App, done, "/metrics", http.StatusOK, "azp_scaler_agent_token_end_timestamp_seconds "+metricOf(ends))

	source.set("second", ends.Add(time.Hour), nil)
	eventually(t, "the renewed token", func() bool { token, _ := w.agentToken(t); return token == "second" })
	stop()
	if token, _ := w.agentToken(t); token != "second" {
		t.Errorf("after the end of the scaler the token is %q, and pods that still run need it", token)
	}
	var out strings.Builder
	if err := w.Cleanup(t.Context(), &out, soon()); err != nil || !strings.Contains(out.String(), "removed  Secret agents/azp-token") {
		t.Errorf("cleanup: %v\n%s", err, out.String())
	}
	if _, secret := w.agentToken(t); secret != nil {
		t.Error("cleanup leaves the token")
	}
}

// metricOf is a time as a gauge shows it.
func metricOf(at time.Time) string { return strconv.FormatFloat(float64(at.Unix()), 'g', -1, 64) }

// TestATokenThatEndsStopsItsClasses: an issuer that fails is no matter while the token is good.
func TestATokenThatEndsStopsItsClasses(t *testing.T) {
	source := &renewed{token: "only", ends: time.Now().Add(6 * time.Second)}
	w := tokenWorld(t, source, class("java", "java"))
	w.deleteToken(t)
	done, stop := w.start(t)
	waitFor(t, w.App, done, "/readyz", http.StatusOK, "ok")
	source.set("", time.Time{}, errors.New("the issuer is out"))
	waitFor(t, w.App, done, "/readyz", http.StatusServiceUnavailable, "class java: the Secret agents/azp-token has no valid token for pods to register with, as that in it ends at ")
	waitFor(t, w.App, done, "/readyz", http.StatusServiceUnavailable, "there is no new one: the issuer is out")
	source.set("next", time.Now().Add(time.Hour), nil)
	waitFor(t, w.App, done, "/readyz", http.StatusOK, "ok")
	stop()
}

func TestAnAdministratorsTokenIsNotOverwritten(t *testing.T) {
	w := tokenWorld(t, &renewed{token: "ours", ends: time.Now().Add(time.Hour)}, class("java", "java"))
	var out strings.Builder
	if err := w.Check(t.Context(), &out); !errors.Is(err, app.ErrCheck) || !strings.Contains(out.String(), "AZP_AGENT_TOKEN_SECRET") {
		t.Errorf("check: %v\n%s", err, out.String())
	}
	done, stop := w.start(t)
	waitFor(t, w.App, done, "/readyz", http.StatusServiceUnavailable, "kubectl delete secret azp-token --namespace agents")
	if token, _ := w.agentToken(t); token != "t" {
		t.Errorf("the administrator's token is %q now", token)
	}
	w.deleteToken(t)
	waitFor(t, w.App, done, "/readyz", http.StatusOK, "ok")
	if token, _ := w.agentToken(t); token != "ours" {
		t.Errorf("the token is %q", token)
	}
	stop()
}

// TestNoTokenIsKeptForNobody: where every class says jit, none leaves the scaler, until one says otherwise.
func TestNoTokenIsKeptForNobody(t *testing.T) {
	w := tokenWorld(t, &renewed{token: "ours", ends: time.Now().Add(time.Hour)}, class("own", "own", "registration", "jit"))
	w.deleteToken(t)
	done, stop := w.start(t)
	waitFor(t, w.App, done, "/readyz", http.StatusOK, "ok")
	w.waitForPlaceholders(t, "kubernetes", 1)
	if _, secret := w.agentToken(t); secret != nil {
		t.Error("there is a token that nobody needs")
	}
	if _, err := w.clientset.BatchV1().CronJobs("agents").Create(t.Context(), class("java", "java"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the token", func() bool { token, _ := w.agentToken(t); return token == "ours" })
	stop()
}
