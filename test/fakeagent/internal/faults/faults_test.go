package faults_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/faults"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for list, want := range map[string]string{
		"":                                     "",
		"linger":                               "linger=2s",
		" linger=1m , ignore-int ":             "ignore-int,linger=1m",
		"# why\nexit-4-update=3\n\nno-renew\n": "exit-4-update=3,no-renew",
		"configure-fails=a = b":                "configure-fails=a = b",
		"linger=1s,linger=2s":                  "linger=2s",
	} {
		set, err := faults.Parse(list)
		if err != nil || set.String() != want {
			t.Errorf("Parse(%q) = %q, %v, not %q", list, set, err, want)
		}
		again, err := faults.Parse(set.String())
		if err != nil || again.String() != want {
			t.Errorf("Parse(%q) = %q, %v", set, again, err)
		}
	}
	for list, says := range map[string]string{
		"nonsense":        `fault "nonsense" is unknown`,
		"ignore-int=yes":  "takes no value",
		"linger=soon":     "want a duration",
		"linger=-1s":      "want a duration",
		"exit-4-update=x": "want a number",
		"linger=":         "want a duration",
	} {
		if _, err := faults.Parse(list); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("Parse(%q) gave %v, not an error with %q", list, err, says)
		}
	}
}

func TestEveryFaultCanBeWrittenAlone(t *testing.T) {
	t.Parallel()
	for _, name := range faults.Names() {
		set, err := faults.Parse(string(name))
		if err != nil || !set.Has(name) {
			t.Errorf("Parse(%q): %v", name, err)
		}
	}
}

func TestDuration(t *testing.T) {
	t.Parallel()
	set, err := faults.Parse("linger=3s")
	if err != nil {
		t.Fatal(err)
	}
	if got := set.Duration(faults.Linger, time.Minute); got != 3*time.Second {
		t.Errorf("linger is %s", got)
	}
	if got := set.Duration(faults.PollPause, time.Minute); got != time.Minute {
		t.Errorf("poll-pause is %s", got)
	}
}

func TestStrikeCountsOverProcesses(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	state := filepath.Join(root, "_diag")
	load := func() faults.Set {
		set, err := faults.Load(root, "exit-4-update=2", state)
		if err != nil {
			t.Fatal(err)
		}
		return set
	}
	for i, want := range []bool{true, true, false, false} {
		got, err := load().Strike(faults.Exit4Update)
		if err != nil || got != want {
			t.Errorf("strike %d is %v, %v, not %v", i, got, err, want)
		}
	}
	if got, err := load().Strike(faults.ListenerExit2); got || err != nil {
		t.Errorf("a fault that is off struck: %v, %v", got, err)
	}
}

func TestLoadAndStrikeReportWhatTheyCannotRead(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "externals", "faults"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := faults.Load(root, "", root); err == nil {
		t.Error("a folder was read as the file of faults")
	}
	if _, err := faults.Load(t.TempDir(), "nonsense", root); err == nil || !strings.Contains(err.Error(), "FAKEAGENT_FAULTS") {
		t.Errorf("Load gave %v", err)
	}
	set, err := faults.Load(t.TempDir(), "exit-4-update", filepath.Join(root, "state"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "state"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := set.Strike(faults.Exit4Update); err == nil {
		t.Error("a tally was kept in a file in the place of its folder")
	}
}
