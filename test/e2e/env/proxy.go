package env

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/test/forwardproxy"
)

// Those who use the proxy.
const (
	ProxyUserScaler = "scaler"
	ProxyUserAgents = "agents"
)

const (
	// hiddenName is the service's, which only the proxy resolves.
	hiddenName  = "azure-devops.test"
	proxySecret = "azp-proxy"
)

// ProxyPassword is what a user tells the proxy. It has a blank, as passwords may.
func ProxyPassword(user string) string { return "proxy-pass of " + user }

// startProxy starts the proxy at an address that pods can reach.
func (e *Env) startProxy() error {
	host := e.cluster.HostAddress()
	var err error
	e.Proxy, err = forwardproxy.Start(forwardproxy.Options{
		Address: net.JoinHostPort(host, "0"),
		Users:   map[string]string{ProxyUserScaler: ProxyPassword(ProxyUserScaler), ProxyUserAgents: ProxyPassword(ProxyUserAgents)},
		Hosts:   map[string]string{hiddenName: host},
	})
	return err
}

// installProxy makes the Secret with what the agents tell the proxy, where there is one.
func (in *Installation) installProxy(ctx context.Context) error {
	if in.env.Proxy == nil {
		return nil
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: proxySecret}, StringData: map[string]string{
		"username": ProxyUserAgents, "password": ProxyPassword(ProxyUserAgents),
	}}
	if _, err := in.env.Admin.CoreV1().Secrets(in.AgentsNamespace).Create(ctx, secret, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("the proxy's credential: %w", err)
	}
	return nil
}

// proxySettings adds what tells scaler and agents of the proxy, where there is one.
func (e *Env) proxySettings(settings map[string]string) error {
	if e.Proxy == nil {
		return nil
	}
	server, err := url.Parse(e.config.Host)
	if err != nil {
		return fmt.Errorf("the API server's address: %w", err)
	}
	settings["HTTPS_PROXY"], settings["NO_PROXY"] = e.Proxy.URL(), server.Hostname()
	settings["AZP_AGENT_PROXY_URL"], settings["AZP_AGENT_PROXY_SECRET"] = e.Proxy.URL(), proxySecret
	for variable, content := range map[string]string{"AZP_PROXY_USERNAME_FILE": ProxyUserScaler, "AZP_PROXY_PASSWORD_FILE": ProxyPassword(ProxyUserScaler)} {
		settings[variable] = filepath.Join(e.private, variable)
		if err := os.WriteFile(settings[variable], []byte(content+"\n"), 0o600); err != nil {
			return fmt.Errorf("the scaler's credential for the proxy: %w", err)
		}
	}
	return nil
}
