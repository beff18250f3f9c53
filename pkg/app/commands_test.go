package app_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/version"
	fakediscovery "k8s.io/client-go/discovery/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/app"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

// world is an App with a service and a cluster.
type world struct {
	*app.App
	service   *azuredevopstest.Server
	client    *azuredevops.Client
	clientset *fake.Clientset
	variables map[string]string
	pools     map[string]int
}

// newWorld has two pools, and what an installation needs in the cluster, all rights
// included.
func newWorld(t *testing.T, changes map[string]string, classes ...*batchv1.CronJob) *world {
	t.Helper()
	server, variables := service(t, azuredevopstest.Options{})
	variables["AZP_POOL"], variables["AZP_AGENT_IMAGE"], variables["AZP_ROLE_BINDINGS"] = "kubernetes,large", "", ""
	for name, value := range changes {
		variables[name] = value
	}
	objects := []runtime.Object{
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "azp-token", Namespace: "agents"}, Data: map[string][]byte{"token": []byte("t")}},
		&rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "deployer", Namespace: "shop"}},
	}
	for _, class := range classes {
		objects = append(objects, class)
	}
	w := &world{service: server, clientset: fake.NewClientset(objects...), variables: variables}
	discovery, ok := w.clientset.Discovery().(*fakediscovery.FakeDiscovery)
	if !ok {
		t.Fatalf("the version of a cluster of the type %T can't be set", w.clientset.Discovery())
	}
	discovery.FakedServerVersion = &version.Info{GitVersion: "v1.34.0"}
	w.clientset.PrependReactor("create", "selfsubjectaccessreviews", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, &authorizationv1.SelfSubjectAccessReview{Status: authorizationv1.SubjectAccessReviewStatus{Allowed: true}}, nil
	})
	w.clientset.PrependReactor("create", "selfsubjectreviews", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, &authenticationv1.SelfSubjectReview{Status: authenticationv1.SelfSubjectReviewStatus{
			UserInfo: authenticationv1.UserInfo{Username: "system:serviceaccount:azp-scaler:azp-scaler"},
		}}, nil
	})
	w.service.CreatePool("large")
	var err error
	w.client, err = azuredevops.New(azuredevops.Config{
		URL: variables["AZP_URL"], Token: azuredevops.StaticToken("good-token"), CAFile: variables["AZP_CA_FILE"], Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	w.pools = map[string]int{}
	for _, name := range []string{"kubernetes", "large"} {
		pool, err := w.client.PoolByName(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		w.pools[name] = pool.ID
	}
	w.App = newApp(t, variables)
	w.UseCluster(w.clientset)
	return w
}

// class is one whose agents claim to have the tool.
func class(name, tool string, annotations ...string) *batchv1.CronJob {
	suspended := true
	c := &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{
		Name: name, Namespace: "agents", UID: types.UID("uid-" + name), ResourceVersion: "1",
		Labels:      map[string]string{agentjob.Prefix + "agent-class": ""},
		Annotations: map[string]string{agentjob.Prefix + "capabilities": tool},
	}}
	for i := 0; i < len(annotations); i += 2 {
		c.Annotations[agentjob.Prefix+annotations[i]] = annotations[i+1]
	}
	c.Spec.Suspend = &suspended
	c.Spec.JobTemplate.Spec.Template.Spec.Containers = []corev1.Container{{Name: "agent", Image: name + ":1"}}
	return c
}

// placeholder registers an agent that is never online, of this installation or
// another, so that builds that demand the tool are queued.
func (w *world) placeholder(t *testing.T, pool, release, tool string) string {
	t.Helper()
	name := agentjob.PlaceholderName(agentjob.InstanceID(w.variables["AZP_URL"], pool, "agents", release), tool, nil)
	if err := w.client.AddPlaceholder(t.Context(), w.pools[pool], name, map[string]string{tool: ""}); err != nil {
		t.Fatal(err)
	}
	return name
}

// queue has a build wait.
func (w *world) queue(t *testing.T, pool, tool string) int64 {
	t.Helper()
	id, err := w.service.Queue(azuredevopstest.Build{PoolID: w.pools[pool], Name: "build", Demands: []string{tool}})
	if err != nil {
		t.Fatal(err)
	}
	if status, err := w.service.Build(id); err != nil || status.State != "queued" {
		t.Fatalf("the build does not wait: %+v, %v", status, err)
	}
	return id
}

func (w *world) registered(pool string) []string {
	var names []string
	for _, agent := range w.service.Agents(w.pools[pool]) {
		names = append(names, agent.Name)
	}
	return names
}

// wantNoWrites fails if the cluster was told to change anything. Questions of rights
// and trials are creations that create nothing.
func (w *world) wantNoWrites(t *testing.T) {
	t.Helper()
	for _, action := range w.clientset.Actions() {
		switch action := action.(type) {
		case clienttesting.CreateActionImpl:
			trial := slices.Equal(action.CreateOptions.DryRun, []string{metav1.DryRunAll})
			review := strings.HasSuffix(action.Resource.Resource, "reviews") // Made, and kept nowhere.
			if !review && !trial {
				t.Errorf("it creates %s", action.Resource.Resource)
			}
		case clienttesting.GetActionImpl, clienttesting.ListActionImpl:
		default:
			if action.GetResource().Resource != "version" {
				t.Errorf("it does %s %s", action.GetVerb(), action.GetResource().Resource)
			}
		}
	}
}

func contains(t *testing.T, text string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing from:\n%s", want, text)
		}
	}
}

