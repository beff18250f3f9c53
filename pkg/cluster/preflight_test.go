package cluster_test

import (
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"
	fakediscovery "k8s.io/client-go/discovery/fake"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
)

// preflight checks the installation, and one class.
func (e *environment) preflight(in cluster.Installation, sample *batchv1.Job) []cluster.Problem {
	e.t.Helper()
	return append(e.cluster.PreflightInstallation(e.t.Context(), in), e.cluster.PreflightClass(e.t.Context(), sample)...)
}

func installation() cluster.Installation {
	return cluster.Installation{TokenSecret: "azp-token", TokenKey: "token"}
}

// sample is a Job of a request that does not exist.
func (e *environment) sample(change ...func(*agentpool.AgentClass, *batchv1.JobTemplateSpec)) *batchv1.Job {
	e.t.Helper()
	return e.job(1<<62, 0, change...)
}

// TestPreflightFindsEveryProblem breaks one thing at a time.
func TestPreflightFindsEveryProblem(t *testing.T) {
	t.Parallel()
	right := func(namespace, kind, name string) func(*agentpool.AgentClass, *batchv1.JobTemplateSpec) {
		return func(c *agentpool.AgentClass, _ *batchv1.JobTemplateSpec) {
			if namespace != "" {
				c.RoleBindings[0].Namespace = namespace
			}
			c.RoleBindings[0].Kind, c.RoleBindings[0].Name = kind, name
		}
	}
	for _, c := range []struct {
		name    string
		prepare func(*testing.T, *environment)
		change  func(*agentpool.AgentClass, *batchv1.JobTemplateSpec)
		input   func(*cluster.Installation)
		own     bool // The builds get their rights where the scaler is.
		reason  agentpool.Reason
		want    []string
	}{
		{name: "token Secret absent", input: func(in *cluster.Installation) { in.TokenKey = "token" }, prepare: func(t *testing.T, e *environment) {
			if err := e.admin.CoreV1().Secrets(e.agents).Delete(t.Context(), "azp-token", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}, reason: agentpool.ReasonMissingObject, want: []string{`Secret "azp-token"`, "does not exist", "kubectl create secret generic azp-token"}},
		{name: "token key absent", input: func(in *cluster.Installation) { in.TokenKey = "pat" }, reason: agentpool.ReasonMissingObject, want: []string{`no key "pat"`}},
		{name: "CA absent", input: func(in *cluster.Installation) { in.CAConfigMap = "azp-ca" }, reason: agentpool.ReasonMissingObject, want: []string{`ConfigMap "azp-ca"`, "kubectl create configmap azp-ca"}},
		{name: "CA without its key", input: func(in *cluster.Installation) { in.CAConfigMap = "azp-ca" }, prepare: func(t *testing.T, e *environment) {
			must(e.admin.CoreV1().ConfigMaps(e.agents).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "azp-ca"}}, metav1.CreateOptions{}))(t)
		}, reason: agentpool.ReasonMissingObject, want: []string{`no key "ca.crt"`}},
		{name: "no right to bind", change: right("", "ClusterRole", "admin"), reason: agentpool.ReasonForbidden, want: []string{`ClusterRole "admin"`, "verb bind"}},
		{name: "role absent", change: right("", "Role", "absent"), reason: agentpool.ReasonMissingObject, want: []string{`Role "absent"`, `create the role "absent"`}},
		{name: "role absent that may be bound", change: right("", "Role", "absent"), prepare: func(t *testing.T, e *environment) {
			role := must(e.admin.RbacV1().Roles(e.target).Get(t.Context(), "azp-scaler", metav1.GetOptions{}))(t)
			role.Rules = append(role.Rules, rbacv1.PolicyRule{APIGroups: []string{rbacv1.GroupName}, Resources: []string{"roles"}, ResourceNames: []string{"absent"}, Verbs: []string{"get", "bind"}})
			must(e.admin.RbacV1().Roles(e.target).Update(t.Context(), role, metav1.UpdateOptions{}))(t)
		}, reason: agentpool.ReasonMissingObject, want: []string{`Role "absent"`, `create the role "absent"`}},
		{name: "target absent", change: right("nowhere", "ClusterRole", "edit"), reason: agentpool.ReasonForbidden, want: []string{"namespace nowhere", "does not exist, or"}},
		{name: "the scaler's own namespace as target", own: true, reason: agentpool.ReasonInvalid, want: []string{"scaler-", "own namespace", "read the pool's token"}},
		{name: "no rights in the target", prepare: func(t *testing.T, e *environment) {
			if err := e.admin.RbacV1().RoleBindings(e.target).Delete(t.Context(), "azp-scaler", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}, reason: agentpool.ReasonForbidden, want: []string{"target-", "deploy/kustomize/base"}},
		{name: "one right missing", prepare: func(t *testing.T, e *environment) {
			role := must(e.admin.RbacV1().Roles(e.agents).Get(t.Context(), "azp-scaler", metav1.GetOptions{}))(t)
			role.Rules[0].Verbs = []string{"get", "list", "watch", "create", "delete"}
			must(e.admin.RbacV1().Roles(e.agents).Update(t.Context(), role, metav1.UpdateOptions{}))(t)
		}, reason: agentpool.ReasonForbidden, want: []string{"lacks rights: patch jobs", "agents-"}},
		{name: "no right to make Jobs", prepare: func(t *testing.T, e *environment) {
			role := must(e.admin.RbacV1().Roles(e.agents).Get(t.Context(), "azp-scaler", metav1.GetOptions{}))(t)
			role.Rules[0].Verbs = []string{"get", "list", "watch", "patch", "delete"}
			must(e.admin.RbacV1().Roles(e.agents).Update(t.Context(), role, metav1.UpdateOptions{}))(t)
		}, reason: agentpool.ReasonForbidden, want: []string{"lacks rights: create jobs", "agents-"}},
		{name: "no rights in the agents' namespace", prepare: func(t *testing.T, e *environment) {
			if err := e.admin.RbacV1().RoleBindings(e.agents).Delete(t.Context(), "azp-scaler", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}, reason: agentpool.ReasonForbidden, want: []string{"agents-", "deploy/kustomize/base"}},
		{name: "Job refused", change: func(_ *agentpool.AgentClass, t *batchv1.JobTemplateSpec) {
			t.Spec.Template.Spec.Containers[0].ImagePullPolicy = "Sometimes"
		}, reason: agentpool.ReasonInvalid, want: []string{"a Job of the class can't be made", "imagePullPolicy"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e := setUp(t)
			if c.prepare != nil {
				c.prepare(t, e)
			}
			change := c.change
			if change == nil {
				change = func(*agentpool.AgentClass, *batchv1.JobTemplateSpec) {}
			}
			if c.own {
				change = right(strings.Replace(e.agents, "agents", "scaler", 1), "ClusterRole", "edit")
			}
			in, sample := installation(), e.sample(change)
			if c.input != nil {
				c.input(&in)
			}
			var problems []cluster.Problem
			e.await("the one problem", func() bool { // Authorisation follows its objects by a moment.
				problems = e.preflight(in, sample)
				return len(problems) == 1
			}, func() any { return problems })
			p := problems[0]
			for _, want := range c.want {
				if !strings.Contains(p.String(), want) {
					t.Errorf("%s\ndoes not say %q", p, want)
				}
			}
			if p.Reason != c.reason || !p.Fatal || p.Remedy == "" {
				t.Errorf("problem %+v, want reason %q", p, c.reason)
			}
			if strings.Contains(p.String(), "canary") {
				t.Errorf("the problem repeats the token: %s", p)
			}
		})
	}
}

