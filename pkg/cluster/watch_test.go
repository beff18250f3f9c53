package cluster_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
	kube "github.com/azp-scaler/azp-scaler/test/cluster"
)

// TestJobsFollowAnAgentThroughItsLife on a simulated node, by the watches alone.
func TestJobsFollowAnAgentThroughItsLife(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	e.run()
	made := e.ensure(e.job(1, 0, onNode()))
	var now agentpool.AgentJob
	until := func(what string, is func(agentpool.AgentJob) bool) {
		t.Helper()
		e.await(what, func() bool {
			jobs := e.cluster.Jobs()
			i := slices.IndexFunc(jobs, func(j agentpool.AgentJob) bool { return j.UID == made.UID })
			if i < 0 {
				now = agentpool.AgentJob{}
				return false
			}
			now = jobs[i]
			return is(now)
		}, func() any { return now })
	}
	until("it waits for a build", func(j agentpool.AgentJob) bool { return j.Started && j.Ready && !j.ReadySince.IsZero() })
	if now.RanBuild || now.Reason != agentpool.ReasonNone || now.NodeName == "" || now.Scheduled.IsZero() || now.PodUID == "" {
		t.Errorf("it waits: %+v", now)
	}
	before := e.changed.Load()
	// Times are whole seconds: a claim shows from the next one on.
	time.Sleep(time.Until(now.ReadySince.Add(time.Second)))
	e.annotate(now.PodName, kube.SimulateBusy, "true")
	until("it has a build", func(j agentpool.AgentJob) bool { return j.RanBuild && j.Started && !j.Ready })
	if e.changed.Load() == before {
		t.Error("nobody was told of the change")
	}
	e.annotate(now.PodName, kube.SimulateFinishAfter, "1ms")
	until("it has ended", func(j agentpool.AgentJob) bool { return j.JobDone })
	if !now.RanBuild || now.Ended.IsZero() || now.ExitCode != 0 || now.Failed() {
		t.Errorf("it has ended: %+v", now)
	}
	live, err := e.cluster.LiveJobs(t.Context())
	if err != nil || len(live) != 1 || !cmp.Equal(live[0], now) {
		t.Errorf("live: %+v, %v\nseen: %+v", live, err, now)
	}
	if err := e.cluster.DeleteJob(t.Context(), now.Name, now.UID); err != nil {
		t.Fatal(err)
	}
	e.await("the cache lets go of it", func() bool { return len(e.cluster.Jobs()) == 0 })
}

func (e *environment) annotate(pod, key, value string) {
	e.t.Helper()
	patch := `{"metadata":{"annotations":{"` + key + `":"` + value + `"}}}`
	must(e.admin.CoreV1().Pods(e.agents).Patch(e.t.Context(), pod, types.MergePatchType, []byte(patch), metav1.PatchOptions{}))(e.t)
}

// TestJobsTellWhyAnAgentFails on a simulated node.
func TestJobsTellWhyAnAgentFails(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	e.run()
	want := map[int64]agentpool.Reason{}
	for i, c := range []struct {
		reason agentpool.Reason
		change func(*agentpool.AgentClass, *batchv1.JobTemplateSpec)
	}{
		{agentpool.ReasonImagePull, onNode(kube.SimulateOutcome, kube.OutcomeImagePullBackOff)},
		{agentpool.ReasonUnschedulable, nil},
		{agentpool.ReasonNoBuild, onNode(kube.SimulateFinishAfter, "1ms", kube.SimulateExitCode, "10")},
		{agentpool.ReasonCrashed, onNode(kube.SimulateFinishAfter, "1ms", kube.SimulateExitCode, "14")},
	} {
		request := int64(i + 1)
		want[request] = c.reason
		if c.change == nil {
			c.change = func(*agentpool.AgentClass, *batchv1.JobTemplateSpec) {}
		}
		e.ensure(e.job(request, 0, c.change))
	}
	e.await("every reason", func() bool {
		jobs := e.cluster.Jobs()
		for _, job := range jobs {
			if job.Reason != want[job.RequestID] {
				return false
			}
		}
		return len(jobs) == len(want)
	}, func() any { return e.cluster.Jobs() })
}

func TestRecordEventReachesTheJob(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	e.run()
	job := e.ensure(e.job(1, 0))
	e.cluster.RecordEvent(job, true, "image-pull", "no such\nimage")
	e.await("the Event", func() bool {
		events := must(e.admin.CoreV1().Events(e.agents).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + job.Name}))(t)
		return slices.ContainsFunc(events.Items, func(event corev1.Event) bool {
			return event.Reason == "image-pull" && event.Message == "no such image" && event.Type == corev1.EventTypeWarning && string(event.InvolvedObject.UID) == job.UID
		})
	})
}

func TestJobExistsLive(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	job := e.ensure(e.job(1, 0))
	foreign := e.job(2, 0)
	foreign.Labels[agentjob.LabelInstance] = "other234"
	must(e.admin.BatchV1().Jobs(e.agents).Create(t.Context(), foreign, metav1.CreateOptions{}))(t)
	for name, want := range map[string]bool{job.Name: true, foreign.Name: false, "azp-abcdefgh-7-9-9": false} {
		if got, err := e.cluster.JobExistsLive(t.Context(), name); got != want || err != nil {
			t.Errorf("%s: %t, %v, want %t", name, got, err, want)
		}
	}
	e.wire.refuse("/jobs/" + job.Name)
	if _, err := e.cluster.JobExistsLive(t.Context(), job.Name); err == nil {
		t.Error("a Job that can't be read was told as one that is not there")
	}
}

// TestNoSyncWithoutRights: what can't be read is never taken for empty.
func TestNoSyncWithoutRights(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	if err := e.admin.RbacV1().RoleBindings(e.agents).Delete(t.Context(), "azp-scaler", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	e.await("the right is gone", func() bool { _, err := e.cluster.LiveJobs(t.Context()); return err != nil })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- e.cluster.Run(ctx) }()
	wait, stop := context.WithTimeout(t.Context(), time.Second)
	defer stop()
	err := e.cluster.WaitForSync(wait)
	if err == nil || e.cluster.Synced() || !strings.Contains(err.Error(), e.agents) || !strings.Contains(err.Error(), "Role") {
		t.Errorf("synced %t, %v", e.cluster.Synced(), err)
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(limit):
		t.Error("Run does not end")
	}
}

func TestNewNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	_, err := cluster.New(cluster.Config{})
	for _, want := range []string{"no client", "no namespace", "no instance id"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
	_, err = cluster.NewClasses(cluster.ClassesConfig{})
	for _, want := range []string{"no client", "no namespace"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}
