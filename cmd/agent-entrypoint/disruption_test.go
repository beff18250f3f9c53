package main

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

// registeredStandIn lays a pod out as the scaler does where it registers the agent.
func (p *pod) registeredStandIn() {
	p.t.Helper()
	p.configuredStandIn()
	p.must(os.RemoveAll(p.path("verdict")))
	p.must(os.RemoveAll(p.path("claimed")))
}

// TestStandInDrainedWithoutAScaler says what becomes of an agent that the scaler has registered
// when its pod is told to end and there is no scaler that could withdraw it: a build that the
// service still gives to it is run to its end, and without one it leaves at its limit.
func TestStandInDrainedWithoutAScaler(t *testing.T) {
	t.Run("a build comes", func(t *testing.T) {
		p := newStandInPod(t)
		p.registeredStandIn()
		run := p.listening("AZP_REGISTRATION=jit", "AZP_WITHDRAW_LIMIT=1m")
		run.signal(syscall.SIGTERM)
		run.logged("leaving the scaler time to withdraw the agent")
		id := p.queue("sleep 1")
		if code := run.wait(); code != 0 {
			t.Errorf("run ended with %d, want 0", code)
		}
		if status := p.result(id); status.Result != "succeeded" {
			t.Errorf("the build ended as %q: %s", status.Result, status.Message)
		}
	})
	t.Run("none comes", func(t *testing.T) {
		p := newStandInPod(t)
		p.registeredStandIn()
		run := p.listening("AZP_REGISTRATION=jit", "AZP_WITHDRAW_LIMIT=1s")
		run.signal(syscall.SIGTERM)
		if code := run.wait(); code != 10 {
			t.Errorf("run ended with %d, want 10", code)
		}
		// Its registration is there for the scaler that starts next to remove.
		if got := p.agents(); len(got) != 1 {
			t.Errorf("agents %v, want the one that nobody could withdraw", got)
		}
	})
}

// TestStandInStartedTwice runs a second pod with what the scaler has registered for the first,
// as if the Job controller had made both: the service lets one of them listen.
func TestStandInStartedTwice(t *testing.T) {
	p := newStandInPod(t)
	p.registeredStandIn()
	other := t.TempDir()
	p.must(exec.Command("cp", "-a", p.path("root")+"/.", other).Run()) //nolint:gosec // Folders of the test.
	first := p.listening("AZP_REGISTRATION=jit")
	second := p.start("run", "AZP_REGISTRATION=jit", "AZP_AGENT_ROOT="+other, "AZP_WITHDRAW_LIMIT=1s")
	second.logged("A session for this agent already exists.")
	id := p.queue("sleep 1")
	p.running(id)
	second.signal(syscall.SIGTERM)
	if code := second.wait(); code != 14 {
		t.Errorf("the second pod ended with %d, want 14", code)
	}
	if status := p.result(id); status.Result != "succeeded" {
		t.Errorf("the build ended as %q: %s", status.Result, status.Message)
	}
	if code := first.wait(); code != 0 {
		t.Errorf("the first pod ended with %d, want 0", code)
	}
	if strings.Contains(second.stdout.String(), "Running job") || len(p.agents()) != 1 {
		t.Errorf("agents %v, and the second pod printed:\n%s", p.agents(), second.stdout.String())
	}
}

// away has the service reset every connection until it is called off.
func (p *pod) away() (back func()) {
	p.t.Helper()
	id := p.inject(azuredevopstest.Fault{Kind: azuredevopstest.FaultReset})
	return func() { p.service.RemoveFault(id) }
}

// TestStandInServiceAway has the service away for so long that it shows the agent offline:
// while it waits, while its build runs, and when the registration is to be removed. Half an
// hour and the real agent's pauses are scaled down to seconds.
func TestStandInServiceAway(t *testing.T) {
	p := newStandInPodWith(t, azuredevopstest.Options{
		OnlineTimeout: time.Second, MessageWait: 300 * time.Millisecond, SessionTimeout: 2 * time.Second, LockDuration: time.Minute,
	}, "retry-interval=200ms", "renew-interval=500ms", "keep-alive-interval=500ms")
	online := func(want bool) func() bool {
		return func() bool {
			agents := p.service.Agents(p.poolID)
			return len(agents) == 1 && agents[0].Online == want
		}
	}
	remove := p.removing()
	p.configuredStandIn()
	run := p.listening()

	back := p.away()
	p.eventually("the agent to be offline while it waits", online(false))
	back()
	p.eventually("the agent to be back", online(true))
	if run.ended() {
		t.Fatal("the agent has given up")
	}

	id := p.queue(`while [ ! -e "` + p.path("end") + `" ]; do sleep 0.1; done`)
	p.running(id)
	back = p.away()
	p.eventually("the agent to be offline while its build runs", online(false))
	p.write("end", "")
	back()
	if status := p.result(id); status.Result != "succeeded" {
		t.Errorf("the build ended as %q: %s", status.Result, status.Message)
	}
	if code := run.wait(); code != 0 {
		t.Errorf("run ended with %d, want 0", code)
	}

	back = p.away()
	remove.signal(syscall.SIGTERM)
	remove.logged("trying again")
	back()
	if code := remove.wait(); code != 0 || len(p.agents()) > 0 {
		t.Errorf("remove ended with %d, and registered are %v", code, p.agents())
	}
}
