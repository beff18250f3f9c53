package hostnode_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// supervisor builds the program that runs containers.
func supervisor(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	path := filepath.Join(t.TempDir(), "supervise")
	command := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", path, "./cmd/supervise")
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// brood is a shell that leaves a process of a session of its own behind, says
// both numbers and waits.
const brood = `f=$(mktemp -u); mkfifo "$f"; setsid sh -c 'echo $$ >"$0"; exec sleep 600' "$f" & read child <"$f"; rm "$f"; echo "$child"; echo $$; %s`

func TestSupervise(t *testing.T) {
	t.Parallel()
	program := supervisor(t)
	for name, test := range map[string]struct {
		then   string
		signal syscall.Signal
		code   int
	}{
		"the command ends":      {then: "sleep 0.2; exit 3", code: 3},
		"the command is killed": {then: "sleep 0.2; kill -9 $$", code: 137},
		"the command is told":   {then: "trap 'exit 5' TERM; echo set; while :; do sleep 0.05; done", signal: syscall.SIGTERM, code: 5},
		"the node is gone":      {then: "trap '' TERM HUP; echo set; while :; do sleep 0.05; done", signal: syscall.SIGHUP, code: 137},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			command := exec.CommandContext(t.Context(), program, "sh", "-c", fmt.Sprintf(brood, test.then))
			out, err := command.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := command.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewReader(out)
			var pids []int
			for range 2 {
				line, err := lines.ReadString('\n')
				if err != nil {
					t.Fatal(err)
				}
				pid, err := strconv.Atoi(strings.TrimSpace(line))
				if err != nil {
					t.Fatal(err)
				}
				pids = append(pids, pid)
			}
			if test.signal != 0 {
				// Until the shell has set its trap it would just die.
				if line, err := lines.ReadString('\n'); err != nil || line != "set\n" {
					t.Fatalf("the shell says %q (%v)", line, err)
				}
				if err := command.Process.Signal(test.signal); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := io.Copy(io.Discard, lines); err != nil {
				t.Fatal(err)
			}
			_ = command.Wait() // Its exit status is what is looked at.
			if code := command.ProcessState.ExitCode(); code != test.code {
				t.Errorf("the exit status is %d, want %d", code, test.code)
			}
			for _, pid := range pids {
				awaitEnd(t, pid)
			}
		})
	}
}

func TestSuperviseRefuses(t *testing.T) {
	t.Parallel()
	program := supervisor(t)
	for _, arguments := range [][]string{nil, {"/nonexistent/program"}} {
		out, err := exec.CommandContext(t.Context(), program, arguments...).CombinedOutput()
		if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 127 || !strings.HasPrefix(string(out), "supervise: ") { //nolint:errorlint // Not wrapped.
			t.Errorf("supervise %v says %q (%v)", arguments, out, err)
		}
	}
}

// awaitEnd waits until a process is gone or a mere zombie.
func awaitEnd(t *testing.T, pid int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return
		}
		if _, rest, _ := strings.Cut(string(stat), ") "); strings.HasPrefix(rest, "Z") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d is still there: %s", pid, stat)
		}
		time.Sleep(10 * time.Millisecond) // Between looks, until the deadline.
	}
}
