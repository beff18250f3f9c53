package azuredevops

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"
)

// ErrProxy means that it was the proxy that refused, and not the service. It comes with
// ErrUnavailable.
var ErrProxy = errors.New("refused by the proxy")

// Proxy says by which way requests leave the network. The zero value is the direct way,
// whatever the environment says.
type Proxy struct {
	// HTTPS and HTTP are the proxies for URLs of either scheme, such as
	// http://proxy.example:3128, as the variables HTTPS_PROXY and HTTP_PROXY have them.
	// They are secrets for the sake of those with a user and password in them.
	HTTPS, HTTP Secret
	// NoProxy lists what is reached directly, as NO_PROXY does. Loopback always is.
	NoProxy string
	// UsernameFile and PasswordFile hold what the proxy wants to be told, instead of its
	// URL. They are read again for each request, so that a Secret can be replaced.
	UsernameFile, PasswordFile string
}

// Validate tells everything that is wrong; never a password.
func (p Proxy) Validate() error {
	var wrong []error
	for _, text := range []Secret{p.HTTPS, p.HTTP} {
		u, err := parseProxy(text.Reveal())
		switch {
		case err != nil:
			wrong = append(wrong, err)
		case u != nil && u.User != nil && p.UsernameFile+p.PasswordFile != "":
			wrong = append(wrong, errors.New("the proxy's URL has a user in it, and there are files for that: take it out of the URL"))
		}
	}
	switch {
	case (p.UsernameFile == "") != (p.PasswordFile == ""):
		wrong = append(wrong, errors.New("the proxy's user and password come from two files: name both, or none"))
	case p.UsernameFile != "" && p.HTTPS == "" && p.HTTP == "":
		wrong = append(wrong, errors.New("there are files for a proxy's user and password, and no proxy: give its URL, or no files"))
	}
	return errors.Join(wrong...)
}

// parseProxy reads the URL of a proxy, nil for none. As in most programs that obey
// HTTPS_PROXY, one without a scheme is plain HTTP.
func parseProxy(text string) (*url.URL, error) {
	if text == "" {
		return nil, nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		u, err = url.Parse("http://" + text)
	}
	// The error of url.Parse repeats the text, which may hold a password.
	if err != nil || u.Host == "" || !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme) {
		return nil, errors.New("the proxy's URL is none: want one such as http://proxy.example:3128")
	}
	return u, nil
}

// choose gives what tells the proxy for a request.
func (p Proxy) choose() func(*http.Request) (*url.URL, error) {
	if p.HTTPS == "" && p.HTTP == "" {
		return nil
	}
	config := httpproxy.Config{HTTPSProxy: p.HTTPS.Reveal(), HTTPProxy: p.HTTP.Reveal(), NoProxy: p.NoProxy}
	of := config.ProxyFunc()
	return func(req *http.Request) (*url.URL, error) {
		proxy, err := of(req.URL)
		if err != nil || proxy == nil || p.UsernameFile == "" {
			return proxy, err
		}
		username, password, err := p.Credentials()
		if err != nil {
			return nil, err
		}
		signed := *proxy
		signed.User = url.UserPassword(username, password.Reveal())
		return &signed, nil
	}
}

// Credentials reads the files with user and password. Without files both are empty.
func (p Proxy) Credentials() (username string, password Secret, err error) {
	if p.UsernameFile == "" {
		return "", "", nil
	}
	username, nameErr := readLine(p.UsernameFile)
	secret, secretErr := readLine(p.PasswordFile)
	if err := errors.Join(nameErr, secretErr); err != nil {
		return "", "", fmt.Errorf("the proxy's user and password can't be read: %w", err)
	}
	return username, Secret(secret), nil
}

// maxLine is far above every user name and password.
const maxLine = 4 << 10

// readLine reads a file of one line, which must not be empty.
func readLine(path string) (_ string, err error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	content, err := io.ReadAll(io.LimitReader(file, maxLine+1))
	if err != nil {
		return "", err
	}
	line := strings.TrimRight(string(content), "\r\n")
	if line == "" || len(line) > maxLine || strings.ContainsAny(line, "\r\n\x00") {
		return "", fmt.Errorf("%s: want one line that is not empty", path)
	}
	return line, nil
}

// refusedByProxy is a proxy's answer to a request for a connection.
type refusedByProxy struct {
	status int
	signed bool // Whether it was told a user and password.
}

// Error gives the proxy's status. What else it says may repeat what it was told.
func (e *refusedByProxy) Error() string {
	return fmt.Sprintf("the proxy answered %d %s", e.status, http.StatusText(e.status))
}

// Unwrap lets errors.Is find ErrProxy where it was the proxy itself that refused.
func (e *refusedByProxy) Unwrap() error {
	if e.status >= 500 {
		return nil
	}
	return ErrProxy
}

// remedyProxy is what to do where a proxy wants to know who asks.
const remedyProxy = "give the proxy's user and password: the scaler's in AZP_PROXY_USERNAME_FILE and AZP_PROXY_PASSWORD_FILE, the agents' in the Secret that AZP_AGENT_PROXY_SECRET names"

// proxyRefusal classifies the refusal of a proxy. Those on the way to the service may pass.
func proxyRefusal(refused *refusedByProxy) *Error {
	e := &Error{Status: refused.status, Kind: ErrUnavailable, Err: refused, Remedy: remedyReach}
	switch {
	case refused.status == http.StatusProxyAuthRequired && refused.signed:
		e.Message, e.Remedy = "the proxy refuses this user and password", remedyProxy
	case refused.status == http.StatusProxyAuthRequired:
		e.Message, e.Remedy = "the proxy wants a user and password", remedyProxy
	case refused.status >= 500:
		e.Message, e.retry = "the proxy can't reach the server", true
	default:
		e.Message, e.Remedy = "the proxy does not let the request through", "have the proxy allow the server, or reach it directly by NO_PROXY"
	}
	return e
}

// NewTransport is the way to the network, the same for everything that belongs to the
// service: with the system's roots and those of the PEM file, if one is named, and through
// the proxy. It reads the environment nowhere.
func NewTransport(caFile string, proxy Proxy) (*http.Transport, error) {
	roots, err := loadRoots(caFile)
	if err := errors.Join(err, proxy.Validate()); err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy: proxy.choose(),
		OnProxyConnectResponse: func(_ context.Context, proxy *url.URL, _ *http.Request, answer *http.Response) error {
			if answer.StatusCode != http.StatusOK {
				return &refusedByProxy{status: answer.StatusCode, signed: proxy.User != nil}
			}
			return nil
		},
		DialContext:           dialer.DialContext,
		ForceAttemptHTTP2:     true,
		TLSClientConfig:       &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   15 * time.Second,
		ExpectContinueTimeout: time.Second,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConns:          32,
		MaxIdleConnsPerHost:   16,
	}, nil
}

// loadRoots gives the system's roots and those of the file.
func loadRoots(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil // No pool means the system's.
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("CA file (AZP_CA_FILE): %w", err)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA file (AZP_CA_FILE) %s holds no certificate in PEM form: give the authority's certificate, beginning with -----BEGIN CERTIFICATE-----", path)
	}
	return roots, nil
}
