package fakeagent_test

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/fakeagent"
	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/faults"
)

func TestEveryFaultIsDocumented(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range faults.Names() {
		if !strings.Contains(string(doc), "//\t"+string(name)) {
			t.Errorf("the package's documentation does not have %s", name)
		}
	}
}

func TestUnknownFaultStopsTheAgent(t *testing.T) {
	t.Parallel()
	a := newAgent(t, newService(t, azuredevopstest.Options{}))
	p := a.startWith([]string{"FAKEAGENT_FAULTS=no-such-fault"}, "bin/Agent.Listener", "run")
	if code := p.wait(); code != 1 {
		t.Errorf("the listener ended with %d", code)
	}
	p.says(`FAKEAGENT_FAULTS: fault "no-such-fault" is unknown`)
}

func TestFaultConfigureFails(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	for fault, registered := range map[string]int{"configure-fails=out of luck": 0, "configure-fails-registered": 1} {
		a := newAgent(t, s, fault)
		p := a.startConfigure()
		if code := p.wait(); code != 1 || a.exists(".agent") {
			t.Errorf("%s: configure ended with %d, .agent is there: %v", fault, code, a.exists(".agent"))
		}
		if got := len(s.Agents(s.pool)); got != registered {
			t.Errorf("%s: the pool has %d agents, not %d", fault, got, registered)
		}
		for range registered {
			a.faults()
			if code := a.startConfigure("--replace").wait(); code != 0 {
				t.Errorf("configure --replace ended with %d", code)
			}
			p := a.startWith([]string{"VSTS_AGENT_INPUT_TOKEN=" + pat}, "config.sh", "remove", "--unattended", "--auth", "PAT")
			p.wait()
		}
	}
}

func TestFaultConfigureHangs(t *testing.T) {
	t.Parallel()
	for fault, registered := range map[string]int{"configure-hangs": 0, "configure-hangs-registered": 1} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			s := newService(t, azuredevopstest.Options{})
			p := newAgent(t, s, fault).startConfigure()
			if registered > 0 {
				p.waitFor("Successfully added the agent")
			} else {
				p.waitFor("Connecting to server")
			}
			stays(t, p, syscall.SIGINT, syscall.SIGTERM)
			if got := len(s.Agents(s.pool)); got != registered {
				t.Errorf("the pool has %d agents, not %d", got, registered)
			}
		})
	}
}

// stays sends signals to the whole group of a process for a while, during which it
// must not end.
func stays(t *testing.T, p *process, signals ...syscall.Signal) {
	t.Helper()
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		for _, signal := range signals {
			p.signal(signal)
		}
		select {
		case <-p.done:
			// The shell around a program does end by such a signal.
			if !strings.HasSuffix(p.cmd.Path, ".sh") {
				t.Fatalf("%s ended by a signal", p.cmd.Path)
			}
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func TestFaultSlowConfigure(t *testing.T) {
	t.Parallel()
	a := newAgent(t, newService(t, azuredevopstest.Options{}), "slow-configure=700ms")
	start := time.Now()
	a.configured()
	if took := time.Since(start); took < 700*time.Millisecond {
		t.Errorf("configure took %s", took)
	}
}

func TestFaultReplaceLoop(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s, "replace-loop")
	p := a.startConfigure("--replace")
	eventually(t, "the second attempt", func() bool { return strings.Count(p.output.String(), "Failed to replace the agent") >= 2 })
	// Without --replace the fault has nothing to bite on.
	other := newAgent(t, s, "replace-loop")
	other.configured()
}

func TestFaultNeverRegisters(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s, "never-registers").configured()
	p := a.start("bin/Agent.Listener", "run", "--once")
	eventually(t, "the start of the listener", func() bool { return strings.Contains(diagText(t, a), "command=run") })
	stays(t, p, syscall.SIGINT, syscall.SIGTERM)
	if n := len(s.events("session-created")); n != 0 {
		t.Errorf("%d sessions were opened", n)
	}
	// Nobody has to come back for it once its folder is removed.
	if err := os.RemoveAll(a.root); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(); code != -int(syscall.SIGKILL) {
		t.Errorf("the listener ended with %d", code)
	}
}

func diagText(t *testing.T, a *agent) string {
	t.Helper()
	var text strings.Builder
	entries, err := os.ReadDir(a.path("_diag"))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		text.WriteString(a.read("_diag", entry.Name()))
	}
	return text.String()
}

func TestFaultSlowListen(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s, "slow-listen=700ms").configured()
	start := time.Now()
	a.listen()
	if took := time.Since(start); took < 700*time.Millisecond {
		t.Errorf("listening took %s", took)
	}
}

func TestFaultCrashBeforeJob(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s, "crash-before-job").configured()
	p := a.listen()
	if code := p.wait(); code != -int(syscall.SIGKILL) {
		t.Errorf("the listener ended with %d", code)
	}
	if len(s.events("session-created")) != 1 || len(s.events("session-deleted")) != 0 {
		t.Error("a crashed listener leaves its session")
	}
}

func TestFaultCrashDuringJob(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{LockDuration: time.Second})
	a := newAgent(t, s).configured()
	p := a.listen()
	id := s.queue(t, azuredevopstest.Build{
		Steps:     []string{"echo $$ >$(marker).new; mv $(marker).new $(marker); sleep 300"},
		Variables: map[string]string{"fakeagent.faults": "crash-during-job=500ms", "marker": a.path("pid")},
	})
	if code := p.wait(); code != -int(syscall.SIGKILL) {
		t.Errorf("the listener ended with %d", code)
	}
	p.says("Running job")
	if status := s.wait(t, id); status.Result != "abandoned" {
		t.Errorf("the build ended as %+v", status)
	}
}

