package main

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The users of a pod: the build's, the sidecar's, and the group of its volumes.
const (
	buildUser   = 1000
	sidecarUser = 65532
	volumeGroup = 2000
)

func user(uid uint32) *syscall.Credential {
	return &syscall.Credential{Uid: uid, Gid: uid, Groups: []uint32{volumeGroup}}
}

// newPodOfUsers makes a pod whose volumes belong to a group, as Kubernetes makes
// them with an fsGroup, and whose containers run as different users.
func newPodOfUsers(t *testing.T) *pod {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can run containers as several users")
	}
	p := newPod(t)
	delete(p.env, "AGENT_ALLOW_RUNASROOT")
	p.must(os.Chmod(filepath.Dir(p.dir), 0o755))
	self, err := os.Executable()
	p.must(err)
	player, err := os.ReadFile(self)
	p.must(err)
	p.program("player", string(player))
	p.image(p.path("player"))
	own := func(name string, uid, gid int, mode fs.FileMode) {
		p.must(os.Chown(p.path(name), uid, gid))
		p.must(os.Chmod(p.path(name), mode))
	}
	for _, name := range []string{"handover", "registration", "verdict", "claimed"} {
		own(name, 0, volumeGroup, 0o777|fs.ModeSetgid)
	}
	own("token", 0, volumeGroup, 0o440)
	own("ca.crt", 0, volumeGroup, 0o444)
	own("termination-log", 0, 0, 0o666)
	own("home", buildUser, buildUser, 0o755)
	own("tmp", 0, 0, 0o777|fs.ModeSticky)
	own("records", 0, 0, 0o777)
	for _, name := range []string{"root", "root/bin", "root/config.sh", "root/bin/Agent.Listener"} {
		own(name, buildUser, buildUser, 0o755)
	}
	own("records/fake-config.script", 0, 0, 0o644)
	return p
}

// letRead lets the build's user read the scripts, which are written by root.
func (p *pod) letRead() {
	p.t.Helper()
	files, err := filepath.Glob(p.path("records/*script*"))
	p.must(err)
	for _, file := range files {
		p.must(os.Chmod(file, 0o644)) //nolint:gosec // For another user.
	}
}

func TestContainersOfDifferentUsers(t *testing.T) {
	p := newPodOfUsers(t)
	p.script("fake-listener", aBuild()...)
	p.letRead()
	p.as = user(sidecarUser)
	remove := p.removing()
	p.as = user(buildUser)
	p.configured()
	run := p.listening()
	p.touch("job")
	p.eventually("the agent to be disabled", p.disabled)
	p.touch("end")
	run.expect(0, "the build ended")
	for _, name := range []string{".agent", ".credentials", ".credentials_rsaparams"} {
		info, err := os.Lstat(p.path("root/" + name))
		p.must(err)
		if info.Mode() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", name, info.Mode())
		}
	}
	p.as = user(sidecarUser)
	p.start("withdraw", withToken(p)...).expect(0)
	remove.signal(syscall.SIGTERM)
	remove.expect(0)
	if got := p.agents(); len(got) > 0 {
		t.Errorf("still registered: %v", got)
	}
}

func TestVerdictBetweenUsers(t *testing.T) {
	p := newPodOfUsers(t)
	p.letRead()
	p.as = user(buildUser)
	p.configured()
	run := p.listening()
	run.signal(syscall.SIGTERM)
	p.as = user(sidecarUser)
	if code := p.start("withdraw", withToken(p)...).wait(); code != 0 {
		t.Errorf("withdraw ended with %d", code)
	}
	if code := run.wait(); code != 10 {
		t.Errorf("run ended with %d, want 10", code)
	}
}

func TestReadOnlyAgentRoot(t *testing.T) {
	p := newPodOfUsers(t)
	p.letRead()
	p.must(os.Chown(p.path("root"), 0, 0))
	p.as = user(buildUser)
	p.start("configure", withToken(p)...).expect(11, "not writable for uid 1000")
	p.start("run").expect(11, "not writable for uid 1000")
}

// TestTokenOfTheAllInOneForm looks at the entrypoint as a build would: as a process
// of the same user.
func TestTokenOfTheAllInOneForm(t *testing.T) {
	p := newPodOfUsers(t)
	p.letRead()
	p.as = user(buildUser)
	c := p.start("", "AZP_TOKEN="+canary)
	c.logged("Listening for Jobs")
	for _, name := range []string{"environ", "mem"} {
		cmd := exec.Command("head", "-c", "100000", fmt.Sprintf("/proc/%d/%s", c.cmd.Process.Pid, name)) //nolint:gosec // A test's own process.
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user(buildUser)}
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "ermission denied") || strings.Contains(string(out), canary) {
			t.Errorf("%s of the entrypoint gives %.100q, %v, want it refused", name, out, err)
		}
	}
	// The listener's is what builds have anyway.
	cmd := exec.Command("cat", fmt.Sprintf("/proc/%d/environ", p.call("fake-listener", 1).PID)) //nolint:gosec // A test's own process.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user(buildUser)}
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), canary) {
		t.Errorf("environment of the listener: %v, or it holds the token", err)
	}
	c.signal(syscall.SIGTERM)
	c.expect(10)
}
