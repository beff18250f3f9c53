package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
	kube "github.com/azp-scaler/azp-scaler/test/cluster"
)

func agentRuns(pod corev1.Pod) bool {
	for _, status := range pod.Status.ContainerStatuses {
		if status.Name == agentjob.ContainerAgent && status.State.Running != nil {
			return true
		}
	}
	return false
}

func TestDeleteJobLeavesNothing(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	kept := e.ensure(e.job(1, 0))
	gone := e.ensure(e.job(2, 0))
	e.awaitPod(kept.Name, anyPod)
	e.awaitPod(gone.Name, anyPod)
	// Another Job of the name, and none of it, are nothing to delete.
	for _, c := range []struct{ name, uid string }{{kept.Name, "another"}, {"azp-abcdefgh-7-3-0", "gone"}} {
		if err := e.cluster.DeleteJob(t.Context(), c.name, c.uid); err != nil {
			t.Errorf("%s, %s: %v", c.name, c.uid, err)
		}
	}
	if err := e.cluster.DeleteJob(t.Context(), gone.Name, gone.UID); err != nil {
		t.Fatal(err)
	}
	e.await("everything is gone", func() bool { return e.left(gone.Name) == "" }, func() any { return e.left(gone.Name) })
	if got := e.left(kept.Name); got != "job pod serviceaccount rolebinding" {
		t.Errorf("of the other build there is %q", got)
	}
}

func TestDeleteLeavesForeignJobsAlone(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	job := e.job(1, 0)
	job.Labels[agentjob.LabelInstance] = "other234"
	job = must(e.admin.BatchV1().Jobs(e.agents).Create(t.Context(), job, metav1.CreateOptions{}))(t)
	if err := e.cluster.DeleteJob(t.Context(), job.Name, string(job.UID)); err != nil {
		t.Error(err)
	}
	if _, err := e.cluster.DeleteUnstarted(t.Context(), job.Name, string(job.UID)); err != nil {
		t.Error(err)
	}
	if e.live(job.Name) == nil {
		t.Error("another installation's Job was deleted")
	}
}

// TestDeleteLeavesANewJobOfTheNameAlone has the Job be replaced by another between the look and
// the deletion, as where two scalers lead at once.
func TestDeleteLeavesANewJobOfTheNameAlone(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	job := e.ensure(e.job(1, 0))
	jobs := e.admin.BatchV1().Jobs(e.agents)
	var another *batchv1.Job
	e.wire.intercept(func(write string) {
		if write != "DELETE jobs" || another != nil {
			return
		}
		policy := metav1.DeletePropagationBackground
		if err := jobs.Delete(context.Background(), job.Name, metav1.DeleteOptions{PropagationPolicy: &policy}); err != nil {
			e.t.Error(err)
		}
		e.await("the first is gone", func() bool { return e.live(job.Name) == nil }, func() any { return e.live(job.Name) })
		another = must(jobs.Create(context.Background(), e.job(1, 0), metav1.CreateOptions{}))(e.t)
	})
	if err := e.cluster.DeleteJob(t.Context(), job.Name, job.UID); !errors.Is(err, cluster.ErrStale) {
		t.Errorf("want to be told that it was another one, got %v", err)
	}
	if live := e.live(job.Name); another == nil || live == nil || live.UID != another.UID || live.DeletionTimestamp != nil {
		t.Error("the new Job is gone")
	}
	// Whoever tries again sees that nothing is left to do.
	if err := e.cluster.DeleteJob(t.Context(), job.Name, job.UID); err != nil {
		t.Error(err)
	}
}

