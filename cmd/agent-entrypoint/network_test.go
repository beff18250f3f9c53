package main

import (
	"crypto/rand"
	"crypto/rsa"
	"os"
	"path/filepath"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/forwardproxy"
)

const (
	proxyUser     = "agents"
	proxyPassword = "hunter2 of the proxy"
)

// hide puts the service behind a proxy, under a name that nobody else resolves.
func (p *pod) hide() *forwardproxy.Proxy {
	p.t.Helper()
	proxy, err := forwardproxy.Start(forwardproxy.Options{
		Users: map[string]string{proxyUser: proxyPassword}, Hosts: map[string]string{hiddenName: "127.0.0.1"},
	})
	p.must(err)
	p.t.Cleanup(proxy.Close)
	p.url = strings.Replace(p.url, "127.0.0.1", hiddenName, 1)
	p.write("username", proxyUser+"\n")
	p.write("password", proxyPassword+"\n")
	for name, value := range map[string]string{
		"AZP_URL": p.url, "AZP_PROXY_URL": proxy.URL(), "AZP_NO_PROXY": "other.test",
		"AZP_PROXY_USERNAME_FILE": p.path("username"), "AZP_PROXY_PASSWORD_FILE": p.path("password"),
	} {
		p.env[name] = value
	}
	return proxy
}

// client is the scaler's, behind the same proxy as the pod.
func (p *pod) client() *azuredevops.Client {
	p.t.Helper()
	client, err := azuredevops.New(azuredevops.Config{
		URL: p.url, Token: azuredevops.StaticToken(canary), CAFile: p.path("ca.crt"),
		Proxy: azuredevops.Proxy{HTTPS: azuredevops.Secret(p.env["AZP_PROXY_URL"]), UsernameFile: p.env["AZP_PROXY_USERNAME_FILE"], PasswordFile: p.env["AZP_PROXY_PASSWORD_FILE"]},
	})
	p.must(err)
	return client
}

// found tells the pod of the package, as the scaler does.
func (p *pod) found(client *azuredevops.Client) {
	p.t.Helper()
	pkg, err := client.Package(p.t.Context(), platform(), "")
	p.must(err)
	p.env["AZP_PACKAGE_URL"], p.env["AZP_PACKAGE_SHA256"], p.env["AZP_AGENT_VERSION"] = pkg.URL, pkg.SHA256, pkg.Version
}

// registerAsScaler registers the agent and hands its files over.
func (p *pod) registerAsScaler(client *azuredevops.Client) {
	p.t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, agentjob.KeyBits)
	p.must(err)
	name := p.env["AZP_AGENT_NAME"]
	registered, err := client.RegisterAgent(p.t.Context(), p.poolID, azuredevops.Registration{Name: name, Version: p.env["AZP_AGENT_VERSION"], PublicKey: &key.PublicKey})
	p.must(err)
	settings := agentjob.DefaultSettings()
	settings.Identity = agentjob.Identity{Pool: agentpool.Pool{ID: p.poolID, Name: "pool"}, URL: p.url}
	job := &batchv1.Job{}
	job.Name, job.UID = name, "uid"
	secret, err := agentjob.Secret(settings, job, agentjob.AgentCredentials{
		AgentID: registered.AgentID, ClientID: registered.ClientID, AuthorizationURL: registered.AuthorizationURL, Key: key,
	})
	p.must(err)
	for name, content := range secret.Data {
		p.write("handover/"+name, string(content))
	}
}

