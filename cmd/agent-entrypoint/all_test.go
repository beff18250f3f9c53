package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

func TestAllOneBuild(t *testing.T) {
	for _, argument := range []string{"", "--once"} {
		t.Run("argument "+argument, func(t *testing.T) {
			p := newPod(t)
			p.script("fake-listener", aBuild()...)
			c := p.start(argument, "AZP_TOKEN="+canary, "EXTENSION_PAT="+canary)
			c.logged("Listening for Jobs")
			p.touch("job")
			p.eventually("the agent to be disabled", p.disabled)
			p.touch("end")
			c.expect(0, "the build ended")
			if got := p.agents(); len(got) > 0 {
				t.Errorf("still registered: %v", got)
			}
			if env := strings.Join(p.call("fake-listener", 1).Env, "\n"); strings.Contains(env, canary) || strings.Contains(env, "AZP_") {
				t.Errorf("the listener's environment holds what a build must not see:\n%s", env)
			}
			if found := append(p.findCanary("root"), p.findCanary("home")...); len(found) > 0 {
				t.Errorf("the token is in %v", found)
			}
			c.logged("EXTENSION_PAT")
			if strings.Contains(c.stdout.String()+c.stderr.String(), canary) {
				t.Error("the token was printed")
			}
		})
	}
}

func TestAllIdleLimit(t *testing.T) {
	p := newPod(t)
	c := p.start("", append(withToken(p), "AZP_IDLE_LIMIT=200ms")...)
	c.expect(10, "withdrawn")
	if got := p.agents(); len(got) > 0 {
		t.Errorf("still registered: %v", got)
	}
	if got := p.signals(); len(got) != 1 {
		t.Errorf("signals of the listener %v, want one", got)
	}
}

func TestAllStoppedWhileIdle(t *testing.T) {
	p := newPod(t)
	c := p.start("", withToken(p)...)
	c.logged("Listening for Jobs")
	c.signal(syscall.SIGTERM)
	c.expect(10, "withdrawn")
	if got := p.agents(); len(got) > 0 {
		t.Errorf("still registered: %v", got)
	}
}

func TestAllStoppedWhileTheServiceIsDown(t *testing.T) {
	p := newPod(t)
	c := p.start("", append(withToken(p), "AZP_WITHDRAW_LIMIT=300ms", "AZP_GRACE_PERIOD=4s", "AZP_REMOVE_SHARE=2s")...)
	c.logged("Listening for Jobs")
	p.inject(azuredevopstest.Fault{Kind: "reset"})
	c.signal(syscall.SIGTERM)
	// That the registration stays is said.
	c.expect(10, "still in the pool")
}

func TestAllStoppedDuringTheBuild(t *testing.T) {
	p := newPod(t)
	p.script("fake-listener", aBuild()...)
	p.touch("job")
	c := p.start("", withToken(p)...)
	c.logged("a build was claimed")
	c.signal(syscall.SIGTERM)
	c.logged("asked to stop")
	p.touch("end")
	c.expect(0, "the build ended")
	if got := p.agents(); len(got) > 0 {
		t.Errorf("still registered: %v", got)
	}
}

func TestAllFailures(t *testing.T) {
	for name, tt := range map[string]struct {
		config, listener []string
		code             int
	}{
		"configure fails":        {config: []string{"register lost", "exit 1"}, code: 15},
		"listener crashes":       {listener: []string{"print Listening for Jobs", "crash"}, code: 14},
		"crash during the build": {listener: []string{"print Listening for Jobs", "print Running job: x", "crash"}, code: 16},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPod(t)
			if tt.config != nil {
				p.script("fake-config", tt.config...)
			}
			if tt.listener != nil {
				p.script("fake-listener", tt.listener...)
			}
			p.start("", withToken(p)...).expect(tt.code)
			if got := p.agents(); len(got) > 0 {
				t.Errorf("still registered: %v", got)
			}
		})
	}
}

func TestAllInARestartedContainer(t *testing.T) {
	p := newPod(t)
	p.script("fake-listener", "print Listening for Jobs", "print Running job: x", "print Job x completed with result: Succeeded")
	// The file system of a restarted container still has the last registration's files.
	p.start("", withToken(p)...).expect(0)
	p.start("", withToken(p)...).expect(0)
}

