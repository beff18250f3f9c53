package agent

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestParentIn(t *testing.T) {
	for stat, want := range map[string]int{
		"4711 (Agent.Worker) S 42 4711 4711 0 -1":   42,
		"4711 (a) R 7 (b)) T 43 4711 4711 0 -1":     43,
		"4711 (Agent.Worker) Z":                     0,
		"4711 (Agent.Worker) S none 4711 4711 0 -1": 0,
		"": 0,
	} {
		if got := parentIn(stat); got != want {
			t.Errorf("parentIn(%q) = %d, want %d", stat, got, want)
		}
	}
}

// TestFindWorker: neither another child of the listener is taken for its worker, nor another
// listener's worker.
func TestFindWorker(t *testing.T) {
	if worker := findWorker(os.Getpid()); worker != nil {
		t.Fatalf("process %d is taken for a worker", worker.Pid)
	}
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip("there is no program sleep to play the worker")
	}
	start := func(name string) *os.Process {
		t.Helper()
		command := exec.CommandContext(t.Context(), sleep, "1000")
		command.Args[0] = filepath.Join("/azp/agent/bin", name)
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = command.Wait() }) // Ended by the test's context.
		return command.Process
	}
	other := start("Agent.Plugin")
	if worker := findWorker(os.Getpid()); worker != nil {
		t.Errorf("process %d is taken for a worker, and is another child", worker.Pid)
	}
	if worker := findWorker(other.Pid); worker != nil {
		t.Errorf("process %d is taken for the worker of another", worker.Pid)
	}
	want := start(workerProgram)
	worker := findWorker(os.Getpid())
	if worker == nil || worker.Pid != want.Pid {
		t.Errorf("the worker is %v, want process %d", worker, want.Pid)
	}
}
