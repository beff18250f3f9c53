package cluster_test

import (
	"bufio"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"github.com/azp-scaler/azp-scaler/test/cluster"
)

const workloadImage = "azp-workload:test"

func TestRealNode(t *testing.T) {
	requireRoot(t)
	audit := filepath.Join(t.TempDir(), "audit.log")
	absent := fixedPlaces()
	began := time.Now()
	c := start(t, cluster.Options{Node: cluster.Real, AuditLog: audit})
	t.Logf("ready after %s", time.Since(began))
	client := clientOf(t, c.AdminKubeconfig())
	if err := c.LoadImage(t.Context(), workloadArchive(t)); err != nil {
		t.Fatal(err)
	}
	t.Run("Group", func(t *testing.T) {
		t.Run("JobRunsAsInProduction", func(t *testing.T) { t.Parallel(); testJob(t, c, client) })
		t.Run("TTLRemovesFinishedJob", func(t *testing.T) { t.Parallel(); testTTL(t, client) })
		t.Run("OwnedObjectsGoWithTheirOwner", func(t *testing.T) { t.Parallel(); testOwner(t, client) })
		t.Run("KubeconfigHasOnlyTheAccountsRights", func(t *testing.T) { t.Parallel(); testRights(t, c, client) })
		t.Run("PodReachesTheMachine", func(t *testing.T) { t.Parallel(); testReachHost(t, c, client) })
		t.Run("MissingImageIsReported", func(t *testing.T) { t.Parallel(); testMissingImage(t, client) })
	})
	testAudit(t, audit)
	if err := c.Err(); err != nil {
		t.Errorf("a component died: %v", err)
	}
	left := footprintOf(t, c.AdminKubeconfig(), absent)
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	left.gone(t, 0)
	if _, err := os.Stat(audit); err != nil {
		t.Errorf("the audit log does not outlive the cluster: %v", err)
	}
}

// testJob runs a pod with everything that an agent's pod has.
func testJob(t *testing.T, c *cluster.Cluster, client kubernetes.Interface) {
	ctx := t.Context()
	ns := namespace(t, client, "job")
	account(t, client, ns, "builder", "view")
	for _, err := range []error{
		create(client.CoreV1().Secrets(ns).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "token"}, StringData: map[string]string{"pat": "x"}}, metav1.CreateOptions{})),
		create(client.CoreV1().ConfigMaps(ns).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "ca"}, Data: map[string]string{"ca.crt": "x"}}, metav1.CreateOptions{})),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	job := agentLikeJob(ns)
	if _, err := client.BatchV1().Jobs(ns).Create(ctx, job, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the Job is suspended", func() (bool, error) {
		got, err := client.BatchV1().Jobs(ns).Get(ctx, job.Name, metav1.GetOptions{})
		return err == nil && condition(got, batchv1.JobSuspended), err
	})
	if pods := podsOf(t, client, ns, job.Name); len(pods) != 0 {
		t.Fatalf("a suspended Job has %d pods", len(pods))
	}
	began := time.Now()
	if err := create(client.BatchV1().Jobs(ns).Patch(ctx, job.Name, "application/merge-patch+json", []byte(`{"spec":{"suspend":false}}`), metav1.PatchOptions{})); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the agent container is started and ready while the sidecar runs", func() (bool, error) {
		for _, pod := range podsOf(t, client, ns, job.Name) {
			if pod.Status.Phase == corev1.PodFailed {
				t.Fatalf("the pod failed: %+v", pod.Status)
			}
			if agent := statusOf(pod.Status.ContainerStatuses, "agent"); agent != nil && agent.Ready && agent.Started != nil && *agent.Started {
				sidecar := statusOf(pod.Status.InitContainerStatuses, "remove")
				return sidecar != nil && sidecar.State.Running != nil, nil
			}
		}
		return false, nil
	})
	t.Logf("ready %s after it was unsuspended", time.Since(began))
	awaitJob(t, client, ns, job.Name, batchv1.JobComplete)
	pod := podsOf(t, client, ns, job.Name)[0]
	agent, sidecar := statusOf(pod.Status.ContainerStatuses, "agent"), statusOf(pod.Status.InitContainerStatuses, "remove")
	if agent.State.Terminated == nil || sidecar.State.Terminated == nil {
		t.Fatalf("the Job is complete and not all containers have ended: %+v %+v", agent.State, sidecar.State)
	}
	if sidecar.State.Terminated.FinishedAt.Time.Before(agent.State.Terminated.FinishedAt.Time) {
		t.Errorf("the sidecar ended at %s, before the agent at %s", sidecar.State.Terminated.FinishedAt, agent.State.Terminated.FinishedAt)
	}
	for container, want := range map[string]string{"configure": "configured", "agent": "built", "remove": "removed"} {
		output, err := exec.CommandContext(ctx, c.Binaries().Kubectl(), "--kubeconfig", c.AdminKubeconfig(), "--namespace", ns, "logs", pod.Name, "--container", container).CombinedOutput()
		if err != nil || !strings.Contains(string(output), want) {
			t.Errorf("kubectl logs of %s: %v: %q, want %q in it", container, err, output, want)
		}
	}
}

