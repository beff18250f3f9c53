// Package binaries builds the programs of a Kubernetes from their modules, once
// per machine, and keeps them in the user's cache directory.
package binaries

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/azp-scaler/azp-scaler/test/cluster/internal/filelock"
	"github.com/azp-scaler/azp-scaler/test/cluster/internal/hostdeps"
	"github.com/azp-scaler/azp-scaler/test/cluster/internal/progress"
	"github.com/azp-scaler/azp-scaler/test/cluster/pause"
)

// pauseFile is the name under which the embedded source of pause is written.
const pauseFile = "main.go"

// Set names the built programs by path.
type Set struct {
	// Dir holds all of them.
	Dir string
}

// Path is where the program called name is.
func (s Set) Path(name string) string { return filepath.Join(s.Dir, name) }

// Options says what to build and where.
type Options struct {
	// Module is the directory of the tool module (its go.mod and go.sum).
	Module string
	// Cache is the directory below which results are kept.
	Cache string
	// Node: also what only the real node needs.
	Node   bool
	Report *progress.Reporter
}

// Ensure returns the built programs, building those that are not in the cache.
// Builders that run at the same time wait for one another.
func Ensure(ctx context.Context, o Options) (Set, error) {
	key, err := cacheKey(o.Module)
	if err != nil {
		return Set{}, err
	}
	dir := filepath.Join(o.Cache, key)
	set := Set{Dir: dir}
	if len(missing(dir, o.Node)) == 0 {
		return set, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Set{}, fmt.Errorf("making the cache directory for Kubernetes programs: %w", err)
	}
	unlock, err := filelock.Acquire(ctx, filepath.Join(dir, ".lock"), o.Report)
	if err != nil {
		return Set{}, fmt.Errorf("waiting for another build of the Kubernetes programs: %w", err)
	}
	defer unlock()
	todo := missing(dir, o.Node)
	if len(todo) == 0 {
		return set, nil
	}
	if err := checkToolchain(ctx, todo, o.Report); err != nil {
		return Set{}, err
	}
	o.Report.Line("building %d programs of Kubernetes %s into %s: several minutes the first time", len(todo), kubernetesVersion, dir)
	for i, t := range todo {
		end := o.Report.Step("building %s (%d of %d)", t.name, i+1, len(todo))
		err := build(ctx, t, o.Module, dir)
		end(err)
		if err != nil {
			return Set{}, err
		}
	}
	return set, nil
}

// cacheKey depends on all that the results depend on.
func cacheKey(module string) (string, error) {
	hash := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(module, name))
		if err != nil {
			return "", fmt.Errorf("reading the tool module of the Kubernetes programs: %w", err)
		}
		fmt.Fprintf(hash, "%s %d\n%s", name, len(text), text)
	}
	for _, t := range targets() {
		fmt.Fprintf(hash, "%q %q %q\n", t.name, t.arguments(""), t.environment())
	}
	fmt.Fprintf(hash, "%s\n%s %s %s", pause.Source, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return hex.EncodeToString(hash.Sum(nil))[:16], nil
}

func missing(dir string, node bool) []target {
	var todo []target
	for _, t := range targets() {
		if t.node && !node {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, t.name)); err != nil {
			todo = append(todo, t)
		}
	}
	return todo
}

// checkToolchain sees to the C compiler and the library that runc needs.
func checkToolchain(ctx context.Context, todo []target, report *progress.Reporter) error {
	if _, err := exec.LookPath("go"); err != nil {
		return fmt.Errorf("building the Kubernetes programs: no go command in PATH: %w", err)
	}
	for _, t := range todo {
		if t.cgo {
			return hostdeps.Ensure(ctx, report,
				hostdeps.Need{Program: "gcc", Package: "gcc"},
				hostdeps.Need{Check: exists("/usr/include/stdlib.h"), Package: "libc6-dev"},
				hostdeps.Need{Program: "pkg-config", Package: "pkg-config"},
				hostdeps.Need{Check: hasSeccomp, Package: "libseccomp-dev"},
			)
		}
	}
	return nil
}

func exists(path string) func(context.Context) bool {
	return func(context.Context) bool {
		_, err := os.Stat(path)
		return err == nil
	}
}

func hasSeccomp(ctx context.Context) bool {
	return exec.CommandContext(ctx, "pkg-config", "--exists", "libseccomp").Run() == nil
}

func build(ctx context.Context, t target, module, dir string) error {
	work, err := os.MkdirTemp(dir, ".build-")
	if err != nil {
		return fmt.Errorf("making a directory to build %s in: %w", t.name, err)
	}
	defer func() { _ = os.RemoveAll(work) }()
	place := module
	if t.source != "" {
		place = work
		if err := os.WriteFile(filepath.Join(work, t.source), pause.Source, 0o600); err != nil {
			return fmt.Errorf("writing the source of %s: %w", t.name, err)
		}
	}
	made := filepath.Join(work, "program")
	cmd := exec.CommandContext(ctx, "go", t.arguments(made)...)
	cmd.Dir = place
	cmd.Env = append(os.Environ(), t.environment()...)
	// The compilers are children of the go command: end them with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("building %s: %w: %s", t.name, err, strings.TrimSpace(output.String()))
	}
	// Only a whole program ever carries the name that says it is built.
	if err := os.Rename(made, filepath.Join(dir, t.name)); err != nil {
		return fmt.Errorf("keeping %s: %w", t.name, err)
	}
	return nil
}
