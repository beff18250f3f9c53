package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// aBuild is a listener's script: it listens, takes a build when told, ends it when told.
func aBuild() []string {
	return []string{
		"print Listening for Jobs", "wait job", "print Running job: Build",
		"wait end", "print Job Build completed with result: Failed", "exit 0",
	}
}

func TestRunOneBuild(t *testing.T) {
	p := newPod(t)
	p.configured()
	p.script("fake-listener", aBuild()...)
	address := freeAddress(t)
	c := p.start("run", "AZP_PROBE_ADDRESS="+address, "VSTS_AGENT_INPUT_AUTH=PAT", "BUILDS_WANT_THIS=1", "LC_ALL=de_DE.UTF-8")
	c.logged("Listening for Jobs")
	p.eventually("started", func() bool { return probe(address, "/started") == http.StatusOK })
	if got := probe(address, "/ready"); got != http.StatusOK {
		t.Errorf("ready is %d while idle, want 200", got)
	}
	if got := probe(address, "/"); got != http.StatusNotFound {
		t.Errorf("another path is %d, want 404", got)
	}
	if p.has("claimed/claimed") {
		t.Error("claimed before a build came")
	}
	p.touch("job")
	p.eventually("not ready", func() bool { return probe(address, "/ready") == http.StatusServiceUnavailable })
	p.eventually("the claim", func() bool { return p.has("claimed/claimed") })
	if got := probe(address, "/started"); got != http.StatusOK {
		t.Errorf("started is %d while the build runs, want 200", got)
	}
	p.touch("end")
	c.expect(0, "the build ended")

	call := p.call("fake-listener", 1)
	if diff := cmp.Diff([]string{"run", "--once"}, call.Args); diff != "" {
		t.Errorf("arguments of the listener (-want +got):\n%s", diff)
	}
	env := strings.Join(call.Env, "\n")
	if strings.Contains(env, "AZP_") || strings.Contains(env, "VSTS_AGENT_INPUT_") || strings.Contains(env, canary) {
		t.Errorf("the listener's environment holds what a build must not see:\n%s", env)
	}
	for _, entry := range []string{"BUILDS_WANT_THIS=1", "LANG=de_DE.UTF-8", "LC_MESSAGES=C.UTF-8", "VSO_AGENT_IGNORE=SOMETHING", "SSL_CERT_FILE=" + p.path("root/.azp-ca-bundle.pem")} {
		if !strings.Contains(env, entry) {
			t.Errorf("the listener's environment lacks %s", entry)
		}
	}
	for _, name := range []string{".agent", ".credentials", ".credentials_rsaparams"} {
		info, err := os.Lstat(p.path("root/" + name))
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: mode %v, %v, want a regular file with 0600", name, info.Mode(), err)
		}
	}
}

func TestRunFailures(t *testing.T) {
	tests := []struct {
		name   string
		change func(p *pod)
		env    []string
		script []string
		code   int
		says   []string
	}{
		{name: "no handover", change: func(p *pod) { p.must(os.RemoveAll(p.path("handover"))); p.must(os.Remove(p.path("root/.agent"))) }, code: 11, says: []string{"AZP_HANDOVER_DIR"}},
		{name: "half a handover", change: func(p *pod) { p.must(os.Remove(p.path("handover/.credentials"))) }, code: 11, says: []string{".credentials"}},
		{name: "no program", change: func(p *pod) { p.must(os.RemoveAll(p.path("root/bin"))) }, code: 11, says: []string{"bin/Agent.Listener"}},
		{name: "a program that cannot start", change: func(p *pod) { p.program("root/bin/Agent.Listener", "#!/nowhere/sh\n") }, code: 11, says: []string{"Agent.Listener"}},
		{name: "bad settings", env: []string{"AZP_GRACE_PERIOD=10s", "AZP_REMOVE_SHARE=10s"}, code: 11, says: []string{"AZP_REMOVE_SHARE"}},
		{name: "crash at once", script: []string{"crash"}, code: 14, says: []string{"137"}},
		{name: "crash while idle", script: []string{"print Listening for Jobs", "exit 1"}, code: 14, says: []string{"exit code 1"}},
		{name: "end without a reason", script: []string{"print Listening for Jobs", "exit 0"}, code: 14, says: []string{"by itself"}},
		{name: "crash during the build", script: []string{"print Listening for Jobs", "print Running job: x", "crash"}, code: 16, says: []string{"137"}},
		{name: "failure during the build", script: []string{"print Listening for Jobs", "print Running job: x", "exit 2"}, code: 16, says: []string{"exit code 2"}},
		{name: "retryable for ever", script: []string{"exit 2"}, env: []string{"AZP_UPDATE_RESTARTS=1"}, code: 14, says: []string{"more than 1 times"}},
		{name: "updates for ever", script: []string{"update", "exit 4"}, env: []string{"AZP_UPDATE_RESTARTS=1"}, code: 14, says: []string{"AZP_UPDATE_RESTARTS"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newPod(t)
			p.configured()
			if tt.script != nil {
				p.script("fake-listener", tt.script...)
			}
			if tt.change != nil {
				tt.change(p)
			}
			p.start("run", tt.env...).expect(tt.code, tt.says...)
		})
	}
}