func agentLikeJob(ns string) *batchv1.Job {
	credentials := corev1.VolumeMount{Name: "credentials", MountPath: "/credentials"}
	token := corev1.VolumeMount{Name: "token", MountPath: "/token", ReadOnly: true}
	authority := corev1.VolumeMount{Name: "ca", MountPath: "/ca"}
	always := corev1.ContainerRestartPolicyAlways
	probe := func() *corev1.Probe {
		return &corev1.Probe{PeriodSeconds: 1, FailureThreshold: 60, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(8080)}}}
	}
	size := resource.MustParse("1Mi")
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: "agent", Namespace: ns},
		Spec: batchv1.JobSpec{
			Suspend: ptr(true), BackoffLimit: ptr(int32(0)),
			Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
				RestartPolicy: corev1.RestartPolicyNever, ServiceAccountName: "builder", EnableServiceLinks: ptr(false),
				TerminationGracePeriodSeconds: ptr(int64(10)),
				SecurityContext: &corev1.PodSecurityContext{
					RunAsUser: ptr(int64(1000)), RunAsGroup: ptr(int64(1000)), FSGroup: ptr(int64(1000)), RunAsNonRoot: ptr(true),
					SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
				},
				Volumes: []corev1.Volume{
					{Name: "credentials", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &size}}},
					{Name: "token", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "token", DefaultMode: ptr(int32(0o440))}}},
					{Name: "ca", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "ca"}}}},
				},
				InitContainers: []corev1.Container{
					withHook(container("remove", &always, []corev1.VolumeMount{token}, "expect=/token/pat", "wait", "say=removed")),
					container("configure", nil, []corev1.VolumeMount{token, credentials, authority}, "expect=/token/pat", "expect=/ca/ca.crt", "write=/credentials/agent", "say=configured"),
				},
				Containers: []corev1.Container{withProbes(container("agent", nil, []corev1.VolumeMount{credentials},
					"expect=/credentials/agent", "refuse-write=/file", "status=Seccomp:2", "status=NoNewPrivs:1",
					"api=200:/api/v1/namespaces/"+ns+"/pods", "api=403:/api/v1/namespaces/"+ns+"/secrets", "serve=3s", "say=built"), probe)},
			}},
		},
	}
}

func withHook(c corev1.Container) corev1.Container {
	c.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"/workload", "expect=/token/pat"}}}}
	return c
}

func withProbes(c corev1.Container, probe func() *corev1.Probe) corev1.Container {
	c.Ports = []corev1.ContainerPort{{ContainerPort: 8080}}
	c.StartupProbe, c.ReadinessProbe = probe(), probe()
	return c
}

func container(name string, restart *corev1.ContainerRestartPolicy, mounts []corev1.VolumeMount, args ...string) corev1.Container {
	return corev1.Container{
		Name: name, Image: workloadImage, ImagePullPolicy: corev1.PullNever, RestartPolicy: restart, Args: args, VolumeMounts: mounts,
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: ptr(false), ReadOnlyRootFilesystem: ptr(true),
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
	}
}

func simpleJob(ns, name string, args ...string) *batchv1.Job {
	return &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns}, Spec: batchv1.JobSpec{
		BackoffLimit: ptr(int32(0)),
		Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: ptr(int64(1)),
			Containers: []corev1.Container{container("main", nil, nil, args...)},
		}},
	}}
}

func testTTL(t *testing.T, client kubernetes.Interface) {
	ns := namespace(t, client, "ttl")
	job := simpleJob(ns, "short", "say=done")
	job.Spec.TTLSecondsAfterFinished = ptr(int32(1))
	if err := create(client.BatchV1().Jobs(ns).Create(t.Context(), job, metav1.CreateOptions{})); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the Job and its pod are gone", func() (bool, error) {
		_, err := client.BatchV1().Jobs(ns).Get(t.Context(), "short", metav1.GetOptions{})
		if !apierrors.IsNotFound(err) {
			return false, err
		}
		return len(podsOf(t, client, ns, "short")) == 0, nil
	})
}

