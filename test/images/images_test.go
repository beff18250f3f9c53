package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// sandbox is a directory of programs that record how they were called.
type sandbox struct {
	t   *testing.T
	dir string
}

func newSandbox(t *testing.T) *sandbox {
	t.Helper()
	return &sandbox{t: t, dir: t.TempDir()}
}

// program adds one: it notes its call, and does what body says.
func (s *sandbox) program(name, body string) {
	s.t.Helper()
	text := "#!/bin/sh\necho \"" + name + " $*\" >>'" + filepath.Join(s.dir, "calls") + "'\n" + body + "\n"
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o700); err != nil {
		s.t.Fatal(err)
	}
}

// run runs a script of deploy/images with these programs first in the PATH.
func (s *sandbox) run(script string, environment ...string) (string, error) {
	s.t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", "deploy", "images", script))
	if err != nil {
		s.t.Fatal(err)
	}
	shell := "sh"
	if script == "build.sh" {
		shell = "bash"
	}
	cmd := exec.CommandContext(s.t.Context(), shell, path)
	cmd.Env = append([]string{"PATH=" + s.dir + ":/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=" + s.dir, "TMPDIR=" + s.dir}, environment...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s *sandbox) calls() string {
	text, err := os.ReadFile(filepath.Join(s.dir, "calls"))
	if err != nil && !os.IsNotExist(err) {
		s.t.Fatal(err)
	}
	return string(text)
}

// engines makes the three of them: those in works answer, the others do not.
func (s *sandbox) engines(works ...string) {
	s.t.Helper()
	for _, name := range []string{"docker", "podman", "buildah"} {
		s.program(name, `case "$1" in info) exit 1;; esac`)
	}
	for _, name := range works {
		s.program(name, "")
	}
}

func TestTheFirstEngineThatWorksBuilds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		works []string
		extra []string
		want  []string
	}{
		{works: []string{"docker", "podman", "buildah"}, want: []string{
			"docker buildx build --file Dockerfile.scaler --platform linux/arm64 --build-arg VERSION=v1", "--tag r.example/t/scaler:v1 --load .", "--tag r.example/t/agent:v1 --load .",
		}},
		{works: []string{"podman", "buildah"}, want: []string{"podman build --layers --file Dockerfile.agent", "--tag r.example/t/agent:v1 ."}},
		{works: []string{"buildah"}, want: []string{"buildah build --layers --file Dockerfile.scaler", "--build-arg CREATED="}},
		{works: []string{"docker", "buildah"}, extra: []string{"ENGINE=buildah"}, want: []string{"buildah build"}},
		{works: []string{"docker"}, extra: []string{"PUSH=1", "PLATFORM=linux/amd64,linux/arm64"}, want: []string{"--platform linux/amd64,linux/arm64", "--tag r.example/t/agent:v1 --push ."}},
		{works: []string{"podman"}, extra: []string{"PUSH=1", "PLATFORM=linux/amd64,linux/arm64"}, want: []string{
			"--manifest r.example/t/scaler:v1 .", "podman manifest push --all r.example/t/agent:v1 docker://r.example/t/agent:v1",
		}},
		{works: []string{"buildah"}, extra: []string{"PUSH=1"}, want: []string{"buildah push r.example/t/scaler:v1"}},
		{works: []string{"buildah"}, extra: []string{"AGENT_ARGS=--build-arg AZURE_CLI=none"}, want: []string{"--build-arg AZURE_CLI=none --tag r.example/t/agent:v1"}},
	} {
		s := newSandbox(t)
		s.engines(c.works...)
		out, err := s.run("build.sh", append([]string{"IMAGE_PREFIX=r.example/t", "VERSION=v1", "PLATFORM=linux/arm64"}, c.extra...)...)
		if err != nil {
			t.Errorf("%v %v: %v\n%s", c.works, c.extra, err, out)
		}
		for _, want := range c.want {
			if !strings.Contains(s.calls(), want) {
				t.Errorf("%v %v: no %q in the calls\n%s", c.works, c.extra, want, s.calls())
			}
		}
	}
}

func TestBuildsThatCantBeAreRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		works []string
		extra string
		want  string
	}{
		{nil, "PUSH=", "no container engine works here"},
		{nil, "ENGINE=nerdctl", "want docker, podman or buildah"},
		{[]string{"docker"}, "PLATFORM=linux/amd64,linux/arm64", "set PUSH=1, or one PLATFORM"},
	} {
		s := newSandbox(t)
		s.engines(c.works...)
		out, err := s.run("build.sh", "IMAGE_PREFIX=r.example/t", "VERSION=v1", "PLATFORM=linux/arm64", c.extra)
		if err == nil || !strings.Contains(out, c.want) {
			t.Errorf("%v %s: %v, %q: want %q", c.works, c.extra, err, out, c.want)
		}
		if strings.Contains(s.calls(), " build ") {
			t.Errorf("%v %s: something was built:\n%s", c.works, c.extra, s.calls())
		}
	}
}

