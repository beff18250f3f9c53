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
	"time"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/azp-scaler/azp-scaler/pkg/agentclass"
	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
)

var update = flag.Bool("update", false, "write the tables of docs/rbac.md anew")

// tokenManifest has what the scaler may do besides where it keeps the agents' token.
const tokenManifest = "agent-token/rbac-agent-token.yaml"

func defaultRights() (agents, target []cluster.Right) {
	return slices.Concat(cluster.AgentsRights("azp-token", "azp-ca"), cluster.JITRights(), cluster.StandingAccountRights(), cluster.ElectionRights()),
		cluster.TargetRights("azp-target", []agentpool.RoleBinding{{Namespace: "azp-target", Kind: "ClusterRole", Name: "edit"}}, true)
}

// TestManifestsGiveExactlyTheRightsNeeded: the manifests, the preflight check and
// the documented tables are one list.
func TestManifestsGiveExactlyTheRightsNeeded(t *testing.T) {
	t.Parallel()
	agents, target := defaultRights()
	for file, rights := range map[string][]cluster.Right{
		"base/agents/rbac-agents.yaml": agents, "base/target/rbac-target.yaml": target,
		tokenManifest: cluster.TokenRights("azp-token"),
	} {
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
	restricted := map[string]string{"pod-security.kubernetes.io/warn": "restricted", "pod-security.kubernetes.io/enforce": "restricted"}
	for name, labels := range map[string]map[string]string{"azp-target": nil, "azp": restricted} {
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
		if _, err := e.admin.CoreV1().Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	manifests := filepath.Join("..", "..", "deploy", "kustomize")
	for _, args := range [][]string{
		{"apply", "-f", filepath.Join(manifests, "namespaces.yaml")},
		{"apply", "-k", filepath.Join(manifests, "base"), "--dry-run=server", "--validate=strict"},
		{"apply", "-k", filepath.Join(manifests, "overlays", "apart"), "--dry-run=server", "--validate=strict"},
		{"apply", "-k", filepath.Join(manifests, "overlays", "single-namespace"), "--dry-run=server", "--validate=strict"},
		{"apply", "-k", filepath.Join(manifests, "overlays", "workload-identity"), "--dry-run=server", "--validate=strict"},
		{"apply", "-k", filepath.Join(manifests, "policy"), "--dry-run=server", "--validate=strict"},
		{"apply", "-k", filepath.Join(manifests, "agent-token"), "--dry-run=server", "--validate=strict"},
		{"apply", "-k", filepath.Join(manifests, "classes"), "--dry-run=server", "--validate=strict"},
		{"apply", "-f", filepath.Join(manifests, "azure", "token", "identity", "namespace.yaml")},
		{"apply", "-k", filepath.Join(manifests, "azure", "token"), "--dry-run=server", "--validate=strict"},
		{"apply", "-k", filepath.Join(manifests, "azure", "account"), "--dry-run=server", "--validate=strict"},
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

// exampleClasses are those that users start from, in a namespace.
func exampleClasses(t *testing.T, namespace string) []agentclass.Class {
	t.Helper()
	files := must(filepath.Glob(filepath.Join("..", "..", "deploy", "kustomize", "classes", "*.yaml")))(t)
	var classes []agentclass.Class
	for _, file := range files {
		if filepath.Base(file) == "kustomization.yaml" {
			continue
		}
		var cronJob batchv1.CronJob
		if err := yaml.UnmarshalStrict(must(os.ReadFile(file))(t), &cronJob); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		cronJob.Namespace = namespace
		class, err := agentclass.Parse(&cronJob, agentclass.Defaults{Architecture: "X64", AgentRoot: agentjob.DefaultAgentRoot, GracePeriod: agentjob.DefaultGracePeriod})
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if _, marked := cronJob.Labels[agentclass.Label]; !marked {
			t.Errorf("%s lacks the label %s", file, agentclass.Label)
		}
		classes = append(classes, class)
	}
	return classes
}

// TestExampleClassesSayWhatTheyOffer: one for every build, one for those with
// demands, and neither takes the other's.
func TestExampleClassesSayWhatTheyOffer(t *testing.T) {
	t.Parallel()
	classes := exampleClasses(t, "azp-agents")
	if len(classes) != 2 || classes[0].Name != "general" || classes[1].Name != "java" {
		t.Fatalf("classes %+v", classes)
	}
	general, java := classes[0], classes[1]
	for _, c := range []struct {
		demand string
		of     agentclass.Class
		want   bool
	}{
		{"Agent.OS -equals Linux", general, true},
		{"maven", general, false},
		{"Agent.OS -equals Linux", java, true},
		{"java", java, true},
		{"maven", java, true},
		{"MAVEN_OPTS", java, true},
		{"Agent.OSArchitecture -equals X64", java, true},
		{"npm", java, false},
	} {
		demand, err := agentpool.ParseDemand(c.demand)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.of.Capabilities.Satisfies(demand); got != c.want {
			t.Errorf("class %s satisfies %q: %t", c.of.Name, c.demand, got)
		}
	}
	if java.MaxAgents != 20 || java.MinIdle != 1 || java.Priority >= general.Priority || java.GracePeriod != 2*time.Hour {
		t.Errorf("class java: %+v", java.AgentClass)
	}
}

// TestExampleClassesCanBeServed with nothing but the base manifests applied: their
// Jobs can be made, and their pods keep to the restricted profile.
func TestExampleClassesCanBeServed(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	for _, class := range exampleClasses(t, e.agents) {
		for i := range class.RoleBindings {
			if class.RoleBindings[i].Namespace != "azp-target" {
				t.Errorf("class %s deploys into %q, not where base does", class.Name, class.RoleBindings[i].Namespace)
			}
			class.RoleBindings[i].Namespace = e.target
		}
		sample, err := agentjob.Build(e.settings, class.AgentClass, class.Template, agentpool.JobRequest{ID: 1, PoolID: 7}, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if problems := e.preflight(installation(), sample); len(problems) > 0 {
			t.Errorf("class %s: %v", class.Name, problems)
		}
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: sample.Name}, Spec: sample.Spec.Template.Spec}
		pod.Spec.ServiceAccountName = "default"             // The build's own is not made.
		e.await("a pod of class "+class.Name, func() bool { // The account is made by a controller.
			_, err = e.admin.CoreV1().Pods(e.agents).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			return err == nil
		}, func() any { return err })
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
	for name, rights := range map[string][]cluster.Right{"agents": agents, "target": target, "token": cluster.TokenRights("azp-token")} {
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
