package process_test

import (
	"bufio"
	"context"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/test/e2e/process"
)

// script starts a shell and waits until it has said that it is ready.
func script(t *testing.T, text string) *process.Process {
	t.Helper()
	command := exec.Command("/bin/sh", "-c", text)
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := process.Start(command)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Kill() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil && err != io.EOF || strings.TrimSpace(line) != "ready" {
		t.Fatalf("the child says %q (%v)", line, err)
	}
	return p
}

func TestProcessStop(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		text  string
		limit time.Duration
		want  string
		code  int
	}{
		"obeys":   {text: "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done", limit: time.Minute},
		"fails":   {text: "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done", limit: time.Minute, want: "exit status 7", code: 7},
		"ignores": {text: "trap '' TERM; echo ready; while :; do sleep 0.05; done", limit: 200 * time.Millisecond, want: "was killed", code: 137},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := script(t, test.text)
			if !p.Running() || p.ExitCode() != -1 || p.Err() != nil {
				t.Fatal("the child is not running")
			}
			err := p.Stop(t.Context(), test.limit)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("stop gives %v, want %q", err, test.want)
			}
			if p.Running() {
				t.Error("the child still runs")
			}
			if code := p.ExitCode(); code != test.code {
				t.Errorf("the exit status is %d, want %d", code, test.code)
			}
			if err := p.Stop(context.Background(), time.Second); test.want == "" && err != nil {
				t.Errorf("stopping it again gives %v", err)
			}
		})
	}
}

func TestProcessKill(t *testing.T) {
	t.Parallel()
	p := script(t, "trap '' TERM INT; echo ready; while :; do sleep 0.05; done")
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if p.Running() {
		t.Error("the child still runs")
	}
	if code := p.ExitCode(); code != 137 || p.Err() == nil {
		t.Errorf("a killed child has exit status %d (%v), want 137", code, p.Err())
	}
}

func TestProcessThatCannotStart(t *testing.T) {
	t.Parallel()
	if _, err := process.Start(exec.Command("/nonexistent/program")); err == nil || !strings.Contains(err.Error(), "/nonexistent/program") {
		t.Errorf("the error is %v", err)
	}
}
