package main

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

func TestConfigure(t *testing.T) {
	p := newPod(t)
	p.script("fake-config", "print the token is $TOKEN", "leak", "register")
	c := p.start("configure", append(withToken(p), "VSTS_AGENT_INPUT_PROXYURL=http://proxy", "OTHER="+canary)...)
	c.expect(0, "azp-test-1-1-0", "is registered")

	call := p.call("fake-config", 1)
	want := []string{
		"--unattended", "--acceptTeeEula", "--url", p.url, "--auth", "PAT", "--pool", "pool",
		"--agent", "azp-test-1-1-0", "--work", "_work",
	}
	if diff := cmp.Diff(want, call.Args); diff != "" {
		t.Errorf("arguments of config.sh (-want +got):\n%s", diff)
	}
	env := strings.Join(call.Env, "\n")
	for _, entry := range []string{"VSTS_AGENT_INPUT_TOKEN=" + canary, "VSTS_AGENT_INPUT_PROXYURL=http://proxy", "VSTS_AGENT_INPUT_SSLCACERT=" + p.path("ca.crt"), "VSO_AGENT_IGNORE=SOMETHING", "SSL_CERT_FILE=" + p.path("root/.azp-ca-bundle.pem")} {
		if !strings.Contains(env, entry) {
			t.Errorf("environment of config.sh lacks %s", entry)
		}
	}
	if strings.Count(env, canary) != 1 || strings.Contains(env, "AZP_") {
		t.Errorf("environment of config.sh holds more of the entrypoint's settings than the token:\n%s", env)
	}
	if bundle := p.read("root/.azp-ca-bundle.pem"); !strings.Contains(bundle, p.read("ca.crt")) {
		t.Error("the bundle lacks the extra root")
	}

	// The token is nowhere a build could come across it.
	if found := append(append(p.findCanary("root"), p.findCanary("handover")...), p.findCanary("registration")...); len(found) > 0 {
		t.Errorf("the token is in %v", found)
	}
	if strings.Contains(c.stdout.String()+c.stderr.String(), canary) {
		t.Error("the token is in the log")
	}
	if !strings.Contains(c.stdout.String(), "the token is [redacted]") {
		t.Errorf("the output of config.sh was not passed on: %q", c.stdout.String())
	}
	if p.has("root/_diag/leak.log") || !p.has("root/_diag/clean.log") {
		t.Error("the log with the token must go, and only that one")
	}

	if diff := cmp.Diff([]string{"azp-test-1-1-0"}, p.agents()); diff != "" {
		t.Errorf("agents (-want +got):\n%s", diff)
	}
	id := p.service.Agents(p.poolID)[0].ID
	if record := p.read("registration/agent.json"); !strings.Contains(record, `"agentId":`+strconv.Itoa(id)) {
		t.Errorf("recorded %s, want id %d", record, id)
	}
	for _, name := range []string{".agent", ".credentials", ".credentials_rsaparams"} {
		if p.read("handover/"+name) != p.read("root/"+name) {
			t.Errorf("%s was not handed over as it is", name)
		}
	}
}

