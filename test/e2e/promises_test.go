package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// wantInvariants fails if a metric that is 0 as long as all is well is not, or is not there.
func wantInvariants(ctx context.Context, t *testing.T, e *env.Env) {
	t.Helper()
	_, body := get(ctx, e.Scaler.URL()+"/metrics")
	for _, line := range []string{
		`azp_scaler_leaked{pool="kubernetes"} 0`, `azp_scaler_duplicates{class="default",pool="kubernetes"} 0`, `azp_scaler_surplus{class="default",pool="kubernetes"} 0`,
	} {
		name, _, _ := strings.Cut(line, "{")
		if grep(body, line) == "" {
			t.Errorf("the scaler shows %q, want %s", grep(body, name), line)
		}
	}
}

// buildLine is the scaler's line about a build that has ended.
type buildLine struct {
	Message  string    `json:"msg"`
	Request  int64     `json:"request"`
	Pipeline string    `json:"pipeline"`
	Pool     string    `json:"pool"`
	Class    string    `json:"class"`
	Job      string    `json:"job"`
	Agent    string    `json:"agent"`
	Result   string    `json:"result"`
	Queued   time.Time `json:"queued_at"`
	Started  time.Time `json:"started_at"`
	Finished time.Time `json:"finished_at"`
	Wait     float64   `json:"wait_seconds"`
}

// wantOneLineEach fails unless the scaler's log has one line for each build that had an agent,
// with the facts of the service. One that was cancelled while it waited has one if a poll saw it.
func wantOneLineEach(ctx context.Context, t *testing.T, e *env.Env, queued []env.Queued) {
	t.Helper()
	var lines map[int64][]buildLine
	waitUntil(ctx, t, "each build has a line in the scaler's log", func() (string, bool) {
		lines = buildLines(t, e.ScalerLog)
		missing := 0
		for _, build := range queued {
			if status, err := e.Service.Build(build.RequestID); err != nil || status.AgentName != "" && len(lines[build.RequestID]) == 0 {
				missing++
			}
		}
		return fmt.Sprintf("%d of %d are missing", missing, len(queued)), missing == 0
	})
	for _, build := range queued {
		status, err := e.Service.Build(build.RequestID)
		if err != nil {
			t.Fatal(err)
		}
		told := lines[build.RequestID]
		if len(told) > 1 || len(told) == 0 && status.AgentName != "" {
			t.Errorf("build %s has %d lines: %+v", build.Name, len(told), told)
		}
		for _, line := range told {
			if line.Result != status.Result || line.Agent != status.AgentName || line.Pool != env.Pool || line.Queued.IsZero() || line.Pipeline == "" {
				t.Errorf("build %s has the line %+v, and the service says %+v", build.Name, line, status)
			}
			if status.AgentName != "" && (line.Class != env.DefaultClass || line.Job != status.AgentName || line.Wait <= 0 || !line.Finished.After(line.Started)) {
				t.Errorf("build %s, which had an agent, has the line %+v", build.Name, line)
			}
		}
	}
}

// buildLines reads the lines about builds from a log, by request.
func buildLines(t *testing.T, path string) map[int64][]buildLine {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := map[int64][]buildLine{}
	for row := range strings.Lines(string(text)) {
		var line buildLine
		if json.Unmarshal([]byte(row), &line) == nil && line.Message == "build ended" {
			lines[line.Request] = append(lines[line.Request], line)
		}
	}
	return lines
}
