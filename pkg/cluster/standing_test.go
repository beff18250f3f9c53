package cluster_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
)

// runAs has builds run as an account that is not made for them.
func runAs(account string) func(*agentpool.AgentClass, *batchv1.JobTemplateSpec) {
	return func(c *agentpool.AgentClass, _ *batchv1.JobTemplateSpec) {
		c.ServiceAccount, c.RoleBindings = account, nil
	}
}

func (e *environment) makeAccount(namespace, name string) *corev1.ServiceAccount {
	e.t.Helper()
	return must(e.admin.CoreV1().ServiceAccounts(namespace).Create(e.t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))(e.t)
}

// TestAStandingAccountIsLeftAlone from a Job's beginning to its end: the pod runs as it, no
// account or right is made, and nothing that ends or sweeps a build touches it.
func TestAStandingAccountIsLeftAlone(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	before := e.makeAccount(e.agents, "cloud")
	e.wire.restore()
	job := e.ensure(e.job(1, 0, runAs("cloud")))
	if got, want := strings.Join(e.wire.written(), ", "), "POST jobs, PATCH jobs"; got != want {
		t.Errorf("the writes for a build are %s, want %s", got, want)
	}
	pod := e.awaitPod(job.Name, anyPod)
	if pod.Spec.ServiceAccountName != "cloud" {
		t.Errorf("the pod runs as %q", pod.Spec.ServiceAccountName)
	}
	e.wire.restore()
	if err := e.cluster.EndRights(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	if got := e.wire.written(); len(got) > 0 {
		t.Errorf("the end of a build that was given nothing is written: %v", got)
	}
	if err := e.cluster.DeleteJob(t.Context(), job.Name, job.UID); err != nil {
		t.Fatal(err)
	}
	e.await("the Job is gone", func() bool { return e.left(job.Name) == "" }, func() any { return e.left(job.Name) })
	report, err := e.cluster.Sweep(t.Context(), time.Minute, time.Now().Add(time.Hour))
	if err != nil || len(report.ServiceAccounts)+len(report.RoleBindings) > 0 {
		t.Errorf("the sweep took %+v, %v", report, err)
	}
	after := must(e.admin.CoreV1().ServiceAccounts(e.agents).Get(t.Context(), "cloud", metav1.GetOptions{}))(t)
	if after.UID != before.UID || after.ResourceVersion != before.ResourceVersion {
		t.Errorf("the account was touched: %+v, before %+v", after.ObjectMeta, before.ObjectMeta)
	}
}

// TestAHalfMadeJobOfAStandingAccountIsCompleted after a crash before its last write.
func TestAHalfMadeJobOfAStandingAccountIsCompleted(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	e.makeAccount(e.agents, "cloud")
	half := must(e.admin.BatchV1().Jobs(e.agents).Create(t.Context(), e.job(1, 0, runAs("cloud")), metav1.CreateOptions{}))(t)
	if err := e.cluster.Complete(t.Context(), half.Name, string(half.UID)); err != nil {
		t.Fatal(err)
	}
	e.awaitPod(half.Name, anyPod)
	if got := e.left(half.Name); got != "job pod" {
		t.Errorf("there is %q", got)
	}
}

func TestCheckStandingAccount(t *testing.T) {
	t.Parallel()
	const token = "azp-token"
	bind := func(t *testing.T, e *environment, rules ...rbacv1.PolicyRule) {
		t.Helper()
		must(e.admin.RbacV1().Roles(e.agents).Create(t.Context(), &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "reach"}, Rules: rules}, metav1.CreateOptions{}))(t)
		must(e.admin.RbacV1().RoleBindings(e.agents).Create(t.Context(), &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "reach"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "reach"},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: "cloud", Namespace: e.agents}},
		}, metav1.CreateOptions{}))(t)
	}
	for _, c := range []struct {
		name    string
		prepare func(*testing.T, *environment)
		kind    error
		reason  agentpool.Reason
		want    []string
	}{
		{name: "absent", prepare: func(t *testing.T, e *environment) {
			if err := e.admin.CoreV1().ServiceAccounts(e.agents).Delete(t.Context(), "cloud", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}, kind: cluster.ErrNotFound, reason: agentpool.ReasonMissingObject, want: []string{"kubectl create serviceaccount cloud --namespace agents-", "or correct the class"}},
		{name: "the scaler's own", prepare: func(t *testing.T, e *environment) {
			// An installation that has the scaler among the agents.
			_, binding := manifest(t, "base/agents/rbac-agents.yaml")
			binding.Name, binding.Namespace, binding.Subjects[0].Name, binding.Subjects[0].Namespace = "own", e.agents, "cloud", e.agents
			must(e.admin.RbacV1().RoleBindings(e.agents).Create(t.Context(), binding, metav1.CreateOptions{}))(t)
			config := must(clientcmd.BuildConfigFromFlags("", must(shared.KubeconfigFor(t.Context(), e.agents, "cloud"))(t)))(t)
			e.cluster = e.connect(config)
		}, kind: cluster.ErrForbidden, reason: agentpool.ReasonForbidden, want: []string{"the scaler's own", "make another one"}},
		{name: "reads the token", prepare: func(t *testing.T, e *environment) {
			bind(t, e, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{token}, Verbs: []string{"get"}})
		}, kind: cluster.ErrForbidden, reason: agentpool.ReasonForbidden, want: []string{"get secrets azp-token", "take the bindings in namespace"}},
		{name: "makes pods", prepare: func(t *testing.T, e *environment) {
			bind(t, e, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods", "pods/exec"}, Verbs: []string{"create"}})
		}, kind: cluster.ErrForbidden, reason: agentpool.ReasonForbidden, want: []string{"create pods, create pods/exec"}},
		{name: "requests tokens", prepare: func(t *testing.T, e *environment) {
			bind(t, e, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"serviceaccounts/token"}, Verbs: []string{"create"}})
		}, kind: cluster.ErrForbidden, reason: agentpool.ReasonForbidden, want: []string{"create serviceaccounts/token"}},
		{name: "harmless here", prepare: func(t *testing.T, e *environment) {
			bind(t, e, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"configmaps", "pods"}, Verbs: []string{"get", "list"}})
			must(e.admin.RbacV1().RoleBindings(e.target).Create(t.Context(), &rbacv1.RoleBinding{
				ObjectMeta: metav1.ObjectMeta{Name: "deploys"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "edit"},
				Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: "cloud", Namespace: e.agents}},
			}, metav1.CreateOptions{}))(t)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e := setUp(t)
			e.makeAccount(e.agents, "cloud")
			c.prepare(t, e)
			var doubts []cluster.Problem
			var err error
			e.await("the answer", func() bool { // Authorisation follows its objects by a moment.
				doubts, err = e.cluster.CheckStandingAccount(t.Context(), "cloud", token)
				said := fmt.Sprint(err)
				return len(doubts) == 0 && errors.Is(err, c.kind) && (c.kind == nil) == (err == nil) &&
					!slices.ContainsFunc(c.want, func(want string) bool { return !strings.Contains(said, want) })
			}, func() any { return []any{doubts, err, c.want} })
			if cluster.ReasonOf(err) != c.reason {
				t.Errorf("the reason is %q, want %q", cluster.ReasonOf(err), c.reason)
			}
		})
	}
}

