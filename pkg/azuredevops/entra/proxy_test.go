package entra_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/entra"
	"github.com/azp-scaler/azp-scaler/test/forwardproxy"
)

// behindProxy is a name of the authority that nobody but the proxy can resolve.
const behindProxy = "login.entra.test"

// TestProxy reaches the authority through a proxy that wants a user and password.
func TestProxy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, time.Hour)
	proxy, err := forwardproxy.Start(forwardproxy.Options{Users: map[string]string{"scaler": "proxy-password"}, Hosts: map[string]string{behindProxy: "127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	c := w.config(entra.ClientSecret)
	c.BackOff = 4 * time.Millisecond
	c.AuthorityHost = strings.Replace(w.host, "127.0.0.1", behindProxy, 1)
	c.Proxy = azuredevops.Proxy{HTTPS: azuredevops.Secret(proxy.URL())}
	if _, err := w.source(c).Token(t.Context()); !errors.Is(err, azuredevops.ErrUnavailable) ||
		!strings.Contains(err.Error(), "the proxy answered 407") || !strings.Contains(err.Error(), "AZP_PROXY_USERNAME_FILE") {
		t.Errorf("without a password: %v", err)
	}
	c.Proxy.UsernameFile, c.Proxy.PasswordFile = w.write("proxy-user", "scaler"), w.write("proxy-password", "proxy-password")
	if _, err := w.source(c).Token(t.Context()); err != nil {
		t.Errorf("with a password: %v", err)
	}
	c.AuthorityHost = "https://elsewhere.entra.test"
	if _, err := w.source(c).Token(t.Context()); err == nil || !strings.Contains(err.Error(), "the proxy answered 403") || strings.Contains(err.Error(), "proxy-password") {
		t.Errorf("of a host that it does not allow: %v", err)
	}
	// A managed identity's endpoint is the machine's own, which no proxy has to do with.
	before := sum(proxy.Refused())
	c = w.config(entra.ManagedIdentity)
	c.Transport, c.Timeout, c.BackOff = nil, time.Second, time.Millisecond
	c.Proxy = azuredevops.Proxy{HTTPS: azuredevops.Secret(proxy.URL()), HTTP: azuredevops.Secret(proxy.URL())}
	_, err = w.source(c).Token(t.Context())
	if after := sum(proxy.Refused()); after != before {
		t.Errorf("the proxy was asked for the machine's endpoint: %v", err)
	}
}

// sum counts refusals of any kind.
func sum(refused map[int]int) int {
	n := 0
	for _, times := range refused {
		n += times
	}
	return n
}
