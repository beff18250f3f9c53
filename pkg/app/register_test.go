package app_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clienttesting "k8s.io/client-go/testing"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

// TestAnAgentWhoseKeyCannotBeHandedOver says that nothing is left of an attempt in which
// the agent was registered and its Secret could not be made, and that the build gets its
// agent once that works.
func TestAnAgentWhoseKeyCannotBeHandedOver(t *testing.T) {
	w := newWorld(t, map[string]string{
		"AZP_LOG_LEVEL": "DEBUG", "AZP_POOL": "kubernetes", "AZP_REGISTRATION": "jit", "AZP_POLL_BUSY": "500ms", "AZP_POLL_IDLE": "500ms",
		"AZP_BACKOFF_MIN": "1s", "AZP_AGENT_TOKEN_SECRET": "there-is-none", "AZP_AGENT_VERSION": "4.248.0",
	}, class("java", "java"))
	// A cluster that numbers its Jobs, and takes no Secret until it is told to.
	var numbers, refused atomic.Int64
	var open atomic.Bool
	w.clientset.PrependReactor("create", "jobs", func(action clienttesting.Action) (bool, runtime.Object, error) {
		create, isCreate := action.(clienttesting.CreateActionImpl)
		job, isJob := create.Object.(*batchv1.Job)
		if !isCreate || !isJob {
			return false, nil, nil
		}
		if len(create.CreateOptions.DryRun) > 0 {
			return true, job, nil // The cluster of the tests would make it all the same.
		}
		job.UID = types.UID("job-" + strconv.FormatInt(numbers.Add(1), 10))
		job.CreationTimestamp = metav1.Now()
		return false, nil, nil
	})
	w.clientset.PrependReactor("create", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		if open.Load() {
			return false, nil, nil
		}
		refused.Add(1)
		return true, nil, errors.New("no room for Secrets")
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	w.waitForPlaceholders(t, "kubernetes", 1)
	if _, err := w.service.Queue(azuredevopstest.Build{PoolID: w.pools["kubernetes"], Name: "build", Demands: []string{"java"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "two refusals", func() bool { return refused.Load() >= 2 })
	eventually(t, "nothing but the placeholder is left", func() bool {
		agents := w.registered("kubernetes")
		return len(w.jobs(t)) == 0 && len(agents) == 1 && strings.HasPrefix(agents[0], "azp-placeholder-")
	})
	open.Store(true)
	eventually(t, "a Job that runs a registered agent", func() bool {
		jobs := w.jobs(t)
		return len(jobs) == 1 && !*jobs[0].Spec.Suspend && jobs[0].Annotations[agentjob.AnnotationAgentID] != "" && len(w.registered("kubernetes")) == 2
	})
	job := w.jobs(t)[0]
	if strings.HasSuffix(job.Name, "-0") {
		t.Errorf("%s has the name of one that was taken back", job.Name)
	}
	if env := job.Spec.Template.Spec.Containers[0].Env; !slices.Contains(env, corev1.EnvVar{Name: "AZP_LOG_LEVEL", Value: "debug"}) {
		t.Errorf("the entrypoint is not as talkative as the scaler: %v", env)
	}
	secret, err := w.clientset.CoreV1().Secrets("agents").Get(t.Context(), job.Name, metav1.GetOptions{})
	if err != nil || len(secret.Data) != 3 {
		t.Fatalf("its Secret: %v, %v", secret, err)
	}
	if id := job.Annotations[agentjob.AnnotationAgentID]; !strings.Contains(string(secret.Data[".agent"]), `"agentId": `+id) {
		t.Errorf("the Job records agent %s, and its Secret has %s", id, secret.Data[".agent"])
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("told to stop, it ended with %v", err)
	}
}

func (w *world) jobs(t *testing.T) []batchv1.Job {
	t.Helper()
	list, err := w.clientset.BatchV1().Jobs("agents").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(waitLimit); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if is() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}