func TestPlanAndExplainTellAndChangeNothing(t *testing.T) {
	w := newWorld(t, nil, class("java", "java"), class("npm", "npm", "max-agents", "many"), class("big", "huge", "pools", "large"))
	for _, tool := range []string{"java", "npm", "huge"} {
		w.placeholder(t, "kubernetes", "azp-scaler", tool)
		w.placeholder(t, "large", "azp-scaler", tool)
	}
	served, unserved, large := w.queue(t, "kubernetes", "java"), w.queue(t, "kubernetes", "huge"), w.queue(t, "large", "huge")
	before := w.registered("kubernetes")

	var table, encoded strings.Builder
	if err := errors.Join(w.Plan(t.Context(), &table, false), w.Plan(t.Context(), &encoded, true)); err != nil {
		t.Fatal(err)
	}
	contains(t, table.String(), "kubernetes", "large", "create", "java", "broken: ", "max-agents", "unmatched", strconv.FormatInt(unserved, 10))
	var plans any
	if err := json.Unmarshal([]byte(encoded.String()), &plans); err != nil {
		t.Fatalf("%v in:\n%s", err, encoded.String())
	}

	for id, wants := range map[int64][]string{
		served:   {"pool kubernetes", "an agent of class java is made for it", "npm    broken"},
		unserved: {"pool kubernetes", "unmatched", "huge"},
		large:    {"pool large", "an agent of class big is made for it"},
		0:        {"Request " + strconv.FormatInt(served, 10), "Request " + strconv.FormatInt(unserved, 10), "Request " + strconv.FormatInt(large, 10)},
	} {
		var text strings.Builder
		if err := w.Explain(t.Context(), &text, id); err != nil {
			t.Fatal(err)
		}
		contains(t, text.String(), wants...)
	}
	err := w.Explain(t.Context(), &strings.Builder{}, 987654)
	if !errors.Is(err, app.ErrUnknownRequest) || !strings.Contains(err.Error(), "987654") || !strings.Contains(err.Error(), "kubernetes, large") {
		t.Errorf("a request in no queue: %v", err)
	}

	w.wantNoWrites(t)
	if diff := cmp.Diff(before, w.registered("kubernetes")); diff != "" {
		t.Errorf("agents of the pool (-before +after):\n%s", diff)
	}
}

func TestCheckTellsOfEveryClass(t *testing.T) {
	w := newWorld(t, map[string]string{"AZP_AGENT_IMAGE": "agent:1", "AZP_POOL": "kubernetes,large,gone"},
		class("java", "java", "pools", "kubernetes", "role-bindings", "shop Role/deployer"),
		class("npm", "npm", "pools", "kubernetes", "max-agents", "many"),
		class("rights", "go", "pools", "kubernetes", "role-bindings", "shop Role/nobody"))
	var text strings.Builder
	if err := w.Check(t.Context(), &text); !errors.Is(err, app.ErrCheck) {
		t.Errorf("want it to say that something is wrong, got %v", err)
	}
	contains(t, text.String(),
		"ok    pool kubernetes (id", "ok    pool large (id", "WRONG pool gone: ", "ok    installation in namespace agents",
		"note  pool kubernetes has classes of its own", "ok    class java for pool kubernetes\n", "ok    class default for pool large\n",
		"WRONG class npm for pool kubernetes: ", "max-agents", "WRONG class rights for pool kubernetes: ", "nobody")
	if strings.Contains(text.String(), "for none of this scaler") {
		t.Errorf("a class may be for the pool that was not found:\n%s", text.String())
	}
	w.wantNoWrites(t)
}