func TestDeleteUnstarted(t *testing.T) {
	t.Parallel()
	e := setUp(t)

	e.step("a suspended Job", func(t *testing.T) {
		job := must(e.admin.BatchV1().Jobs(e.agents).Create(t.Context(), e.job(1, 0), metav1.CreateOptions{}))(t)
		e.deleteUnstarted(t, job.Name, string(job.UID), true)
	})
	e.step("a pod without a node", func(t *testing.T) {
		job := e.ensure(e.job(2, 0))
		e.awaitPod(job.Name, anyPod)
		e.deleteUnstarted(t, job.Name, job.UID, true)
	})
	e.step("a pod that can't get its image", func(t *testing.T) {
		job := e.ensure(e.job(3, 0, onNode(kube.SimulateOutcome, kube.OutcomeImagePullBackOff)))
		e.awaitPod(job.Name, func(p corev1.Pod) bool {
			return len(p.Status.InitContainerStatuses)+len(p.Status.ContainerStatuses) > 0
		})
		e.deleteUnstarted(t, job.Name, job.UID, true)
	})
	e.step("an agent that runs and does not listen yet", func(t *testing.T) {
		job := e.ensure(e.job(4, 0, onNode(kube.SimulateOutcome, kube.OutcomeSilent)))
		e.awaitPod(job.Name, agentRuns)
		e.deleteUnstarted(t, job.Name, job.UID, false)
	})
	e.step("an agent that waits", func(t *testing.T) {
		job := e.ensure(e.job(5, 0, onNode()))
		e.awaitPod(job.Name, agentRuns)
		e.deleteUnstarted(t, job.Name, job.UID, false)
	})
	e.step("an agent that has ended", func(t *testing.T) {
		job := e.ensure(e.job(6, 0, onNode(kube.SimulateFinishAfter, "1ms")))
		e.awaitPod(job.Name, func(p corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
		e.deleteUnstarted(t, job.Name, job.UID, false)
	})
	e.step("gone, or another one", func(t *testing.T) {
		job := e.ensure(e.job(7, 0))
		for _, c := range []struct{ name, uid string }{{job.Name, "another"}, {"azp-abcdefgh-7-8-0", "gone"}} {
			if deleted, err := e.cluster.DeleteUnstarted(t.Context(), c.name, c.uid); err != nil || !deleted {
				t.Errorf("%s %s: %t, %v", c.name, c.uid, deleted, err)
			}
		}
		if e.live(job.Name) == nil {
			t.Error("the other Job was deleted")
		}
	})
}

// deleteUnstarted calls it, and checks that all of the build is gone or none.
func (e *environment) deleteUnstarted(t *testing.T, name, uid string, want bool) {
	t.Helper()
	before := e.left(name)
	deleted, err := e.cluster.DeleteUnstarted(t.Context(), name, uid)
	if err != nil || deleted != want {
		t.Fatalf("deleted %t, %v; want %t", deleted, err, want)
	}
	if !want {
		if after := e.left(name); after != before {
			t.Errorf("there was %q, now %q", before, after)
		}
		for _, pod := range e.pods(name) {
			if pod.DeletionTimestamp != nil {
				t.Error("the pod is being deleted")
			}
		}
		return
	}
	e.await("everything is gone", func() bool { return e.left(name) == "" }, func() any { return e.left(name) })
}

// TestDeleteUnstartedAfterAQuota has a Job whose pod can't be made now, and could
// be at any moment.
func TestDeleteUnstartedAfterAQuota(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	e.run()
	e.noPods(t)
	job := e.ensure(e.job(1, 0))
	e.await("the reason", func() bool {
		jobs := e.cluster.Jobs()
		return len(jobs) == 1 && jobs[0].Reason == agentpool.ReasonQuota && strings.Contains(jobs[0].Message, "exceeded quota")
	}, func() any { return e.cluster.Jobs() })
	e.wire.restore()
	e.deleteUnstarted(t, job.Name, job.UID, true)
	if got := e.wire.written(); got[0] != "PATCH jobs" || got[1] != "DELETE jobs" {
		t.Errorf("the Job was not suspended before it was deleted: %v", got)
	}
}

// noPods has a quota keep every pod from being made.
func (e *environment) noPods(t *testing.T) {
	t.Helper()
	must(e.admin.CoreV1().ResourceQuotas(e.agents).Create(t.Context(), &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Name: "none"},
		Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")}},
	}, metav1.CreateOptions{}))(t)
	e.await("the quota's first count", func() bool {
		return len(must(e.admin.CoreV1().ResourceQuotas(e.agents).Get(t.Context(), "none", metav1.GetOptions{}))(t).Status.Used) > 0
	})
}

