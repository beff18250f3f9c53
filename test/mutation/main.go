// Command mutation checks the tests: it plants one defect at a time into the code, without
// touching a file, and runs the tests that should notice.
//
//	MUTATIONS=regexp   only the defects whose name matches
//
// It prints what became of each, and fails when fewer than 95 of 100 are noticed or one does
// not compile.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// leastCaught is how many of 100 defects have to be noticed.
const leastCaught = 95

// testLimit is for the tests of one package with one defect.
const testLimit = 10 * time.Minute

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Getenv("MUTATIONS"), os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutation:", err)
		os.Exit(1)
	}
}

// run plants each defect whose name matches and says whether the tests notice.
func run(ctx context.Context, pattern string, out io.Writer) error {
	wanted, err := regexp.Compile(pattern)
	if err != nil {
		return fmt.Errorf("MUTATIONS=%q is no regular expression: %w", pattern, err)
	}
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "azp-scaler-mutation-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // Only copies.
	caught, planted := 0, 0
	var broken, survivors []string
	for _, d := range defects() {
		if !wanted.MatchString(d.name) {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		planted++
		began := time.Now()
		by, err := d.plant(ctx, root, dir)
		took := time.Since(began).Round(time.Second)
		switch {
		case err != nil:
			broken = append(broken, fmt.Sprintf("%s: %v", d.name, err))
			_, _ = fmt.Fprintf(out, "broken    %-60s %s\n", d.name, err)
		case by == "":
			survivors = append(survivors, d.name)
			_, _ = fmt.Fprintf(out, "SURVIVED  %-60s %s in %s, after %s\n", d.name, strings.Join(d.tests, " "), d.file, took)
		default:
			caught++
			_, _ = fmt.Fprintf(out, "caught    %-60s by %s after %s\n", d.name, by, took)
		}
	}
	_, _ = fmt.Fprintf(out, "\n%d defects, %d caught, %d survived, %d that can't be planted\n", planted, caught, len(survivors), len(broken))
	switch {
	case planted == 0:
		return fmt.Errorf("no defect is named like MUTATIONS=%q", pattern)
	case len(broken) > 0:
		return fmt.Errorf("these can't be planted, change them with the code: %s", strings.Join(broken, "; "))
	case 100*caught < leastCaught*planted:
		return fmt.Errorf("%d of %d are caught, want %d of 100", caught, planted, leastCaught)
	}
	return nil
}

// defect is one wrong place in the code.
type defect struct {
	name  string
	file  string // From the top of the repository.
	right string // Stands once in the file.
	wrong string
	tests []string // Packages; the first to fail has caught it.
}

// apply gives the file with the defect in it.
func (d defect) apply(content []byte) ([]byte, error) {
	if n := bytes.Count(content, []byte(d.right)); n != 1 {
		return nil, fmt.Errorf("what it changes stands %d times in %s, want once:\n%s", n, d.file, d.right)
	}
	return bytes.Replace(content, []byte(d.right), []byte(d.wrong), 1), nil
}

// plant runs the tests with the defect in the code and gives the package that has noticed it,
// none if it is empty. The compiler reads the file from elsewhere, so the tree stays as it is.
func (d defect) plant(ctx context.Context, root, dir string) (by string, err error) {
	file := filepath.Join(root, filepath.FromSlash(d.file))
	content, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	if content, err = d.apply(content); err != nil {
		return "", err
	}
	spoilt := filepath.Join(dir, "spoilt.go")
	if err := os.WriteFile(spoilt, content, 0o600); err != nil {
		return "", err
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {file: spoilt}})
	if err != nil {
		return "", err
	}
	overlayFile := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlayFile, overlay, 0o600); err != nil {
		return "", err
	}
	if out, err := command(ctx, root, overlayFile, "build", "./pkg/...", "./cmd/..."); err != nil {
		return "", fmt.Errorf("it does not compile: %w: %s", err, out)
	}
	for _, pkg := range d.tests {
		out, err := command(ctx, root, overlayFile, "test", "-count=1", "-failfast", "-timeout", testLimit.String(), "./"+pkg)
		switch {
		case ctx.Err() != nil:
			return "", ctx.Err()
		case err == nil:
		case strings.Contains(out, "[build failed]") || strings.Contains(out, "[setup failed]"):
			return "", fmt.Errorf("the tests of %s do not compile with it: %s", pkg, out)
		default:
			return pkg, nil
		}
	}
	return "", nil
}

// command runs go and gives what it printed. Tests that build a program build it with the
// overlay as well, as they have the flags from the environment.
func command(ctx context.Context, dir, overlay string, arguments ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*testLimit)
	defer cancel()
	c := exec.CommandContext(ctx, "go", arguments...)
	c.Dir = dir
	c.Env = append(os.Environ(), "GOFLAGS="+strings.TrimSpace(os.Getenv("GOFLAGS")+" -overlay="+overlay))
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = 30 * time.Second
	out, err := c.CombinedOutput()
	return string(out), err
}
