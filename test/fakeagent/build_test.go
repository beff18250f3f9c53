package fakeagent_test

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"debug/elf"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/azp-scaler/azp-scaler/test/fakeagent"
)

func TestPackageHasTheRealAgentsLayout(t *testing.T) {
	t.Parallel()
	file, err := os.Open(tarball)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	compressed, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	reader := tar.NewReader(compressed)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, header.Name)
	}
	for _, want := range []string{"./bin/", "./bin/Agent.Listener", "./bin/Agent.Worker", "./externals/", "./config.sh", "./run.sh", "./env.sh", "./license.html"} {
		if !slices.Contains(names, want) {
			t.Errorf("the package has no %s, only %s", want, names)
		}
	}
	if got := filepath.Base(tarball); got != "vsts-agent-linux-x64-5.270.0.tar.gz" {
		t.Errorf("the package is named %s", got)
	}
}

func TestBuildWritesTheSameContentOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	build := func(o fakeagent.Options) (string, os.FileInfo) {
		path, err := fakeagent.Build(t.Context(), dir, o)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return path, info
	}
	path, info := build(fakeagent.Options{})
	again, same := build(fakeagent.Options{Version: fakeagent.DefaultVersion, Platform: fakeagent.DefaultPlatform})
	if again != path || !os.SameFile(info, same) {
		t.Errorf("the second build wrote %s besides %s", again, path)
	}
	other, _ := build(fakeagent.Options{Faults: []string{"linger"}})
	if filepath.Dir(other) == filepath.Dir(path) {
		t.Errorf("another content went to %s too", other)
	}
}

func TestProgramsAreStatic(t *testing.T) {
	t.Parallel()
	path, err := fakeagent.Build(t.Context(), t.TempDir(), fakeagent.Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := fakeagent.Unpack(path, dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Agent.Listener", "Agent.Worker"} {
		program, err := elf.Open(filepath.Join(dir, "bin", name))
		if err != nil {
			t.Fatal(err)
		}
		defer program.Close()
		if program.Machine != elf.EM_X86_64 || program.Section(".interp") != nil {
			t.Errorf("%s is for %s, static: %v", name, program.Machine, program.Section(".interp") == nil)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	t.Parallel()
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx     context.Context
		options fakeagent.Options
		says    string
	}{
		"version":  {t.Context(), fakeagent.Options{Version: "latest"}, `version "latest"`},
		"platform": {t.Context(), fakeagent.Options{Platform: "win-x64"}, `platform "win-x64"`},
		"fault":    {t.Context(), fakeagent.Options{Faults: []string{"nonsense"}}, `fault "nonsense" is unknown`},
		"no go":    {t.Context(), fakeagent.Options{SourceDir: t.TempDir()}, "go build"},
		"canceled": {canceled, fakeagent.Options{}, "go build"},
	} {
		if _, err := fakeagent.Build(c.ctx, t.TempDir(), c.options); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: Build gave %v, not an error with %q", name, err, c.says)
		}
	}
	if err := fakeagent.Unpack(filepath.Join(t.TempDir(), "absent.tar.gz"), t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Unpack of nothing gave %v", err)
	}
}
