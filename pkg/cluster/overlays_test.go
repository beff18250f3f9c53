package cluster_test

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// overlay is what an overlay comes to, as far as its parts have to agree.
type overlay struct {
	accounts   []string // As namespace/name.
	settings   map[string]string
	bindings   []rbacv1.RoleBinding
	roles      []rbacv1.Role
	deployment appsv1.Deployment
}

func render(t *testing.T, directory string) overlay {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), shared.Binaries().Kubectl(), "kustomize", directory).Output()
	if err != nil {
		t.Fatalf("kubectl kustomize %s: %v", directory, err)
	}
	var o overlay
	for document := range strings.SplitSeq(string(out), "\n---\n") {
		var object metav1.PartialObjectMetadata
		if err := yaml.Unmarshal([]byte(document), &object); err != nil {
			t.Fatal(err)
		}
		var into any
		switch object.Kind {
		case "ServiceAccount":
			o.accounts = append(o.accounts, object.Namespace+"/"+object.Name)
		case "ConfigMap":
			into = &corev1.ConfigMap{}
		case "Role":
			o.roles = append(o.roles, rbacv1.Role{})
			into = &o.roles[len(o.roles)-1]
		case "RoleBinding":
			o.bindings = append(o.bindings, rbacv1.RoleBinding{})
			into = &o.bindings[len(o.bindings)-1]
		case "Deployment":
			into = &o.deployment
		}
		if into == nil {
			continue
		}
		if err := yaml.UnmarshalStrict([]byte(document), into); err != nil {
			t.Fatal(err)
		}
		if config, ok := into.(*corev1.ConfigMap); ok {
			o.settings = config.Data
		}
	}
	return o
}

// TestOverlaysHangTogether: who gets the rights is who runs, the settings name the namespaces
// that the rights are in, and builds deploy neither where the scaler nor where agents are.
func TestOverlaysHangTogether(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("needs kubectl")
	}
	for _, name := range []string{"apart", "single-namespace", "workload-identity"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := render(t, filepath.Join("..", "..", "deploy", "kustomize", "overlays", name))
			home := o.deployment.Namespace
			if account := home + "/" + o.deployment.Spec.Template.Spec.ServiceAccountName; !slices.Equal(o.accounts, []string{account}) {
				t.Errorf("accounts %v, but the scaler runs as %s", o.accounts, account)
			}
			agents := o.settings["AZP_NAMESPACE"]
			target, _, _ := strings.Cut(o.settings["AZP_ROLE_BINDINGS"], " ")
			if target == home || target == agents || (agents == home) != (name == "single-namespace") {
				t.Errorf("scaler in %q, agents in %q, builds deploy to %q", home, agents, target)
			}
			if _, err := agentpool.ParseRoleBinding(o.settings["AZP_ROLE_BINDINGS"]); err != nil {
				t.Error(err)
			}
			var where []string
			for _, binding := range o.bindings {
				where = append(where, binding.Namespace)
				if s := binding.Subjects[0]; len(binding.Subjects) != 1 || s.Namespace+"/"+s.Name != o.accounts[0] {
					t.Errorf("RoleBinding %s/%s is for %+v, want %s", binding.Namespace, binding.Name, binding.Subjects, o.accounts[0])
				}
				if !slices.ContainsFunc(o.roles, func(role rbacv1.Role) bool {
					return role.Namespace == binding.Namespace && role.Name == binding.RoleRef.Name
				}) {
					t.Errorf("RoleBinding %s/%s is to a Role that is not there: %s", binding.Namespace, binding.Name, binding.RoleRef.Name)
				}
			}
			if !slices.Contains(where, agents) || !slices.Contains(where, target) {
				t.Errorf("rights in %v, want them in %s and %s", where, agents, target)
			}
		})
	}
}