// packageOf makes an agent package out of the pod's fake programs.
func (p *pod) packageOf(listener bool) string {
	p.t.Helper()
	var buffer bytes.Buffer
	zipped := gzip.NewWriter(&buffer)
	w := tar.NewWriter(zipped)
	names := []string{"config.sh", "bin/Agent.Listener"}
	if !listener {
		names = names[:1]
	}
	for _, name := range names {
		content := p.read("root/" + name)
		p.must(w.WriteHeader(&tar.Header{Name: "./" + name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content))}))
		_, err := w.Write([]byte(content))
		p.must(err)
	}
	p.must(w.Close())
	p.must(zipped.Close())
	p.must(os.WriteFile(p.path("package.tar.gz"), buffer.Bytes(), 0o600))
	p.must(os.RemoveAll(p.path("root")))
	p.must(os.Mkdir(p.path("root"), 0o755))
	return p.path("package.tar.gz")
}

// newDownloadingPod makes a pod without a program in its image, and a service that
// offers one.
func newDownloadingPod(t *testing.T, listener, wrongHash bool) *pod {
	t.Helper()
	return newDownloadingPodWith(t, listener, wrongHash, azuredevopstest.Options{})
}

func newDownloadingPodWith(t *testing.T, listener, wrongHash bool, options azuredevopstest.Options) *pod {
	t.Helper()
	t.Parallel()
	// The service wants to know its packages first, so the file comes later.
	file := t.TempDir() + "/package.tar.gz"
	options.Packages = []azuredevopstest.AgentPackage{
		{Platform: "linux-x64", Version: "4.248.0", Path: file, WrongHash: wrongHash},
		{Platform: "linux-arm64", Version: "4.248.0", Path: file, WrongHash: wrongHash},
	}
	p := newPodWith(t, options)
	p.must(os.Rename(p.packageOf(listener), file))
	return p
}

func TestDownload(t *testing.T) {
	p := newDownloadingPod(t, true, false)
	p.script("fake-listener", aBuild()...)
	p.touch("job")
	p.touch("end")
	c := p.start("configure", withToken(p)...)
	c.expect(0, "registered")
	c.logged(`"percent":100`)
	p.start("run").expect(0, "the build ended")
	entries, err := os.ReadDir(p.path("root"))
	p.must(err)
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".azp-download") {
			t.Errorf("%s is left over", entry.Name())
		}
	}
}

func TestDownloadFailures(t *testing.T) {
	tests := []struct {
		name     string
		listener bool
		hash     bool
		env      []string
		change   func(p *pod)
		code     int
		says     []string
	}{
		{name: "wrong hash", listener: true, hash: true, code: 13, says: []string{"SHA-256"}},
		{name: "no agent in it", code: 13, says: []string{"no bin/Agent.Listener"}},
		{name: "no such version", listener: true, env: []string{"AZP_AGENT_VERSION=1.2.3"}, code: 11, says: []string{"1.2.3", "AZP_AGENT_VERSION"}},
		{name: "no such platform", listener: true, env: []string{"AZP_PLATFORM=win-x64"}, code: 11, says: []string{"win-x64", "AZP_PLATFORM"}},
		{name: "truncated", listener: true, change: func(p *pod) {
			p.inject(azuredevopstest.Fault{Operation: "packages.download", Kind: "truncate"})
		}, code: 13},
		{name: "never ends", listener: true, env: []string{"AZP_DOWNLOAD_LIMIT=500ms"}, change: func(p *pod) {
			p.inject(azuredevopstest.Fault{Operation: "packages.download", Kind: "hang"})
		}, code: 13, says: []string{"AZP_DOWNLOAD_LIMIT"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newDownloadingPod(t, tt.listener, tt.hash)
			if tt.change != nil {
				tt.change(p)
			}
			p.start("configure", append(withToken(p), tt.env...)...).expect(tt.code, tt.says...)
			if got := p.agents(); len(got) > 0 {
				t.Errorf("registered without a program: %v", got)
			}
			entries, err := os.ReadDir(p.path("root"))
			p.must(err)
			if len(entries) > 0 {
				t.Errorf("left over in the agent root: %v", entries)
			}
		})
	}
}

func TestDownloadTriesOnceMore(t *testing.T) {
	p := newDownloadingPod(t, true, false)
	p.inject(azuredevopstest.Fault{Operation: "packages.download", Kind: "truncate", Count: 1})
	c := p.start("configure", withToken(p)...)
	c.expect(0, "registered")
	c.logged("tried once more")
}
