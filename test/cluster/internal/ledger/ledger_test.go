package ledger

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/test/cluster/internal/proc"
)

// ownerVariable makes this test's program the owner of a run, to be killed.
const ownerVariable = "AZP_LEDGER_TEST_OWNER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(ownerVariable); dir != "" {
		if err := own(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// own makes a directory and a process, tells of them, and waits to be killed.
func own(dir string) error {
	l, err := Open(filepath.Join(dir, "runs"))
	if err != nil {
		return err
	}
	made := filepath.Join(dir, "made by the run")
	if err := l.AddDirectory(made); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(made, "below"), 0o755); err != nil {
		return err
	}
	child, err := proc.Start("sleep", exec.Command("sleep", "300"))
	if err != nil {
		return err
	}
	if err := l.AddProcess(child.ID()); err != nil {
		return err
	}
	fmt.Println(child.ID().PID, child.ID().Start, l.reaper.Process.Pid)
	<-child.Done()
	return nil
}

// startOwner starts one and returns its command, its child and its cleaner.
func startOwner(t *testing.T, dir string) (owner *exec.Cmd, child proc.ID, cleaner int) {
	t.Helper()
	owner = exec.CommandContext(t.Context(), os.Args[0])
	owner.Env = append(os.Environ(), ownerVariable+"="+dir)
	output, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatalf("the owner said nothing: %v", err)
	}
	if _, err := fmt.Sscan(line, &child.PID, &child.Start, &cleaner); err != nil {
		t.Fatalf("the owner said %q: %v", line, err)
	}
	if !child.Alive() {
		t.Fatal("the owner's child does not run")
	}
	return owner, child, cleaner
}

func kill(t *testing.T, owner *exec.Cmd) {
	t.Helper()
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait()
}

func TestKilledOwnerIsCleanedUpAfter(t *testing.T) {
	dir := t.TempDir()
	owner, child, _ := startOwner(t, dir)
	kill(t, owner)
	eventually(t, "process, directory and record are gone", func() bool {
		return !child.Alive() && absent(filepath.Join(dir, "made by the run")) && len(records(t, dir)) == 0
	})
}

func TestSweepCleansUpWhenTheCleanerWasKilledToo(t *testing.T) {
	dir := t.TempDir()
	owner, child, cleaner := startOwner(t, dir)
	process, err := os.FindProcess(cleaner)
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Kill(); err != nil {
		t.Fatal(err)
	}
	if swept, err := Sweep(t.Context(), filepath.Join(dir, "runs")); err != nil || swept != 0 {
		t.Fatalf("a sweep while the owner lives cleaned up after %d runs, error %v; want none", swept, err)
	}
	kill(t, owner)
	eventually(t, "the kernel has killed the child", func() bool { return !child.Alive() })
	if absent(filepath.Join(dir, "made by the run")) {
		t.Fatal("the directory is gone though nobody was there to remove it")
	}
	swept, err := Sweep(t.Context(), filepath.Join(dir, "runs"))
	if err != nil || swept != 1 {
		t.Fatalf("cleaned up after %d runs, error %v; want 1", swept, err)
	}
	if !absent(filepath.Join(dir, "made by the run")) || len(records(t, dir)) != 0 {
		t.Error("the directory or the record is still there")
	}
}

func TestCloseRemovesAll(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(filepath.Join(dir, "runs"))
	if err != nil {
		t.Fatal(err)
	}
	made := filepath.Join(dir, "a b")
	if err := os.MkdirAll(filepath.Join(made, "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	// A directory of its own stands in for a cgroup: both go by rmdir alone.
	group := filepath.Join(dir, "group")
	if err := os.MkdirAll(filepath.Join(group, "a", "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	child, err := proc.Start("sleep", exec.Command("sleep", "300"))
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{l.AddDirectory(made), l.AddCgroup(group), l.AddProcess(child.ID())} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if child.ID().Alive() || !absent(made) || !absent(group) || len(records(t, dir)) != 0 {
		t.Error("something is still there")
	}
	if err := l.Close(t.Context()); err != nil {
		t.Errorf("closing again: %v", err)
	}
}

func TestAnotherProcessWithTheSameNumberIsSpared(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	child, err := proc.Start("sleep", exec.Command("sleep", "300"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = child.Kill(context.Background()) }()
	other := child.ID()
	other.Start++
	if err := l.AddProcess(other); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !child.ID().Alive() {
		t.Error("a process was killed that the record did not mean")
	}
}

func TestRecordOfAnotherBootKillsNothing(t *testing.T) {
	dir := t.TempDir()
	child, err := proc.Start("sleep", exec.Command("sleep", "300"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = child.Kill(context.Background()) }()
	made := filepath.Join(dir, "made")
	if err := os.Mkdir(made, 0o755); err != nil {
		t.Fatal(err)
	}
	id := child.ID()
	text := fmt.Sprintf("owner %d %d\nboot another\nprocess %d %d\ndirectory %s\n", os.Getpid(), 1, id.PID, id.Start, made)
	runs := filepath.Join(dir, "runs")
	if err := os.Mkdir(runs, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(runs, "run-1"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if swept, err := Sweep(t.Context(), runs); err != nil || swept != 1 {
		t.Fatalf("cleaned up after %d runs, error %v; want 1", swept, err)
	}
	if !id.Alive() {
		t.Error("a process of this boot was killed by a record of another")
	}
	if !absent(made) {
		t.Error("the directory is still there")
	}
}

func TestWhatCannotBeRemovedIsSaidAndKept(t *testing.T) {
	// A file resists rmdir, also for root.
	dir := t.TempDir()
	l, err := Open(filepath.Join(dir, "runs"))
	if err != nil {
		t.Fatal(err)
	}
	group := filepath.Join(dir, "group")
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(group, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.AddCgroup(group); err != nil {
		t.Fatal(err)
	}
	err = l.Close(t.Context())
	if err == nil || !strings.Contains(err.Error(), l.path) {
		t.Fatalf("error %v, want one that names the record", err)
	}
	if len(records(t, dir)) != 1 {
		t.Error("the record is gone, so nothing will try again")
	}
}

func TestDangerousPathsAreRefused(t *testing.T) {
	l, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/", "", ".", "relative", "/a\n/b", "/x/.."} {
		if l.AddDirectory(path) == nil {
			t.Errorf("%q was recorded for removal", path)
		}
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestOddRecordsAreNoOnesBusiness(t *testing.T) {
	runs := t.TempDir()
	for name, text := range map[string]string{"empty": "", "half": "owner 1 1\n"} {
		if err := os.WriteFile(filepath.Join(runs, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if swept, err := Sweep(t.Context(), runs); err != nil || swept != 0 {
		t.Errorf("cleaned up after %d runs, error %v; want none: their owners are writing them", swept, err)
	}
	if err := os.WriteFile(filepath.Join(runs, "broken"), []byte("owner x y\nboot z\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Sweep(t.Context(), runs); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("error %v, want one that names the broken record", err)
	}
	if swept, err := Sweep(t.Context(), filepath.Join(runs, "absent")); err != nil || swept != 0 {
		t.Errorf("no directory: %d, %v; want nothing", swept, err)
	}
}

func records(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "runs", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func absent(path string) bool {
	_, err := os.Lstat(path)
	return os.IsNotExist(err)
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	limit := time.After(20 * time.Second)
	for !done() {
		select {
		case <-limit:
			t.Fatalf("%s: not so in time", what)
		case <-ticker.C:
		}
	}
}
