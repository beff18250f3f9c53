package hostnode_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"github.com/azp-scaler/azp-scaler/test/cluster"
	"github.com/azp-scaler/azp-scaler/test/e2e/hostnode"
)

// roleVariable makes the test binary be the program of a container.
const roleVariable = "HOSTNODE_TEST_ROLE"

const waitLimit = 60 * time.Second

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		os.Exit(serve(os.Getenv("ADDRESS"), os.Getenv("SWITCH")))
	}
	os.Exit(m.Run())
}

// serve is a container with probes: started at once, ready while the file named
// by the switch is not there. It exits 7 on SIGTERM, to show that it was asked.
func serve(address, switchFile string) int {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	mux := http.NewServeMux()
	mux.HandleFunc("/started", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/ready", func(w http.ResponseWriter, _ *http.Request) {
		if _, err := os.Stat(switchFile); err == nil {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	failed := make(chan error, 1)
	go func() {
		server := &http.Server{Addr: address, Handler: mux, ReadHeaderTimeout: time.Second}
		failed <- server.ListenAndServe()
	}()
	select {
	case <-signals:
		return 7
	case err := <-failed:
		fmt.Println(err)
		return 8
	}
}

// fixture is a control plane with one node of processes.
type fixture struct {
	client   kubernetes.Interface
	node     *hostnode.Node
	dir      string
	problems func() []error
}

func start(t *testing.T) *fixture {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a control plane")
	}
	ctx := t.Context()
	c, err := cluster.Start(ctx, cluster.Options{Node: cluster.Simulated, Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stopping, cancel := context.WithTimeout(context.Background(), waitLimit)
		defer cancel()
		if err := c.Stop(stopping); err != nil {
			t.Error(err)
		}
	})
	client, err := kubernetes.NewForConfig(c.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(t.TempDir(), "image")
	if err := os.MkdirAll(image, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(image, "file"), []byte("from the image"), 0o600); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var problems []error
	f := &fixture{client: client, dir: filepath.Join(t.TempDir(), "pods")}
	f.problems = func() []error {
		mu.Lock()
		defer mu.Unlock()
		return append([]error(nil), problems...)
	}
	f.node, err = hostnode.Start(ctx, hostnode.Options{
		Name: "here", Config: c.RESTConfig(), Dir: f.dir, LogDir: filepath.Join(t.TempDir(), "logs"), Path: os.Getenv("PATH"), Supervisor: supervisor(t),
		Image: map[string]string{"/image": image},
		Problem: func(err error) {
			mu.Lock()
			defer mu.Unlock()
			problems = append(problems, err)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stopping, cancel := context.WithTimeout(context.Background(), waitLimit)
		defer cancel()
		if err := f.node.Close(stopping); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(f.dir); !os.IsNotExist(err) {
			t.Errorf("the node leaves files behind: %v (%v)", left, err)
		}
		for _, problem := range f.problems() {
			t.Errorf("the node met a problem: %v", problem)
		}
	})
	return f
}

// run makes a pod on the node; edit changes it before.
func (f *fixture) run(t *testing.T, name string, edit func(*corev1.PodSpec)) {
	t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.PodSpec{NodeName: "here", RestartPolicy: corev1.RestartPolicyNever},
	}
	edit(&pod.Spec)
	if _, err := f.client.CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// await waits until a pod is as wanted and gives it.
func (f *fixture) await(t *testing.T, name, what string, wanted func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	deadline := time.Now().Add(waitLimit)
	for {
		pod, err := f.client.CoreV1().Pods("default").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if wanted(pod) {
			return pod
		}
		if time.Now().After(deadline) {
			t.Fatalf("pod %s is never %s: %+v", name, what, pod.Status)
		}
		time.Sleep(20 * time.Millisecond) // Between looks, until the deadline.
	}
}

func (f *fixture) awaitGone(t *testing.T, name string) {
	t.Helper()
	deadline := time.Now().Add(waitLimit)
	for {
		list, err := f.client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=" + name})
		if err != nil {
			t.Fatal(err)
		}
		if len(list.Items) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("pod %s never goes: %+v", name, list.Items[0].Status)
		}
		time.Sleep(20 * time.Millisecond) // Between looks, until the deadline.
	}
}

func shell(name, script string) corev1.Container {
	return corev1.Container{
		Name: name, Image: "none", Command: []string{"sh", "-c", script}, TerminationMessagePath: "/dev/termination-log",
		Env:          []corev1.EnvVar{{Name: "LAST", Value: "/dev/termination-log"}, {Name: "SHARED", Value: "/shared"}},
		VolumeMounts: []corev1.VolumeMount{{Name: "shared", MountPath: "/shared"}},
	}
}

func shared(spec *corev1.PodSpec) {
	spec.Volumes = append(spec.Volumes, corev1.Volume{Name: "shared", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
}

func phase(is corev1.PodPhase) func(*corev1.Pod) bool {
	return func(pod *corev1.Pod) bool { return pod.Status.Phase == is }
}

func conditionIs(pod *corev1.Pod, kind corev1.PodConditionType, status corev1.ConditionStatus) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == kind {
			return condition.Status == status
		}
	}
	return false
}

// TestNode shares one control plane among its parts, which are pods of their own.
func TestNode(t *testing.T) {
	f := start(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}

	t.Run("order of containers and their end", func(t *testing.T) {
		t.Parallel()
		always := corev1.ContainerRestartPolicyAlways
		f.run(t, "order", func(spec *corev1.PodSpec) {
			shared(spec)
			sidecar := shell("sidecar", `trap 'echo sidecar-term >>"$SHARED/order"; cp "$SHARED/order" "$LAST"; exit 0' TERM; echo sidecar >>"$SHARED/order"; touch "$SHARED/up"; while :; do sleep 0.05; done`)
			sidecar.RestartPolicy = &always
			sidecar.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", `echo hook >>"$SHARED/order"`}}}}
			spec.InitContainers = []corev1.Container{
				sidecar,
				shell("first", `while [ ! -e "$SHARED/up" ]; do sleep 0.05; done; echo first >>"$SHARED/order"`),
			}
			spec.Containers = []corev1.Container{shell("main", `echo main >>"$SHARED/order"; echo "the last words" >"$LAST"; exit 3`)}
		})
		pod := f.await(t, "order", "failed", phase(corev1.PodFailed))
		main := pod.Status.ContainerStatuses[0].State.Terminated
		if main == nil || main.ExitCode != 3 || main.Message != "the last words\n" || main.Reason != "Error" {
			t.Errorf("the container ended as %+v", main)
		}
		if sidecar := pod.Status.InitContainerStatuses[0].State.Terminated; sidecar == nil || strings.Join(strings.Fields(sidecar.Message), " ") != "sidecar first main hook sidecar-term" {
			t.Errorf("the sidecar ended as %+v", sidecar)
		}
		if first := pod.Status.InitContainerStatuses[1].State.Terminated; first == nil || first.ExitCode != 0 {
			t.Errorf("the init container ended as %+v", first)
		}
	})

	t.Run("a killed sidecar is restarted, and a killed container is not", func(t *testing.T) {
		t.Parallel()
		always := corev1.ContainerRestartPolicyAlways
		f.run(t, "killed", func(spec *corev1.PodSpec) {
			shared(spec)
			sidecar := shell("sidecar", `echo up >>"$SHARED/starts"; sleep 600`)
			sidecar.RestartPolicy = &always
			spec.InitContainers = []corev1.Container{sidecar}
			spec.Containers = []corev1.Container{shell("main", `sleep 600`)}
		})
		running := func(container string) hostnode.Running {
			for _, one := range f.node.Running() {
				if one.Pod == "killed" && one.Container == container && !one.Hook {
					return one
				}
			}
			t.Fatalf("%s does not run", container)
			return hostnode.Running{}
		}
		f.await(t, "killed", "running", phase(corev1.PodRunning))
		running("sidecar").Kill()
		pod := f.await(t, "killed", "restarting its sidecar", func(pod *corev1.Pod) bool {
			sidecar := pod.Status.InitContainerStatuses[0]
			return sidecar.RestartCount == 1 && sidecar.State.Running != nil
		})
		if last := pod.Status.InitContainerStatuses[0].LastTerminationState.Terminated; last == nil || last.ExitCode != 137 {
			t.Errorf("the sidecar ended before as %+v", last)
		}
		if pod.Status.Phase != corev1.PodRunning || pod.Status.ContainerStatuses[0].State.Running == nil {
			t.Errorf("the sidecar's end had more than that: %+v", pod.Status)
		}
		running("main").Kill()
		pod = f.await(t, "killed", "failed", phase(corev1.PodFailed))
		if main := pod.Status.ContainerStatuses[0]; main.State.Terminated == nil || main.State.Terminated.ExitCode != 137 || main.RestartCount != 0 {
			t.Errorf("the container ended as %+v", main)
		}
	})

	t.Run("a failed init container ends the pod", func(t *testing.T) {
		t.Parallel()
		f.run(t, "init-fails", func(spec *corev1.PodSpec) {
			shared(spec)
			spec.InitContainers = []corev1.Container{shell("init", "exit 11")}
			spec.Containers = []corev1.Container{shell("main", "exit 0")}
		})
		pod := f.await(t, "init-fails", "failed", phase(corev1.PodFailed))
		if init := pod.Status.InitContainerStatuses[0].State.Terminated; init == nil || init.ExitCode != 11 {
			t.Errorf("the init container ended as %+v", init)
		}
		if main := pod.Status.ContainerStatuses[0].State; main.Waiting == nil || main.Waiting.Reason != "PodInitializing" {
			t.Errorf("the container is %+v, though it must not start", main)
		}
	})

	t.Run("probes and the end of a deleted pod", func(t *testing.T) {
		t.Parallel()
		f.run(t, "probed", func(spec *corev1.PodSpec) {
			shared(spec)
			probe := func(path string) *corev1.Probe {
				return &corev1.Probe{PeriodSeconds: 1, FailureThreshold: 1, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(14300)}}}
			}
			starting := probe("/started")
			starting.FailureThreshold = 30
			spec.Containers = []corev1.Container{{
				Name: "main", Image: "none", Command: []string{self}, StartupProbe: starting, ReadinessProbe: probe("/ready"),
				Env:          []corev1.EnvVar{{Name: roleVariable, Value: "serve"}, {Name: "ADDRESS", Value: ":14300"}, {Name: "SWITCH", Value: "/shared/off"}},
				VolumeMounts: []corev1.VolumeMount{{Name: "shared", MountPath: "/shared"}},
			}}
		})
		pod := f.await(t, "probed", "ready", func(pod *corev1.Pod) bool { return conditionIs(pod, corev1.PodReady, corev1.ConditionTrue) })
		if status := pod.Status.ContainerStatuses[0]; status.Started == nil || !*status.Started || !status.Ready {
			t.Errorf("a ready pod's container is %+v", status)
		}
		since := pod.Status.Conditions
		if err := os.WriteFile(filepath.Join(f.dir, string(pod.UID), "volumes", "shared", "off"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		pod = f.await(t, "probed", "not ready", func(pod *corev1.Pod) bool { return conditionIs(pod, corev1.ContainersReady, corev1.ConditionFalse) })
		if status := pod.Status.ContainerStatuses[0]; status.Started == nil || !*status.Started || status.Ready {
			t.Errorf("a container that dropped its readiness is %+v (before: %+v)", status, since)
		}
		if err := f.client.CoreV1().Pods("default").Delete(t.Context(), "probed", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		f.awaitGone(t, "probed")
	})

	t.Run("a container that never starts listening is killed", func(t *testing.T) {
		t.Parallel()
		f.run(t, "silent", func(spec *corev1.PodSpec) {
			shared(spec)
			main := shell("main", "while :; do sleep 0.1; done")
			main.StartupProbe = &corev1.Probe{PeriodSeconds: 1, FailureThreshold: 2, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(14300)}}}
			spec.Containers = []corev1.Container{main}
		})
		pod := f.await(t, "silent", "failed", phase(corev1.PodFailed))
		if main := pod.Status.ContainerStatuses[0].State.Terminated; main == nil || main.ExitCode != 137 {
			t.Errorf("the container ended as %+v", main)
		}
	})

	t.Run("the grace period ends", func(t *testing.T) {
		t.Parallel()
		f.run(t, "stubborn", func(spec *corev1.PodSpec) {
			shared(spec)
			spec.Containers = []corev1.Container{shell("main", `trap '' TERM; touch "$SHARED/up"; while :; do sleep 0.1; done`)}
		})
		pod := f.await(t, "stubborn", "running", phase(corev1.PodRunning))
		up := filepath.Join(f.dir, string(pod.UID), "volumes", "shared", "up")
		f.await(t, "stubborn", "up", func(*corev1.Pod) bool { _, err := os.Stat(up); return err == nil })
		grace := int64(1)
		if err := f.client.CoreV1().Pods("default").Delete(t.Context(), "stubborn", metav1.DeleteOptions{GracePeriodSeconds: &grace}); err != nil {
			t.Fatal(err)
		}
		f.awaitGone(t, "stubborn")
	})

	t.Run("volumes, image and account", func(t *testing.T) {
		t.Parallel()
		if _, err := f.client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{}); err != nil {
			t.Fatal(err)
		}
		f.run(t, "volumes", func(spec *corev1.PodSpec) {
			shared(spec)
			spec.Volumes = append(spec.Volumes, corev1.Volume{Name: "token", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "late", Items: []corev1.KeyToPath{{Key: "a", Path: "b"}}}}})
			main := shell("main", `cat "$TOKEN" "$IMAGE" >"$LAST"; grep -q 'current-context: pod' "$KUBECONFIG" && echo " account" >>"$LAST"; echo "$NAME" >>"$LAST"`)
			main.Env = append(main.Env, corev1.EnvVar{Name: "TOKEN", Value: "/token/b"}, corev1.EnvVar{Name: "IMAGE", Value: "/image/file"},
				corev1.EnvVar{Name: "NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}})
			main.VolumeMounts = append(main.VolumeMounts, corev1.VolumeMount{Name: "token", MountPath: "/token"})
			spec.Containers = []corev1.Container{main}
		})
		// It waits for its Secret and says so.
		f.await(t, "volumes", "waiting", func(pod *corev1.Pod) bool {
			return len(pod.Status.ContainerStatuses) == 1 && pod.Status.ContainerStatuses[0].State.Waiting != nil &&
				strings.Contains(pod.Status.ContainerStatuses[0].State.Waiting.Message, `secret "late"`)
		})
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "late"}, StringData: map[string]string{"a": "secret, "}}
		if _, err := f.client.CoreV1().Secrets("default").Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		pod := f.await(t, "volumes", "succeeded", phase(corev1.PodSucceeded))
		if got := pod.Status.ContainerStatuses[0].State.Terminated.Message; got != "secret, from the image account\nvolumes\n" {
			t.Errorf("the container saw %q", got)
		}
	})

	t.Run("a changed Secret shows in its volume", func(t *testing.T) {
		t.Parallel()
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "changing"}, StringData: map[string]string{"token": "old"}}
		if _, err := f.client.CoreV1().Secrets("default").Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		f.run(t, "refreshed", func(spec *corev1.PodSpec) {
			shared(spec)
			spec.Volumes = append(spec.Volumes, corev1.Volume{Name: "token", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "changing"}}})
			main := shell("main", `while ! grep -q new "$TOKEN"; do sleep 0.1; done`)
			main.Env = append(main.Env, corev1.EnvVar{Name: "TOKEN", Value: "/token/token"})
			main.VolumeMounts = append(main.VolumeMounts, corev1.VolumeMount{Name: "token", MountPath: "/token"})
			spec.Containers = []corev1.Container{main}
		})
		f.await(t, "refreshed", "running", phase(corev1.PodRunning))
		secret.StringData = map[string]string{"token": "new"}
		if _, err := f.client.CoreV1().Secrets("default").Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		f.await(t, "refreshed", "succeeded", phase(corev1.PodSucceeded))
	})

	t.Run("what it cannot do it says", func(t *testing.T) {
		t.Parallel()
		f.run(t, "unknown", func(spec *corev1.PodSpec) {
			spec.Volumes = []corev1.Volume{{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}}}
			spec.Containers = []corev1.Container{{Name: "main", Image: "none", Command: []string{"true"}}}
		})
		f.await(t, "unknown", "waiting", func(pod *corev1.Pod) bool {
			return len(pod.Status.ContainerStatuses) == 1 && pod.Status.ContainerStatuses[0].State.Waiting != nil &&
				strings.Contains(pod.Status.ContainerStatuses[0].State.Waiting.Message, "are known on this node")
		})
		f.run(t, "no-program", func(spec *corev1.PodSpec) {
			spec.Containers = []corev1.Container{{Name: "main", Image: "none", Command: []string{"no-such-program"}}}
		})
		f.await(t, "no-program", "failed", phase(corev1.PodFailed))
	})
}