// TestStandInBehindAProxy has both ways to register an agent reach the service by the same
// way, which is the only one: a proxy that wants to be told, and an authority of its own.
func TestStandInBehindAProxy(t *testing.T) {
	for _, registration := range agentpool.Registrations() {
		t.Run(string(registration), func(t *testing.T) {
			p := newStandInPod(t)
			proxy := p.hide()
			p.env["AZP_AGENT_SOURCE"] = "download"
			if registration == agentpool.RegistrationJIT {
				client := p.client()
				p.found(client)
				if code := p.start("download").wait(); code != 0 {
					t.Fatalf("download ended with %d", code)
				}
				p.registerAsScaler(client)
			} else {
				p.configuredStandIn()
			}
			before := proxy.Counts()[proxyUser].Tunnels
			run := p.listening("AZP_REGISTRATION=" + string(registration))
			id := p.queue(`env; echo "told $(agent.proxypassword)"; cat "` + p.path("root") + `/.proxybypass"`)
			if status := p.result(id); status.Result != "succeeded" {
				t.Errorf("the build ended as %q: %s", status.Result, status.Message)
			}
			if code := run.wait(); code != 0 {
				t.Errorf("run ended with %d, want 0", code)
			}
			log, err := p.service.Log(id)
			p.must(err)
			for _, want := range []string{
				"AGENT_PROXYURL=" + proxy.URL(), "AGENT_PROXYUSERNAME=" + proxyUser, "AGENT_CAINFO=" + p.path("ca.crt"),
				"SSL_CERT_FILE=" + p.path("root/.azp-ca-bundle.pem"), "told ***", `other\.test`,
			} {
				if !strings.Contains(log, want) {
					t.Errorf("the build does not see %q:\n%s", want, log)
				}
			}
			if strings.Contains(log, proxyPassword) || strings.Contains(log, "AZP_PROXY") {
				t.Errorf("a build's steps inherit the proxy's password:\n%s", log)
			}
			if after := proxy.Counts()[proxyUser].Tunnels; after < before+2 {
				t.Errorf("listener and worker opened %d tunnels", after-before)
			}
			if refused := proxy.Refused(); len(refused) > 0 {
				t.Errorf("the proxy refused requests: %v", refused)
			}
			for _, agent := range p.service.Agents(p.poolID) {
				for name, value := range agent.Capabilities {
					if strings.Contains(value, proxyPassword) {
						t.Errorf("the capability %s holds the proxy's password", name)
					}
				}
			}
		})
	}
}

func TestProxyThatRefusesThePod(t *testing.T) {
	for name, test := range map[string]struct {
		step   string
		change func(p *pod)
		code   int
		says   []string
	}{
		"configure":      {"configure", func(p *pod) { p.write("password", "wrong-one") }, 13, []string{"refuses this user and password", "AZP_AGENT_PROXY_SECRET"}},
		"download":       {"download", func(p *pod) { p.write("password", "wrong-one") }, 13, []string{"refuses this user and password", "AZP_AGENT_PROXY_SECRET"}},
		"nothing to say": {"download", func(p *pod) { p.env["AZP_PROXY_USERNAME_FILE"], p.env["AZP_PROXY_PASSWORD_FILE"] = "", "" }, 13, []string{"wants a user and password"}},
		"no file":        {"run", func(p *pod) { p.must(os.Remove(p.path("password"))) }, 11, []string{"AZP_PROXY_PASSWORD_FILE", "no such file"}},
		"half of it":     {"run", func(p *pod) { p.env["AZP_PROXY_USERNAME_FILE"] = "" }, 11, []string{"name both"}},
		"no URL":         {"run", func(p *pod) { p.env["AZP_PROXY_URL"] = "proxy:3128" }, 11, []string{"AZP_PROXY_URL", "http://proxy.example:3128"}},
		"a network":      {"configure", func(p *pod) { p.env["AZP_NO_PROXY"] = "10.0.0.0/8" }, 11, []string{"AZP_NO_PROXY", "10.0.0.0/8"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newDownloadingPod(t, true, false)
			proxy := p.hide()
			p.found(p.client())
			p.must(os.MkdirAll(p.path("root/bin"), 0o755))
			if test.step == "run" {
				p.image("true")
				for _, file := range []string{".agent", ".credentials", ".credentials_rsaparams"} {
					p.write("handover/"+file, "{}")
				}
			}
			test.change(p)
			env := []string{}
			if test.step == "configure" {
				env = withToken(p)
			}
			c := p.start(test.step, env...)
			c.expect(test.code, test.says...)
			if words := p.read("termination-log"); strings.Contains(words+c.stderr.String(), "wrong-one") || strings.Contains(words, "hunter2") {
				t.Errorf("it gives a password away: %s\n%s", words, c.stderr.String())
			}
			if len(proxy.Counts()) != 1 || proxy.Counts()[proxyUser].Tunnels != 1 {
				t.Errorf("the proxy let through more than the test's own question: %v", proxy.Counts())
			}
		})
	}
}

