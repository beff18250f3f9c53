package fakeagent_test

import (
	"encoding/base64"
	"encoding/json"
	"io/fs"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

const byteOrderMark = "\ufeff"

func readJSON(t *testing.T, a *agent, name string) map[string]any {
	t.Helper()
	text, found := strings.CutPrefix(a.read(name), byteOrderMark)
	if !found {
		t.Errorf("%s does not start with a byte order mark", name)
	}
	var content map[string]any
	if err := json.Unmarshal([]byte(text), &content); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return content
}

func TestConfigureLeavesTheRealAgentsFiles(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s).configured()
	registered := s.Agents(s.pool)
	if len(registered) != 1 || registered[0].Name != "azp-one" || registered[0].Online {
		t.Fatalf("the pool has %+v", registered)
	}
	settings := readJSON(t, a, ".agent")
	for key, want := range map[string]any{
		"acceptTeeEula": true, "agentId": float64(registered[0].ID), "agentName": "azp-one", "poolId": float64(s.pool),
		"poolName": poolName, "serverUrl": s.url, "workFolder": "_work",
	} {
		if settings[key] != want {
			t.Errorf(".agent has %s=%v, not %v", key, settings[key], want)
		}
	}
	credentials := readJSON(t, a, ".credentials")
	data, _ := credentials["data"].(map[string]any)
	if credentials["scheme"] != "OAuth" || data["clientId"] == "" || data["authorizationUrl"] == "" || data["oauthEndpointUrl"] != data["authorizationUrl"] {
		t.Errorf(".credentials is %v", credentials)
	}
	key := readJSON(t, a, ".credentials_rsaparams")
	for name, width := range map[string]int{"modulus": 256, "d": 256, "p": 128, "q": 128, "dp": 128, "dq": 128, "inverseQ": 128, "exponent": 3} {
		text, _ := key[name].(string)
		if raw, err := base64.StdEncoding.DecodeString(text); err != nil || len(raw) != width {
			t.Errorf("%s of the key is %d bytes (%v), not %d", name, len(raw), err, width)
		}
	}
	if key["exponent"] != "AQAB" || key["ContainerName"] != "" || key["UseCng"] != false {
		t.Errorf("the key is %v", key)
	}
	if info, err := os.Stat(a.path(".credentials_rsaparams")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's file is %v, %v", info.Mode(), err)
	}
	// The token is nowhere: not in a file of the root, and not among the capabilities.
	_ = filepath.WalkDir(a.root, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			if content, _ := os.ReadFile(path); strings.Contains(string(content), pat) {
				t.Errorf("%s holds the token", path)
			}
		}
		return err
	})
	for name, value := range registered[0].Capabilities {
		if strings.Contains(value, pat) {
			t.Errorf("the capability %s holds the token", name)
		}
	}
}

