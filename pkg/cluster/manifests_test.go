package cluster_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
)

var update = flag.Bool("update", false, "write the tables of docs/rbac.md anew")

func defaultRights() (agents, target []cluster.Right) {
	return cluster.AgentsRights("azp-token", "azp-ca"),
		cluster.TargetRights("azp-target", []agentpool.RoleBinding{{Namespace: "azp-target", Kind: "ClusterRole", Name: "edit"}}, true)
}

// TestManifestsGiveExactlyTheRightsNeeded: the manifests, the preflight check and
// the documented tables are one list.
func TestManifestsGiveExactlyTheRightsNeeded(t *testing.T) {
	t.Parallel()
	agents, target := defaultRights()
	for file, rights := range map[string][]cluster.Right{"agents/rbac-agents.yaml": agents, "target/rbac-target.yaml": target} {
		var want []rbacv1.PolicyRule
		for _, right := range rights {
			want = append(want, rbacv1.PolicyRule{APIGroups: []string{right.Group}, Resources: []string{right.Resource}, ResourceNames: right.Names, Verbs: right.Verbs})
		}
		role, binding := manifest(t, file)
		if diff := cmp.Diff(want, role.Rules); diff != "" {
			t.Errorf("%s differs from the code:\n%s", file, diff)
		}
		for _, rule := range role.Rules {
			if slices.Contains(slices.Concat(rule.APIGroups, rule.Resources, rule.Verbs), "*") {
				t.Errorf("%s has a wildcard: %v", file, rule)
			}
		}
		if binding.RoleRef.Kind != "Role" || binding.RoleRef.Name != role.Name || len(binding.Subjects) != 1 {
			t.Errorf("%s binds %+v to %+v", file, binding.RoleRef, binding.Subjects)
		}
	}
}

// TestManifestsAreTaken has the API server look at all of them, unknown fields
// included, as a user would apply them.
func TestManifestsAreTaken(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	target := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "azp-target"}}
	if _, err := e.admin.CoreV1().Namespaces().Create(t.Context(), target, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	manifests := filepath.Join("..", "..", "deploy", "kustomize")
	for _, args := range [][]string{
		{"apply", "-f", filepath.Join(manifests, "namespaces.yaml")},
		{"apply", "-k", filepath.Join(manifests, "base"), "--dry-run=server", "--validate=strict"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		command := exec.CommandContext(ctx, shared.Binaries().Kubectl(), append([]string{"--kubeconfig", shared.AdminKubeconfig()}, args...)...)
		out, err := command.CombinedOutput()
		if err != nil || strings.Contains(strings.ToLower(string(out)), "warning") {
			t.Errorf("kubectl %v: %v\n%s", args, err, out)
		}
	}
}

func TestTargetRightsFollowTheBindings(t *testing.T) {
	t.Parallel()
	bindings := []agentpool.RoleBinding{
		{Namespace: "shop", Kind: "Role", Name: "b"},
		{Namespace: "shop", Kind: "Role", Name: "a"},
		{Namespace: "shop", Kind: "Role", Name: "a"},
		{Namespace: "web", Kind: "ClusterRole", Name: "edit"},
	}
	show := func(rights []cluster.Right) (lines []string) {
		for _, right := range rights[1:] {
			lines = append(lines, fmt.Sprint(right.Resource, right.Names, right.Verbs))
		}
		return lines
	}
	for _, c := range []struct {
		namespace string
		bind      bool
		want      []string
	}{
		{"shop", true, []string{"roles[a b] [get bind]"}},
		{"shop", false, []string{"roles[a b] [get]"}},
		{"web", true, []string{"clusterroles[edit] [bind]"}},
		{"web", false, nil},
	} {
		if diff := cmp.Diff(c.want, show(cluster.TargetRights(c.namespace, bindings, c.bind))); diff != "" {
			t.Errorf("%s, bind %t:\n%s", c.namespace, c.bind, diff)
		}
	}
}

// TestRightsAreDocumented keeps the tables of docs/rbac.md equal to the code.
func TestRightsAreDocumented(t *testing.T) {
	t.Parallel()
	agents, target := defaultRights()
	file := filepath.Join("..", "..", "docs", "rbac.md")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got := string(text)
	for name, rights := range map[string][]cluster.Right{"agents": agents, "target": target} {
		begin, end := "<!-- rights: "+name+" -->\n", "<!-- end -->"
		before, rest, found := strings.Cut(got, begin)
		_, after, closed := strings.Cut(rest, end)
		if !found || !closed {
			t.Fatalf("%s has no table between %q and %q", file, begin, end)
		}
		var table strings.Builder
		table.WriteString("\n| resource | verbs | why |\n| --- | --- | --- |\n")
		for _, right := range rights {
			resource := right.Resource
			if right.Group != "" {
				resource += "." + right.Group
			}
			if len(right.Names) > 0 {
				resource += ", only `" + strings.Join(right.Names, "`, `") + "`"
			}
			fmt.Fprintf(&table, "| %s | %s | %s |\n", resource, strings.Join(right.Verbs, ", "), right.Why)
		}
		got = before + begin + table.String() + "\n" + end + after
	}
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil { //nolint:gosec // A file of the repository.
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(got, string(text)); diff != "" {
		t.Errorf("%s differs from the code (run with -update if that is meant):\n%s", file, diff)
	}
}