func TestCheckOfClassesThatServeNothing(t *testing.T) {
	w := newWorld(t, map[string]string{"AZP_POOL": "kubernetes"}, class("java", "java", "pools", "windows"))
	var text strings.Builder
	if err := w.Check(t.Context(), &text); !errors.Is(err, app.ErrCheck) {
		t.Errorf("a pool without any class is wrong, got %v", err)
	}
	contains(t, text.String(), "WRONG there is no class of agent for pool kubernetes", "AZP_AGENT_IMAGE",
		"note  class java is for the pools windows, and for none of this scaler")
}

func TestCheckWithoutTheRightToReadClasses(t *testing.T) {
	w := newWorld(t, map[string]string{"AZP_AGENT_IMAGE": "agent:1", "AZP_POOL": "kubernetes"})
	w.clientset.PrependReactor("list", "cronjobs", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("no such right")
	})
	var text strings.Builder
	if err := w.Check(t.Context(), &text); !errors.Is(err, app.ErrCheck) {
		t.Errorf("want it to say that something is wrong, got %v", err)
	}
	contains(t, text.String(), "ok    pool kubernetes", "ok    installation", "WRONG the classes of agent can't be read", "no such right")
	if strings.Contains(text.String(), "class default") {
		t.Errorf("whether the built-in class is used can't be known:\n%s", text.String())
	}
}

func TestClassesComeAndGoWhileItRuns(t *testing.T) {
	w := newWorld(t, map[string]string{"AZP_POLL_BUSY": "500ms", "AZP_POLL_IDLE": "500ms"}, class("java", "java"))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	waitFor(t, w.App, done, "/readyz", http.StatusOK, "ok")
	waitFor(t, w.App, done, "/metrics", http.StatusOK, `azp_scaler_classes{pool="large"} 1`)

	cronJobs := w.clientset.BatchV1().CronJobs("agents")
	if _, err := cronJobs.Create(ctx, class("big", "huge", "pools", "large"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, w.App, done, "/metrics", http.StatusOK, `azp_scaler_classes{pool="large"} 2`)
	waitFor(t, w.App, done, "/metrics", http.StatusOK, `azp_scaler_classes{pool="kubernetes"} 1`)

	broken := class("java", "java", "max-agents", "many")
	broken.ResourceVersion = "2"
	if _, err := cronJobs.Update(ctx, broken, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, w.App, done, "/metrics", http.StatusOK, `azp_scaler_class_broken{class="java"} 1`)
	waitFor(t, w.App, done, "/readyz", http.StatusServiceUnavailable, "no class of agent for pool kubernetes can be used; class java: ")

	mended := class("java", "java")
	mended.ResourceVersion = "3"
	if _, err := cronJobs.Update(ctx, mended, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, w.App, done, "/readyz", http.StatusOK, "ok")
	waitFor(t, w.App, done, "/metrics", http.StatusOK, `azp_scaler_class_broken{class="java"} 0`)

	w.waitForPlaceholders(t, "kubernetes", 1)
	w.waitForPlaceholders(t, "large", 2)
	cancel()
	if err := <-done; err != nil {
		t.Errorf("told to stop, it ended with %v", err)
	}
}

// waitForPlaceholders waits until the pool has one for each of its classes, and nothing
// else.
func (w *world) waitForPlaceholders(t *testing.T, pool string, want int) {
	t.Helper()
	var names []string
	for deadline := time.Now().Add(waitLimit); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if names = w.registered(pool); len(names) == want {
			return
		}
	}
	t.Fatalf("pool %s has the agents %v, want %d placeholders", pool, names, want)
}