func TestCapabilities(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s)
	if err := os.WriteFile(a.path(".capabilities"), []byte("gpu=two\n\nnot a line\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	a.env = append(a.env, "PLAIN=value", "HIDDEN=value", "ALSO_HIDDEN=value", "VSO_AGENT_IGNORE=HIDDEN,ALSO_HIDDEN", "LONG="+strings.Repeat("x", 1024), "FITS="+strings.Repeat("x", 1023))
	a.configured()
	got := s.Agents(s.pool)[0].Capabilities
	for name, want := range map[string]string{
		"Agent.Name": "azp-one", "Agent.Version": "5.270.0", "Agent.OS": "Linux", "Agent.OSArchitecture": "X64", "Agent.HomeDirectory": a.root,
		"InteractiveSession": "True", "PLAIN": "value", "FITS": strings.Repeat("x", 1023), "gpu": "two",
	} {
		if got[name] != want {
			t.Errorf("capability %s is %q, not %q", name, got[name], want)
		}
	}
	for _, name := range []string{"HIDDEN", "ALSO_HIDDEN", "LONG", "VSO_AGENT_IGNORE", "VSTS_AGENT_INPUT_TOKEN"} {
		if value, ok := got[name]; ok {
			t.Errorf("capability %s=%q was published", name, value)
		}
	}
	if got["bash"] == "" {
		t.Error("the tool bash was not found")
	}
}

func TestConfigureRefuses(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	token := "VSTS_AGENT_INPUT_TOKEN=" + pat
	all := func(without string, more ...string) []string {
		var args []string
		for _, flag := range []string{"--url=" + s.url, "--auth=PAT", "--pool=" + poolName, "--agent=azp-one"} {
			name, value, _ := strings.Cut(flag, "=")
			if name != without {
				args = append(args, name, value)
			}
		}
		return append(append(args, "--unattended"), more...)
	}
	for name, c := range map[string]struct {
		env  []string
		args []string
		says string
	}{
		"no URL":           {[]string{token}, all("--url"), "provided for url"},
		"not a URL":        {[]string{token}, all("--url", "--url", "acme"), "is not a server URL"},
		"no auth":          {[]string{token}, all("--auth"), "provided for auth"},
		"other auth":       {[]string{token}, all("--auth", "--auth", "negotiate"), "negotiate"},
		"no token":         {nil, all(""), "provided for token"},
		"no pool":          {[]string{token}, all("--pool"), "provided for pool"},
		"unknown pool":     {[]string{token}, all("--pool", "--pool", "windows"), "pool not found: 'windows'"},
		"unknown flag":     {[]string{token}, all("", "--disableupdate"), "--disableupdate"},
		"flag, no value":   {[]string{token}, all("--pool", "--pool"), "--pool has no value"},
		"interactive":      {[]string{token}, []string{"--url", s.url}, "--unattended"},
		"wrong token":      {[]string{"VSTS_AGENT_INPUT_TOKEN=wrong"}, all(""), "not authorized"},
		"expired token":    {[]string{"VSTS_AGENT_INPUT_TOKEN=expired-token"}, all(""), "expired"},
		"read-only token":  {[]string{"VSTS_AGENT_INPUT_TOKEN=reader-token"}, all(""), "failed to add the agent"},
		"absent CA file":   {[]string{token}, all("", "--sslcacert", "/does/not/exist"), "/does/not/exist"},
		"untrusted server": {[]string{token, "SSL_CERT_FILE=/dev/null"}, all(""), "certificate"},
		"plain HTTP":       {[]string{token}, all("--url", "--url", strings.Replace(s.url, "https:", "http:", 1)), "requires a secure connection"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAgent(t, s)
			p := a.startWith(c.env, "config.sh", c.args...)
			if code := p.wait(); code != 1 {
				t.Errorf("configure ended with %d", code)
			}
			p.says(c.says)
			if a.exists(".agent") {
				t.Error("configure left .agent all the same")
			}
			for _, secret := range []string{pat, "expired-token", "reader-token"} {
				if strings.Contains(p.output.String(), secret) {
					t.Errorf("the output shows the token %s", secret)
				}
			}
		})
	}
	t.Cleanup(func() {
		if left := s.Agents(s.pool); len(left) != 0 {
			t.Errorf("the pool has %+v", left)
		}
	})
}

func TestConfigureTakesFlagsFromTheEnvironment(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s)
	p := a.startWith([]string{
		"VSTS_AGENT_INPUT_URL=" + s.url, "VSTS_AGENT_INPUT_AUTH=pat", "VSTS_AGENT_INPUT_TOKEN=" + pat, "VSTS_AGENT_INPUT_POOL=" + poolName,
		"VSTS_AGENT_INPUT_AGENT=from-env", "VSTS_AGENT_INPUT_UNATTENDED=true", "VSTS_AGENT_INPUT_WORK=elsewhere",
	}, "config.sh", "--agent", "from-args")
	if code := p.wait(); code != 0 {
		t.Fatalf("configure ended with %d", code)
	}
	settings := readJSON(t, a, ".agent")
	if settings["agentName"] != "from-args" || settings["workFolder"] != "elsewhere" {
		t.Errorf(".agent is %v", settings)
	}
}

func TestPlainHTTPOnRequest(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{AllowPlainHTTP: true})
	plain := httptest.NewServer(s.Server)
	t.Cleanup(plain.Close)
	a := newAgent(t, s)
	a.env = append(a.env, "VSS_ALLOW_UNSAFE_BASICAUTH=true")
	if code := a.startConfigure("--url", plain.URL+"/acme").wait(); code != 0 {
		t.Fatalf("configure ended with %d", code)
	}
}

