package main

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/azp-scaler/azp-scaler/test/audit"
	"github.com/azp-scaler/azp-scaler/test/cluster"
)

func TestParse(t *testing.T) {
	t.Parallel()
	from := func(values map[string]string) func(string) string {
		return func(name string) string { return values[name] }
	}
	got, err := parse(from(map[string]string{"DEMO_BUILDS": "7", "DEMO_SEED": "42", "DEMO_KEEP": "1", "DEMO_NODE": "simulated", "DEMO_OUT": "/tmp/x"}))
	if want := (settings{builds: 7, seed: 42, keep: true, node: cluster.Simulated, out: "/tmp/x"}); err != nil || got != want {
		t.Errorf("settings are %+v (%v), want %+v", got, err, want)
	}
	plain, err := parse(from(nil))
	if err != nil || plain.builds != 20 || plain.keep || plain.out != "out" || plain.node != cluster.Auto || plain.seed == 0 {
		t.Errorf("the defaults are %+v (%v)", plain, err)
	}
	_, err = parse(from(map[string]string{"DEMO_BUILDS": "0", "DEMO_SEED": "-1", "DEMO_KEEP": "yes", "DEMO_NODE": "moon"}))
	for _, name := range []string{"DEMO_BUILDS", "DEMO_SEED", "DEMO_KEEP", "DEMO_NODE"} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("the error does not name %s: %v", name, err)
		}
	}
	for _, builds := range []string{"501", "many", "-3"} {
		if _, err := parse(from(map[string]string{"DEMO_BUILDS": builds})); err == nil || !strings.Contains(err.Error(), "500") {
			t.Errorf("DEMO_BUILDS=%s gives %v", builds, err)
		}
	}
}

// TestWriteResult holds the fields of the result, which others read.
func TestWriteResult(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "demo.json")
	report := audit.Report{Builds: 5, Succeeded: 2, Failed: 1, Canceled: 2, JobsCreated: 4, Duplicates: 1, Lost: 3, Leaked: map[string]int{"jobs": 2}, QueueToJob: audit.Quantiles{P50: 0.5, P99: 1.5}}
	classes := map[string]ClassResult{"java": {Builds: 3, JobsCreated: 4, BuildsRun: 2}}
	if err := writeResult(path, report, classes, "real"); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(data, &fields); err != nil {
		t.Fatal(err)
	}
	want := []string{"builds", "canceled", "classes", "duplicates", "failed", "jobs_created", "leaked", "lost", "node", "queue_to_agent_seconds", "queue_to_job_seconds", "succeeded"}
	if got := slices.Sorted(maps.Keys(fields)); !slices.Equal(got, want) {
		t.Errorf("fields are %v, want %v", got, want)
	}
	for name, value := range map[string]float64{"builds": 5, "succeeded": 2, "failed": 1, "canceled": 2, "jobs_created": 4, "duplicates": 1, "lost": 3} {
		if fields[name] != value {
			t.Errorf("%s is %v, want %v", name, fields[name], value)
		}
	}
	if waits, ok := fields["queue_to_job_seconds"].(map[string]any); !ok || waits["p50"] != 0.5 || waits["p99"] != 1.5 {
		t.Errorf("queue_to_job_seconds is %v", fields["queue_to_job_seconds"])
	}
	if leaked, ok := fields["leaked"].(map[string]any); !ok || leaked["jobs"] != 2.0 || fields["node"] != "real" {
		t.Errorf("leaked is %v on node %v", fields["leaked"], fields["node"])
	}
	if diff := cmp.Diff(map[string]any{"java": map[string]any{"builds": 3.0, "jobs_created": 4.0, "builds_run": 2.0}}, fields["classes"]); diff != "" {
		t.Errorf("classes: %s", diff)
	}
	if err := writeResult(filepath.Join(path, "below"), report, classes, "real"); err == nil {
		t.Error("a result that can't be written is no error")
	}
}

func TestSummarise(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		report audit.Report
		want   string
	}{
		"well":   {audit.Report{Builds: 1, Succeeded: 1}, "All is well after 1m0s: 0 duplicates, 0 lost, 0 leaked."},
		"unwell": {audit.Report{Builds: 1, Lost: 1, Findings: []audit.Finding{{Verdict: audit.VerdictLost, Text: "request 5"}}}, "NOT WELL after 1m0s: 0 duplicates, 1 lost, 0 leaked."},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			tell := &printer{out: &out}
			summarise(tell, test.report, nil, "out/demo.json", 60e9)
			if tell.err != nil || !strings.Contains(out.String(), test.want) {
				t.Errorf("the summary is (%v)\n%s", tell.err, out.String())
			}
			for _, finding := range test.report.Findings {
				if !strings.Contains(out.String(), "  lost: "+finding.Text) {
					t.Errorf("the summary does not show %q:\n%s", finding.Text, out.String())
				}
			}
		})
	}
}