// agentStarts has the pod say that the agent's container runs.
func agentStarts(e *environment, name string) {
	pod := e.awaitPod(name, anyPod)
	if agentRuns(pod) {
		return
	}
	// A patch, as the scheduler writes to the status too.
	status := fmt.Sprintf(`{"status":{"containerStatuses":[{"name":%q,"image":"x","imageID":"x","ready":false,"restartCount":0,"state":{"running":{"startedAt":%q}}}]}}`,
		agentjob.ContainerAgent, time.Now().UTC().Format(time.RFC3339))
	if _, err := e.admin.CoreV1().Pods(e.agents).Patch(context.Background(), pod.Name, types.MergePatchType, []byte(status), metav1.PatchOptions{}, "status"); err != nil {
		e.t.Error(err)
	}
}

// TestDeleteUnstartedLosesRaces lets the agent get on between look and deletion,
// in each of the ways it can, whenever it is looked at: then it must live.
func TestDeleteUnstartedLosesRaces(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		make  func(*environment) (name, uid string)
		write string // Before each write of this kind,
		then  func(*environment, string)
	}{
		{"its container starts", func(e *environment) (string, string) {
			job := e.ensure(e.job(1, 0))
			e.awaitPod(job.Name, anyPod)
			return job.Name, job.UID
		}, "DELETE pods", agentStarts},
		{"somebody lets the Job run", func(e *environment) (string, string) {
			job := must(e.admin.BatchV1().Jobs(e.agents).Create(context.Background(), e.job(1, 0), metav1.CreateOptions{}))(e.t)
			must(e.admin.CoreV1().ServiceAccounts(e.agents).Create(context.Background(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: job.Name}}, metav1.CreateOptions{}))(e.t)
			return job.Name, string(job.UID)
		}, "DELETE jobs", func(e *environment, name string) {
			if _, err := e.admin.BatchV1().Jobs(e.agents).Patch(context.Background(), name, types.MergePatchType, []byte(`{"spec":{"suspend":false}}`), metav1.PatchOptions{}); err != nil {
				e.t.Error(err)
			}
			agentStarts(e, name)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e := setUp(t)
			name, uid := c.make(e)
			raced := false
			e.wire.intercept(func(write string) {
				if write == c.write {
					raced = true
					c.then(e, name)
				}
			})
			deleted, err := e.cluster.DeleteUnstarted(t.Context(), name, uid)
			if deleted || err != nil || !raced {
				t.Errorf("deleted %t, %v, raced %t", deleted, err, raced)
			}
			if live := e.live(name); live == nil || live.DeletionTimestamp != nil {
				t.Error("the Job is gone")
			}
			if pods := e.pods(name); len(pods) != 1 || pods[0].DeletionTimestamp != nil {
				t.Errorf("the pod is gone or going: %d", len(pods))
			}
		})
	}
}