// TestRunTellsTasksOfTheAuthority says that what config.sh would have kept of the authority
// is there without it, and that nothing of config.sh's is overwritten.
func TestRunTellsTasksOfTheAuthority(t *testing.T) {
	p := newPod(t)
	p.registered()
	p.script("fake-listener", aBuild()...)
	p.touch("job")
	p.touch("end")
	p.start("run", "AZP_REGISTRATION=jit").expect(0, "the build ended")
	if got := p.read("root/.certificates"); !strings.Contains(got, `"caCert": "`+p.path("ca.crt")+`"`) || !strings.Contains(got, `"skipServerCertValidation": false`) {
		t.Errorf(".certificates is %s", got)
	}
	if env := strings.Join(p.call("fake-listener", 1).Env, "\n"); !strings.Contains(env, "SSL_CERT_FILE="+p.path("root/.azp-ca-bundle.pem")) {
		t.Errorf("the listener is not told of the authority:\n%s", env)
	}
	if p.has("root/.proxy") || p.has("root/.proxybypass") {
		t.Error("there is a proxy of nobody's")
	}
	// As config.sh keeps a client's certificate.
	p.write("handover/.certificates", `{"clientCert":"/cert"}`)
	p.start("run", "AZP_REGISTRATION=jit").expect(0, "the build ended")
	if got := p.read("root/.certificates"); got != `{"clientCert":"/cert"}` {
		t.Errorf(".certificates is %s", got)
	}
}

func TestDownloadStepFailures(t *testing.T) {
	for name, test := range map[string]struct {
		change func(p *pod)
		code   int
		says   []string
	}{
		"no URL":      {func(p *pod) { p.env["AZP_PACKAGE_URL"] = "" }, 11, []string{"AZP_PACKAGE_URL", "download URL"}},
		"no hash":     {func(p *pod) { p.env["AZP_PACKAGE_SHA256"] = "abc" }, 11, []string{"AZP_PACKAGE_SHA256", `"abc"`}},
		"a wrong one": {func(p *pod) { p.env["AZP_PACKAGE_SHA256"] = strings.Repeat("0", 64) }, 13, []string{"SHA-256", "4.248.0"}},
		"not for it":  {func(p *pod) { p.env["AZP_PLATFORM"] = "linux-s390x" }, 11, []string{"linux-s390x", "kubernetes.io/arch"}},
		"not there":   {func(p *pod) { p.env["AZP_PACKAGE_URL"] += ".not" }, 11, []string{"status 404"}},
		"no server":   {func(p *pod) { p.env["AZP_PACKAGE_URL"] = "https://" + freeAddress(p.t) + "/agent.tar.gz" }, 13, []string{"refused"}},
		"no room":     {func(p *pod) { p.must(os.RemoveAll(p.path("root"))) }, 11, []string{"AZP_AGENT_ROOT"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newDownloadingPod(t, true, false)
			p.found(p.client())
			test.change(p)
			p.start("download", "AZP_AGENT_SOURCE=download").expect(test.code, test.says...)
			if left, err := filepath.Glob(p.path("root/*/*")); err != nil || len(left) > 0 {
				t.Errorf("left over in the agent root: %v, %v", left, err)
			}
		})
	}
}

func TestDownloadThatNeedsASignIn(t *testing.T) {
	p := newDownloadingPodWith(t, true, false, azuredevopstest.Options{SignInToDownload: true})
	p.found(p.client())
	c := p.start("download", "AZP_AGENT_SOURCE=download")
	c.expect(11, "needs a sign-in", "put the agent program into the image", "registration: config")
	if strings.Contains(c.stderr.String(), "tried once more") {
		t.Error("it was tried again")
	}
	// Who has the token may have the package.
	p.start("configure", withToken(p)...).expect(0, "registered")
}
