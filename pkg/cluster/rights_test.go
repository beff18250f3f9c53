package cluster_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	authenticationv1 "k8s.io/api/authentication/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
)

// TestRightsEndWithTheBuild uses the build's own token: it may what its role
// says, and no more once the rights have ended.
func TestRightsEndWithTheBuild(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	job := e.ensure(e.job(1, 0))
	token := must(e.admin.CoreV1().ServiceAccounts(e.agents).CreateToken(t.Context(), job.Name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{}))(t).Status.Token
	config := rest.AnonymousClientConfig(shared.RESTConfig())
	config.BearerToken = token
	build := kubernetes.NewForConfigOrDie(config)
	deploy := func(namespace string) error {
		_, err := build.CoreV1().ConfigMaps(namespace).List(t.Context(), metav1.ListOptions{})
		return err
	}
	e.await("the build may deploy", func() bool { return deploy(e.target) == nil })
	if err := deploy(e.agents); !apierrors.IsForbidden(err) {
		t.Errorf("the build reads the agents' namespace: %v", err)
	}
	e.wire.restore()
	if err := e.cluster.EndRights(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	ended := time.Now()
	if diff := cmp.Diff([]string{"DELETE rolebindings", "DELETE serviceaccounts", "PATCH jobs"}, e.wire.written()); diff != "" {
		t.Errorf("the order of the writes:\n%s", diff)
	}
	e.await("the build is refused", func() bool { return deploy(e.target) != nil })
	if took := time.Since(ended); took > 5*time.Second {
		t.Errorf("the build could still deploy for %s", took)
	}
	if got := strings.Replace(e.left(job.Name), " pod", "", 1); got != "job" {
		t.Errorf("there is %q", got)
	}
}

func TestEndRightsIsDoneOnce(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	e.run()
	job := e.ensure(e.job(1, 0))
	for range 2 { // The cache may not have it yet: that is no matter.
		if err := e.cluster.EndRights(t.Context(), job); err != nil {
			t.Fatal(err)
		}
	}
	e.await("the mark in the cache", func() bool {
		e.wire.restore()
		return e.cluster.EndRights(t.Context(), job) == nil && e.wire.requests() == 0
	})
	// Another Job of the name, and none, have no rights of this one.
	other := job
	other.UID = "another"
	gone := job
	gone.Name = "azp-abcdefgh-7-9-0"
	for _, j := range []agentpool.AgentJob{other, gone} {
		if err := e.cluster.EndRights(t.Context(), j); err != nil {
			t.Error(err)
		}
	}
}

// TestEndRightsSurvivesACrashAnywhere cuts the line at each write and calls again.
func TestEndRightsSurvivesACrashAnywhere(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	for n := 1; n <= 3; n++ {
		for i, sent := range []bool{false, true} {
			job := e.ensure(e.job(int64(n), i))
			e.wire.cut(n, sent)
			if err := e.cluster.EndRights(t.Context(), job); err == nil {
				t.Fatalf("write %d, sent %t: no error", n, sent)
			}
			e.wire.restore()
			if err := e.cluster.EndRights(t.Context(), job); err != nil {
				t.Fatalf("write %d, sent %t: %v", n, sent, err)
			}
			if got := e.left(job.Name); strings.Contains(got, "rolebinding") || strings.Contains(got, "serviceaccount") {
				t.Errorf("write %d, sent %t: there is %q", n, sent, got)
			}
		}
	}
}

// TestEndRightsGoesOnWhereItMay: a namespace in which the scaler has lost its
// rights keeps nothing else alive, and the call fails until all is done.
func TestEndRightsGoesOnWhereItMay(t *testing.T) {
	t.Parallel()
	e, lost := setUp(t), setUp(t)
	lost.allow(e)
	job := e.ensure(e.job(1, 0, func(c *agentpool.AgentClass, _ *batchv1.JobTemplateSpec) {
		c.RoleBindings = append([]agentpool.RoleBinding{{Namespace: lost.target, Kind: "ClusterRole", Name: "edit"}}, c.RoleBindings...)
	}))
	lost.forbid(e)
	var err error
	e.await("the lost right", func() bool { err = e.cluster.EndRights(t.Context(), job); return err != nil })
	if !strings.Contains(err.Error(), lost.target) {
		t.Errorf("the error does not name the namespace: %v", err)
	}
	if got := e.left(job.Name); strings.Contains(got, "rolebinding") || strings.Contains(got, "serviceaccount") {
		t.Errorf("there is %q", got)
	}
	lost.allow(e)
	e.await("the right is back", func() bool { return e.cluster.EndRights(t.Context(), job) == nil })
	if _, err := lost.admin.RbacV1().RoleBindings(lost.target).Get(t.Context(), job.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the other right is still there: %v", err)
	}
}

// allow lets the scaler of another environment work in this target namespace.
func (e *environment) allow(other *environment) {
	e.t.Helper()
	_, binding := manifest(e.t, "base/target/rbac-target.yaml")
	binding.Name, binding.Namespace = "other", e.target
	binding.Subjects[0].Namespace = strings.Replace(other.agents, "agents", "scaler", 1)
	must(e.admin.RbacV1().RoleBindings(e.target).Create(e.t.Context(), binding, metav1.CreateOptions{}))(e.t)
	config := rest.CopyConfig(shared.RESTConfig())
	config.Impersonate.UserName = "system:serviceaccount:" + binding.Subjects[0].Namespace + ":azp-scaler"
	as := kubernetes.NewForConfigOrDie(config)
	e.await("the right", func() bool {
		_, err := as.RbacV1().RoleBindings(e.target).List(e.t.Context(), metav1.ListOptions{})
		return err == nil
	})
}

func (e *environment) forbid(*environment) {
	e.t.Helper()
	if err := e.admin.RbacV1().RoleBindings(e.target).Delete(e.t.Context(), "other", metav1.DeleteOptions{}); err != nil {
		e.t.Fatal(err)
	}
}

func TestEndRightsLeavesWhatIsNotTheJobsOwn(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	job := must(e.admin.BatchV1().Jobs(e.agents).Create(t.Context(), e.job(1, 0), metav1.CreateOptions{}))(t)
	must(e.admin.RbacV1().RoleBindings(e.target).Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: job.Name, Labels: map[string]string{
			agentjob.LabelInstance: "abcdefgh", agentjob.LabelManagedBy: agentjob.ManagedBy, agentjob.LabelJobUID: "another",
		}},
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "view"},
	}, metav1.CreateOptions{}))(t)
	must(e.admin.CoreV1().ServiceAccounts(e.agents).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: job.Name}}, metav1.CreateOptions{}))(t)
	if err := e.cluster.EndRights(t.Context(), agentpool.AgentJob{Name: job.Name, UID: string(job.UID)}); err != nil {
		t.Fatal(err)
	}
	if got := e.left(job.Name); got != "job serviceaccount rolebinding" {
		t.Errorf("there is %q", got)
	}
}