// TestDeleteUnstartedKeepsRightsUntilThePodIsGone has a pod stay for a while after
// its deletion, as one does whose kubelet was about to start the agent when it
// heard of it: the build that such an agent may be given needs its rights.
func TestDeleteUnstartedKeepsRightsUntilThePodIsGone(t *testing.T) {
	t.Parallel()
	// Without a kubelet it stays until it is removed by force.
	onAbsentNode := func(_ *agentpool.AgentClass, template *batchv1.JobTemplateSpec) {
		template.Spec.Template.Spec.NodeSelector = nil
		template.Spec.Template.Spec.NodeName = "absent"
	}
	remove := func(e *environment, pod corev1.Pod) {
		pods := e.admin.CoreV1().Pods(e.agents)
		if _, err := pods.Patch(context.Background(), pod.Name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
			e.t.Error(err)
		}
		if err := pods.Delete(context.Background(), pod.Name, *metav1.NewDeleteOptions(0)); err != nil {
			e.t.Error(err)
		}
	}
	for _, c := range []struct {
		name    string
		wait    time.Duration
		limit   time.Duration                                   // Of the caller.
		then    func(e *environment, name string, p corev1.Pod) // Once the pod is being deleted.
		deleted bool
		fails   bool
	}{
		{name: "the agent starts after all", wait: limit, limit: limit, then: func(e *environment, name string, _ corev1.Pod) { agentStarts(e, name) }},
		{name: "the pod does not go", wait: time.Second, limit: limit},
		{name: "the pod goes", wait: limit, limit: limit, then: func(e *environment, _ string, p corev1.Pod) { remove(e, p) }, deleted: true},
		{name: "the caller has no more time", wait: limit, limit: 2 * time.Second, fails: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e := setUp(t)
			e.podEndWait = c.wait
			e.cluster = e.connect(e.signIn(), e.target)
			job := e.ensure(e.job(1, 0, onAbsentNode))
			e.awaitPod(job.Name, anyPod)
			e.wire.intercept(func(write string) {
				if write != "DELETE pods" && len(e.pods(job.Name)) > 0 {
					t.Errorf("%s, though the pod is there", write)
				}
			})
			acted := make(chan struct{})
			go func() {
				defer close(acted)
				going := e.awaitPod(job.Name, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
				if c.then != nil {
					c.then(e, job.Name, going)
				}
			}()
			ctx, cancel := context.WithTimeout(t.Context(), c.limit)
			defer cancel()
			deleted, err := e.cluster.DeleteUnstarted(ctx, job.Name, job.UID)
			<-acted
			if deleted != c.deleted || (err != nil) != c.fails {
				t.Errorf("deleted %t, %v; want %t and an error: %t", deleted, err, c.deleted, c.fails)
			}
			want := "job pod serviceaccount rolebinding"
			if c.deleted {
				want = ""
			}
			e.await("what is to be left is left", func() bool { return e.left(job.Name) == want }, func() any { return e.left(job.Name) })
		})
	}
}

// TestDeleteUnstartedGivesUp: what changes at every look is left to the next cycle.
func TestDeleteUnstartedGivesUp(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	job := e.ensure(e.job(1, 0))
	e.awaitPod(job.Name, anyPod)
	changes := 0
	e.wire.intercept(func(write string) {
		if write == "DELETE pods" {
			changes++
			e.annotate(e.pods(job.Name)[0].Name, "example.com/change", strconv.Itoa(changes))
		}
	})
	deleted, err := e.cluster.DeleteUnstarted(t.Context(), job.Name, job.UID)
	if deleted || !errors.Is(err, cluster.ErrStale) || changes < 2 {
		t.Errorf("deleted %t, %v, after %d changes", deleted, err, changes)
	}
	if got := e.left(job.Name); got != "job pod serviceaccount rolebinding" {
		t.Errorf("there is %q", got)
	}
}

// TestDeleteUnstartedWaitsForTheController has no Job controller answer, as the Job
// is another controller's by name.
func TestDeleteUnstartedWaitsForTheController(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	job := e.job(1, 0)
	job.Spec.Suspend = new(false)
	job.Spec.ManagedBy = new("example.com/nobody")
	job.Spec.PodReplacementPolicy = nil
	made := must(e.admin.BatchV1().Jobs(e.agents).Create(t.Context(), job, metav1.CreateOptions{}))(t)
	e.suspendWait = 300 * time.Millisecond
	e.cluster = e.connect(shared.RESTConfig(), e.target)
	deleted, err := e.cluster.DeleteUnstarted(t.Context(), made.Name, string(made.UID))
	if deleted || !errors.Is(err, cluster.ErrUnavailable) || !strings.Contains(err.Error(), "kube-controller-manager") {
		t.Errorf("deleted %t, %v", deleted, err)
	}
	if live := e.live(made.Name); live == nil || !suspended(live) {
		t.Error("the Job is gone, or runs")
	}
}

func suspended(job *batchv1.Job) bool { return job.Spec.Suspend != nil && *job.Spec.Suspend }