func TestConfigureAndRunNeedAnotherUser(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	for _, c := range []struct {
		uid     string
		allowed string
		refused bool
	}{{uid: "0", refused: true}, {uid: "0", allowed: "1"}, {uid: "1000"}} {
		a := newAgent(t, s)
		bin := t.TempDir()
		if err := os.WriteFile(filepath.Join(bin, "id"), []byte("#!/bin/sh\necho "+c.uid+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		a.env = append(a.env, "PATH="+bin+":"+os.Getenv("PATH"), "AGENT_ALLOW_RUNASROOT="+c.allowed)
		for _, script := range []string{"config.sh", "run.sh"} {
			p := a.start(script)
			if code := p.wait(); code != 1 {
				t.Errorf("%s ended with %d", script, code)
			}
			if got := strings.Contains(p.output.String(), "sudo"); got != c.refused {
				t.Errorf("uid %s, AGENT_ALLOW_RUNASROOT=%q: %s said:\n%s", c.uid, c.allowed, script, p.output.String())
			}
		}
	}
}

func TestConfigureNeedsTheLicence(t *testing.T) {
	t.Parallel()
	a := newAgent(t, newService(t, azuredevopstest.Options{}))
	if err := os.Remove(a.path("license.html")); err != nil {
		t.Fatal(err)
	}
	p := a.startConfigure()
	if code := p.wait(); code != 1 {
		t.Errorf("configure ended with %d", code)
	}
	p.says("license.html")
}

func TestConfigureTwice(t *testing.T) {
	t.Parallel()
	a := newAgent(t, newService(t, azuredevopstest.Options{})).configured()
	p := a.startConfigure()
	if code := p.wait(); code != 1 {
		t.Errorf("the second configure ended with %d", code)
	}
	p.says("already configured")
}

func TestNameTaken(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	newAgent(t, s).configured()
	before := s.Agents(s.pool)[0].ID
	second := newAgent(t, s)
	p := second.startConfigure()
	if code := p.wait(); code != 1 {
		t.Errorf("configure ended with %d", code)
	}
	p.says("already contains an agent with name azp-one")
	p = second.startConfigure("--replace")
	if code := p.wait(); code != 0 {
		t.Fatalf("configure --replace ended with %d", code)
	}
	p.says("replaced")
	if after := s.Agents(s.pool); len(after) != 1 || after[0].ID != before {
		t.Errorf("the pool has %+v", after)
	}
	second.listen()
}

func TestReplaceTriesForEver(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	newAgent(t, s).configured()
	if _, err := s.Inject(azuredevopstest.Fault{Operation: "agents.replace", Kind: "status", Status: 500}); err != nil {
		t.Fatal(err)
	}
	p := newAgent(t, s).startConfigure("--replace")
	eventually(t, "the third attempt", func() bool { return strings.Count(p.output.String(), "Failed to replace the agent") >= 3 })
	p.signal(syscall.SIGKILL)
	p.wait()
}

func TestRemove(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s)
	remove := func() *process {
		p := a.startWith([]string{"VSTS_AGENT_INPUT_TOKEN=" + pat}, "config.sh", "remove", "--unattended", "--auth", "PAT")
		p.wait()
		return p
	}
	if p := remove(); p.wait() != 0 {
		t.Errorf("remove without a configuration ended with %d", p.wait())
	}
	a.configured()

	if _, err := s.Inject(azuredevopstest.Fault{Operation: "agents.delete", Kind: "status", Status: 500, Count: 1}); err != nil {
		t.Fatal(err)
	}
	if p := remove(); p.wait() != 1 || !a.exists(".agent") || !a.exists(".credentials_rsaparams") {
		t.Errorf("remove met an error and ended with %d, .agent kept: %v", p.wait(), a.exists(".agent"))
	}

	p := a.listen()
	s.queue(t, azuredevopstest.Build{Steps: []string{"touch $(marker); sleep 300"}, Variables: map[string]string{"marker": a.path("started")}})
	eventually(t, "the step's start", func() bool { return a.exists("started") })
	busy := remove()
	if busy.wait() != 1 || !a.exists(".agent") {
		t.Errorf("remove of a busy agent ended with %d, .agent kept: %v", busy.wait(), a.exists(".agent"))
	}
	busy.says("is running a job for pool")
	p.signal(syscall.SIGINT)
	p.wait()

	if p := remove(); p.wait() != 0 {
		t.Errorf("remove ended with %d", p.wait())
	}
	for _, name := range []string{".agent", ".credentials", ".credentials_rsaparams"} {
		if a.exists(name) {
			t.Errorf("remove left %s", name)
		}
	}
	if left := s.Agents(s.pool); len(left) != 0 {
		t.Errorf("the pool has %+v", left)
	}
}
