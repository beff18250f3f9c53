package structure

import (
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// maxLines is the length at which a file wants to be two.
const maxLines = 500

// Calls that a rule forbids, by import path.
var (
	environmentCalls = map[string][]string{
		"os":      {"Getenv", "LookupEnv", "Environ", "ExpandEnv"},
		"syscall": {"Getenv", "Environ"},
	}
	exitCalls = map[string][]string{
		"os":  {"Exit"},
		"log": {"Fatal", "Fatalf", "Fatalln"},
	}
	clockCalls = map[string][]string{
		"time": {"Now", "Since", "Until", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick", "Sleep"},
	}
	errorCalls = map[string][]string{
		"fmt": {"Errorf", "Print", "Printf", "Println", "Fprint", "Fprintf", "Fprintln"},
	}
)

// uses are the places where f names one of the listed functions, called or not.
func (f file) uses(listed map[string][]string) []string {
	imports := f.imports()
	var found []string
	ast.Inspect(f.syntax, func(node ast.Node) bool {
		selector, ok := node.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		name, ok := selector.X.(*ast.Ident)
		if !ok {
			return true
		}
		if slices.Contains(listed[imports[name.Name]], selector.Sel.Name) {
			found = append(found, f.at(selector.Pos(), name.Name+"."+selector.Sel.Name))
		}
		return true
	})
	return found
}

// identifiers are the places where f names something plain, such as the type error.
func (f file) identifiers(name string) []string {
	var found []string
	ast.Inspect(f.syntax, func(node ast.Node) bool {
		if identifier, ok := node.(*ast.Ident); ok && identifier.Name == name {
			found = append(found, f.at(identifier.Pos(), name))
		}
		return true
	})
	return found
}

func (f file) at(position token.Pos, what string) string {
	return fmt.Sprintf("%s:%d: %s", f.path, f.fset.Position(position).Line, what)
}

// placeViolations are calls in places where they do not belong: the environment and the end of the process are for
// commands; a pure package neither looks at a clock nor waits; the plan has no error to return.
func placeViolations(m module) []string {
	const environment = "is read in cmd only: pass the setting in"
	var violations []string
	add := func(found []string, why string) {
		for _, place := range found {
			violations = append(violations, place+" "+why)
		}
	}
	for _, f := range m.files {
		if f.test || !inside(f.dir, "pkg") {
			continue
		}
		add(f.uses(environmentCalls), environment)
		add(f.uses(exitCalls), "ends the process: return an error and let main decide")
		for _, target := range f.imports() {
			if inside(target, "github.com/kelseyhightower/envconfig") {
				violations = append(violations, fmt.Sprintf("%s: imports %s: the environment %s", f.path, target, environment))
			}
		}
		if slices.ContainsFunc([]string{"pkg/plan", "pkg/agentjob", "pkg/agentpool"}, func(pure string) bool { return inside(f.dir, pure) }) {
			add(f.uses(clockCalls), "needs a clock: take the time as an argument")
		}
		if inside(f.dir, "pkg/plan") {
			add(f.uses(errorCalls), "makes an error or prints: a plan does neither")
			add(f.identifiers("error"), "has no place here: whatever the snapshot, there is a plan")
		}
	}
	return violations
}

// shapeViolations are packages that do not say what they are for or are named after nothing, and files too long.
func shapeViolations(m module) []string {
	type pkg struct {
		name       string
		documented bool
		complaint  string
	}
	packages := make(map[string]*pkg)
	var violations []string
	for _, f := range m.files {
		if f.lines > maxLines && !f.generated {
			violations = append(violations, fmt.Sprintf("%s: %d lines, more than %d: make two of it", f.path, f.lines, maxLines))
		}
		name := strings.TrimSuffix(f.syntax.Name.Name, "_test")
		p := packages[f.dir]
		if p == nil {
			p = &pkg{name: name}
			packages[f.dir] = p
		}
		if f.syntax.Doc == nil {
			continue
		}
		p.documented = true
		if want := "Package " + name + " "; name != "main" && !f.test && !strings.HasPrefix(f.syntax.Doc.Text(), want) {
			p.complaint = fmt.Sprintf("%s: the package's comment begins with %q", f.path, want)
		}
	}
	nothing := []string{"util", "utils", "common", "helper", "helpers", "misc", "shared", "lib"}
	for dir, p := range packages {
		switch {
		case slices.Contains(nothing, p.name), slices.Contains(nothing, path.Base(dir)):
			violations = append(violations, fmt.Sprintf("%s: a package is named after what it provides, not %q", dir, p.name))
		case !p.documented:
			violations = append(violations, dir+": the package has no comment that says what it is for")
		case p.complaint != "":
			violations = append(violations, p.complaint)
		}
	}
	slices.Sort(violations)
	return violations
}

func TestPlaces(t *testing.T) {
	t.Parallel()
	report(t, placeViolations(source(t)))
}

func TestShapes(t *testing.T) {
	t.Parallel()
	report(t, shapeViolations(source(t)))
}

func TestPlaceViolations(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, path, source string
		want               []string
	}{
		{name: "environment in a command", path: "cmd/scaler/main.go", source: `package main; import "os"; var _ = os.Getenv("A")`},
		{
			name: "environment under another name", path: "pkg/app/a.go", source: `package app; import system "os"; var _ = system.Getenv("A")`,
			want: []string{"pkg/app/a.go:1: system.Getenv is read in cmd only: pass the setting in"},
		},
		{name: "a field of that name", path: "pkg/app/a.go", source: `package app; func f(os struct{ Getenv int }) int { return os.Getenv }`},
		{
			name: "envconfig", path: "pkg/app/a.go", source: `package app; import _ "github.com/kelseyhightower/envconfig"`,
			want: []string{"pkg/app/a.go: imports github.com/kelseyhightower/envconfig: the environment is read in cmd only: pass the setting in"},
		},
		{
			name: "exit", path: "pkg/agent/a.go", source: `package agent; import "os"; func f() { os.Exit(1) }`,
			want: []string{"pkg/agent/a.go:1: os.Exit ends the process: return an error and let main decide"},
		},
		{
			name: "clock passed as a value", path: "pkg/agentjob/a.go", source: `package agentjob; import "time"; var clock = time.Now`,
			want: []string{"pkg/agentjob/a.go:1: time.Now needs a clock: take the time as an argument"},
		},
		{name: "durations are no clock", path: "pkg/plan/a.go", source: `package plan; import "time"; const limit = time.Minute`},
		{name: "elsewhere a clock is fine", path: "pkg/cluster/a.go", source: `package cluster; import "time"; var now = time.Now`},
		{
			name: "an error in the plan", path: "pkg/plan/a.go", source: `package plan; func f() error { return nil }`,
			want: []string{"pkg/plan/a.go:1: error has no place here: whatever the snapshot, there is a plan"},
		},
		{name: "a test of the plan may", path: "pkg/plan/a_test.go", source: `package plan; import "time"; func f() (time.Time, error) { return time.Now(), nil }`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, placeViolations(sample(t, tt.path, tt.source))); diff != "" {
				t.Errorf("violations (-want +got):\n%s", diff)
			}
		})
	}
}

