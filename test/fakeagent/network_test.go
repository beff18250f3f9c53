package fakeagent_test

import (
	"os"
	"strings"
	"testing"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/forwardproxy"
)

// hiddenName is a name of the service that only a proxy resolves.
const hiddenName = "devops.test"

const (
	proxyUser     = "way-out"
	proxyPassword = "hunter2-of-the-proxy"
)

// hide puts a service behind a proxy.
func hide(t *testing.T, s *service) *forwardproxy.Proxy {
	t.Helper()
	proxy, err := forwardproxy.Start(forwardproxy.Options{
		Users: map[string]string{proxyUser: proxyPassword}, Hosts: map[string]string{hiddenName: "127.0.0.1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	s.url = strings.Replace(s.url, "127.0.0.1", hiddenName, 1)
	return proxy
}

// TestBehindAProxy says that listener and worker go through the proxy that they were told of
// by flags, or by a file and the environment.
func TestBehindAProxy(t *testing.T) {
	t.Parallel()
	for name, told := range map[string]struct {
		configure, run []string // Variables.
		file           bool
	}{
		"by flags": {configure: []string{"VSTS_AGENT_INPUT_PROXYUSERNAME=" + proxyUser, "VSTS_AGENT_INPUT_PROXYPASSWORD=" + proxyPassword}},
		"by a file": {
			configure: []string{"VSTS_HTTP_PROXY_USERNAME=" + proxyUser, "VSTS_HTTP_PROXY_PASSWORD=" + proxyPassword},
			run:       []string{"VSTS_HTTP_PROXY_USERNAME=" + proxyUser, "VSTS_HTTP_PROXY_PASSWORD=" + proxyPassword},
			file:      true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t, azuredevopstest.Options{})
			proxy := hide(t, s)
			a := newAgent(t, s)
			env := append(told.configure, "VSTS_AGENT_INPUT_TOKEN="+pat, "VSO_AGENT_IGNORE=VSTS_HTTP_PROXY_PASSWORD")
			if told.file {
				if err := os.WriteFile(a.path(".proxy"), []byte(proxy.URL()), 0o600); err != nil {
					t.Fatal(err)
				}
			} else {
				env = append(env, "VSTS_AGENT_INPUT_PROXYURL="+proxy.URL())
			}
			if code := a.startWith(env, "config.sh", a.configureArgs()...).wait(); code != 0 {
				t.Fatalf("configure ended with %d", code)
			}
			if a.read(".proxy") != proxy.URL() || a.exists(".proxycredentials") == told.file || a.exists(".credential_store") == told.file {
				t.Errorf(".proxy is %q, and the credential is kept: %v", a.read(".proxy"), a.exists(".proxycredentials"))
			}
			if kept := a.read(".env"); strings.Contains(kept, "VSTS_HTTP_PROXY_PASSWORD="+proxyPassword) != told.file {
				t.Errorf("env.sh kept %q", kept)
			}
			for name, value := range s.Agents(s.pool)[0].Capabilities {
				if strings.Contains(value, proxyPassword) {
					t.Errorf("the capability %s holds the proxy's password", name)
				}
			}
			p := a.startWith(told.run, "bin/Agent.Listener", "run", "--once")
			p.waitFor("Listening for Jobs")
			before := proxy.Counts()[proxyUser].Tunnels
			id := s.queue(t, azuredevopstest.Build{Steps: []string{`env | grep -i proxy; echo "told $(agent.proxypassword)"`}})
			if status := s.wait(t, id); status.Result != "succeeded" {
				t.Errorf("the build ended as %+v", status)
			}
			p.wait()
			log, err := s.Log(id)
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{"AGENT_PROXYURL=" + proxy.URL(), "AGENT_PROXYUSERNAME=" + proxyUser, "told ***"} {
				if !strings.Contains(log, want) {
					t.Errorf("the build does not see %q:\n%s", want, log)
				}
			}
			if strings.Contains(log, "VSTS_HTTP_PROXY_PASSWORD") || strings.Contains(log, proxyPassword) {
				t.Errorf("the build inherits the proxy's password:\n%s", log)
			}
			if after := proxy.Counts()[proxyUser].Tunnels; after <= before {
				t.Errorf("the worker opened no tunnel: %d before, %d after", before, after)
			}
		})
	}
}

func TestProxyThatRefuses(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	proxy := hide(t, s)
	p := newAgent(t, s).startConfigure("--proxyurl", proxy.URL())
	if code := p.wait(); code != 1 {
		t.Errorf("configure ended with %d", code)
	}
	p.says("Proxy Authentication Required")
}

// TestAuthorityByFlagAlone says that --sslcacert is for tasks: it makes the agent itself
// trust nothing more.
func TestAuthorityByFlagAlone(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s)
	p := a.startWith([]string{"VSTS_AGENT_INPUT_TOKEN=" + pat, "SSL_CERT_FILE=/dev/null"}, "config.sh", a.configureArgs("--sslcacert", s.caFile)...)
	if code := p.wait(); code != 1 {
		t.Errorf("configure ended with %d", code)
	}
	p.says("certificate")
	if a.exists(".certificates") {
		t.Error("a configure that failed keeps the authority")
	}
	if code := a.startConfigure("--sslcacert", s.caFile).wait(); code != 0 {
		t.Fatalf("configure ended with %d", code)
	}
	if got := readJSON(t, a, ".certificates")["caCert"]; got != s.caFile {
		t.Errorf(".certificates names %v", got)
	}
	listener := a.listen()
	id := s.queue(t, azuredevopstest.Build{Steps: []string{`[ "$AGENT_CAINFO" = "` + s.caFile + `" ]`}})
	if status := s.wait(t, id); status.Result != "succeeded" {
		t.Errorf("the build ended as %+v", status)
	}
	listener.wait()
}
