package cluster_test

import (
	"fmt"
	"os"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/azp-scaler/azp-scaler/test/cluster"
)

func TestSimulatedNode(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a cluster")
	}
	absent := fixedPlaces()
	c := start(t, cluster.Options{Node: cluster.Simulated})
	client := clientOf(t, c.AdminKubeconfig())
	t.Run("Group", func(t *testing.T) {
		t.Run("FinishesWhenTold", func(t *testing.T) {
			t.Parallel()
			pod := simulated(t, client, "finish", map[string]string{cluster.SimulateFinishAfter: "1s"}, batchv1.JobComplete)
			if pod.Status.Phase != corev1.PodSucceeded {
				t.Errorf("phase %s, want Succeeded", pod.Status.Phase)
			}
			if sidecar := statusOf(pod.Status.InitContainerStatuses, "remove"); sidecar.State.Terminated == nil {
				t.Errorf("the sidecar has not ended: %+v", sidecar.State)
			}
		})
		t.Run("FailsWithItsExitCode", func(t *testing.T) {
			t.Parallel()
			pod := simulated(t, client, "fail", map[string]string{cluster.SimulateFinishAfter: "0s", cluster.SimulateExitCode: "7"}, batchv1.JobFailed)
			if end := statusOf(pod.Status.ContainerStatuses, "agent").State.Terminated; end == nil || end.ExitCode != 7 {
				t.Errorf("the agent ended by %+v, want exit code 7", end)
			}
		})
		t.Run("PlaysAnAgent", func(t *testing.T) { t.Parallel(); testPlayed(t, client) })
		t.Run("ImageCannotBePulled", func(t *testing.T) {
			t.Parallel()
			runSimulated(t, client, "pull", map[string]string{cluster.SimulateOutcome: cluster.OutcomeImagePullBackOff})
			eventuallyPod(t, client, "pull", "waits for its image", func(pod corev1.Pod) bool {
				s := statusOf(pod.Status.InitContainerStatuses, "remove")
				return s != nil && s.State.Waiting != nil && s.State.Waiting.Reason == "ImagePullBackOff"
			})
		})
		t.Run("NeverListens", func(t *testing.T) {
			t.Parallel()
			runSimulated(t, client, "silent", map[string]string{cluster.SimulateOutcome: cluster.OutcomeSilent, cluster.SimulateFinishAfter: "1s", cluster.SimulateExitCode: "1"})
			eventuallyPod(t, client, "silent", "has failed without having started", func(pod corev1.Pod) bool {
				return pod.Status.Phase == corev1.PodFailed
			})
		})
		t.Run("DeletedWhileItRuns", func(t *testing.T) {
			t.Parallel()
			runSimulated(t, client, "delete", nil)
			eventuallyPod(t, client, "delete", "is ready", agentReady)
			background := metav1.DeletePropagationBackground
			if err := client.BatchV1().Jobs("default").Delete(t.Context(), "delete", metav1.DeleteOptions{PropagationPolicy: &background}); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the pod is gone", func() (bool, error) {
				return len(podsOf(t, client, "default", "delete")) == 0, nil
			})
		})
	})
	left := footprintOf(t, c.AdminKubeconfig(), absent)
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	left.gone(t, 0)
	if _, err := os.Stat(c.AdminKubeconfig()); !os.IsNotExist(err) {
		t.Errorf("the kubeconfig is still there: %v", err)
	}
}

// testPlayed moves a pod through an agent's life from outside.
func testPlayed(t *testing.T, client kubernetes.Interface) {
	runSimulated(t, client, "play", nil)
	pod := eventuallyPod(t, client, "play", "listens", agentReady)
	annotate(t, client, pod.Name, cluster.SimulateBusy, "true")
	eventuallyPod(t, client, "play", "is started and not ready", func(pod corev1.Pod) bool {
		agent := statusOf(pod.Status.ContainerStatuses, "agent")
		return !agent.Ready && agent.Started != nil && *agent.Started && agent.State.Running != nil
	})
	annotate(t, client, pod.Name, cluster.SimulateFinishAfter, "0s")
	awaitJob(t, client, "default", "play", batchv1.JobComplete)
}

func agentReady(pod corev1.Pod) bool {
	agent := statusOf(pod.Status.ContainerStatuses, "agent")
	return agent != nil && agent.Ready && agent.Started != nil && *agent.Started
}

func annotate(t *testing.T, client kubernetes.Interface, pod, key, value string) {
	t.Helper()
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, key, value)
	if err := create(client.CoreV1().Pods("default").Patch(t.Context(), pod, "application/merge-patch+json", []byte(patch), metav1.PatchOptions{})); err != nil {
		t.Fatal(err)
	}
}

func runSimulated(t *testing.T, client kubernetes.Interface, name string, annotations map[string]string) {
	t.Helper()
	always := corev1.ContainerRestartPolicyAlways
	job := simpleJob("default", name)
	job.Spec.Template.Annotations = annotations
	job.Spec.Template.Spec.InitContainers = []corev1.Container{container("remove", &always, nil), container("configure", nil, nil)}
	job.Spec.Template.Spec.Containers[0].Name = "agent"
	if err := create(client.BatchV1().Jobs("default").Create(t.Context(), job, metav1.CreateOptions{})); err != nil {
		t.Fatal(err)
	}
}

func simulated(t *testing.T, client kubernetes.Interface, name string, annotations map[string]string, want batchv1.JobConditionType) corev1.Pod {
	t.Helper()
	runSimulated(t, client, name, annotations)
	awaitJob(t, client, "default", name, want)
	pods := podsOf(t, client, "default", name)
	if len(pods) != 1 {
		t.Fatalf("%d pods, want 1", len(pods))
	}
	return pods[0]
}

func eventuallyPod(t *testing.T, client kubernetes.Interface, job, what string, done func(corev1.Pod) bool) corev1.Pod {
	t.Helper()
	var found corev1.Pod
	eventually(t, "the pod of "+job+" "+what, func() (bool, error) {
		pods, err := client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: batchv1.JobNameLabel + "=" + job})
		if apierrors.IsNotFound(err) || len(pods.Items) == 0 {
			return false, err
		}
		found = pods.Items[0]
		return done(found), nil
	})
	return found
}