// TestCheckStandingAccountSaysWhatItCannotSee: without the right to ask, the class is served,
// and the doubt is told.
func TestCheckStandingAccountSaysWhatItCannotSee(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	e.makeAccount(e.agents, "cloud")
	role := must(e.admin.RbacV1().Roles(e.agents).Get(t.Context(), "azp-scaler", metav1.GetOptions{}))(t)
	role.Rules = slices.DeleteFunc(role.Rules, func(rule rbacv1.PolicyRule) bool {
		return slices.Contains(rule.Resources, "localsubjectaccessreviews")
	})
	must(e.admin.RbacV1().Roles(e.agents).Update(t.Context(), role, metav1.UpdateOptions{}))(t)
	var doubts []cluster.Problem
	var err error
	e.await("the doubt", func() bool {
		doubts, err = e.cluster.CheckStandingAccount(t.Context(), "cloud", "azp-token")
		return len(doubts) == 1 && err == nil
	}, func() any { return []any{doubts, err} })
	if p := doubts[0]; p.Fatal || p.Reason != agentpool.ReasonForbidden || !strings.Contains(p.String(), `"cloud"`) || !strings.Contains(p.String(), "no role is bound to it") {
		t.Errorf("the doubt is %+v", p)
	}
}

// tokenRole is what lets builds request tokens for one account of the target namespace.
func (e *environment) tokenRole() {
	e.t.Helper()
	must(e.admin.RbacV1().Roles(e.target).Create(e.t.Context(), &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: "azure-token"},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"serviceaccounts/token"}, ResourceNames: []string{"azure"}, Verbs: []string{"create"}}},
	}, metav1.CreateOptions{}))(e.t)
	e.makeAccount(e.target, "azure")
	e.makeAccount(e.target, "other")
}

