package main

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

// next is the token that takes the canary's place.
const next = "n3xtn3xtn3xtn3xtn3xtn3xtn3xtn3xtn3xtn3xtn3xtn3xtn3xt"

// refusals are the ways in which the service answers a token that has ended or was revoked.
var refusals = map[string]func(p *pod){
	"its sign-in page": func(p *pod) { p.service.RemoveToken(canary) },
	"denied":           func(p *pod) { p.service.SetSignInFailure(azuredevopstest.SignInDenied); p.service.RemoveToken(canary) },
	"a redirect to it": func(p *pod) {
		p.service.SetSignInFailure(azuredevopstest.SignInRedirect)
		p.service.RemoveToken(canary)
	},
	"the word: expired": func(p *pod) {
		p.must(p.service.AddToken(azuredevopstest.Token{Secret: canary, Expired: true, Rights: azuredevopstest.RightsManage}))
	},
	"a file that is not": func(p *pod) { p.must(os.Remove(p.path("token"))) },
}

// mountSecret shows the token as the kubelet does: a link to a link to a folder, of which the
// second is replaced when the Secret changes.
func (p *pod) mountSecret(token string) {
	p.t.Helper()
	folder := "secret-" + token[:4]
	p.must(os.Mkdir(p.path(folder), 0o700))
	p.write(folder+"/token", token)
	p.must(os.Symlink(folder, p.path("..data.new")))
	p.must(os.Rename(p.path("..data.new"), p.path("..data")))
	if link, err := os.Readlink(p.path("token")); err != nil || link != "..data/token" {
		p.must(os.RemoveAll(p.path("token")))
		p.must(os.Symlink("..data/token", p.path("token")))
	}
}

// renew has the service know the next token, and shows it in the pod.
func (p *pod) renew() {
	p.t.Helper()
	p.must(p.service.AddToken(azuredevopstest.Token{Secret: next, Rights: azuredevopstest.RightsManage}))
	p.mountSecret(next)
}

// TestRemoveOutlivesItsToken: the token that was there when the build began ends while it runs,
// and the next one is shown only while remove is at work.
func TestRemoveOutlivesItsToken(t *testing.T) {
	for name, refuse := range refusals {
		t.Run(name, func(t *testing.T) {
			p := newPod(t)
			p.mountSecret(canary)
			p.configured()
			c := p.removing()
			refuse(p)
			c.signal(syscall.SIGTERM)
			c.logged("will try again")
			p.renew()
			c.expect(0, "the registration is gone")
			if got := p.agents(); len(got) > 0 {
				t.Errorf("still registered: %v", got)
			}
		})
	}
}

// TestDisablingOutlivesAToken: a claimed agent is taken out of the service's choice once there is
// a token for it.
func TestDisablingOutlivesAToken(t *testing.T) {
	p := newPod(t)
	p.mountSecret(canary)
	p.configured()
	c := p.removing()
	p.service.RemoveToken(canary)
	p.write("claimed/claimed", "")
	c.logged("disabling the agent")
	p.renew()
	p.eventually("the agent to be disabled", p.disabled)
	c.signal(syscall.SIGTERM)
	c.expect(0)
}

func TestWithdrawOutlivesItsToken(t *testing.T) {
	p := newPod(t)
	p.mountSecret(canary)
	p.configured()
	p.service.RemoveToken(canary)
	c := p.start("withdraw", withToken(p)...)
	c.logged("will try again")
	p.renew()
	c.expect(0, "withdrawn")
}

// TestConfigureWaitsForAToken that the service takes: it was replaced a moment before the pod
// began, and what is mounted is the old one.
func TestConfigureWaitsForAToken(t *testing.T) {
	for name, refuse := range refusals {
		if name == "a file that is not" {
			continue // No container starts without it.
		}
		t.Run(name, func(t *testing.T) {
			p := newPod(t)
			p.mountSecret(canary)
			refuse(p)
			c := p.start("configure", withToken(p)...)
			c.logged("will try again")
			p.renew()
			c.expect(0, "registered")
			if env := strings.Join(p.call("fake-config", 1).Env, "\n"); !strings.Contains(env, next) {
				t.Error("config.sh got the old token")
			}
		})
	}
}

// TestConfigureWhoseTokenIsRevokedUnderIt: config.sh begins with a token that is good, and it is
// refused before that has registered, or after.
func TestConfigureWhoseTokenIsRevokedUnderIt(t *testing.T) {
	for name, script := range map[string][]string{
		"before it registers": {"touch begun", "wait revoked", "print VS30063: You are not authorized to access https://x", "exit 1"},
		"after it registered": {"register lost", "touch begun", "wait revoked", "print VS30063: You are not authorized to access https://x", "exit 1"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPod(t)
			p.mountSecret(canary)
			p.script("fake-config.1", script...)
			c := p.start("configure", withToken(p)...)
			p.eventually("config.sh", func() bool { return p.has("records/begun") })
			p.service.RemoveToken(canary)
			p.touch("revoked")
			c.logged("will try again")
			p.renew()
			c.expect(0, "registered")
			if got := p.agents(); len(got) != 1 {
				t.Errorf("agents %v, want one", got)
			}
		})
	}
}

// TestConfigureDoesNotWaitForRights: no other token is on its way.
func TestConfigureDoesNotWaitForRights(t *testing.T) {
	p := newPod(t)
	p.must(p.service.AddToken(azuredevopstest.Token{Secret: canary, Rights: azuredevopstest.RightsNone}))
	began := time.Now()
	p.start("configure", withToken(p)...).expect(12, "not allowed")
	if took := time.Since(began); took > time.Minute {
		t.Errorf("took %s", took)
	}
}
