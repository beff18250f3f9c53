package fakeagent_test

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/fakeagent"
)

const newVersion = "5.271.3"

func newPackage(t *testing.T, wrongHash bool) azuredevopstest.Options {
	t.Helper()
	path, err := fakeagent.Build(t.Context(), t.TempDir(), fakeagent.Options{Version: newVersion})
	if err != nil {
		t.Fatal(err)
	}
	return azuredevopstest.Options{Packages: []azuredevopstest.AgentPackage{{Platform: "linux-x64", Version: newVersion, Path: path, WrongHash: wrongHash}}}
}

func TestUpdateOnOrder(t *testing.T) {
	t.Parallel()
	s := newService(t, newPackage(t, false))
	a := newAgent(t, s, "update-gap=1s").configured()
	p := a.listen()
	if err := s.RequestUpdate(s.pool, s.Agents(s.pool)[0].ID, newVersion); err != nil {
		t.Fatal(err)
	}
	// The script that exchanges the programs holds the listener's output: it is over
	// before that ends.
	eventually(t, "bin/ to go away", func() bool { return !a.exists("bin") })
	if code := p.wait(); code != 4 {
		t.Errorf("the listener ended with %d", code)
	}
	eventually(t, "bin/ to come back", func() bool { return a.exists("bin", "Agent.Listener") })
	if version := a.start("bin/Agent.Listener", "--version"); version.wait() != 0 || strings.TrimSpace(version.output.String()) != newVersion {
		t.Errorf("the version is %s", version.output.String())
	}
	p = a.listen()
	id := s.queue(t, azuredevopstest.Build{Steps: []string{"echo $AGENT_VERSION"}})
	if status := s.wait(t, id); status.Result != "succeeded" {
		t.Errorf("the build ended as %+v", status)
	}
	if log, _ := s.Log(id); !strings.Contains(log, newVersion) {
		t.Errorf("the log is:\n%s", log)
	}
	p.wait()
}

func TestUpdateWithAWrongHashIsNotInstalled(t *testing.T) {
	t.Parallel()
	s := newService(t, newPackage(t, true))
	a := newAgent(t, s).configured()
	p := a.listen()
	if err := s.RequestUpdate(s.pool, s.Agents(s.pool)[0].ID, newVersion); err != nil {
		t.Fatal(err)
	}
	p.waitFor("Agent update failed")
	p.signal(syscall.SIGINT)
	if code := p.wait(); code != 0 {
		t.Errorf("the listener ended with %d", code)
	}
	if version := a.start("bin/Agent.Listener", "--version"); version.wait() != 0 || strings.TrimSpace(version.output.String()) != fakeagent.DefaultVersion {
		t.Errorf("the version is %s", version.output.String())
	}
}

func TestFaultExit4Update(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s, "exit-4-update=2", "update-gap=200ms").configured()
	for range 2 {
		if code := a.start("bin/Agent.Listener", "run", "--once").wait(); code != 4 {
			t.Fatalf("the listener ended with %d", code)
		}
		eventually(t, "bin/ to go away and come back", func() bool {
			return a.exists("bin."+fakeagent.DefaultVersion) && a.exists("bin", "Agent.Worker") && !a.exists("_work", "_update")
		})
	}
	a.listen()
}

func TestFaultUpdateLosesBin(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s, "exit-4-update", "update-loses-bin").configured()
	if code := a.start("bin/Agent.Listener", "run", "--once").wait(); code != 4 {
		t.Fatalf("the listener ended with %d", code)
	}
	eventually(t, "bin/ to go away", func() bool { return !a.exists("bin") && a.exists("bin."+fakeagent.DefaultVersion) })
}

func TestRunScriptRunsAnUpdatedAgentAgain(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s, "exit-4-update", "update-gap=0s").configured()
	p := a.start("run.sh", "--once")
	eventually(t, "the second start", func() bool { return strings.Count(p.output.String(), "Listening for Jobs") == 2 })
	id := s.queue(t, azuredevopstest.Build{Steps: []string{"true"}})
	s.wait(t, id)
	if code := p.wait(); code != 0 {
		t.Errorf("run.sh ended with %d", code)
	}
}

