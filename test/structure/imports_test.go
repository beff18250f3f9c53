package structure

import (
	"fmt"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

// rule says what the packages of one directory and below may import.
type rule struct {
	// dir is the directory the rule is for; of several that fit a package, the longest counts.
	dir string
	// may are the directories of this module whose packages may be imported, its own being understood.
	may []string
	// banned are import paths, with everything below them, that must not be imported.
	banned []string
	// standard allows the standard library only, besides may.
	standard bool
	// tests holds the rule for test files as well.
	tests bool
}

// Import paths that several rules ban.
var (
	kubernetes = []string{"k8s.io", "sigs.k8s.io"}
	impure     = []string{"context", "log", "log/slog", "math/rand", "math/rand/v2", "net/http", "os", "k8s.io/client-go", "github.com/prometheus"}
)

// rules is the layering: cmd → app → {scaler, cluster, azuredevops} → {plan, explain, agentclass, agentjob} → agentpool, and beside it the
// entrypoint, cmd → agent → azuredevops. What stands in for something or judges the product knows nothing of it.
var rules = []rule{
	{dir: "cmd/scaler", may: []string{"pkg/app", "pkg/scaler", "pkg/cluster", "pkg/azuredevops", "pkg/plan", "pkg/explain", "pkg/agentclass", "pkg/agentjob", "pkg/agentpool"}},
	{dir: "cmd/agent-entrypoint", may: []string{"pkg/agent", "pkg/azuredevops", "pkg/agentpool"}, banned: kubernetes},
	{dir: "pkg/app", may: []string{"pkg/scaler", "pkg/cluster", "pkg/azuredevops", "pkg/plan", "pkg/explain", "pkg/agentclass", "pkg/agentjob", "pkg/agentpool"}},
	{dir: "pkg/agent", may: []string{"pkg/azuredevops", "pkg/agentpool"}, banned: kubernetes},
	{dir: "pkg/scaler", may: []string{"pkg/plan", "pkg/agentjob", "pkg/agentpool"}},
	{dir: "pkg/cluster", may: []string{"pkg/plan", "pkg/agentclass", "pkg/agentjob", "pkg/agentpool"}},
	{dir: "pkg/azuredevops", may: []string{"pkg/agentpool"}, banned: kubernetes},
	{dir: "pkg/plan", may: []string{"pkg/agentpool"}, banned: append([]string{"errors"}, impure...), standard: true},
	{dir: "pkg/explain", may: []string{"pkg/plan", "pkg/agentpool"}, banned: impure, standard: true},
	{dir: "pkg/agentclass", may: []string{"pkg/agentjob", "pkg/agentpool"}, banned: impure},
	{dir: "pkg/agentjob", may: []string{"pkg/agentpool"}, banned: impure},
	{dir: "pkg/agentpool", banned: impure, standard: true},
	{dir: "pkg/azuredevops/azuredevopstest", tests: true},
	{dir: "test/audit", tests: true},
	{dir: "test/cluster", tests: true},
	{dir: "test/fakeagent"},
	{dir: "test", may: []string{"pkg", "test"}},
}

// ruleFor is the rule for the package in dir.
func ruleFor(rules []rule, dir string) (rule, bool) {
	var best rule
	for _, r := range rules {
		if inside(dir, r.dir) && len(r.dir) > len(best.dir) {
			best = r
		}
	}
	return best, best.dir != ""
}

// importViolations are the imports of m against rules. A package that no rule covers is one, too: whoever adds a
// package decides where it belongs.
func importViolations(m module, rules []rule) []string {
	var violations []string
	for _, f := range m.files {
		if f.dir == "." {
			violations = append(violations, f.path+": the root of the repository holds no package")
			continue
		}
		r, ok := ruleFor(rules, f.dir)
		if !ok {
			violations = append(violations, fmt.Sprintf("%s: no rule for package %s: add it to the layering in test/structure", f.path, f.dir))
			continue
		}
		if f.test && !r.tests {
			continue
		}
		for _, target := range f.imports() {
			if why := r.forbids(m.name, target, f.test); why != "" {
				violations = append(violations, fmt.Sprintf("%s: imports %s: %s", f.path, target, why))
			}
		}
	}
	return violations
}

// forbids says why a file under r must not import target, or nothing when it may.
func (r rule) forbids(module, target string, test bool) string {
	own, ours := strings.CutPrefix(target, module+"/")
	covers := func(dir string) bool { return inside(own, dir) }
	switch {
	case ours && !test && inside(r.dir, "pkg") && !inside(r.dir, "pkg/azuredevops/azuredevopstest") &&
		(inside(own, "pkg/azuredevops/azuredevopstest") || inside(own, "test")):
		return "test doubles stay out of the product"
	case ours && !inside(own, r.dir) && !slices.ContainsFunc(r.may, covers):
		return fmt.Sprintf("%s may import of this module only %q", r.dir, r.may)
	case ours:
		return ""
	case slices.ContainsFunc(r.banned, func(banned string) bool { return inside(target, banned) }):
		return r.dir + " must do without it"
	case r.standard && !test && strings.Contains(strings.Split(target, "/")[0], "."):
		return r.dir + " uses the standard library only"
	}
	return ""
}

func TestImports(t *testing.T) {
	t.Parallel()
	report(t, importViolations(source(t), rules))
}

func TestImportViolations(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, path, source string
		want               []string
	}{
		{name: "downwards", path: "pkg/app/a.go", source: `package app; import _ "example.org/m/pkg/plan"`},
		{name: "itself", path: "pkg/agentjob/sub/a.go", source: `package sub; import _ "example.org/m/pkg/agentjob"`},
		{
			name: "upwards", path: "pkg/plan/a.go", source: `package plan; import _ "example.org/m/pkg/cluster"`,
			want: []string{`pkg/plan/a.go: imports example.org/m/pkg/cluster: pkg/plan may import of this module only ["pkg/agentpool"]`},
		},
		{
			name: "sideways", path: "pkg/scaler/a.go", source: `package scaler; import c "example.org/m/pkg/cluster"`,
			want: []string{`pkg/scaler/a.go: imports example.org/m/pkg/cluster: pkg/scaler may import of this module only ["pkg/plan" "pkg/agentjob" "pkg/agentpool"]`},
		},
		{name: "a test file may", path: "pkg/scaler/a_test.go", source: `package scaler; import _ "example.org/m/pkg/cluster"`},
		{
			name: "a third party in the leaf", path: "pkg/agentpool/a.go", source: `package agentpool; import _ "github.com/google/uuid"`,
			want: []string{"pkg/agentpool/a.go: imports github.com/google/uuid: pkg/agentpool uses the standard library only"},
		},
		{
			name: "a context in the plan", path: "pkg/plan/a.go", source: `package plan; import _ "context"`,
			want: []string{"pkg/plan/a.go: imports context: pkg/plan must do without it"},
		},
		{
			name: "Kubernetes in the pod", path: "pkg/agent/a.go", source: `package agent; import _ "k8s.io/api/core/v1"`,
			want: []string{"pkg/agent/a.go: imports k8s.io/api/core/v1: pkg/agent must do without it"},
		},
		{
			name: "the fake in the product", path: "pkg/azuredevops/a.go", source: `package azuredevops; import _ "example.org/m/pkg/azuredevops/azuredevopstest"`,
			want: []string{"pkg/azuredevops/a.go: imports example.org/m/pkg/azuredevops/azuredevopstest: test doubles stay out of the product"},
		},
		{
			name: "the product in the fake", path: "pkg/azuredevops/azuredevopstest/a.go", source: `package azuredevopstest; import _ "example.org/m/pkg/azuredevops"`,
			want: []string{"pkg/azuredevops/azuredevopstest/a.go: imports example.org/m/pkg/azuredevops: pkg/azuredevops/azuredevopstest may import of this module only []"},
		},
		{
			name: "the product in the auditor's tests", path: "test/audit/a_test.go", source: `package audit; import _ "example.org/m/pkg/agentpool"`,
			want: []string{"test/audit/a_test.go: imports example.org/m/pkg/agentpool: test/audit may import of this module only []"},
		},
		{
			name: "a package nobody has placed", path: "pkg/extra/a.go", source: `package extra`,
			want: []string{"pkg/extra/a.go: no rule for package pkg/extra: add it to the layering in test/structure"},
		},
		{
			name: "the root", path: "a.go", source: `package m`,
			want: []string{"a.go: the root of the repository holds no package"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, importViolations(sample(t, tt.path, tt.source), rules)); diff != "" {
				t.Errorf("violations (-want +got):\n%s", diff)
			}
		})
	}
}

// sample is a module of one file.
func sample(t *testing.T, name, content string) module {
	t.Helper()
	m, err := load(fstest.MapFS{
		"go.mod": {Data: []byte("module example.org/m\n")},
		name:     {Data: []byte(content)},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(m.files) != 1 {
		t.Fatalf("parsed %d files of the sample, want 1", len(m.files))
	}
	return m
}

// The rule above sees direct imports; what counts for the image that builds run in is the whole tree.
func TestEntrypointLinksNoKubernetes(t *testing.T) {
	t.Parallel()
	command := exec.CommandContext(t.Context(), "go", "list", "-deps", "./cmd/agent-entrypoint")
	command.Dir = repository(t)
	var complaint strings.Builder
	command.Stderr = &complaint
	answer, err := command.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", command, err, complaint.String())
	}
	packages := strings.Fields(string(answer))
	if !slices.ContainsFunc(packages, func(p string) bool { return path.Base(p) == "agent-entrypoint" }) {
		t.Fatalf("%s does not list the command itself: %q", command, packages)
	}
	for _, p := range packages {
		if slices.ContainsFunc(kubernetes, func(banned string) bool { return inside(p, banned) }) {
			t.Errorf("the entrypoint links %s", p)
		}
	}
}