func TestPreflightFindsNothingAndChangesNothing(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	must(e.admin.CoreV1().ConfigMaps(e.agents).Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "azp-ca"}, Data: map[string]string{"ca.crt": "x"},
	}, metav1.CreateOptions{}))(t)
	in, sample := installation(), e.sample()
	in.CAConfigMap = "azp-ca"
	var problems []cluster.Problem
	e.await("no problem", func() bool { problems = e.preflight(in, sample); return len(problems) == 0 }, func() any { return problems })
	if got := e.left(sample.Name); got != "" {
		t.Errorf("there is %q", got)
	}
}

// TestPreflightOfAClassIsItsOwn: a namespace that is shut stops only the classes
// that deploy into it.
func TestPreflightOfAClassIsItsOwn(t *testing.T) {
	t.Parallel()
	e, shut := setUp(t), setUp(t)
	e.cluster = e.connect(e.signIn(), e.target, shut.target)
	stopped := e.sample(func(c *agentpool.AgentClass, _ *batchv1.JobTemplateSpec) {
		c.RoleBindings = append(c.RoleBindings, agentpool.RoleBinding{Namespace: shut.target, Kind: "ClusterRole", Name: "edit"})
	})
	var problems []cluster.Problem
	e.await("the one class's problem", func() bool { problems = e.cluster.PreflightClass(t.Context(), stopped); return len(problems) == 1 },
		func() any { return problems })
	if p := problems[0]; !p.Fatal || p.Where != "namespace "+shut.target || p.Reason != agentpool.ReasonForbidden {
		t.Errorf("the class that needs it: %+v", p)
	}
	without := e.sample(func(c *agentpool.AgentClass, _ *batchv1.JobTemplateSpec) { c.RoleBindings = nil })
	for name, sample := range map[string]*batchv1.Job{"another namespace": e.sample(), "no rights": without} {
		if problems := e.preflight(installation(), sample); len(problems) > 0 {
			t.Errorf("the class with %s: %v", name, problems)
		}
	}
}

