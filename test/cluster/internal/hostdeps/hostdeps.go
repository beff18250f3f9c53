// Package hostdeps sees to the programs that Debian packages must provide.
package hostdeps

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/azp-scaler/azp-scaler/test/cluster/internal/progress"
)

// installLimit bounds one call of the package manager.
const installLimit = 10 * time.Minute

// Need is something the machine must have, and the Debian package that brings it.
type Need struct {
	// Program is looked for in PATH; empty if Check is given.
	Program string
	// Check tells whether the need is met, where a program's presence cannot.
	Check   func(ctx context.Context) bool
	Package string
}

func (n Need) met(ctx context.Context) bool {
	if n.Check != nil {
		return n.Check(ctx)
	}
	_, err := exec.LookPath(n.Program)
	return err == nil
}

// Ensure installs the packages of all unmet needs when it may (root, with
// apt-get), and otherwise fails with an error that names them.
func Ensure(ctx context.Context, report *progress.Reporter, needs ...Need) error {
	missing := unmet(ctx, needs)
	if len(missing) == 0 {
		return nil
	}
	names := strings.Join(missing, " ")
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("missing what these Debian packages provide: %s: install their equivalents (there is no apt-get here)", names)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("missing Debian packages: %s: run as root: apt-get install --no-install-recommends %s", names, names)
	}
	end := report.Step("installing Debian packages: %s", names)
	err := install(ctx, missing)
	end(err)
	if err != nil {
		return err
	}
	if missing = unmet(ctx, needs); len(missing) > 0 {
		return fmt.Errorf("installed %s, and still missing what these provide: %s", names, strings.Join(missing, " "))
	}
	return nil
}

func unmet(ctx context.Context, needs []Need) []string {
	var missing []string
	for _, need := range needs {
		if !need.met(ctx) && !slices.Contains(missing, need.Package) {
			missing = append(missing, need.Package)
		}
	}
	return missing
}

func install(ctx context.Context, packages []string) error {
	ctx, cancel := context.WithTimeout(ctx, installLimit)
	defer cancel()
	// A fresh machine has no lists, or old ones that name files no longer there.
	if err := apt(ctx, "update"); err != nil {
		return err
	}
	return apt(ctx, append([]string{"install", "--yes", "--no-install-recommends"}, packages...)...)
}

func apt(ctx context.Context, args ...string) error {
	var output bytes.Buffer
	// Another apt may be at work on a machine that has just started.
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"--quiet", "-o", "DPkg::Lock::Timeout=120"}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("apt-get %s: %w: %s", args[0], err, tail(output.String(), 10))
	}
	return nil
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return strings.Join(all, "\n")
}