func TestConfigureFailures(t *testing.T) {
	tests := []struct {
		name   string
		script []string
		change func(p *pod)
		env    []string
		code   int
		says   []string
		// left are the agents that may be registered afterwards.
		left int
	}{
		{name: "no URL", env: []string{"AZP_URL="}, code: 11, says: []string{"AZP_URL"}},
		{name: "everything that is wrong at once", env: []string{"AZP_URL=", "AZP_AGENT_SOURCE=x", "AZP_CONFIGURE_LIMIT=soon"}, code: 11, says: []string{"AZP_URL", "AZP_AGENT_SOURCE", "AZP_CONFIGURE_LIMIT", `"soon"`}},
		{name: "no token", env: []string{"AZP_TOKEN_FILE="}, code: 11, says: []string{"AZP_TOKEN_FILE"}},
		{name: "a token file that is not there", env: []string{"AZP_TOKEN_FILE=/nowhere/token"}, code: 12, says: []string{"/nowhere/token"}},
		{name: "unknown pool", env: []string{"AZP_POOL=other"}, code: 11, says: []string{"other", "pool"}},
		{name: "refused token", change: func(p *pod) { p.write("token", "wrong") }, env: []string{"AZP_CONFIGURE_LIMIT=2s"}, code: 12, says: []string{"credential refused", "check that the token is current"}},
		{name: "unreachable service", env: []string{"AZP_URL=https://127.0.0.1:9/acme", "AZP_CONFIGURE_LIMIT=300ms"}, code: 13, says: []string{"127.0.0.1:9"}},
		{name: "unknown authority", env: []string{"AZP_CA_FILE=", "AZP_CONFIGURE_LIMIT=8s"}, code: 13, says: []string{"certificate"}},
		{name: "no folder for the agent", env: []string{"AZP_AGENT_ROOT=/nowhere/agent"}, code: 11, says: []string{"AZP_AGENT_ROOT"}},
		{name: "root without leave", env: []string{"AGENT_ALLOW_RUNASROOT="}, code: 11, says: []string{"runAsUser"}, change: func(p *pod) {
			if os.Geteuid() != 0 {
				p.t.Skip("only root is refused")
			}
		}},
		{name: "no program in the image", env: []string{"AZP_AGENT_SOURCE=image"}, change: func(p *pod) { p.must(os.RemoveAll(p.path("root/bin"))) }, code: 11, says: []string{"AZP_AGENT_SOURCE"}},
		{name: "half a program in the image", change: func(p *pod) { p.must(os.Remove(p.path("root/config.sh"))) }, code: 11, says: []string{"config.sh"}},
		{name: "config.sh cannot start", change: func(p *pod) { p.program("root/config.sh", "#!/nowhere/sh\n") }, code: 11, says: []string{"config.sh"}},
		{name: "config.sh fails", script: []string{"print cannot find libicu", "exit 1"}, code: 15, says: []string{"exit code 1", "libicu"}},
		{name: "config.sh fails and prints the token", script: []string{"print bad $TOKEN", "exit 1"}, code: 15, says: []string{"bad [redacted]"}},
		{name: "config.sh says that rights are missing", script: []string{"print Access denied. x needs Manage permissions for pool pool to perform the action.", "exit 1"}, code: 12, says: []string{"Manage permissions"}},
		{name: "config.sh hangs", script: []string{"child", "wait never"}, env: []string{"AZP_CONFIGURE_LIMIT=8s"}, code: 15, says: []string{"AZP_CONFIGURE_LIMIT", "killed"}},
		{name: "config.sh hangs after registering", script: []string{"register", "wait never"}, env: []string{"AZP_CONFIGURE_LIMIT=8s"}, code: 15, says: []string{"AZP_CONFIGURE_LIMIT"}},
		{name: "config.sh registers and then fails, twice", script: []string{"register lost", "exit 1"}, code: 15, says: []string{"exit code 1"}},
		{name: "config.sh leaves no files", script: []string{"register lost"}, code: 15, says: []string{".agent"}},
		{name: "the pool's own credential in the files", script: []string{"register PAT"}, code: 15, says: []string{"OAuth"}},
		{name: "nowhere to record", change: func(p *pod) { p.must(os.RemoveAll(p.path("registration"))) }, code: 11, says: []string{"AZP_REGISTRATION_DIR"}},
		{name: "nowhere to hand over", change: func(p *pod) { p.must(os.RemoveAll(p.path("handover"))) }, code: 11, says: []string{"AZP_HANDOVER_DIR"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newPod(t)
			if tt.script != nil {
				p.script("fake-config", tt.script...)
			}
			if tt.change != nil {
				tt.change(p)
			}
			c := p.start("configure", append(withToken(p), tt.env...)...)
			c.expect(tt.code, tt.says...)
			if got := p.agents(); len(got) > 0 {
				t.Errorf("still registered: %v", got)
			}
			if strings.Contains(c.stdout.String()+c.stderr.String()+p.read("termination-log"), canary) {
				t.Error("the token was printed")
			}
			if p.has("records/child") {
				pid, err := strconv.Atoi(p.read("records/child"))
				p.must(err)
				p.eventually("the end of what config.sh had started", func() bool { return !alive(pid) })
			}
		})
	}
}

func TestConfigureTakesTheNameOfALeftover(t *testing.T) {
	p := newPod(t)
	// An earlier life of this pod registered and was killed before it recorded that.
	p.script("fake-config.1", "register lost", "crash")
	p.start("configure", withToken(p)...).expect(0, "registered")
	if n := p.calls("fake-config"); n != 2 {
		t.Errorf("config.sh was called %d times, want 2", n)
	}
	if got := p.agents(); len(got) != 1 {
		t.Errorf("agents %v, want one", got)
	}
}

func TestConfigureAgainOverAnOldConfiguration(t *testing.T) {
	p := newPod(t)
	p.configured()
	// The registration of the first is offline, and its files are still there.
	p.configured()
	if n := p.calls("fake-config"); n != 3 {
		t.Errorf("config.sh was called %d times, want 3: once, then refused for the name, then once more", n)
	}
	if got := p.agents(); len(got) != 1 {
		t.Errorf("agents %v, want one", got)
	}
}

func TestConfigureStopped(t *testing.T) {
	p := newPod(t)
	p.script("fake-config", "register lost", "touch registered", "wait never")
	c := p.start("configure", withToken(p)...)
	p.eventually("the registration", func() bool { return p.has("records/registered") })
	c.signal(syscall.SIGTERM)
	c.expect(10, "asked to stop")
	if got := p.agents(); len(got) > 0 {
		t.Errorf("still registered: %v", got)
	}
}

func TestConfigureWaitsForTheService(t *testing.T) {
	p := newPod(t)
	fault := p.inject(azuredevopstest.Fault{Operation: "pools.list", Kind: "status", Status: 503})
	c := p.start("configure", withToken(p)...)
	c.logged("will try again")
	p.service.RemoveFault(fault)
	c.expect(0, "registered")
}

func TestConfigureReadsTheTokenAgain(t *testing.T) {
	p := newPod(t)
	fault := p.inject(azuredevopstest.Fault{Operation: "pools.list", Kind: "status", Status: 503})
	c := p.start("configure", withToken(p)...)
	c.logged("will try again")
	p.must(p.service.AddToken(azuredevopstest.Token{Secret: next, Rights: azuredevopstest.RightsManage}))
	p.write("token.new", next)
	p.must(os.Rename(p.path("token.new"), p.path("token")))
	p.service.RemoveFault(fault)
	c.expect(0, "registered")
	if env := strings.Join(p.call("fake-config", 1).Env, "\n"); !strings.Contains(env, next) {
		t.Error("config.sh got the old token")
	}
}
