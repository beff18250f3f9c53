// Package interpose stands between clients and a server and calls back around every
// call, so that a test can end the client at an exact point: before the server has seen
// the call, after it was done and before its answer arrived, or right after that.
package interpose

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"

	"k8s.io/client-go/tools/clientcmd"
)

// Proxy is a running proxy.
type Proxy struct{ server *httptest.Server }

// Start begins to forward to the API server that the kubeconfig names, and writes
// to path a kubeconfig that leads through the proxy with the same credential. The hook
// is asked around each call to the server, which calls have as their server's name.
func Start(server, kubeconfig, path string, hook Hook) (*Proxy, error) {
	config, err := clientcmd.LoadFromFile(kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", kubeconfig, err)
	}
	current, known := config.Contexts[config.CurrentContext]
	if !known || config.Clusters[current.Cluster] == nil {
		return nil, fmt.Errorf("%s has no current context with a cluster", kubeconfig)
	}
	cluster := config.Clusters[current.Cluster]
	target, err := url.Parse(cluster.Server)
	if err != nil {
		return nil, fmt.Errorf("the server of %s: %w", kubeconfig, err)
	}
	loaded, err := clientcmd.NewDefaultClientConfig(*config, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", kubeconfig, err)
	}
	roots := x509.NewCertPool()
	authority := loaded.CAData
	if !roots.AppendCertsFromPEM(authority) {
		return nil, fmt.Errorf("%s carries no certificate authority", kubeconfig)
	}
	forward := httputil.NewSingleHostReverseProxy(target)
	forward.FlushInterval = -1 // Watches are streams.
	forward.Transport = &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
	}
	forward.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	p := &Proxy{server: httptest.NewUnstartedServer(Handler(server, forward, hook))}
	p.server.EnableHTTP2 = true
	p.server.StartTLS()

	cluster.Server = p.server.URL
	cluster.CertificateAuthority = ""
	cluster.TLSServerName = ""
	cluster.CertificateAuthorityData = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.server.Certificate().Raw})
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		p.Close()
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return p, nil
}

// Close ends the proxy and every connection through it.
func (p *Proxy) Close() {
	p.server.CloseClientConnections()
	p.server.Close()
}
