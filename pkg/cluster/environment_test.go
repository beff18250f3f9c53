package cluster_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
	kube "github.com/azp-scaler/azp-scaler/test/cluster"
)

// limit is how long anything may take that a test waits for.
const limit = 30 * time.Second

// shared is the control plane that all tests of this package use, each in
// namespaces of its own. Its pods are simulated: they have a status only.
var shared *kube.Cluster

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		if testing.Short() {
			return m.Run()
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
		defer cancel()
		started, err := kube.Start(ctx, kube.Options{Node: kube.Simulated, ControllerManagerQPS: 2000, Progress: os.Stderr})
		if err != nil {
			fmt.Fprintln(os.Stderr, "starting Kubernetes:", err)
			return 1
		}
		shared = started
		defer func() {
			if err := started.Stop(context.Background()); err != nil {
				fmt.Fprintln(os.Stderr, "stopping Kubernetes:", err)
			}
		}()
		return m.Run()
	}())
}

var namespaces atomic.Int64

// environment is an installation in namespaces of its own.
type environment struct {
	t        *testing.T
	agents   string
	target   string
	admin    kubernetes.Interface
	wire     *wire
	cluster  *cluster.Cluster // As the scaler's own ServiceAccount, with the documented rights.
	settings agentjob.Settings
	changed  atomic.Int64

	kubeconfig  string // Of the scaler.
	suspendWait time.Duration
	podEndWait  time.Duration
}

// setUp makes the namespaces, applies the manifests as an administrator would,
// and signs in as the scaler.
func setUp(t *testing.T) *environment {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a control plane")
	}
	n := namespaces.Add(1)
	e := &environment{
		t:      t,
		agents: fmt.Sprintf("agents-%d", n), target: fmt.Sprintf("target-%d", n),
		admin: kubernetes.NewForConfigOrDie(shared.RESTConfig()),
	}
	scaler := fmt.Sprintf("scaler-%d", n)
	for _, namespace := range []string{e.agents, e.target, scaler} {
		made := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
		if namespace == e.agents {
			made.Labels = map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}
		}
		must(e.admin.CoreV1().Namespaces().Create(t.Context(), made, metav1.CreateOptions{}))(t)
	}
	must(e.admin.CoreV1().ServiceAccounts(scaler).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "azp-scaler"}}, metav1.CreateOptions{}))(t)
	e.apply("base/agents/rbac-agents.yaml", e.agents, scaler)
	e.apply("base/target/rbac-target.yaml", e.target, scaler)
	must(e.admin.CoreV1().Secrets(e.agents).Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "azp-token"}, StringData: map[string]string{"token": "canary"},
	}, metav1.CreateOptions{}))(t)

	file, err := shared.KubeconfigFor(t.Context(), scaler, "azp-scaler")
	if err != nil {
		t.Fatal(err)
	}
	e.kubeconfig = file
	e.settings = agentjob.DefaultSettings()
	e.settings.Identity = agentjob.Identity{
		Instance: "abcdefgh", Namespace: e.agents, Pool: agentpool.Pool{ID: 7, Name: "linux"}, URL: "https://dev.azure.com/acme",
	}
	e.cluster = e.connect(e.signIn(), e.target)
	return e
}

// signIn gives a configuration of the scaler's own, with a wire of its own.
func (e *environment) signIn() *rest.Config {
	e.t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", e.kubeconfig)
	if err != nil {
		e.t.Fatal(err)
	}
	config.QPS, config.Burst = 1000, 1000
	line := &wire{}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { line.next = next; return line })
	e.wire = line
	return config
}

// step runs a part of the test as a test of its own, in the same environment.
func (e *environment) step(name string, do func(*testing.T)) {
	e.t.Helper()
	whole := e.t
	defer func() { e.t = whole }()
	whole.Run(name, func(t *testing.T) {
		e.t = t
		do(t)
	})
}

// connect makes a Cluster without running its watches.
func (e *environment) connect(config *rest.Config, targets ...string) *cluster.Cluster {
	e.t.Helper()
	c, err := cluster.New(cluster.Config{
		Client: kubernetes.NewForConfigOrDie(config), Namespace: e.agents, Instance: "abcdefgh", TargetNamespaces: func() []string { return targets },
		OnChange: func() { e.changed.Add(1) }, SuspendWait: e.suspendWait, PodEndWait: e.podEndWait,
	})
	if err != nil {
		e.t.Fatal(err)
	}
	return c
}