func TestFaultWorkerCrash(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s).configured()
	p := a.listen()
	id := s.queue(t, azuredevopstest.Build{Steps: []string{"true"}, Variables: map[string]string{"fakeagent.faults": "worker-crash"}})
	if status := s.wait(t, id); status.Result != "failed" {
		t.Errorf("the build ended as %+v", status)
	}
	if code := p.wait(); code != 0 {
		t.Errorf("the listener ended with %d", code)
	}
	p.says("completed with result: Failed")
}

func TestFaultHangAfterJob(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s).configured()
	p := a.listen()
	id := s.queue(t, azuredevopstest.Build{Steps: []string{"true"}, Variables: map[string]string{"fakeagent.faults": "hang-after-job"}})
	if status := s.wait(t, id); status.Result != "succeeded" {
		t.Errorf("the build ended as %+v", status)
	}
	p.waitFor("completed with result: Succeeded")
	// The signals are ignored from a moment after the finish on.
	eventually(t, "the end of the worker's connection", func() bool { return ignoresSignals(p) })
	stays(t, p, syscall.SIGINT, syscall.SIGTERM)
	if n := len(s.events("session-deleted")); n != 0 {
		t.Errorf("%d sessions were deleted", n)
	}
}

// ignoresSignals tells whether the kernel drops SIGINT and SIGTERM to the process.
func ignoresSignals(p *process) bool {
	return signalMask(p, "SigIgn")&(1<<(syscall.SIGINT-1)|1<<(syscall.SIGTERM-1)) == 1<<(syscall.SIGINT-1)|1<<(syscall.SIGTERM-1)
}

func TestFaultLingerOpensTheSecondJobWindow(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{ReceiveTimeout: time.Second})
	a := newAgent(t, s, "linger=2s").configured()
	p := a.listen()
	first := s.queue(t, azuredevopstest.Build{Steps: []string{"sleep 0.5"}})
	s.waitEvent(t, "request-received")
	second := s.queue(t, azuredevopstest.Build{Steps: []string{"true"}})
	if status := s.wait(t, first); status.Result != "succeeded" {
		t.Errorf("the first build ended as %+v", status)
	}
	if status := s.wait(t, second); status.Result == "succeeded" || status.AgentName != "azp-one" {
		t.Errorf("the second build ended as %+v", status)
	}
	if code := p.wait(); code != 0 {
		t.Errorf("the listener ended with %d", code)
	}
	if strings.Count(p.output.String(), "Running job") != 1 {
		t.Error("a once-agent ran two jobs")
	}
}

func TestFaultListenerExit2(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s, "listener-exit-2=2").configured()
	for range 2 {
		if code := a.start("bin/Agent.Listener", "run", "--once").wait(); code != 2 {
			t.Errorf("the listener ended with %d", code)
		}
	}
	a.listen()
}

func TestFaultIgnoreInt(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s, "ignore-int").configured()
	p := a.listen()
	stays(t, p, syscall.SIGINT)
	p.signal(syscall.SIGTERM)
	if code := p.wait(); code != -int(syscall.SIGTERM) {
		t.Errorf("the listener ended with %d", code)
	}
}

func TestFaultIgnoreCancel(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{CancelTimeout: time.Second})
	a := newAgent(t, s).configured()
	p := a.listen()
	id := s.queue(t, azuredevopstest.Build{
		Steps:     []string{"touch $(marker); while [ ! -e $(marker).end ]; do sleep 0.1; done"},
		Variables: map[string]string{"fakeagent.faults": "ignore-cancel", "marker": a.path("started")},
	})
	eventually(t, "the step's start", func() bool { return a.exists("started") })
	if err := s.Cancel(id); err != nil {
		t.Fatal(err)
	}
	if status := s.wait(t, id); status.Result != "abandoned" {
		t.Errorf("the build ended as %+v", status)
	}
	if err := os.WriteFile(a.path("started.end"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(); code != 0 {
		t.Errorf("the listener ended with %d", code)
	}
}

func TestLockIsRenewedUnlessTold(t *testing.T) {
	t.Parallel()
	for list, want := range map[string]string{"renew-interval=200ms": "succeeded", "renew-interval=200ms,no-renew": "abandoned"} {
		t.Run(list, func(t *testing.T) {
			t.Parallel()
			s := newService(t, azuredevopstest.Options{LockDuration: time.Second})
			a := newAgent(t, s).configured()
			p := a.listen()
			id := s.queue(t, azuredevopstest.Build{Steps: []string{"sleep 2.5"}, Variables: map[string]string{"fakeagent.faults": list}})
			if status := s.wait(t, id); status.Result != want {
				t.Errorf("the build ended as %+v, not %s", status, want)
			}
			p.wait()
		})
	}
}

func TestFaultsOfThePackage(t *testing.T) {
	t.Parallel()
	if _, err := fakeagent.Build(t.Context(), t.TempDir(), fakeagent.Options{Faults: []string{"no-such-fault"}}); err == nil {
		t.Error("an unknown fault was packed")
	}
	path, err := fakeagent.Build(t.Context(), t.TempDir(), fakeagent.Options{Faults: []string{"listener-exit-2", "linger=1s"}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := fakeagent.Unpack(path, dir); err != nil {
		t.Fatal(err)
	}
	got, err := faults.Load(dir, "linger=3s", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != "linger=3s,listener-exit-2=1" {
		t.Errorf("the faults are %s", got)
	}
}