// TestBuildsRequestTokensForOneAccount, whichever way the scaler may bind the role, and no
// longer than their rights last.
func TestBuildsRequestTokensForOneAccount(t *testing.T) {
	t.Parallel()
	for name, let := range map[string]func(*testing.T, *environment){
		"bind": func(t *testing.T, e *environment) {
			role := must(e.admin.RbacV1().Roles(e.target).Get(t.Context(), "azp-scaler", metav1.GetOptions{}))(t)
			role.Rules = append(role.Rules, rbacv1.PolicyRule{APIGroups: []string{rbacv1.GroupName}, Resources: []string{"roles"}, ResourceNames: []string{"azure-token"}, Verbs: []string{"get", "bind"}})
			must(e.admin.RbacV1().Roles(e.target).Update(t.Context(), role, metav1.UpdateOptions{}))(t)
		},
		"hold": func(t *testing.T, e *environment) {
			_, binding := manifest(t, "base/target/rbac-target.yaml")
			binding.Name, binding.RoleRef.Name = "held", "azure-token"
			binding.Subjects[0].Namespace = strings.Replace(e.agents, "agents", "scaler", 1)
			must(e.admin.RbacV1().RoleBindings(e.target).Create(t.Context(), binding, metav1.CreateOptions{}))(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := setUp(t)
			e.tokenRole()
			give := func(c *agentpool.AgentClass, _ *batchv1.JobTemplateSpec) {
				c.RoleBindings = []agentpool.RoleBinding{{Namespace: e.target, Kind: "Role", Name: "azure-token"}}
			}
			if problems := e.cluster.PreflightClass(t.Context(), e.sample(give)); len(problems) != 1 || !strings.Contains(problems[0].String(), "verb bind") {
				t.Errorf("before the scaler may give the role: %v", problems)
			}
			let(t, e)
			var problems []cluster.Problem
			e.await("no problem", func() bool { problems = e.preflight(installation(), e.sample(give)); return len(problems) == 0 }, func() any { return problems })
			job := e.ensure(e.job(1, 0, give))
			build := e.signInAs(job.Name)
			request := func(account string) (*authenticationv1.TokenRequest, error) {
				return build.CoreV1().ServiceAccounts(e.target).CreateToken(t.Context(), account, &authenticationv1.TokenRequest{
					Spec: authenticationv1.TokenRequestSpec{Audiences: []string{"api://AzureADTokenExchange"}, ExpirationSeconds: new(int64(600))},
				}, metav1.CreateOptions{})
			}
			e.await("the build may request a token", func() bool { answer, err := request("azure"); return err == nil && answer.Status.Token != "" })
			if _, err := request("other"); !apierrors.IsForbidden(err) {
				t.Errorf("the build requests a token for another account: %v", err)
			}
			if err := e.cluster.EndRights(t.Context(), job); err != nil {
				t.Fatal(err)
			}
			ended := time.Now()
			e.await("the build is refused", func() bool {
				_, err := request("azure")
				return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err)
			})
			if took := time.Since(ended); took > 5*time.Second {
				t.Errorf("the build could still request a token for %s", took)
			}
		})
	}
}

// signInAs is a client with a token of an account of the agents' namespace, as a build has it.
func (e *environment) signInAs(account string) kubernetes.Interface {
	e.t.Helper()
	answer := must(e.admin.CoreV1().ServiceAccounts(e.agents).CreateToken(e.t.Context(), account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{}))(e.t)
	config := rest.AnonymousClientConfig(shared.RESTConfig())
	config.BearerToken = answer.Status.Token
	return kubernetes.NewForConfigOrDie(config)
}
