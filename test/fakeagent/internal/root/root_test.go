package root_test

import (
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
	if err := dir.SaveProxy("http://proxy:1"); err != nil {
		t.Fatal(err)
	}
	if got, err := dir.Proxy(); err != nil || got != "http://proxy:1" {
		t.Errorf("the proxy is %q, %v", got, err)
	}
	var removed []string
	if err := dir.RemoveConfiguration(func(name string, existed bool) {
		if existed {
			removed = append(removed, name)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(removed, " "); got != ".credentials .agent .proxy" || dir.IsConfigured() {
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