func TestShapeViolations(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("\n", maxLines) // One more comes with the comment above the package clause.
	tests := []struct {
		name, path, source string
		want               []string
	}{
		{name: "documented", path: "pkg/plan/doc.go", source: "// Package plan plans.\npackage plan"},
		{name: "a command", path: "cmd/scaler/main.go", source: "// Scaler scales.\npackage main"},
		{
			name: "undocumented", path: "pkg/plan/a.go", source: "package plan",
			want: []string{"pkg/plan: the package has no comment that says what it is for"},
		},
		{
			name: "another package's comment", path: "pkg/plan/a.go", source: "// Package agentjob builds.\npackage plan",
			want: []string{`pkg/plan/a.go: the package's comment begins with "Package plan "`},
		},
		{
			name: "named after nothing", path: "pkg/util/a.go", source: "// Package util helps.\npackage util",
			want: []string{`pkg/util: a package is named after what it provides, not "util"`},
		},
		{
			name: "too long", path: "pkg/plan/a.go", source: "// Package plan plans.\npackage plan" + long,
			want: []string{"pkg/plan/a.go: 501 lines, more than 500: make two of it"},
		},
		{
			name: "too long, generated", path: "pkg/plan/a.go",
			source: "// Code generated by hand. DO NOT EDIT.\n\n// Package plan plans.\npackage plan" + long,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, shapeViolations(sample(t, tt.path, tt.source))); diff != "" {
				t.Errorf("violations (-want +got):\n%s", diff)
			}
		})
	}
}