// TestSweepTakesOnlyWhatIsLeftBehind has one of each kind that must stay.
func TestSweepTakesOnlyWhatIsLeftBehind(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	right := func(name string, labels map[string]string) {
		must(e.admin.RbacV1().RoleBindings(e.target).Create(t.Context(), &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "view"},
		}, metav1.CreateOptions{}))(t)
		must(e.admin.CoreV1().ServiceAccounts(e.agents).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{}))(t)
	}
	ours := func(instance, uid string) map[string]string {
		labels := map[string]string{agentjob.LabelInstance: instance, agentjob.LabelManagedBy: agentjob.ManagedBy}
		if uid != "" {
			labels[agentjob.LabelJobUID] = uid
		}
		return labels
	}
	living := e.ensure(e.job(1, 0))
	half := must(e.admin.BatchV1().Jobs(e.agents).Create(t.Context(), e.job(2, 0), metav1.CreateOptions{}))(t)
	finished := e.ensure(e.job(3, 0, onNode(kubeFinishAtOnce()...)))
	e.await("the third Job's end", func() bool {
		return slices.ContainsFunc(e.live(finished.Name).Status.Conditions, func(c batchv1.JobCondition) bool { return c.Type == batchv1.JobComplete })
	})
	right("half-made", ours("abcdefgh", string(half.UID)))
	right("job-gone", ours("abcdefgh", "no-such-uid"))
	right("foreign", ours("other234", "no-such-uid"))
	right("unmarked", ours("abcdefgh", ""))
	right("nobodys", nil)

	young, err := e.cluster.Sweep(t.Context(), time.Hour, time.Now())
	if err != nil || len(young.RoleBindings)+len(young.ServiceAccounts) > 0 {
		t.Errorf("a sweep took what is younger than its grace: %+v, %v", young, err)
	}
	report, err := e.cluster.Sweep(t.Context(), time.Minute, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(report.RoleBindings)
	if diff := cmp.Diff([]string{e.target + "/" + finished.Name, e.target + "/job-gone"}, report.RoleBindings); diff != "" {
		t.Errorf("RoleBindings:\n%s", diff)
	}
	slices.Sort(report.ServiceAccounts)
	if diff := cmp.Diff([]string{e.agents + "/" + finished.Name, e.agents + "/job-gone"}, report.ServiceAccounts); diff != "" {
		t.Errorf("ServiceAccounts:\n%s", diff)
	}
	if counts := report.Counts(); counts["rolebinding"] != 2 || counts["serviceaccount"] != 2 {
		t.Errorf("counts %v", counts)
	}
	if got := e.left(living.Name); got != "job pod serviceaccount rolebinding" && got != "job serviceaccount rolebinding" {
		t.Errorf("of the living build there is %q", got)
	}
	for _, name := range []string{"half-made", "foreign", "unmarked", "nobodys"} {
		if got := e.left(name); got != "serviceaccount rolebinding" {
			t.Errorf("of %s there is %q", name, got)
		}
	}
	again, err := e.cluster.Sweep(t.Context(), time.Minute, time.Now().Add(time.Hour))
	if err != nil || len(again.RoleBindings)+len(again.ServiceAccounts) > 0 {
		t.Errorf("a second sweep: %+v, %v", again, err)
	}
}

