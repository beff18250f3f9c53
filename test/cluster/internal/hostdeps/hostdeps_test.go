package hostdeps

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/azp-scaler/azp-scaler/test/cluster/internal/progress"
)

// onlyPrograms makes a directory with shell scripts the whole PATH.
func onlyPrograms(t *testing.T, scripts map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range scripts {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
	return dir
}

func TestNothingIsDoneWhenNothingIsMissing(t *testing.T) {
	dir := onlyPrograms(t, map[string]string{"tool": "", "apt-get": "echo called >>\"${0%/*}/called\""})
	if err := Ensure(t.Context(), nil, Need{Program: "tool", Package: "tool-package"}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "called")); err == nil {
		t.Error("apt-get was called")
	}
}

func TestMissingPackagesAreNamedWhereThereIsNoApt(t *testing.T) {
	onlyPrograms(t, nil)
	err := Ensure(t.Context(), nil, Need{Program: "one", Package: "package-a"}, Need{Program: "two", Package: "package-b"}, Need{Program: "three", Package: "package-a"})
	if err == nil || !strings.Contains(err.Error(), "package-a package-b:") {
		t.Errorf("error %v, want one that names both packages once", err)
	}
}

func TestWithoutRootTheCommandIsTold(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root installs")
	}
	onlyPrograms(t, map[string]string{"apt-get": "exit 0"})
	err := Ensure(t.Context(), nil, Need{Program: "one", Package: "package-a"})
	if err == nil || !strings.Contains(err.Error(), "apt-get install --no-install-recommends package-a") {
		t.Errorf("error %v, want one with the command to run", err)
	}
}

func TestRootInstalls(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, whose apt-get a script plays")
	}
	dir := onlyPrograms(t, map[string]string{"apt-get": `
d=${0%/*}
echo "$@" >>"$d/calls"
for last in "$@"; do :; done
case " $* " in *" install "*) [ "$last" = package-a ] && echo '#!/bin/sh' >"$d/one" && /bin/chmod +x "$d/one";; esac`})
	var shown bytes.Buffer
	if err := Ensure(t.Context(), progress.New(&shown), Need{Program: "one", Package: "package-a"}); err != nil {
		t.Fatal(err)
	}
	calls, err := os.ReadFile(filepath.Join(dir, "calls"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(calls)), "\n")
	if len(lines) != 2 || !strings.HasSuffix(lines[0], "update") || !strings.HasSuffix(lines[1], "package-a") {
		t.Errorf("calls of apt-get: %q, want an update and an install", lines)
	}
	if !strings.Contains(shown.String(), "package-a") {
		t.Errorf("progress %q does not name the package", shown.String())
	}
}

func TestFailuresOfAptAreShown(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, whose apt-get a script plays")
	}
	onlyPrograms(t, map[string]string{"apt-get": "echo no network >&2; exit 100"})
	if err := Ensure(t.Context(), nil, Need{Program: "one", Package: "package-a"}); err == nil || !strings.Contains(err.Error(), "no network") {
		t.Errorf("error %v, want what apt-get said", err)
	}
	onlyPrograms(t, map[string]string{"apt-get": "exit 0"})
	if err := Ensure(t.Context(), nil, Need{Check: func(context.Context) bool { return false }, Package: "package-a"}); err == nil || !strings.Contains(err.Error(), "still missing") {
		t.Errorf("error %v, want one that says it is still missing", err)
	}
}