func testOwner(t *testing.T, client kubernetes.Interface) {
	ctx := t.Context()
	ns := namespace(t, client, "owner")
	job := simpleJob(ns, "owner", "wait")
	job.Spec.Suspend = ptr(true)
	made, err := client.BatchV1().Jobs(ns).Create(ctx, job, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	owned := metav1.ObjectMeta{Name: "owned", OwnerReferences: []metav1.OwnerReference{{APIVersion: "batch/v1", Kind: "Job", Name: made.Name, UID: made.UID}}}
	if err := create(client.CoreV1().ServiceAccounts(ns).Create(ctx, &corev1.ServiceAccount{ObjectMeta: owned}, metav1.CreateOptions{})); err != nil {
		t.Fatal(err)
	}
	background := metav1.DeletePropagationBackground
	if err := client.BatchV1().Jobs(ns).Delete(ctx, made.Name, metav1.DeleteOptions{PropagationPolicy: &background}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the ServiceAccount is collected", func() (bool, error) {
		_, err := client.CoreV1().ServiceAccounts(ns).Get(ctx, "owned", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		return false, err
	})
}

func testRights(t *testing.T, c *cluster.Cluster, client kubernetes.Interface) {
	ctx := t.Context()
	ns := namespace(t, client, "rights")
	account(t, client, ns, "reader", "view")
	path, err := c.KubeconfigFor(ctx, ns, "reader")
	if err != nil {
		t.Fatal(err)
	}
	reader := clientOf(t, path)
	eventually(t, "the account may read", func() (bool, error) {
		_, err := reader.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
		return err == nil, err
	})
	if _, err := reader.CoreV1().Secrets(ns).List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("listing Secrets: %v, want forbidden", err)
	}
	if _, err := reader.CoreV1().Pods("default").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("listing another namespace's pods: %v, want forbidden", err)
	}
	if _, err := c.KubeconfigFor(ctx, ns, "absent"); err == nil || !strings.Contains(err.Error(), ns+"/absent") {
		t.Errorf("a kubeconfig for an absent account: %v, want an error that names it", err)
	}
}

func testReachHost(t *testing.T, c *cluster.Cluster, client kubernetes.Interface) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", c.HostAddress()+":0")
	if err != nil {
		t.Fatal(err)
	}
	reached := make(chan struct{}, 16)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached <- struct{}{} }))
	if err := server.Listener.Close(); err != nil {
		t.Fatal(err)
	}
	server.Listener = listener
	server.Start()
	defer server.Close()
	ns := namespace(t, client, "reach")
	if err := create(client.BatchV1().Jobs(ns).Create(t.Context(), simpleJob(ns, "caller", "reach="+server.URL), metav1.CreateOptions{})); err != nil {
		t.Fatal(err)
	}
	awaitJob(t, client, ns, "caller", batchv1.JobComplete)
	if len(reached) == 0 {
		t.Error("the Job is complete and the server was not called")
	}
}

func testMissingImage(t *testing.T, client kubernetes.Interface) {
	ns := namespace(t, client, "image")
	job := simpleJob(ns, "missing", "say=never")
	job.Spec.Template.Spec.Containers[0].Image = "azp-absent:test"
	if err := create(client.BatchV1().Jobs(ns).Create(t.Context(), job, metav1.CreateOptions{})); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pod waits for ever for its image", func() (bool, error) {
		for _, pod := range podsOf(t, client, ns, "missing") {
			if s := statusOf(pod.Status.ContainerStatuses, "main"); s != nil && s.State.Waiting != nil && s.State.Waiting.Reason == "ErrImageNeverPull" {
				return true, nil
			}
		}
		return false, nil
	})
}

// testAudit reads what an auditor would.
func testAudit(t *testing.T, path string) {
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 16<<20)
	jobs, secretBodies := map[string]string{}, 0
	for lines.Scan() {
		var event struct {
			Verb      string
			User      struct{ Username string }
			ObjectRef struct{ Resource, Name, Namespace, Subresource string }
			Request   json.RawMessage                               `json:"requestObject"`
			Response  struct{ Metadata struct{ UID, Name string } } `json:"responseObject"`
		}
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			t.Fatalf("a line of the audit log: %v", err)
		}
		if event.Verb == "create" && event.ObjectRef.Resource == "jobs" {
			jobs[event.ObjectRef.Namespace+"/"+event.Response.Metadata.Name] = event.Response.Metadata.UID
			if event.User.Username != "kubernetes-admin" {
				t.Errorf("a Job's creator is %q, want kubernetes-admin", event.User.Username)
			}
		}
		if event.ObjectRef.Resource == "secrets" && len(event.Request) > 0 {
			secretBodies++
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	if jobs["ttl/short"] == "" || jobs["owner/owner"] == "" {
		t.Errorf("the audit log lacks the UIDs of Jobs: %v", jobs)
	}
	if secretBodies > 0 {
		t.Errorf("the audit log holds %d bodies of Secrets", secretBodies)
	}
}
