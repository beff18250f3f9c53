package entra_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest/entratest"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/entra"
)

const (
	clientID   = "11111111-2222-4333-8444-555555555555"
	secretText = "s3cr3t~value-of-the-application"
	issuerURL  = "https://oidc.example.com/cluster/"
	subject    = "system:serviceaccount:azp-scaler:azp-scaler"
	exchangeTo = "api://AzureADTokenExchange"
)

// cluster is the issuer of all tests: its key takes long to make.
var cluster = sync.OnceValues(func() (*entratest.Issuer, error) { return entratest.NewIssuer(issuerURL) })

// world is a service, the Entra that it trusts, and an identity that is known to both.
type world struct {
	t       *testing.T
	dir     string
	service *azuredevopstest.Server
	url     string
	entra   *entratest.Server
	host    string // Of the authority.
	machine string // The metadata endpoint's address.
	issuer  *entratest.Issuer
	audit   *lockedBuffer

	mu     sync.Mutex
	tokens []string // That were issued.
}

func newWorld(t *testing.T, lifetime time.Duration) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), audit: &lockedBuffer{}}
	var err error
	if w.service, err = azuredevopstest.New(azuredevopstest.Options{AuditLog: w.audit}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.service.Close)
	w.service.CreatePool("ci")
	endpoint, err := w.service.StartTLS("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.url = endpoint.URL
	w.entra, err = entratest.New(entratest.Options{Lifetime: lifetime, OnToken: func(token entratest.Token) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.tokens = append(w.tokens, token.Secret)
		if err := w.service.AddToken(azuredevopstest.Token{
			Secret: token.Secret, Identity: token.ClientID, Rights: azuredevopstest.RightsManage, Expires: token.Expires,
		}); err != nil {
			t.Error(err)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.entra.Close)
	authority, err := w.entra.StartTLS("127.0.0.1:0", behindProxy)
	if err != nil {
		t.Fatal(err)
	}
	w.host = authority.URL
	if w.machine, err = w.entra.StartMetadata("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	w.write("ca.crt", string(endpoint.CAPEM)+string(authority.CAPEM))
	if w.issuer, err = cluster(); err != nil {
		t.Fatal(err)
	}
	w.entra.Trust(w.issuer)
	w.register(entratest.Application{
		ClientID: clientID, Assigned: true,
		Secrets:   []entratest.ClientSecret{{Value: secretText}},
		Federated: []entratest.FederatedCredential{{Issuer: issuerURL, Subject: subject, Audience: exchangeTo}},
	})
	w.write("secret", secretText+"\n")
	w.write("token", w.federated(subject, exchangeTo, time.Now()))
	return w
}

func (w *world) register(a entratest.Application) {
	w.t.Helper()
	if err := w.entra.Register(a); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) federated(subject, audience string, from time.Time) string {
	w.t.Helper()
	token, err := w.issuer.Token(subject, audience, from, time.Hour)
	if err != nil {
		w.t.Fatal(err)
	}
	return token
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) write(name, content string) string {
	w.t.Helper()
	if err := os.WriteFile(w.path(name), []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return w.path(name)
}

// config is a configuration of a method that works, but for the certificate's file.
func (w *world) config(method entra.Method) entra.Config {
	c := entra.Config{
		Method: method, TenantID: entratest.DefaultTenant, ClientID: clientID,
		AuthorityHost: w.host, CAFile: w.path("ca.crt"), BackOff: 20 * time.Millisecond,
	}
	switch method {
	case entra.WorkloadIdentity:
		c.FederatedTokenFile = w.path("token")
	case entra.ClientSecret:
		c.ClientSecretFile = w.path("secret")
	case entra.ClientCertificate:
		c.CertificateFile = w.path("certificate")
	case entra.ManagedIdentity:
		c.Transport = w.link()
	}
	return c
}

// link is a machine's network, on which the metadata service has its fixed address.
func (w *world) link() http.RoundTripper {
	transport := &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == "169.254.169.254:80" {
			address = w.machine
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
	w.t.Cleanup(transport.CloseIdleConnections)
	return transport
}

func (w *world) source(c entra.Config) *entra.Source {
	w.t.Helper()
	source, err := entra.New(c)
	if err != nil {
		w.t.Fatal(err)
	}
	return source
}

// client speaks with the service.
func (w *world) client(source azuredevops.TokenSource, change ...func(*azuredevops.Config)) *azuredevops.Client {
	w.t.Helper()
	config := azuredevops.Config{
		URL: w.url, Token: source, Scheme: azuredevops.SchemeBearer, CAFile: w.path("ca.crt"), BackOff: time.Millisecond,
	}
	for _, f := range change {
		f(&config)
	}
	client, err := azuredevops.New(config)
	if err != nil {
		w.t.Fatal(err)
	}
	return client
}

// issued are the tokens so far.
func (w *world) issued() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.tokens...)
}

// refusals counts the service's answers to requests that it took for nobody's.
func (w *world) refusals() int {
	return strings.Count(w.audit.String(), `"result":"203"`) + strings.Count(w.audit.String(), `"result":"401"`)
}

// pair makes a certificate of its own signature.
func pair(t *testing.T, from, to time.Time) (*rsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(from.UnixNano()), Subject: pkix.Name{CommonName: "azp-scaler"}, NotBefore: from, NotAfter: to}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, certificate
}

// inPEM is a file with both.
func inPEM(t *testing.T, key any, certificates ...*x509.Certificate) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	_ = pem.Encode(&b, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	for _, certificate := range certificates {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})
	}
	return b.String()
}

// lockedBuffer is written by one goroutine and read by another.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func logTo(l *lockedBuffer) *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
