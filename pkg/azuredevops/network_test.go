package azuredevops

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/forwardproxy"
)

// behindProxy is a service under a name that only a proxy knows.
type behindProxy struct {
	service *azuredevopstest.Server
	proxy   *forwardproxy.Proxy
	url     string
	dir     string
}

const (
	proxyUser     = "way-out"
	proxyPassword = "hunter2 and 3"
)

func newBehindProxy(t *testing.T) *behindProxy {
	t.Helper()
	b := &behindProxy{dir: t.TempDir()}
	var err error
	if b.service, err = azuredevopstest.New(azuredevopstest.Options{Tokens: []azuredevopstest.Token{{Secret: testToken, Rights: azuredevopstest.RightsManage}}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.service.Close)
	b.service.CreatePool("kubernetes")
	endpoint, err := b.service.StartTLS("127.0.0.1:0", "devops.test")
	if err != nil {
		t.Fatal(err)
	}
	b.url = strings.Replace(endpoint.URL, "127.0.0.1", "devops.test", 1)
	b.write(t, "ca", string(endpoint.CAPEM))
	b.write(t, "username", proxyUser+"\n")
	b.write(t, "password", proxyPassword)
	if b.proxy, err = forwardproxy.Start(forwardproxy.Options{
		Users: map[string]string{proxyUser: proxyPassword}, Hosts: map[string]string{"devops.test": "127.0.0.1"},
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.proxy.Close)
	return b
}

func (b *behindProxy) path(name string) string { return filepath.Join(b.dir, name) }

func (b *behindProxy) write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(b.path(name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// poolBy asks the service by a proxy, with a client of its own.
func (b *behindProxy) poolBy(t *testing.T, proxy Proxy) error {
	t.Helper()
	client := newClient(t, b.url, func(c *Config) { c.CAFile, c.Proxy = b.path("ca"), proxy })
	_, err := client.PoolByName(t.Context(), "kubernetes")
	return err
}

func TestProxy(t *testing.T) {
	t.Parallel()
	b := newBehindProxy(t)
	by := Proxy{HTTPS: Secret(b.proxy.URL()), UsernameFile: b.path("username"), PasswordFile: b.path("password")}
	if err := b.poolBy(t, by); err != nil {
		t.Error(err)
	}
	inURL := Secret(strings.Replace(b.proxy.URL(), "//", "//"+proxyUser+":hunter2%20and%203@", 1))
	if err := b.poolBy(t, Proxy{HTTPS: inURL}); err != nil {
		t.Error(err)
	}
	if got := b.proxy.Counts()[proxyUser].Tunnels; got != 2 {
		t.Errorf("%d tunnels, want one for each client", got)
	}
	refused := func(name string, proxy Proxy, want ...string) {
		t.Helper()
		err := b.poolBy(t, proxy)
		if !errors.Is(err, ErrUnavailable) {
			t.Fatalf("%s: %v", name, err)
		}
		for _, text := range want {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %q does not say %q", name, err, text)
			}
		}
		for _, secret := range []string{"hunter2", "wrong-one"} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%s: %q gives a password away", name, err)
			}
		}
	}
	refused("no credential", Proxy{HTTPS: by.HTTPS}, "407", "wants a user and password", "AZP_PROXY_USERNAME_FILE")
	if err := b.poolBy(t, Proxy{HTTPS: by.HTTPS}); !errors.Is(err, ErrProxy) {
		t.Errorf("nothing tells a proxy's refusal: %v", err)
	}
	refused("the direct way", Proxy{}, "devops.test")
	refused("by NO_PROXY", Proxy{HTTPS: by.HTTPS, NoProxy: ".test"}, "devops.test")
	b.write(t, "password", "wrong-one")
	refused("a wrong password", by, "407", "refuses this user and password", "AZP_AGENT_PROXY_SECRET")
	b.write(t, "password", "")
	refused("an empty file", by, b.path("password"), "one line")
	// A credential that is replaced is used without a new client.
	client := newClient(t, b.url, func(c *Config) { c.CAFile, c.Proxy = b.path("ca"), by })
	if _, err := client.PoolByName(t.Context(), "kubernetes"); err == nil {
		t.Error("it works without a password")
	}
	b.write(t, "password", proxyPassword)
	if _, err := client.PoolByName(t.Context(), "kubernetes"); err != nil {
		t.Error(err)
	}
}

func TestProxyThatKnowsNoSuchHost(t *testing.T) {
	t.Parallel()
	b := newBehindProxy(t)
	b.url = strings.Replace(b.url, "devops.test", "other.test", 1)
	err := b.poolBy(t, Proxy{HTTPS: Secret(b.proxy.URL()), UsernameFile: b.path("username"), PasswordFile: b.path("password")})
	if !errors.Is(err, ErrProxy) || !strings.Contains(err.Error(), "403") || !strings.Contains(err.Error(), "have the proxy allow") {
		t.Error(err)
	}
}

func TestProxyValidate(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		proxy Proxy
		want  string
	}{
		"none":             {Proxy{}, ""},
		"usual":            {Proxy{HTTPS: "http://proxy.test:3128", NoProxy: "*"}, ""},
		"no scheme":        {Proxy{HTTP: "proxy.test:3128"}, ""},
		"user in it":       {Proxy{HTTPS: "http://me:hunter2@proxy.test"}, ""},
		"files":            {Proxy{HTTPS: "http://proxy.test", UsernameFile: "u", PasswordFile: "p"}, ""},
		"no URL":           {Proxy{HTTPS: "http://me:hunter2@%zz"}, "URL is none"},
		"odd scheme":       {Proxy{HTTPS: "ftp://hunter2@proxy.test"}, "URL is none"},
		"both":             {Proxy{HTTP: "http://me:hunter2@proxy.test", UsernameFile: "u", PasswordFile: "p"}, "take it out of the URL"},
		"one file":         {Proxy{HTTPS: "http://proxy.test", UsernameFile: "u"}, "name both"},
		"files for naught": {Proxy{UsernameFile: "u", PasswordFile: "p"}, "no proxy"},
	} {
		err := test.proxy.Validate()
		if (err == nil) != (test.want == "") || err != nil && (!strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "hunter2")) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}
