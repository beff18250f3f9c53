package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/azp-scaler/azp-scaler/test/cluster/internal/filelock"
	"github.com/azp-scaler/azp-scaler/test/cluster/internal/hostdeps"
	"github.com/azp-scaler/azp-scaler/test/cluster/internal/progress"
)

// bootstrapLimit bounds the making of a base, on a slow mirror.
const bootstrapLimit = 15 * time.Minute

// fallbackRelease is what bases are made of on machines that are neither Debian
// nor Ubuntu.
const fallbackRelease = "bookworm"

// Debian describes a base made from the distribution's packages.
type Debian struct {
	// Cache is the directory that keeps bases.
	Cache string
	// Release is a code name such as bookworm. Default: that of this machine.
	Release string
	// Packages are added to the smallest set that has a package manager: names, or apt patterns for those
	// whose names carry a version ("?name(^libicu[0-9]+$)").
	Packages []string
	// Progress receives what takes time; nil means silence.
	Progress io.Writer
}

// AgentPackages are those that the agent's images need: what the agent program
// loads, a process 1, and the tools that builds take for granted.
func AgentPackages() []string {
	return []string{"bash", "ca-certificates", "coreutils", "curl", "git", "jq", "tini", "?name(^libicu[0-9]+$)"}
}

// excluded is what no container reads.
func excluded() []string {
	return []string{"/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*"}
}

// Base returns a tar file of a root file system, made at the first call and
// kept. It needs root and the package mirror the first time; it is a
// bootstrapped equivalent of the distribution's own image.
func (d Debian) Base(ctx context.Context) (string, error) {
	if d.Release == "" {
		release, err := machineRelease("/etc/os-release")
		if err != nil {
			return "", err
		}
		d.Release = release
	}
	packages := slices.Clone(d.Packages)
	slices.Sort(packages)
	packages = slices.Compact(packages)
	sum := sha256.Sum256([]byte(strings.Join(slices.Concat([]string{"minbase", d.Release}, packages, excluded()), "\n")))
	target := filepath.Join(d.Cache, d.Release+"-"+hex.EncodeToString(sum[:6])+".tar")
	if _, err := os.Stat(target); err == nil {
		return target, nil
	}
	if err := os.MkdirAll(d.Cache, 0o755); err != nil {
		return "", fmt.Errorf("making the cache directory for base images: %w", err)
	}
	report := progress.New(d.Progress)
	unlock, err := filelock.Acquire(ctx, target+".lock", report)
	if err != nil {
		return "", fmt.Errorf("waiting for another run that makes the same base image: %w", err)
	}
	defer unlock()
	if _, err := os.Stat(target); err == nil {
		return target, nil
	}
	if err := hostdeps.Ensure(ctx, report, hostdeps.Need{Program: "mmdebstrap", Package: "mmdebstrap"}); err != nil {
		return "", fmt.Errorf("making a base image: %w", err)
	}
	end := report.Step("making a base image of Debian packages (%s)", d.Release)
	err = bootstrap(ctx, target, d.Release, packages)
	end(err)
	if err != nil {
		return "", fmt.Errorf("making a base image of %s: %w", d.Release, err)
	}
	return target, nil
}

func bootstrap(ctx context.Context, target, release string, packages []string) error {
	ctx, cancel := context.WithTimeout(ctx, bootstrapLimit)
	defer cancel()
	// Its name ends in .tar: the tool goes by that.
	partial := strings.TrimSuffix(target, ".tar") + ".partial.tar"
	defer func() { _ = os.Remove(partial) }()
	args := []string{"--variant=minbase", "--mode=auto", "--quiet"}
	for _, name := range packages {
		// One flag each: in a list, a pattern would take what follows it for its own.
		args = append(args, "--include="+name)
	}
	for _, pattern := range excluded() {
		args = append(args, "--dpkgopt=path-exclude="+pattern)
	}
	// The package manager's lists are of no use in an image and large.
	args = append(args, `--customize-hook=rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/* "$1"/var/log/*`)
	args = append(args, release, partial)
	var output bytes.Buffer
	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	// Killed, it would leave the half-made system in the temporary directory.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("mmdebstrap: %w: %s", errors.Join(err, context.Cause(ctx)), strings.TrimSpace(output.String()))
	}
	if err := os.Rename(partial, target); err != nil {
		return fmt.Errorf("keeping the base image: %w", err)
	}
	return nil
}

// machineRelease reads the code name of the machine's own release out of an
// os-release file, if it is one that bases can be made of.
func machineRelease(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("finding this machine's release: %w", err)
	}
	values := map[string]string{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		values[key] = strings.Trim(value, `"'`)
	}
	if id := values["ID"]; (id == "debian" || id == "ubuntu") && values["VERSION_CODENAME"] != "" {
		return values["VERSION_CODENAME"], nil
	}
	return fallbackRelease, nil
}