// TestSweepKeepsWhatItCannotJudge: without the Jobs nothing is taken; without one
// namespace the others still are.
func TestSweepKeepsWhatItCannotJudge(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	must(e.admin.RbacV1().RoleBindings(e.target).Create(t.Context(), e.orphan(), metav1.CreateOptions{}))(t)
	later := time.Now().Add(time.Hour)
	e.cluster = e.connect(e.signIn(), e.target, "nowhere")

	e.wire.refuse("/jobs")
	report, err := e.cluster.Sweep(t.Context(), time.Minute, later)
	if err == nil || len(report.RoleBindings) > 0 || e.left("job-gone") != "rolebinding" {
		t.Errorf("without the Jobs: %+v, %v", report, err)
	}
	e.wire.refuse("")
	report, err = e.cluster.Sweep(t.Context(), time.Minute, later)
	if err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("the namespace that can't be listed is no error: %v", err)
	}
	if diff := cmp.Diff([]string{e.target + "/job-gone"}, report.RoleBindings); diff != "" {
		t.Errorf("the other namespace:\n%s", diff)
	}
}

// TestSweepLooksWhereJobsWere: the class that named the namespace is gone, but a
// Job of it is still there to tell.
func TestSweepLooksWhereJobsWere(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	e.cluster = e.connect(e.signIn())
	must(e.admin.RbacV1().RoleBindings(e.target).Create(t.Context(), e.orphan(), metav1.CreateOptions{}))(t)
	later := time.Now().Add(time.Hour)
	if report, err := e.cluster.Sweep(t.Context(), time.Minute, later); err != nil || len(report.RoleBindings) > 0 {
		t.Errorf("nothing names the namespace: %+v, %v", report, err)
	}
	// Half-made: the Job alone is there.
	job := must(e.admin.BatchV1().Jobs(e.agents).Create(t.Context(), e.job(1, 0), metav1.CreateOptions{}))(t)
	report, err := e.cluster.Sweep(t.Context(), time.Minute, later)
	if diff := cmp.Diff([]string{e.target + "/job-gone"}, report.RoleBindings); err != nil || diff != "" {
		t.Errorf("the Job names it: %v\n%s", err, diff)
	}
	if got := e.left(job.Name); got != "job" {
		t.Errorf("of the Job there is %q", got)
	}
}

// TestSweepAsksForTheNamespacesEachTime, and never looks into the agents' own.
func TestSweepAsksForTheNamespacesEachTime(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	namespaces := []string{}
	c, err := cluster.New(cluster.Config{
		Client: kubernetes.NewForConfigOrDie(e.signIn()), Namespace: e.agents, Instance: "abcdefgh",
		TargetNamespaces: func() []string { return namespaces },
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, namespace := range []string{e.agents, e.target} {
		must(e.admin.RbacV1().RoleBindings(namespace).Create(t.Context(), e.orphan(), metav1.CreateOptions{}))(t)
	}
	later := time.Now().Add(time.Hour)
	if report, err := c.Sweep(t.Context(), time.Minute, later); err != nil || len(report.RoleBindings) > 0 {
		t.Errorf("no class: %+v, %v", report, err)
	}
	namespaces = []string{e.target, e.agents, e.target}
	report, err := c.Sweep(t.Context(), time.Minute, later)
	if diff := cmp.Diff([]string{e.target + "/job-gone"}, report.RoleBindings); diff != "" {
		t.Error(diff)
	}
	if !errors.Is(err, cluster.ErrInvalid) || !strings.Contains(err.Error(), "the agents' own") || !strings.Contains(err.Error(), e.agents) {
		t.Errorf("the agents' own namespace as target: %v", err)
	}
	if diff := cmp.Diff([]string{e.target, e.agents, e.target}, namespaces); diff != "" {
		t.Errorf("the answer was changed:\n%s", diff)
	}
}

// orphan is a right of a Job that is gone.
func (e *environment) orphan() *rbacv1.RoleBinding {
	return &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "job-gone", Labels: map[string]string{
			agentjob.LabelInstance: "abcdefgh", agentjob.LabelManagedBy: agentjob.ManagedBy, agentjob.LabelJobUID: "gone",
		}},
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "view"},
	}
}
