package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// mostCommands is what README may ask of somebody who installs.
const mostCommands = 5

// TestREADMEInstalls types what README says about installing with Helm into a shell, and has the
// first build run. Only in the values there is what differs here: the service, its authority, the
// pool and the images. It says how long all of it took.
func TestREADMEInstalls(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n### With Helm\n")
	section, _, _ = strings.Cut(section, "\n### ")
	if !found {
		t.Fatal("README has no section With Helm")
	}
	commands := fenced(t, section, "sh")
	if n := len(strings.Split(strings.TrimSpace(commands), "\n")); n > mostCommands {
		t.Errorf("README asks for %d commands, want %d at most:\n%s", n, mostCommands, commands)
	}
	var values map[string]any
	if err := yaml.UnmarshalStrict([]byte(fenced(t, section, "yaml")), &values); err != nil {
		t.Fatalf("the values in README: %v", err)
	}
	s := newChartStage(t, byScaler, env.Chart{Commands: commands, Values: values})
	s.finish(t, s.queue(t, env.Build{Name: "first"})...)
	t.Logf("from the first command of README to the end of the first build: %v", time.Since(s.Begun()).Round(time.Second))
	s.judgeChart(t)
}

// fenced gives the only block of a language.
func fenced(t *testing.T, text, language string) string {
	t.Helper()
	_, block, found := strings.Cut(text, "\n```"+language+"\n")
	block, rest, closed := strings.Cut(block, "\n```")
	if !found || !closed || strings.Contains(rest, "\n```"+language+"\n") {
		t.Fatalf("README has not exactly one block of %s about it:\n%s", language, text)
	}
	return block
}
