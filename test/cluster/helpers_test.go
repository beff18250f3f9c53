package cluster_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/azp-scaler/azp-scaler/test/cluster"
	"github.com/azp-scaler/azp-scaler/test/cluster/image"
)

// podLimit is how long anything on the node may take on a busy machine.
const podLimit = 90 * time.Second

func namespace(t *testing.T, client kubernetes.Interface, name string) string {
	t.Helper()
	if err := create(client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})); err != nil {
		t.Fatal(err)
	}
	// Pods are refused until the controller has made the namespace's account.
	eventually(t, "the namespace has its account", func() (bool, error) {
		_, err := client.CoreV1().ServiceAccounts(name).Get(t.Context(), "default", metav1.GetOptions{})
		return err == nil, err
	})
	return name
}

func account(t *testing.T, client kubernetes.Interface, ns, name, role string) {
	t.Helper()
	if err := create(client.CoreV1().ServiceAccounts(ns).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})); err != nil {
		t.Fatal(err)
	}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Name: name, Namespace: ns}},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
	}
	if err := create(client.RbacV1().RoleBindings(ns).Create(t.Context(), binding, metav1.CreateOptions{})); err != nil {
		t.Fatal(err)
	}
}

func workloadArchive(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "workload")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", program, "./testdata/workload")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the workload: %v: %s", err, output)
	}
	archive := filepath.Join(dir, "workload.tar")
	err := image.Write(t.Context(), archive, image.Spec{
		Ref: workloadImage, User: "1000:1000", Entrypoint: []string{"/workload"},
		Files: []image.File{{Path: "/workload", Source: program, Mode: 0o755}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return archive
}

func clientOf(t *testing.T, kubeconfig string) kubernetes.Interface {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func start(t *testing.T, o cluster.Options) *cluster.Cluster {
	t.Helper()
	o.Progress = testWriter{t}
	c, err := cluster.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The test's context has ended by now.
		if err := c.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func requireRoot(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a cluster")
	}
	if os.Geteuid() != 0 {
		t.Skip("the real node needs root")
	}
}

func eventually(t *testing.T, what string, done func() (bool, error)) {
	t.Helper()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	limit := time.After(podLimit)
	for {
		ok, err := done()
		if ok {
			return
		}
		select {
		case <-limit:
			t.Fatalf("%s: not so within %s; last error: %v", what, podLimit, err)
		case <-ticker.C:
		}
	}
}

func awaitJob(t *testing.T, client kubernetes.Interface, ns, name string, want batchv1.JobConditionType) {
	t.Helper()
	eventually(t, "Job "+name+" is "+string(want), func() (bool, error) {
		job, err := client.BatchV1().Jobs(ns).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		for _, other := range []batchv1.JobConditionType{batchv1.JobComplete, batchv1.JobFailed} {
			if other != want && condition(job, other) {
				pods := podsOf(t, client, ns, name)
				t.Fatalf("Job %s is %s, want %s; pods: %+v", name, other, want, pods)
			}
		}
		return condition(job, want), nil
	})
}

func condition(job *batchv1.Job, kind batchv1.JobConditionType) bool {
	for _, c := range job.Status.Conditions {
		if c.Type == kind {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func podsOf(t *testing.T, client kubernetes.Interface, ns, job string) []corev1.Pod {
	t.Helper()
	pods, err := client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: batchv1.JobNameLabel + "=" + job})
	if err != nil {
		t.Fatal(err)
	}
	return pods.Items
}

func statusOf(statuses []corev1.ContainerStatus, name string) *corev1.ContainerStatus {
	for i := range statuses {
		if statuses[i].Name == name {
			return &statuses[i]
		}
	}
	return nil
}

func create(_ any, err error) error { return err }

func ptr[T any](value T) *T { return &value }
