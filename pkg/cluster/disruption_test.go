package cluster_test

import (
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// TestOnePodAtATime says that the Job controller makes no second pod of a Job beside one that
// is being deleted, however long that takes: on a lost node the agent of the first may still be
// at work. Nor does it end such a Job, and what ends it takes the rights along.
func TestOnePodAtATime(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	e.podEndWait = time.Second
	e.cluster = e.connect(e.signIn(), e.target)
	e.run()
	job := e.ensure(e.job(1, 0))
	pod := e.awaitPod(job.Name, anyPod)
	pods := e.admin.CoreV1().Pods(e.agents)
	// Nobody answers for this node: what is asked of the pod is never done.
	if err := pods.Bind(t.Context(), &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Name: pod.Name, UID: pod.UID}, Target: corev1.ObjectReference{Kind: "Node", Name: "lost"},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := pods.Delete(t.Context(), pod.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	e.await("the Job controller takes note of the deletion", func() bool {
		status := e.live(job.Name).Status
		return status.Terminating != nil && *status.Terminating == 1
	}, func() any { return e.live(job.Name).Status })
	if pods := e.pods(job.Name); len(pods) != 1 || pods[0].UID != pod.UID {
		t.Errorf("there are %d pods of one Job", len(pods))
	}
	e.await("the agent is shown to be leaving", func() bool {
		jobs := e.cluster.Jobs()
		return len(jobs) == 1 && jobs[0].Deleting && !jobs[0].Finished()
	}, func() any { return e.cluster.Jobs() })

	deleted, err := e.cluster.DeleteUnstarted(t.Context(), job.Name, job.UID)
	if err != nil || deleted {
		t.Fatalf("deleted %t, %v: nobody knows whether its agent has started", deleted, err)
	}
	if err := e.cluster.DeleteJob(t.Context(), job.Name, job.UID); err != nil {
		t.Fatal(err)
	}
	e.await("but for the pod, all goes", func() bool { return e.left(job.Name) == "pod" }, func() any { return e.left(job.Name) })
	// As somebody does who has given the node up.
	if err := pods.Delete(t.Context(), pod.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}); err != nil {
		t.Fatal(err)
	}
	e.await("so does the pod", func() bool { return e.left(job.Name) == "" }, func() any { return e.left(job.Name) })
}

// TestJobsTellWhyThereIsNoPod says what only an Event tells: the API server refuses the pod.
func TestJobsTellWhyThereIsNoPod(t *testing.T) {
	t.Parallel()
	for reason, prepare := range map[agentpool.Reason]func(e *environment) func(*agentpool.AgentClass, *batchv1.JobTemplateSpec){
		agentpool.ReasonQuota: func(e *environment) func(*agentpool.AgentClass, *batchv1.JobTemplateSpec) {
			quota := &corev1.ResourceQuota{
				ObjectMeta: metav1.ObjectMeta{Name: "none"},
				Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")}},
			}
			must(e.admin.CoreV1().ResourceQuotas(e.agents).Create(e.t.Context(), quota, metav1.CreateOptions{}))(e.t)
			e.await("the quota is in force", func() bool {
				return len(must(e.admin.CoreV1().ResourceQuotas(e.agents).Get(e.t.Context(), "none", metav1.GetOptions{}))(e.t).Status.Hard) > 0
			})
			return nil
		},
		agentpool.ReasonMissingObject: func(*environment) func(*agentpool.AgentClass, *batchv1.JobTemplateSpec) {
			return func(class *agentpool.AgentClass, _ *batchv1.JobTemplateSpec) {
				class.ServiceAccount, class.RoleBindings = "absent", nil
			}
		},
		agentpool.ReasonForbidden: func(*environment) func(*agentpool.AgentClass, *batchv1.JobTemplateSpec) {
			return func(_ *agentpool.AgentClass, template *batchv1.JobTemplateSpec) {
				template.Spec.Template.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: new(false)}
			}
		},
	} {
		t.Run(string(reason), func(t *testing.T) {
			t.Parallel()
			e := setUp(t)
			e.run()
			var changes []func(*agentpool.AgentClass, *batchv1.JobTemplateSpec)
			if change := prepare(e); change != nil {
				changes = append(changes, change)
			}
			e.ensure(e.job(1, 0, changes...))
			e.await("the reason", func() bool {
				jobs := e.cluster.Jobs()
				return len(jobs) == 1 && jobs[0].Reason == reason && jobs[0].Message != "" && jobs[0].PodName == ""
			}, func() any { return e.cluster.Jobs() })
		})
	}
}