// run starts the watches and waits until they have read everything.
func (e *environment) run() {
	e.t.Helper()
	e.start(e.cluster.Run)
	wait, stop := context.WithTimeout(e.t.Context(), limit)
	defer stop()
	if err := e.cluster.WaitForSync(wait); err != nil {
		e.t.Fatal(err)
	}
}

// start runs something until the test ends, and sees that it ends then.
func (e *environment) start(run func(context.Context) error) {
	e.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	e.t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				e.t.Errorf("Run: %v", err)
			}
		case <-time.After(limit):
			e.t.Error("Run does not end")
		}
	})
}

// apply puts a manifest of the repository into a namespace.
func (e *environment) apply(file, namespace, scaler string) {
	e.t.Helper()
	role, binding := manifest(e.t, file)
	role.Namespace, binding.Namespace, binding.Subjects[0].Namespace = namespace, namespace, scaler
	must(e.admin.RbacV1().Roles(namespace).Create(e.t.Context(), role, metav1.CreateOptions{}))(e.t)
	must(e.admin.RbacV1().RoleBindings(namespace).Create(e.t.Context(), binding, metav1.CreateOptions{}))(e.t)
}

// manifest reads a Role and its RoleBinding from the manifests that users apply.
func manifest(t *testing.T, file string) (*rbacv1.Role, *rbacv1.RoleBinding) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "deploy", "kustomize", filepath.FromSlash(file)))
	if err != nil {
		t.Fatal(err)
	}
	documents := strings.Split(string(text), "\n---\n")
	if len(documents) != 2 {
		t.Fatalf("%s has %d documents, want a Role and a RoleBinding", file, len(documents))
	}
	var role rbacv1.Role
	var binding rbacv1.RoleBinding
	if err := errors.Join(yaml.UnmarshalStrict([]byte(documents[0]), &role), yaml.UnmarshalStrict([]byte(documents[1]), &binding)); err != nil {
		t.Fatal(err)
	}
	return &role, &binding
}

// job builds the Job of a request, as the loop would. change may alter the
// template, whose pods never find a node unless it says so.
func (e *environment) job(request int64, attempt int, change ...func(*agentpool.AgentClass, *batchv1.JobTemplateSpec)) *batchv1.Job {
	e.t.Helper()
	class := agentpool.AgentClass{Name: "default", RoleBindings: []agentpool.RoleBinding{{Namespace: e.target, Kind: "ClusterRole", Name: "edit"}}}
	template := agentjob.DefaultTemplate(agentjob.DefaultClass{Image: "agent:1"})
	template.Spec.Template.Spec.NodeSelector = map[string]string{"nowhere": "true"}
	for _, c := range change {
		c(&class, &template)
	}
	job, err := agentjob.Build(e.settings, class, template, agentpool.JobRequest{ID: request, PoolID: 7}, attempt, 0)
	if err != nil {
		e.t.Fatal(err)
	}
	return job
}

// onNode has the pod run on the simulated node, as the annotations say.
func onNode(annotations ...string) func(*agentpool.AgentClass, *batchv1.JobTemplateSpec) {
	return func(_ *agentpool.AgentClass, template *batchv1.JobTemplateSpec) {
		template.Spec.Template.Spec.NodeSelector = nil
		template.Spec.Template.Annotations = map[string]string{}
		for i := 0; i < len(annotations); i += 2 {
			template.Spec.Template.Annotations[annotations[i]] = annotations[i+1]
		}
	}
}

// kubeFinishAtOnce has a pod end as soon as it listens.
func kubeFinishAtOnce() []string { return []string{kube.SimulateFinishAfter, "1ms"} }

// ensure makes a Job that must succeed.
func (e *environment) ensure(job *batchv1.Job) agentpool.AgentJob {
	e.t.Helper()
	made, err := e.cluster.Ensure(e.t.Context(), job, nil)
	if err != nil {
		e.t.Fatal(err)
	}
	return made
}

// live gives the Job as it is, or nil.
func (e *environment) live(name string) *batchv1.Job {
	e.t.Helper()
	job, err := e.admin.BatchV1().Jobs(e.agents).Get(e.t.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		e.t.Fatal(err)
	}
	return job
}

// pods gives the pods of a Job.
func (e *environment) pods(name string) []corev1.Pod {
	e.t.Helper()
	list, err := e.admin.CoreV1().Pods(e.agents).List(e.t.Context(), metav1.ListOptions{LabelSelector: "job-name=" + name})
	if err != nil {
		e.t.Fatal(err)
	}
	return list.Items
}

