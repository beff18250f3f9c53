package main

import (
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

// disabled reports whether an agent of the pool is disabled.
func (p *pod) disabled() bool {
	for _, agent := range p.service.Agents(p.poolID) {
		if !agent.Enabled {
			return true
		}
	}
	return false
}

// removing starts remove and waits until it would notice a signal.
func (p *pod) removing(env ...string) *container {
	p.t.Helper()
	c := p.start("remove", append(withToken(p), env...)...)
	c.logged("keeping the registration")
	return c
}

func TestRemove(t *testing.T) {
	for _, signal := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		t.Run(signal.String(), func(t *testing.T) {
			p := newPod(t)
			p.configured()
			c := p.removing()
			if p.disabled() {
				t.Error("disabled without a claim")
			}
			c.signal(signal)
			c.expect(0, "the registration is gone")
			if got := p.agents(); len(got) > 0 {
				t.Errorf("still registered: %v", got)
			}
		})
	}
}

func TestRemoveDisablesAClaimedAgent(t *testing.T) {
	for name, claim := range map[string]func(p *pod){
		"a file": func(p *pod) { p.write("claimed/claimed", "") },
		// A build owns that folder. Whatever it makes of the name is only looked at.
		"a link to a secret": func(p *pod) { p.must(os.Symlink(p.path("token"), p.path("claimed/claimed"))) },
		"a dangling link":    func(p *pod) { p.must(os.Symlink("/nowhere", p.path("claimed/claimed"))) },
		"a pipe":             func(p *pod) { p.must(syscall.Mkfifo(p.path("claimed/claimed"), 0o600)) },
		"a folder":           func(p *pod) { p.must(os.Mkdir(p.path("claimed/claimed"), 0o700)) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPod(t)
			p.configured()
			c := p.removing()
			claim(p)
			p.eventually("the agent to be disabled", p.disabled)
			c.signal(syscall.SIGTERM)
			c.expect(0)
			if strings.Contains(c.stdout.String()+c.stderr.String(), canary) {
				t.Error("the token was printed")
			}
		})
	}
}

func TestRemoveGoesOnDisablingUntilItWorks(t *testing.T) {
	p := newPod(t)
	p.configured()
	fault := p.inject(azuredevopstest.Fault{Operation: "agents.update", Kind: "status", Status: 503})
	c := p.removing()
	p.write("claimed/claimed", "")
	c.logged("disabling the agent")
	p.service.RemoveFault(fault)
	p.eventually("the agent to be disabled", p.disabled)
	c.signal(syscall.SIGTERM)
	c.expect(0)
}

func TestRemoveStoppedWhileItDisables(t *testing.T) {
	p := newPod(t)
	p.configured()
	p.inject(azuredevopstest.Fault{Operation: "agents.update", Kind: "status", Status: 503})
	c := p.removing()
	p.write("claimed/claimed", "")
	c.logged("disabling the agent")
	c.signal(syscall.SIGTERM)
	c.expect(0, "the registration is gone")
}

func TestRemoveOfAnAgentThatIsGone(t *testing.T) {
	p := newPod(t)
	p.configured()
	p.start("withdraw", withToken(p)...).expect(0)
	c := p.removing()
	c.signal(syscall.SIGTERM)
	c.expect(0, "the registration is gone")
}

func TestRemoveWithoutARecord(t *testing.T) {
	for name, change := range map[string]func(p *pod){
		"nothing":  func(p *pod) { p.must(os.Remove(p.path("registration/agent.json"))) },
		"garbage":  func(p *pod) { p.write("registration/agent.json", "{") },
		"wrong id": func(p *pod) { p.write("registration/agent.json", `{"agentId":-1,"poolId":1}`) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPod(t)
			p.configured()
			change(p)
			c := p.removing()
			c.signal(syscall.SIGTERM)
			c.expect(0)
			if got := p.agents(); len(got) > 0 {
				t.Errorf("still registered: %v", got)
			}
		})
	}
	t.Run("never registered", func(t *testing.T) {
		p := newPod(t)
		c := p.removing()
		c.signal(syscall.SIGTERM)
		c.expect(0)
		c.logged("no registration to delete")
	})
}

func TestRemoveTriesAgainWithinItsShare(t *testing.T) {
	p := newPod(t)
	p.configured()
	// More failures than one call of the client bears.
	p.inject(azuredevopstest.Fault{Operation: "agents.delete", Kind: "status", Status: 503, Count: 5})
	c := p.removing()
	c.signal(syscall.SIGTERM)
	c.expect(0)
	c.logged("will try again")
	if got := p.agents(); len(got) > 0 {
		t.Errorf("still registered: %v", got)
	}
}