func TestRunProbeAddressTaken(t *testing.T) {
	p := newPod(t)
	p.configured()
	socket, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	p.must(err)
	defer func() { _ = socket.Close() }()
	p.start("run", "AZP_PROBE_ADDRESS="+socket.Addr().String()).expect(11, "AZP_PROBE_ADDRESS")
	if n := p.calls("fake-listener"); n != 0 {
		t.Errorf("the listener was started %d times without probes", n)
	}
}

func TestRunStoppedWhileIdle(t *testing.T) {
	for _, signal := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		t.Run(signal.String(), func(t *testing.T) {
			p := newPod(t)
			p.configured()
			c := p.listening()
			c.signal(signal)
			c.logged("waiting for the verdict")
			if got := p.signals(); len(got) > 0 {
				t.Errorf("the listener got %v before the verdict", got)
			}
			p.write("verdict/withdrawn", "")
			c.expect(10, "withdrawn")
			if diff := cmp.Diff([]string{"interrupt"}, p.signals()); diff != "" {
				t.Errorf("signals of the listener (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRunStoppedWithoutVerdict(t *testing.T) {
	for name, test := range map[string]struct {
		layOut       func(p *pod)
		registration string
	}{
		"none comes": {(*pod).configured, "config"},
		"no folder":  {func(p *pod) { p.configured(); p.must(os.RemoveAll(p.path("verdict"))) }, "config"},
		"no scaler":  {(*pod).registered, "jit"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPod(t)
			test.layOut(p)
			c := p.listening("AZP_WITHDRAW_LIMIT=300ms", "AZP_REGISTRATION="+test.registration)
			c.signal(syscall.SIGTERM)
			c.expect(10, "asked to stop while idle")
			if diff := cmp.Diff([]string{"interrupt"}, p.signals()); diff != "" {
				t.Errorf("signals of the listener (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRunStoppedBeforeListening(t *testing.T) {
	p := newPod(t)
	p.configured()
	p.script("fake-listener", "print Connecting", "wait never")
	c := p.start("run", "AZP_WITHDRAW_LIMIT=300ms")
	c.logged("Connecting")
	c.signal(syscall.SIGTERM)
	// As the kubelet stops a container that never passed its startup probe.
	c.expect(14, "before the agent was listening")
}

func TestRunWithdrawnAgentWhoseListenerEndsFirst(t *testing.T) {
	p := newPod(t)
	p.configured()
	p.script("fake-listener", "print Listening for Jobs", "wait gone", "exit 1")
	c := p.listening()
	c.signal(syscall.SIGTERM)
	c.logged("waiting for the verdict")
	// The deletion of the registration ends the listener before the verdict is written.
	pid := p.call("fake-listener", 1).PID
	p.touch("gone")
	p.eventually("the end of the listener", func() bool { return !alive(pid) })
	p.write("verdict/withdrawn", "")
	c.expect(10, "withdrawn")
}

func TestRunStoppedWithABuildOnItsWay(t *testing.T) {
	p := newPod(t)
	p.configured()
	p.script("fake-listener", aBuild()...)
	c := p.listening()
	c.signal(syscall.SIGTERM)
	p.write("verdict/busy", "")
	c.logged("a build is on its way")
	p.touch("job")
	c.logged("a build was claimed")
	p.touch("end")
	c.expect(0, "the build ended")
	if got := p.signals(); len(got) > 0 {
		t.Errorf("the listener got %v, want nothing", got)
	}
}

func TestRunClaimsWhileItWaitsForTheVerdict(t *testing.T) {
	for registration, waits := range map[string]string{
		"config": "waiting for the verdict", "jit": "leaving the scaler time to withdraw the agent",
	} {
		t.Run(registration, func(t *testing.T) {
			p := newPod(t)
			p.configured()
			p.script("fake-listener", aBuild()...)
			c := p.listening("AZP_WITHDRAW_LIMIT=1s", "AZP_REGISTRATION="+registration)
			c.signal(syscall.SIGTERM)
			c.logged(waits)
			p.touch("job")
			c.logged("a build was claimed")
			// Longer than the limit after which an idle agent would have been interrupted.
			began := time.Now()
			p.eventually("the limit to have passed", func() bool { return time.Since(began) > 1500*time.Millisecond })
			if got := p.signals(); len(got) > 0 || c.ended() {
				t.Errorf("the listener got %v, want nothing", got)
			}
			p.touch("end")
			c.expect(0, "the build ended")
		})
	}
}

func TestRunStoppedDuringTheBuild(t *testing.T) {
	p := newPod(t)
	p.configured()
	p.script("fake-listener", aBuild()...)
	p.touch("job")
	c := p.start("run")
	c.logged("a build was claimed")
	c.signal(syscall.SIGTERM)
	c.logged("asked to stop")
	if got := p.signals(); len(got) > 0 || c.ended() {
		t.Errorf("the listener got %v, want nothing while its build has time", got)
	}
	p.touch("end")
	c.expect(0, "the build ended")
}

func TestRunCutsTheBuildAtItsShare(t *testing.T) {
	for name, stubborn := range map[string]bool{"obeys INT": false, "ignores INT": true} {
		t.Run(name, func(t *testing.T) {
			p := newPod(t)
			p.configured()
			p.script("fake-listener", aBuild()...)
			p.touch("job")
			answer := "2026-01-02 03:04:05Z: Job Build completed with result: Canceled\n"
			if stubborn {
				answer = "ignore"
			}
			p.write("records/on-int", answer)
			c := p.start("run", "AZP_GRACE_PERIOD=6s", "AZP_REMOVE_SHARE=5s")
			c.logged("a build was claimed")
			c.signal(syscall.SIGTERM)
			c.expect(16, "grace period")
			if diff := cmp.Diff([]string{"interrupt"}, p.signals()); diff != "" {
				t.Errorf("signals of the listener (-want +got):\n%s", diff)
			}
			if alive(p.call("fake-listener", 1).PID) {
				t.Error("the listener is still there")
			}
		})
	}
}

func TestRunKillsAListenerThatHangsAfterItsBuild(t *testing.T) {
	p := newPod(t)
	p.configured()
	p.script("fake-listener", "print Listening for Jobs", "print Running job: x", "child", "print Job x completed with result: Succeeded", "wait never")
	p.write("records/on-int", "ignore")
	p.start("run", "AZP_HANG_LIMIT=300ms").expect(0, "hung")
	pid, err := strconv.Atoi(p.read("records/child"))
	p.must(err)
	p.eventually("the end of what the listener had started", func() bool { return !alive(pid) })
}

func TestRunHangingListenerIsKilledWithTheGracePeriod(t *testing.T) {
	p := newPod(t)
	p.configured()
	p.script("fake-listener", "print Listening for Jobs", "print Running job: x", "print Job x completed with result: Succeeded", "wait never")
	c := p.start("run", "AZP_GRACE_PERIOD=2s", "AZP_REMOVE_SHARE=1s")
	c.logged("the build ended")
	c.signal(syscall.SIGTERM)
	// The build is done: that its listener hangs costs it nothing.
	c.expect(0, "hung")
}

func TestRunUpdates(t *testing.T) {
	for _, code := range []string{"3", "4"} {
		t.Run("exit "+code, func(t *testing.T) {
			p := newPod(t)
			p.configured()
			address := freeAddress(t)
			p.script("fake-listener.1", "print Listening for Jobs", "wait update", "update", "exit "+code)
			p.script("fake-listener", aBuild()...)
			c := p.listening("AZP_PROBE_ADDRESS=" + address)
			p.touch("update")
			c.logged("updates itself")
			// Not ready would be taken for a claim.
			if got := probe(address, "/ready"); got != http.StatusOK {
				t.Errorf("ready is %d during the update, want 200", got)
			}
			p.touch("job")
			p.touch("end")
			c.expect(0, "the build ended")
			if n := p.calls("fake-listener"); n != 2 {
				t.Errorf("the listener was started %d times, want 2", n)
			}
			if !p.has("root/bin.old") {
				t.Error("the listener was started again before the update was over")
			}
		})
	}
}

func TestRunUpdateThatChangesNothing(t *testing.T) {
	p := newPod(t)
	p.configured()
	p.script("fake-listener.1", "exit 4")
	p.script("fake-listener", aBuild()...)
	p.touch("job")
	p.touch("end")
	p.start("run").expect(0, "the build ended")
}

func TestRunStoppedDuringAnUpdate(t *testing.T) {
	for name, tt := range map[string]struct {
		verdict string
		code    int
		starts  int
	}{
		"withdrawn": {"withdrawn", 10, 1},
		"busy":      {"busy", 0, 2},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPod(t)
			p.configured()
			p.script("fake-listener.1", "print Listening for Jobs", "update", "exit 4")
			p.script("fake-listener", aBuild()...)
			p.touch("job")
			p.touch("end")
			p.write("verdict/"+tt.verdict, "")
			c := p.start("run")
			c.logged("updates itself")
			c.signal(syscall.SIGTERM)
			c.expect(tt.code)
			if n := p.calls("fake-listener"); n != tt.starts {
				t.Errorf("the listener was started %d times, want %d", n, tt.starts)
			}
		})
	}
}

func TestRunRetries(t *testing.T) {
	p := newPod(t)
	p.configured()
	p.script("fake-listener.1", "exit 2")
	p.script("fake-listener.2", "print Listening for Jobs", "exit 2")
	p.script("fake-listener", aBuild()...)
	p.touch("job")
	p.touch("end")
	p.start("run").expect(0, "the build ended")
	if n := p.calls("fake-listener"); n != 3 {
		t.Errorf("the listener was started %d times, want 3", n)
	}
}

func TestRunUnderHostileFolders(t *testing.T) {
	for name, change := range map[string]func(p *pod){
		"no folder for the claim": func(p *pod) { p.must(os.RemoveAll(p.path("claimed"))) },
		"the claim is a link":     func(p *pod) { p.must(os.Symlink("/nowhere/at/all", p.path("claimed/claimed"))) },
		"the claim is a folder":   func(p *pod) { p.must(os.Mkdir(p.path("claimed/claimed"), 0o700)) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPod(t)
			p.configured()
			change(p)
			p.script("fake-listener", aBuild()...)
			p.touch("job")
			p.touch("end")
			c := p.start("run")
			c.expect(0, "the build ended")
			c.logged("the claim could not be told")
		})
	}
}

func TestRunWithATokenInItsEnvironment(t *testing.T) {
	p := newPod(t)
	p.configured()
	p.script("fake-listener", aBuild()...)
	p.touch("job")
	p.touch("end")
	c := p.start("run", "AZP_TOKEN="+canary, "EXTENSION_PAT=x:"+canary)
	c.expect(0)
	c.logged("run needs no token")
	if env := strings.Join(p.call("fake-listener", 1).Env, "\n"); strings.Contains(env, canary) {
		t.Errorf("the listener got the token:\n%s", env)
	}
}

func TestRunPassesLongLinesThrough(t *testing.T) {
	p := newPod(t)
	p.configured()
	long := strings.Repeat("x", 60_000)
	p.script("fake-listener", append([]string{"print " + long}, aBuild()...)...)
	p.touch("job")
	p.touch("end")
	c := p.start("run")
	c.expect(0)
	if out := c.stdout.String(); !strings.Contains(out, long+"\n") || !strings.Contains(out, ": Running job: Build\n") {
		t.Errorf("the listener's output was not passed on: %d bytes", len(out))
	}
}

func TestCommandLine(t *testing.T) {
	p := newPod(t)
	for _, tt := range []struct {
		args string
		code int
		says string
	}{
		{"version", 0, "\n"},
		{"help", 0, "usage:"},
		{"frobnicate", 11, "usage:"},
		{"run now", 11, "usage:"},
	} {
		c := p.start(tt.args)
		if got := c.wait(); got != tt.code || !strings.Contains(c.stdout.String()+c.stderr.String(), tt.says) {
			t.Errorf("%q ended with %d and printed %q%q, want %d and %q", tt.args, got, c.stdout.String(), c.stderr.String(), tt.code, tt.says)
		}
	}
}

func TestLastWords(t *testing.T) {
	p := newPod(t)
	p.must(os.Remove(p.path("termination-log")))
	c := p.start("run", "AZP_HANDOVER_DIR=relative")
	if got := c.wait(); got != 11 {
		t.Errorf("ended with %d, want 11", got)
	}
	if p.has("termination-log") {
		t.Error("a termination log was made where nobody asked for one")
	}
	long := strings.Repeat("y", 5000)
	p.write("termination-log", "old words that are much longer than nothing")
	p.start("run", "AZP_PROBE_ADDRESS="+long).wait()
	if words := p.read("termination-log"); len(words) != longestMessage || strings.Contains(words, "\n") {
		t.Errorf("%d bytes of last words, want %d in one line", len(words), longestMessage)
	}
	p.start("run", "AZP_HANDOVER_DIR=a\nb").wait()
	if words := p.read("termination-log"); strings.Contains(words, "\n") || !strings.HasPrefix(words, fmt.Sprintf("bad configuration (exit %d): ", 11)) {
		t.Errorf("last words %q, want one line that begins with the outcome", words)
	}
}