// TestAgentProgramIsChecked: nothing is unpacked but what has the SHA-256 that was given. What
// would be written below /azp goes to a stand-in for tar.
func TestAgentProgramIsChecked(t *testing.T) {
	t.Parallel()
	var archive bytes.Buffer
	zipped := gzip.NewWriter(&archive)
	if err := tar.NewWriter(zipped).Close(); err != nil {
		t.Fatal(err)
	}
	if err := zipped.Close(); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(archive.Bytes())
	good, bad := hex.EncodeToString(sum[:]), strings.Repeat("0", 64)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/4.1.2/vsts-agent-linux-x64-4.1.2.tar.gz" && r.URL.Path != "/4.1.2/vsts-agent-linux-arm64-4.1.2.tar.gz" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(archive.Bytes())
	}))
	t.Cleanup(server.Close)
	for _, c := range []struct {
		name, version, architecture string
		amd64, arm64                string
		want                        string // Part of what a refusal says; empty is none.
		unpacked                    bool
	}{
		{name: "none asked for", architecture: "amd64"},
		{name: "amd64", version: "4.1.2", architecture: "amd64", amd64: good, unpacked: true},
		{name: "arm64", version: "4.1.2", architecture: "arm64", arm64: good, unpacked: true},
		{name: "engine that tells no platform", version: "4.1.2", amd64: good, unpacked: true},
		{name: "another content", version: "4.1.2", architecture: "amd64", amd64: bad, want: "has another SHA-256 than AGENT_SHA256_AMD64 says: " + good},
		{name: "the other platform's", version: "4.1.2", architecture: "arm64", amd64: good, want: "AGENT_SHA256_ARM64 is not set"},
		{name: "no sum", version: "4.1.2", architecture: "amd64", want: "AGENT_SHA256_AMD64 is not set"},
		{name: "a path for a version", version: "../4.1.2", architecture: "amd64", amd64: good, want: "want a version such as"},
		{name: "a platform without an agent", version: "4.1.2", architecture: "riscv64", want: "TARGETARCH=riscv64"},
		{name: "absent version", version: "4.1.3", architecture: "amd64", amd64: good, want: "404"},
	} {
		s := newSandbox(t)
		s.program("tar", "")
		s.program("chown", "")
		s.program("dpkg", "echo amd64")
		out, err := s.run("agent.sh", "AGENT_URL="+server.URL, "AGENT_VERSION="+c.version, "TARGETARCH="+c.architecture, "AGENT_SHA256_AMD64="+c.amd64, "AGENT_SHA256_ARM64="+c.arm64)
		if (err == nil) != (c.want == "") || !strings.Contains(out, c.want) {
			t.Errorf("%s: %v, %q: want %q", c.name, err, out, c.want)
		}
		if got := strings.Contains(s.calls(), "tar --extract"); got != c.unpacked {
			t.Errorf("%s: unpacked %t, want %t:\n%s", c.name, got, c.unpacked, s.calls())
		}
	}
}

// TestForeignKeyIsRefused: what claims to be Microsoft's key and is another's gets no package
// installed.
func TestForeignKeyIsRefused(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	// Of what comes after a refusal nothing may be real either, in case there is none.
	for _, name := range []string{"apt-get", "curl", "mkdir", "rm", "chown", "getent", "userdel", "useradd", "groupadd"} {
		s.program(name, "")
	}
	s.program("gpg", "echo fpr:::::::::0000000000000000000000000000000000000000:")
	out, err := s.run("packages.sh", "AZURE_CLI=microsoft", "EXTRA_PACKAGES=make unzip")
	if err == nil || !strings.Contains(out, "nothing of it is installed") {
		t.Errorf("%v, %q", err, out)
	}
	if strings.Contains(s.calls(), "install azure-cli") || strings.Contains(s.calls(), "--dearmor") {
		t.Errorf("the key was used:\n%s", s.calls())
	}
	if !strings.Contains(s.calls(), "zlib1g make unzip\n") {
		t.Errorf("the further packages were not asked for, each by its name:\n%s", s.calls())
	}
	out, err = s.run("packages.sh", "AZURE_CLI=pip")
	if err == nil || !strings.Contains(out, "AZURE_CLI=pip: want microsoft, distribution or none") {
		t.Errorf("%v, %q", err, out)
	}
}