func TestRemoveFailures(t *testing.T) {
	tests := []struct {
		name   string
		change func(p *pod)
		code   int
		says   []string
	}{
		{name: "service down", change: func(p *pod) {
			p.inject(azuredevopstest.Fault{Operation: "agents.delete", Kind: "status", Status: http.StatusServiceUnavailable})
		}, code: 13, says: []string{"still in the pool", "azp-test-1-1-0"}},
		{name: "service does not answer", change: func(p *pod) {
			p.inject(azuredevopstest.Fault{Operation: "agents.delete", Kind: "hang"})
		}, code: 13, says: []string{"still in the pool"}},
		{name: "token refused", change: func(p *pod) { p.write("token", "revoked") }, code: 12, says: []string{"still in the pool"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newPod(t)
			p.configured()
			if tt.change != nil {
				tt.change(p)
			}
			c := p.removing("AZP_REMOVE_SHARE=1s")
			began := time.Now()
			c.signal(syscall.SIGTERM)
			c.expect(tt.code, tt.says...)
			if took := time.Since(began); took > 45*time.Second {
				t.Errorf("took %s with a share of 1s", took)
			}
		})
	}
}

func TestRemoveWithoutAToken(t *testing.T) {
	p := newPod(t)
	p.start("remove").expect(11, "AZP_TOKEN_FILE")
}

func TestWithdraw(t *testing.T) {
	p := newPod(t)
	p.configured()
	p.start("withdraw", withToken(p)...).expect(0, "withdrawn")
	if !p.has("verdict/withdrawn") || p.has("verdict/busy") {
		t.Error("the verdict must be withdrawn")
	}
	if got := p.agents(); len(got) > 0 {
		t.Errorf("still registered: %v", got)
	}
}

func TestWithdrawAfterTheClaim(t *testing.T) {
	p := newPod(t)
	p.configured()
	p.write("claimed/claimed", "")
	p.start("withdraw", withToken(p)...).expect(0, "busy")
	if p.has("verdict/withdrawn") || !p.has("verdict/busy") {
		t.Error("the verdict must be busy")
	}
	if got := p.agents(); len(got) != 1 {
		t.Errorf("agents %v, want the one", got)
	}
}

func TestWithdrawWithoutAnAgent(t *testing.T) {
	p := newPod(t)
	p.start("withdraw", withToken(p)...).expect(0)
	if !p.has("verdict/withdrawn") {
		t.Error("what is not in the pool is withdrawn")
	}
}

func TestWithdrawByName(t *testing.T) {
	p := newPod(t)
	p.configured()
	p.must(os.Remove(p.path("registration/agent.json")))
	p.start("withdraw", withToken(p)...).expect(0, "withdrawn")
	if got := p.agents(); len(got) > 0 {
		t.Errorf("still registered: %v", got)
	}
}

func TestWithdrawWithoutAnAnswer(t *testing.T) {
	p := newPod(t)
	p.configured()
	p.inject(azuredevopstest.Fault{Operation: "agents.update", Kind: "status", Status: http.StatusServiceUnavailable})
	p.start("withdraw", append(withToken(p), "AZP_WITHDRAW_LIMIT=1s")...).expect(13, "not known")
	if p.has("verdict/withdrawn") || p.has("verdict/busy") {
		t.Error("there is a verdict without an answer")
	}
}

func TestWithdrawNowhereToTell(t *testing.T) {
	p := newPod(t)
	p.configured()
	p.must(os.RemoveAll(p.path("verdict")))
	if code := p.start("withdraw", withToken(p)...).wait(); code == 0 {
		t.Error("ended with 0 though nobody could be told")
	}
}

func TestWholePod(t *testing.T) {
	p := newPod(t)
	remove := p.removing()
	p.configured()
	p.script("fake-listener", aBuild()...)
	run := p.listening()
	p.touch("job")
	p.eventually("the agent to be disabled", p.disabled)
	p.touch("end")
	run.expect(0, "the build ended")
	p.start("withdraw", withToken(p)...).expect(0)
	remove.signal(syscall.SIGTERM)
	remove.expect(0)
	if got := p.agents(); len(got) > 0 {
		t.Errorf("still registered: %v", got)
	}
	for _, folder := range []string{"root", "handover", "verdict", "claimed", "home", "tmp"} {
		if found := p.findCanary(folder); len(found) > 0 {
			t.Errorf("the token is where the build could read it: %v", found)
		}
	}
}

func TestWholePodWithdrawnWhileIdle(t *testing.T) {
	p := newPod(t)
	remove := p.removing()
	p.configured()
	run := p.listening()
	// As the kubelet does when the pod is deleted: hook and TERM at once.
	withdraw := p.start("withdraw", withToken(p)...)
	run.signal(syscall.SIGTERM)
	if code := withdraw.wait(); code != 0 {
		t.Errorf("withdraw ended with %d", code)
	}
	if code := run.wait(); code != 10 {
		t.Errorf("run ended with %d, want 10", code)
	}
	remove.signal(syscall.SIGTERM)
	remove.expect(0)
	if got := p.agents(); len(got) > 0 {
		t.Errorf("still registered: %v", got)
	}
}
