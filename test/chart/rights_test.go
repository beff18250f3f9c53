package chart_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
	"github.com/azp-scaler/azp-scaler/test/chart"
)

// delivered reads manifests of deploy/kustomize.
func delivered(t *testing.T, path string) chart.Objects {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir.Root, "deploy", "kustomize", filepath.FromSlash(path)))
	if err != nil {
		t.Fatal(err)
	}
	objects, err := chart.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// rules are those of rights, as the scaler's own code has them.
func rules(rights ...[]cluster.Right) (list []rbacv1.PolicyRule) {
	for _, right := range slices.Concat(rights...) {
		list = append(list, rbacv1.PolicyRule{APIGroups: []string{right.Group}, Resources: []string{right.Resource}, ResourceNames: right.Names, Verbs: right.Verbs})
	}
	return list
}

// role is what a rendered Role allows; it fails unless the scaler's account, and nobody else, is given it there.
func role(t *testing.T, objects chart.Objects, namespace, name string) []rbacv1.PolicyRule {
	t.Helper()
	checkBinding(t, find[rbacv1.RoleBinding](t, objects, "RoleBinding", namespace, name), "Role", name)
	return find[rbacv1.Role](t, objects, "Role", namespace, name).Rules
}

func checkBinding(t *testing.T, binding rbacv1.RoleBinding, kind, name string) {
	t.Helper()
	want := rbacv1.RoleBinding{
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: name},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: "azp-scaler", Namespace: chart.Namespace}},
	}
	if diff := cmp.Diff(want, rbacv1.RoleBinding{RoleRef: binding.RoleRef, Subjects: binding.Subjects}); diff != "" {
		t.Errorf("RoleBinding %s/%s (-want +got):\n%s", binding.Namespace, binding.Name, diff)
	}
}

func same(t *testing.T, what string, want, got []rbacv1.PolicyRule) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// TestRightsAreThoseOfTheManifests and of the code: the three are one list, for the settings that the manifests have.
func TestRightsAreThoseOfTheManifests(t *testing.T) {
	t.Parallel()
	objects := render(t, minimal+`
auth: {method: client-secret, tenantId: t, clientId: c}
agents: {caConfigMap: azp-ca}
targetNamespaces: [{name: azp-target, roles: [{kind: ClusterRole, name: edit}]}]
`)
	edit := []agentpool.RoleBinding{{Namespace: "azp-target", Kind: "ClusterRole", Name: "edit"}}
	for _, c := range []struct {
		file, namespace, name string
		code                  []rbacv1.PolicyRule
	}{
		{"base/agents/rbac-agents.yaml", "azp-agents", "azp-scaler", rules(cluster.AgentsRights("azp-token", "azp-ca"), cluster.JITRights(), cluster.StandingAccountRights(), cluster.ElectionRights())},
		{"base/target/rbac-target.yaml", "azp-target", "azp-scaler", rules(cluster.TargetRights("azp-target", edit, true))},
		{"agent-token/rbac-agent-token.yaml", "azp-agents", "azp-scaler-agent-token", rules(cluster.TokenRights("azp-token"))},
	} {
		got := role(t, objects, c.namespace, c.name)
		same(t, c.name+" in "+c.namespace+" and the code", c.code, got)
		same(t, c.name+" in "+c.namespace+" and "+c.file, decode[rbacv1.Role](t, delivered(t, c.file).Kind("Role")[0]).Rules, got)
	}
	if roles := objects.Kind("Role"); len(roles) != 3 {
		t.Errorf("want no further Role, got %v", names(roles))
	}
	for _, object := range objects {
		if object.GetKind() == "ClusterRole" || object.GetKind() == "ClusterRoleBinding" {
			t.Errorf("there is a right in the whole cluster: %s", object.GetName())
		}
	}
}

