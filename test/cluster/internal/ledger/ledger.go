// Package ledger makes sure that a run of the cluster leaves nothing on the
// machine. Everything a run makes outside its own namespaces is written into a
// file before it is made; a small shell process, which outlives the run's owner,
// removes what the file names when the owner lets go of the run or dies.
package ledger

import (
	"bufio"
	"bytes"
	"context"
	_ "embed" // For the script that removes what is left.
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/azp-scaler/azp-scaler/test/cluster/internal/proc"
)

//go:embed reap.sh
var reapScript string

// reapLimit bounds one removal. The script's own limits are five seconds per
// thing it removes; a whole run takes well under a second.
const reapLimit = 60 * time.Second

// Ledger is the record of one run and the process that will act on it.
type Ledger struct {
	path   string
	file   *os.File
	reaper *exec.Cmd
	output *bytes.Buffer
	hold   io.Closer
}

// Open starts a record in directory dir for the calling process, and the
// process that removes what the record names. Close must follow.
func Open(dir string) (*Ledger, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory for records of runs: %w", err)
	}
	self, err := proc.Identify(os.Getpid())
	if err != nil {
		return nil, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("reading the machine's boot id: %w", err)
	}
	file, err := os.CreateTemp(dir, "run-")
	if err != nil {
		return nil, fmt.Errorf("making the record of a run: %w", err)
	}
	l := &Ledger{path: file.Name(), file: file}
	if err := l.start(self, strings.TrimSpace(string(boot))); err != nil {
		return nil, errors.Join(err, file.Close(), os.Remove(file.Name()))
	}
	return l, nil
}

func (l *Ledger) start(self proc.ID, boot string) error {
	if err := l.add("owner", strconv.Itoa(self.PID), strconv.FormatUint(self.Start, 10)); err != nil {
		return err
	}
	if err := l.add("boot", boot); err != nil {
		return err
	}
	l.reaper, l.output = reaperCommand(context.Background(), l.path)
	hold, err := l.reaper.StdinPipe()
	if err != nil {
		return fmt.Errorf("making the pipe to the cleaner: %w", err)
	}
	l.hold = hold
	if err := l.reaper.Start(); err != nil {
		return fmt.Errorf("starting the cleaner: %w", err)
	}
	return nil
}

func reaperCommand(ctx context.Context, path string) (*exec.Cmd, *bytes.Buffer) {
	output := &bytes.Buffer{}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", reapScript, "azp-cluster-cleaner", path)
	// A session of its own: an interrupt typed at the terminal, or the end of
	// the terminal, must not end the one that cleans up.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = output, output
	return cmd, output
}

// AddDirectory records a directory to remove with all it holds.
func (l *Ledger) AddDirectory(path string) error { return l.addPath("directory", path) }

// AddCgroup records a cgroup directory to remove with those below it.
func (l *Ledger) AddCgroup(path string) error { return l.addPath("cgroup", path) }

// AddProcess records a process to kill.
func (l *Ledger) AddProcess(id proc.ID) error {
	return l.add("process", strconv.Itoa(id.PID), strconv.FormatUint(id.Start, 10))
}

func (l *Ledger) addPath(kind, path string) error {
	clean := filepath.Clean(path)
	if !filepath.IsAbs(clean) || clean == "/" || strings.ContainsAny(path, "\n\r") {
		return fmt.Errorf("recording %s %q for removal: want an absolute path of one line below /", kind, path)
	}
	return l.add(kind, clean)
}

func (l *Ledger) add(fields ...string) error {
	if _, err := l.file.WriteString(strings.Join(fields, " ") + "\n"); err != nil {
		return fmt.Errorf("writing the record of the run %s: %w", l.path, err)
	}
	return nil
}

// Close removes everything recorded and returns when it is gone. Calling it
// again does nothing.
func (l *Ledger) Close(ctx context.Context) error {
	if l.hold == nil {
		return nil
	}
	_ = l.file.Close()
	_ = l.hold.Close()
	l.hold = nil
	ctx, cancel := context.WithTimeout(ctx, reapLimit)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- l.reaper.Wait() }()
	select {
	case err := <-ended:
		return reapError(l.path, err, l.output)
	case <-ctx.Done():
		// It goes on by itself, within its own limits.
		return fmt.Errorf("removing what the run left (%s): %w", l.path, context.Cause(ctx))
	}
}

func reapError(path string, err error, output *bytes.Buffer) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("removing what the run left: %w: %s: see %s for what remains, which the next start tries to remove again", err, strings.TrimSpace(output.String()), path)
}

// Sweep removes what runs left whose owner is dead and whose own cleaner was
// killed with it. It returns how many runs it cleaned up after.
func Sweep(ctx context.Context, dir string) (int, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading the records of earlier runs: %w", err)
	}
	swept := 0
	var failures []error
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		dead, err := ownerDead(path)
		if err != nil {
			failures = append(failures, err)
			continue
		}
		if !dead {
			continue
		}
		if err := reap(ctx, path); err != nil {
			failures = append(failures, err)
			continue
		}
		swept++
	}
	return swept, errors.Join(failures...)
}

func reap(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, reapLimit)
	defer cancel()
	cmd, output := reaperCommand(ctx, path)
	return reapError(path, cmd.Run(), output)
}

// ownerDead tells whether the process that made the record is gone. A record
// without an owner is being written this moment, or was never used.
func ownerDead(path string) (bool, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading the record of an earlier run: %w", err)
	}
	var owner proc.ID
	boot := ""
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		kind, value, _ := strings.Cut(lines.Text(), " ")
		switch kind {
		case "owner":
			if _, err := fmt.Sscan(value, &owner.PID, &owner.Start); err != nil {
				return false, fmt.Errorf("record %s: owner %q: %w", path, value, err)
			}
		case "boot":
			boot = value
		}
	}
	if owner.PID == 0 || boot == "" {
		return false, nil
	}
	now, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return false, fmt.Errorf("reading the machine's boot id: %w", err)
	}
	return boot != strings.TrimSpace(string(now)) || !owner.Alive(), nil
}
