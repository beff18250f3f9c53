package root_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/root"
)

func TestFilesComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	dir := root.Dir(t.TempDir())
	settings := root.Settings{AcceptTeeEula: true, AgentID: 7, AgentName: "a", PoolID: 2, PoolName: "p", ServerURL: "https://x/acme", WorkFolder: "_work"}
	credentials := root.Credentials{Scheme: root.SchemeOAuth, Data: map[string]string{"clientId": "c"}}
	if err := dir.SaveSettings(settings); err != nil {
		t.Fatal(err)
	}
	if err := dir.SaveCredentials(credentials); err != nil {
		t.Fatal(err)
	}
	if got, err := dir.Settings(); err != nil || got != settings {
		t.Errorf("settings are %+v, %v", got, err)
	}
	if got, err := dir.Credentials(); err != nil || cmp.Diff(credentials, got) != "" {
		t.Errorf("credentials are %+v, %v", got, err)
	}
	if got, err := dir.Certificates(); err != nil || got != (root.Certificates{}) {
		t.Errorf("certificates are %+v, %v", got, err)
	}
	if err := dir.SaveProxy(root.Proxy{Address: "http://proxy:1", Username: "me", Password: "hunter2"}); err != nil {
		t.Fatal(err)
	}
	got, err := dir.Proxy(map[string]string{"VSTS_HTTP_PROXY": "http://other:1", "VSTS_HTTP_PROXY_PASSWORD": "other"})
	if err != nil || got.Address != "http://proxy:1" || got.Username != "me" || got.Password != "hunter2" {
		t.Errorf("the proxy is %+v, %v", got, err)
	}
	for _, name := range []string{".proxy", ".proxycredentials", ".credential_store"} {
		if content, err := os.ReadFile(dir.Path(name)); err != nil || strings.Contains(string(content), "hunter2") {
			t.Errorf("%s is %q, %v", name, content, err)
		}
	}
	var removed []string
	if err := dir.RemoveConfiguration(func(name string, existed bool) {
		if existed {
			removed = append(removed, name)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(removed, " "); got != ".credentials .proxycredentials .credential_store .proxy .agent" || dir.IsConfigured() {
		t.Errorf("removed %s", got)
	}
}

func TestFilesWithoutAByteOrderMark(t *testing.T) {
	t.Parallel()
	dir := root.Dir(t.TempDir())
	if err := os.WriteFile(dir.Path(".agent"), []byte(`{"agentId":3,"somethingNew":true}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := dir.Settings(); err != nil || got.AgentID != 3 {
		t.Errorf("settings are %+v, %v", got, err)
	}
	if err := os.WriteFile(dir.Path(".agent"), []byte("agentId: 3"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := dir.Settings(); err == nil || !strings.Contains(err.Error(), ".agent") {
		t.Errorf("something that is not JSON gave %v", err)
	}
}

func TestKey(t *testing.T) {
	t.Parallel()
	dir := root.Dir(t.TempDir())
	created, err := dir.CreateKey()
	if err != nil {
		t.Fatal(err)
	}
	read, err := dir.Key()
	if err != nil || !read.Equal(created) {
		t.Fatalf("the key came back otherwise: %v", err)
	}
	content, err := os.ReadFile(dir.Path(".credentials_rsaparams"))
	if err != nil {
		t.Fatal(err)
	}
	whole := string(content)
	field := func(name string) string {
		_, rest, _ := strings.Cut(whole, `"`+name+`": "`)
		value, _, _ := strings.Cut(rest, `"`)
		return value
	}
	for name, change := range map[string]func() string{
		"short modulus":    func() string { return strings.Replace(whole, field("modulus"), "AQAB", 1) },
		"no base64":        func() string { return strings.Replace(whole, field("p"), "?", 1) },
		"no exponent":      func() string { return strings.Replace(whole, `"AQAB"`, `""`, 1) },
		"p for q":          func() string { return strings.Replace(whole, field("q"), field("p"), 1) },
		"dp of another":    func() string { return strings.Replace(whole, field("dp"), field("dq"), 1) },
		"inverse of other": func() string { return strings.Replace(whole, field("inverseQ"), field("dq"), 1) },
	} {
		if err := os.WriteFile(dir.Path(".credentials_rsaparams"), []byte(change()), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := dir.Key(); err == nil {
			t.Errorf("%s: the key was taken", name)
		}
	}
}

func TestRelease(t *testing.T) {
	t.Parallel()
	dir := root.Dir(t.TempDir())
	if _, err := dir.Release(); err == nil {
		t.Error("a release was read from nothing")
	}
	if err := os.Mkdir(dir.Path("bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir.Path("bin", "release.json"), []byte(`{"version":"5.1.2"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := dir.Release(); err == nil || !strings.Contains(err.Error(), "no platform") {
		t.Errorf("a release without a platform gave %v", err)
	}
}

func TestProxyFromTheEnvironment(t *testing.T) {
	t.Parallel()
	dir := root.Dir(t.TempDir())
	destination := func(address string) *http.Request {
		return httptest.NewRequest(http.MethodGet, address, nil)
	}
	for name, c := range map[string]struct {
		env         map[string]string
		bypass      string
		destination string
		want        string
	}{
		"none":                {nil, "", "https://tfs.test", ""},
		"its own":             {map[string]string{"VSTS_HTTP_PROXY": " http://proxy:1 ", "http_proxy": "http://other:1"}, "", "https://tfs.test", "http://proxy:1"},
		"the usual":           {map[string]string{"http_proxy": "http://proxy:1"}, "", "https://tfs.test", "http://proxy:1"},
		"not the other":       {map[string]string{"HTTPS_PROXY": "http://proxy:1"}, "", "https://tfs.test", ""},
		"not whole":           {map[string]string{"VSTS_HTTP_PROXY": "proxy:1"}, "", "https://tfs.test", ""},
		"signed in":           {map[string]string{"VSTS_HTTP_PROXY": "http://proxy:1", "VSTS_HTTP_PROXY_USERNAME": "me", "VSTS_HTTP_PROXY_PASSWORD": "x"}, "", "https://tfs.test", "http://me:x@proxy:1"},
		"half a credential":   {map[string]string{"VSTS_HTTP_PROXY": "http://proxy:1", "VSTS_HTTP_PROXY_USERNAME": "me"}, "", "https://tfs.test", "http://proxy:1"},
		"loopback":            {map[string]string{"VSTS_HTTP_PROXY": "http://proxy:1"}, "", "https://127.0.0.1:8443", ""},
		"bypassed":            {map[string]string{"VSTS_HTTP_PROXY": "http://proxy:1"}, "\n(\n ^https://TFS\\.test$ \n", "https://tfs.test:443", ""},
		"bypassed, with port": {map[string]string{"VSTS_HTTP_PROXY": "http://proxy:1"}, "^https://tfs\\.test$", "https://tfs.test:8443", "http://proxy:1"},
		"no_proxy":            {map[string]string{"VSTS_HTTP_PROXY": "http://proxy:1", "no_proxy": "x.test;tfs.test"}, "", "https://deep.tfs.test", ""},
		"a dot is a dot":      {map[string]string{"VSTS_HTTP_PROXY": "http://proxy:1", "no_proxy": "tfs.test"}, "", "https://tfsxtest", "http://proxy:1"},
	} {
		if err := os.WriteFile(dir.Path(".proxybypass"), []byte(c.bypass), 0o600); err != nil {
			t.Fatal(err)
		}
		proxy, err := dir.Proxy(c.env)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		u, err := proxy.Choose(destination(c.destination))
		if got := fmt.Sprint(u); err != nil || got != c.want && (u != nil || c.want != "") {
			t.Errorf("%s: %v, %v, want %q", name, u, err, c.want)
		}
	}
}
