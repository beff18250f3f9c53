package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// wants is a queued build whose demands call for a class.
func wants(request int64, class string) env.Queued {
	return env.Queued{Build: env.Build{Name: "for-" + class, Class: class}, RequestID: request}
}

func TestByClass(t *testing.T) {
	t.Parallel()
	queued := []env.Queued{wants(1, "general"), wants(2, "general"), wants(3, "heavy"), wants(4, "java")}
	jobs := map[string]madeJob{"a-1": {"general", 1}, "a-2": {"general", 2}, "a-3": {"heavy", 3}, "a-3-again": {"heavy", 3}}
	builds := []azuredevopstest.BuildStatus{
		{RequestID: 1, AgentName: "a-1", Received: moment(1)},
		{RequestID: 2, AgentName: "a-3", Received: moment(1)},
		{RequestID: 3, AgentName: "a-3-again", Received: moment(1)},
		{RequestID: 4}, // Cancelled before any agent.
	}
	results, elsewhere := byClass(queued, builds, jobs)
	want := map[string]ClassResult{
		"general": {Builds: 2, JobsCreated: 2, BuildsRun: 1}, "java": {Builds: 1}, "heavy": {Builds: 1, JobsCreated: 2, BuildsRun: 2},
	}
	if diff := cmp.Diff(want, results); diff != "" || elsewhere != 1 {
		t.Errorf("%d builds ran on another class's agent, want 1; %s", elsewhere, diff)
	}
	lines := classLines(results, elsewhere)
	if got := strings.Fields(lines[3]); !cmp.Equal(got, []string{"heavy", "1", "2", "2"}) {
		t.Errorf("the last class's line is %q", lines[3])
	}
	if len(lines) != 6 || !strings.Contains(lines[4], "Of the builds 1 ran") {
		t.Errorf("the lines do not tell of the build that ran elsewhere:\n%s", strings.Join(lines, "\n"))
	}
	if lines := classLines(results, 0); len(lines) != 4 {
		t.Errorf("where no build ran elsewhere:\n%s", strings.Join(lines, "\n"))
	}
	// An agent may have been given a build that was cancelled before it came.
	builds[3].AgentName = "a-2"
	if _, elsewhere := byClass(queued, builds, jobs); elsewhere != 1 {
		t.Errorf("%d builds ran on another class's agent, want 1: one never ran", elsewhere)
	}
}

func TestWrongClass(t *testing.T) {
	t.Parallel()
	queued := []env.Queued{wants(1, "java"), wants(2, "heavy")}
	right := map[string]madeJob{"a-1": {"java", 1}, "a-2": {"heavy", 2}, "a-2-again": {"heavy", 2}, "a-9": {"general", 9}}
	if err := wrongClass(queued, right); err != nil {
		t.Errorf("all are right, and yet: %v", err)
	}
	right["a-1-again"] = madeJob{"heavy", 1}
	if err := wrongClass(queued, right); err == nil || !strings.Contains(err.Error(), "a-1-again") || strings.Contains(err.Error(), "a-2") {
		t.Errorf("one of another class gives %v", err)
	}
}

// TestClassesOverlap checks that each class offers all that the one before does, and
// that its demands are for what it alone adds.
func TestClassesOverlap(t *testing.T) {
	t.Parallel()
	before := env.Class{}
	for i, class := range classes() {
		for name, value := range before.Variables {
			if class.Variables[name] != value {
				t.Errorf("class %s does not offer %s=%s of class %s", class.Name, name, value, before.Name)
			}
		}
		for _, demand := range class.Demands {
			name, _, _ := strings.Cut(demand, " ")
			if _, offered := class.Variables[name]; !offered {
				t.Errorf("class %s does not offer what its builds demand: %s", class.Name, demand)
			}
			if _, common := before.Variables[name]; common {
				t.Errorf("class %s offers what the builds of class %s demand: %s", before.Name, class.Name, demand)
			}
		}
		if len(class.Demands) == 0 && i > 0 {
			t.Errorf("no build demands class %s", class.Name)
		}
		if line := describe(class); len(line) > 80 || !strings.Contains(line, class.Name) {
			t.Errorf("class %s is described by %q", class.Name, line)
		}
		before = class
	}
}

func TestLedger(t *testing.T) {
	t.Parallel()
	l := &ledger{jobs: map[string]madeJob{}}
	job := func(name, request string) *batchv1.Job {
		return &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			"azp-scaler.github.io/class": "java", "azp-scaler.github.io/request-id": request,
		}}}
	}
	l.add(job("a-1", "7"))
	l.add(job("warm", ""))
	l.add("no Job")
	if diff := cmp.Diff(map[string]madeJob{"a-1": {"java", 7}, "warm": {"java", 0}}, l.made(), cmp.AllowUnexported(madeJob{})); diff != "" {
		t.Error(diff)
	}
}
