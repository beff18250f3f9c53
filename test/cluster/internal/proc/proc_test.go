package proc

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestIdentityEndsWithTheProcess(t *testing.T) {
	// A name with a bracket and spaces, as /proc shows it.
	name := t.TempDir() + "/odd) name"
	text, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, text, 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := Start("odd", exec.Command(name, "300"))
	if err != nil {
		t.Fatal(err)
	}
	if !p.ID().Alive() {
		t.Fatal("a running process is not alive")
	}
	if other := (ID{PID: p.ID().PID, Start: p.ID().Start + 1}); other.Alive() {
		t.Error("a process is alive under another's start time")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := p.Terminate(ctx); err != nil {
		t.Fatal(err)
	}
	if p.ID().Alive() || p.Err() == nil {
		t.Errorf("alive %v, error %v; want it ended by a signal", p.ID().Alive(), p.Err())
	}
	if err := p.Kill(ctx); err != nil {
		t.Errorf("killing what has ended: %v", err)
	}
}

func TestOneThatIgnoresTermIsWaitedForWithinTheLimit(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "trap '' TERM; echo; exec sleep 300")
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := Start("stubborn", cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Kill(context.Background()) }()
	// It writes once its trap is set.
	if _, err := output.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.Terminate(ctx); err == nil || !strings.Contains(err.Error(), "stubborn") {
		t.Errorf("error %v, want one that names the process that does not end", err)
	}
}

func TestMissingProgramIsNamed(t *testing.T) {
	if _, err := Start("absent", exec.Command("/nonexistent/program")); err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("error %v, want one that names the process", err)
	}
}

func TestUnknownProcessHasNoIdentity(t *testing.T) {
	if _, err := Identify(1 << 30); err == nil {
		t.Error("a process that cannot be has an identity")
	}
}