// TestRightsFollowTheSettings: what is not needed is not asked for.
func TestRightsFollowTheSettings(t *testing.T) {
	t.Parallel()
	objects := render(t, minimal+`
agents: {registration: jit}
rbac: {jit: false, sharedAccounts: false}
scaler: {leaderElection: false}
`)
	same(t, "with everything off", rules(cluster.AgentsRights("azp-token", "")), role(t, objects, "azp-agents", "azp-scaler"))

	for name, c := range map[string]struct {
		values string
		keeps  bool
	}{
		"a token of a person":            {"auth: {method: pat}", false},
		"no pod that registers":          {"auth: {method: managed-identity}\nagents: {registration: jit}", false},
		"a class that registers":         {"auth: {method: managed-identity}\nagents: {registration: jit, classes: {a: {registration: config}}}", true},
		"only classes that do not":       {"auth: {method: managed-identity}\nagents: {builtinClass: false, classes: {a: {registration: jit}}}", false},
		"the built-in one does besides":  {"auth: {method: managed-identity}\nagents: {classes: {a: {registration: jit}}}", true},
		"a class that says nothing does": {"auth: {method: managed-identity}\nagents: {builtinClass: false, classes: {a: }}", true},
	} {
		_, keeps := render(t, minimal+c.values).Find("Role", "azp-agents", "azp-scaler-agent-token")
		if keeps != c.keeps {
			t.Errorf("%s: the right to keep the agents' token: %t", name, keeps)
		}
	}
	for _, object := range render(t, minimal+"rbac: {create: false}\ntargetNamespaces: [{name: shop, roles: [{kind: Role, name: a}]}]") {
		if object.GroupVersionKind().Group == rbacv1.GroupName {
			t.Errorf("with rbac.create false there is %s %s", object.GetKind(), object.GetName())
		}
	}
}

// TestTargets: in each target namespace the scaler may give the roles named for it, in either way.
func TestTargets(t *testing.T) {
	t.Parallel()
	const values = minimal + `
targetNamespaces:
  - {name: shop, roles: [{kind: Role, name: deployer}, {kind: ClusterRole, name: edit}, {kind: ClusterRole, name: admin}]}
  - {name: web, roles: [{kind: ClusterRole, name: view}]}
`
	bindings := []agentpool.RoleBinding{
		{Namespace: "shop", Kind: "Role", Name: "deployer"},
		{Namespace: "shop", Kind: "ClusterRole", Name: "edit"},
		{Namespace: "shop", Kind: "ClusterRole", Name: "admin"},
		{Namespace: "web", Kind: "ClusterRole", Name: "view"},
	}
	for mode, bind := range map[string]bool{"bind": true, "hold": false} {
		objects := render(t, values+"rbac: {mode: "+mode+"}")
		for _, namespace := range []string{"shop", "web"} {
			same(t, mode+" in "+namespace, rules(cluster.TargetRights(namespace, bindings, bind)), role(t, objects, namespace, "azp-scaler"))
		}
		held := map[string]string{"shop/azp-scaler-holds-role-deployer": "deployer", "shop/azp-scaler-holds-clusterrole-edit": "edit", "shop/azp-scaler-holds-clusterrole-admin": "admin", "web/azp-scaler-holds-clusterrole-view": "view"}
		for _, object := range objects.Kind("RoleBinding") {
			if name, is := held[object.GetNamespace()+"/"+object.GetName()]; is {
				if bind {
					t.Errorf("the scaler holds %s, though it may bind", name)
				}
				kind := "ClusterRole"
				if name == "deployer" {
					kind = "Role"
				}
				checkBinding(t, decode[rbacv1.RoleBinding](t, object), kind, name)
				delete(held, object.GetNamespace()+"/"+object.GetName())
			}
		}
		if !bind && len(held) > 0 {
			t.Errorf("the scaler does not hold %v", held)
		}
	}
}

// TestAccountOfAnotherName is given the rights, too.
func TestAccountOfAnotherName(t *testing.T) {
	t.Parallel()
	objects := render(t, minimal+"serviceAccount: {create: false, name: mine}\ntargetNamespaces: [{name: shop, roles: [{kind: Role, name: a}]}]")
	if accounts := objects.Kind("ServiceAccount"); len(accounts) > 0 {
		t.Errorf("an account is made: %v", names(accounts))
	}
	if account := scalerPod(t, objects).Spec.ServiceAccountName; account != "mine" {
		t.Errorf("the scaler runs as %q", account)
	}
	for _, object := range objects.Kind("RoleBinding") {
		if subjects := decode[rbacv1.RoleBinding](t, object).Subjects; subjects[0].Name != "mine" || subjects[0].Namespace != chart.Namespace {
			t.Errorf("%s is for %v", object.GetName(), subjects)
		}
	}
}
