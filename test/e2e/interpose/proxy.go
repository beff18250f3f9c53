// Package interpose stands between a client and an API server and calls back
// around every write, so that a test can end the client at an exact point: before
// a write was sent, or after it was committed and before its answer arrived.
package interpose

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"

	"k8s.io/client-go/tools/clientcmd"
)

// Moment is where a write stands when the callback is asked.
type Moment int

// The moments of a write.
const (
	// Before is when the client has sent it and the server has not seen it.
	Before Moment = iota
	// After is when the server has done it and the client has no answer.
	After
)

// String names the moment.
func (m Moment) String() string {
	if m == Before {
		return "before"
	}
	return "after"
}

// Write is one request that changes something.
type Write struct {
	N      int // Counted from 0 over all writes of the client.
	Method string
	Path   string
}

// String shows the write as in an access log.
func (w Write) String() string { return fmt.Sprintf("#%d %s %s", w.N, w.Method, w.Path) }

// Proxy is a running proxy.
type Proxy struct {
	server *httptest.Server
	proxy  *httputil.ReverseProxy
	cut    func(Write, Moment) bool

	mu     sync.Mutex
	writes int
}

// Start begins to forward to the API server that the kubeconfig names, and writes
// to path a kubeconfig that leads through the proxy with the same credential.
// cut is asked twice about each write; when it reports true the connection ends
// there. It is called by several goroutines at once and may take its time: the
// client waits for it.
func Start(kubeconfig, path string, cut func(Write, Moment) bool) (*Proxy, error) {
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
	p := &Proxy{cut: cut}
	p.proxy = httputil.NewSingleHostReverseProxy(target)
	p.proxy.FlushInterval = -1 // Watches are streams.
	p.proxy.Transport = &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
	}
	p.proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	p.server = httptest.NewUnstartedServer(p)
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

// errCut ends a connection on purpose.
var errCut = errors.New("cut")

// ServeHTTP forwards one request.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !changes(r) {
		p.proxy.ServeHTTP(w, r)
		return
	}
	p.mu.Lock()
	write := Write{N: p.writes, Method: r.Method, Path: r.URL.Path}
	p.writes++
	p.mu.Unlock()
	if p.cut(write, Before) {
		panic(http.ErrAbortHandler)
	}
	forward := *p.proxy
	forward.ModifyResponse = func(*http.Response) error {
		if p.cut(write, After) {
			return errCut
		}
		return nil
	}
	forward.ServeHTTP(w, r)
}

// changes reports whether a request changes what a build is made of. Reviews of
// rights and trials change nothing, and Events are for people.
func changes(r *http.Request) bool {
	switch r.Method {
	case http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete:
	default:
		return false
	}
	return !strings.Contains(r.URL.Path, "/authorization.k8s.io/") &&
		!strings.HasSuffix(r.URL.Path, "/events") && !strings.Contains(r.URL.Path, "/events/") &&
		!r.URL.Query().Has("dryRun")
}