// TestPreflightNamesAnAbsentNamespace: who may look can tell it from one without rights.
func TestPreflightNamesAnAbsentNamespace(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	config := rest.CopyConfig(shared.RESTConfig())
	config.Impersonate.UserName = "looker-" + e.agents
	must(e.admin.RbacV1().ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: config.Impersonate.UserName},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"namespaces"}, Verbs: []string{"get"}}},
	}, metav1.CreateOptions{}))(t)
	must(e.admin.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: config.Impersonate.UserName},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: config.Impersonate.UserName},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: config.Impersonate.UserName}},
	}, metav1.CreateOptions{}))(t)
	e.cluster = e.connect(config)
	sample := e.sample(func(c *agentpool.AgentClass, _ *batchv1.JobTemplateSpec) {
		c.RoleBindings = append(c.RoleBindings, agentpool.RoleBinding{Namespace: "nowhere", Kind: "ClusterRole", Name: "edit"})
	})
	var text string
	e.await("both are told apart", func() bool {
		text = ""
		for _, p := range e.preflight(installation(), sample) {
			text += p.String() + "\n"
		}
		return strings.Contains(text, "namespace nowhere: the namespace does not exist (") &&
			strings.Contains(text, "namespace "+e.target+": the scaler has no rights there (")
	}, func() any { return text })
}

// TestPreflightRefusesAClusterWithoutSidecars asks a fake for its version: there is
// one API server here, and it is not that old.
func TestPreflightRefusesAClusterWithoutSidecars(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		version string
		want    string
	}{
		{"v1.28.15", "upgrade the cluster to 1.29.0"},
		{"v1.28.15-gke.100", "upgrade the cluster to 1.29.0"},
		{"v1.29.0", ""},
		{"v1.29.0-eks-abc", ""},
		{"v1.37.2+k3s1", ""},
		{"tomorrow", "does not parse"},
	} {
		t.Run(c.version, func(t *testing.T) {
			t.Parallel()
			client := fake.NewClientset()
			discovery, ok := client.Discovery().(*fakediscovery.FakeDiscovery)
			if !ok {
				t.Fatal("the fake has no fake discovery")
			}
			discovery.FakedServerVersion = &version.Info{GitVersion: c.version}
			subject, err := cluster.New(cluster.Config{Client: client, Namespace: "agents", Instance: "abcdefgh"})
			if err != nil {
				t.Fatal(err)
			}
			var about string
			for _, p := range subject.PreflightInstallation(t.Context(), cluster.Installation{TokenSecret: "t", TokenKey: "t"}) {
				if p.Where == "cluster" {
					about += p.String()
				}
			}
			if (c.want == "" && about != "") || !strings.Contains(about, c.want) {
				t.Errorf("told %q, want %q", about, c.want)
			}
		})
	}
}