// awaitPod waits until the Job has a pod that satisfies the condition.
func (e *environment) awaitPod(name string, is func(corev1.Pod) bool) corev1.Pod {
	e.t.Helper()
	var found corev1.Pod
	e.await("a pod of "+name, func() bool {
		for _, pod := range e.pods(name) {
			if is(pod) {
				found = pod
				return true
			}
		}
		return false
	})
	return found
}

func anyPod(corev1.Pod) bool { return true }

// await waits for a condition, up to the limit. What it then says about the state
// is what about gives, and the warnings of the namespace.
func (e *environment) await(what string, is func() bool, about ...func() any) {
	e.t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(25 * time.Millisecond) {
		if is() {
			return
		}
	}
	var state []any
	for _, f := range about {
		state = append(state, f())
	}
	if list, err := e.admin.CoreV1().Events(e.agents).List(context.Background(), metav1.ListOptions{}); err == nil {
		for _, event := range list.Items[:min(len(list.Items), 20)] {
			state = append(state, event.InvolvedObject.Name+": "+event.Reason+": "+event.Message)
		}
	}
	e.t.Fatalf("%s: not within %s: %v", what, limit, state)
}

// left lists what is there of the build, by kind.
func (e *environment) left(name string) string {
	e.t.Helper()
	var kinds []string
	if e.live(name) != nil {
		kinds = append(kinds, "job")
	}
	if len(e.pods(name)) > 0 {
		kinds = append(kinds, "pod")
	}
	if _, err := e.admin.CoreV1().ServiceAccounts(e.agents).Get(e.t.Context(), name, metav1.GetOptions{}); err == nil {
		kinds = append(kinds, "serviceaccount")
	}
	if _, err := e.admin.RbacV1().RoleBindings(e.target).Get(e.t.Context(), name, metav1.GetOptions{}); err == nil {
		kinds = append(kinds, "rolebinding")
	}
	return strings.Join(kinds, " ")
}

// must fails the test for an error and gives the value.
func must[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// wire stands between the scaler and the API server: it records what is written
// and can cut the line at a given write.
type wire struct {
	next http.RoundTripper

	mu      sync.Mutex
	all     int
	writes  []string
	cutAt   int  // The number of the write from which on nothing gets through; 0 is never.
	sent    bool // That write still reaches the server, only its answer is lost.
	before  func(write string)
	refuses string // What of the path makes a call fail.
}

var errCut = errors.New("the line is cut")

// RoundTrip implements http.RoundTripper.
func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	write := ""
	if r.Method != http.MethodGet && !strings.Contains(r.URL.Path, "/events") && !strings.Contains(r.URL.Path, "selfsubjectaccessreviews") {
		fields := strings.Split(r.URL.Path, "/")
		resource := fields[len(fields)-1]
		if r.Method != http.MethodPost {
			resource = fields[len(fields)-2]
		}
		write = r.Method + " " + resource
	}
	w.mu.Lock()
	w.all++
	cut := w.cutAt > 0 && len(w.writes) >= w.cutAt
	last := false
	if write != "" && !cut {
		w.writes = append(w.writes, write)
		last = len(w.writes) == w.cutAt
	}
	sent, before := w.sent, w.before
	cut = cut || (w.refuses != "" && strings.HasSuffix(r.URL.Path, w.refuses))
	w.mu.Unlock()
	if cut || (last && !sent) {
		return nil, errCut
	}
	if before != nil && write != "" {
		before(write)
	}
	answer, err := w.next.RoundTrip(r)
	if last && err == nil {
		_, _ = io.Copy(io.Discard, answer.Body)
		_ = answer.Body.Close()
		return nil, errCut
	}
	return answer, err
}

// cut lets n-1 writes through; the n-th is lost before or after it is sent.
func (w *wire) cut(n int, sent bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writes, w.cutAt, w.sent = nil, n, sent
}

// restore lets everything through, and forgets what was written.
func (w *wire) restore() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writes, w.cutAt, w.all, w.before = nil, 0, 0, nil
}

// refuse has every call whose path ends so fail; none if it is empty.
func (w *wire) refuse(path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refuses = path
}

// intercept calls a function before every write.
func (w *wire) intercept(before func(write string)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.before = before
}

func (w *wire) written() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.writes...)
}

func (w *wire) requests() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all
}