func TestVersion4TakesTermForAnInterrupt(t *testing.T) {
	t.Parallel()
	path, err := fakeagent.Build(t.Context(), t.TempDir(), fakeagent.Options{Version: "4.260.0"})
	if err != nil {
		t.Fatal(err)
	}
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s)
	// Unpacking over links would change the programs of every agent.
	if err := os.RemoveAll(a.path("bin")); err != nil {
		t.Fatal(err)
	}
	if err := fakeagent.Unpack(path, a.root); err != nil {
		t.Fatal(err)
	}
	a.faults()
	a.configured()
	p := a.listen()
	p.signal(syscall.SIGTERM)
	if code := p.wait(); code != 0 {
		t.Errorf("the listener ended with %d", code)
	}
	s.waitEvent(t, "session-deleted")
}

func TestSessionOfAnotherListenerIsWaitedFor(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s).configured()
	first := a.listen()
	second := a.start("bin/Agent.Listener", "run", "--once")
	second.waitFor("A session for this agent already exists.")
	first.signal(syscall.SIGINT)
	second.waitFor("Listening for Jobs")
	second.says("Agent reconnected.")
}

func TestExpiredSessionIsOpenedAgain(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{SessionTimeout: 300 * time.Millisecond, OnlineTimeout: 200 * time.Millisecond, MessageWait: 50 * time.Millisecond})
	a := newAgent(t, s, "poll-pause=700ms").configured()
	p := a.listen()
	eventually(t, "a second session", func() bool { return len(s.events("session-created")) >= 2 })
	p.signal(syscall.SIGINT)
	if code := p.wait(); code != 0 {
		t.Errorf("the listener ended with %d", code)
	}
}

func TestListenerOutlivesErrorsOfTheService(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{MessageWait: 100 * time.Millisecond})
	a := newAgent(t, s).configured()
	if _, err := s.Inject(azuredevopstest.Fault{Operation: "sessions.create", Kind: "status", Status: 503, Count: 2}); err != nil {
		t.Fatal(err)
	}
	p := a.listen()
	p.says("Agent connect error")
	if _, err := s.Inject(azuredevopstest.Fault{Operation: "messages.get", Kind: "status", Status: 500, Count: 3}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the second reconnection", func() bool { return strings.Count(p.output.String(), "Agent reconnected.") == 2 })
	id := s.queue(t, azuredevopstest.Build{Steps: []string{"true"}})
	if _, err := s.Inject(azuredevopstest.Fault{Operation: "timeline.update", Kind: "status", Status: 500, Count: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Inject(azuredevopstest.Fault{Operation: "jobrequests.update", Kind: "status", Status: 500, Count: 1}); err != nil {
		t.Fatal(err)
	}
	if status := s.wait(t, id); status.Result != "succeeded" {
		t.Errorf("the build ended as %+v", status)
	}
	p.wait()
}

func TestDeletedAgentEnds(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{MessageWait: 100 * time.Millisecond})
	a := newAgent(t, s).configured()
	p := a.listen()
	other := newAgent(t, s)
	for _, name := range []string{".agent", ".credentials", ".credentials_rsaparams"} {
		copyFile(t, a.path(name), other.path(name))
	}
	if code := other.startWith([]string{"VSTS_AGENT_INPUT_TOKEN=" + pat}, "config.sh", "remove", "--unattended", "--auth", "PAT").wait(); code != 0 {
		t.Fatalf("remove ended with %d", code)
	}
	if code := p.wait(); code != 0 && code != 1 {
		t.Errorf("the listener of a deleted agent ended with %d", code)
	}
}

func TestKeepAliveLosesNoJob(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{MessageWait: 300 * time.Millisecond})
	a := newAgent(t, s, "keep-alive-interval=10ms", "poll-pause=500ms").configured()
	p := a.listen()
	id := s.queue(t, azuredevopstest.Build{Steps: []string{"true"}})
	if status := s.wait(t, id); status.Result != "succeeded" {
		t.Errorf("the build ended as %+v", status)
	}
	if code := p.wait(); code != 0 {
		t.Errorf("the listener ended with %d", code)
	}
}
