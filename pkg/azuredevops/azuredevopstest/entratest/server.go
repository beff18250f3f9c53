package entratest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

// AzureDevOps is the application id of Azure DevOps, the audience of tokens for it.
const AzureDevOps = "499b84ac-1321-427f-aa17-267ca6975798"

// DefaultTenant is the tenant of a server whose options name none.
const DefaultTenant = "72f988bf-0000-4000-8000-2d7cd011db47"

// Options configures a Server.
type Options struct {
	// Tenant is the one tenant there is; the default is DefaultTenant.
	Tenant string
	// Lifetime is how long tokens are good for; the default is an hour. Entra counts
	// in whole seconds.
	Lifetime time.Duration
	// OnToken is called with each new token before it is handed out, so that a stand-in
	// for the service can learn of it.
	OnToken func(Token)
}

// Token is an access token that was issued.
type Token struct {
	Secret   string
	ClientID string
	// Audience is the application id of the service that it is for.
	Audience string
	Expires  time.Time
}

// ClientSecret is a password of an application.
type ClientSecret struct {
	Value string
	// Expires is when it ends; zero is never.
	Expires time.Time
}

// FederatedCredential says whose tokens prove that the caller is the application.
// All three are compared as they are, by case too.
type FederatedCredential struct {
	Issuer, Subject string
	// Audience is mostly api://AzureADTokenExchange.
	Audience string
}

// Application is an identity: a registered application, or a managed identity.
type Application struct {
	ClientID     string
	Secrets      []ClientSecret
	Certificates []*x509.Certificate
	Federated    []FederatedCredential
	// Assigned says that it is assigned to the machine whose metadata endpoint this
	// server plays.
	Assigned bool
}

// Counts is what the server was asked.
type Counts struct {
	Discovery int // Requests for the tenant's configuration.
	Token     int // Requests to the token endpoint, refused ones included.
	Metadata  int // Requests to the metadata endpoint, refused ones included.
	Issued    int // New tokens handed out.
}

// Server is the stand-in. All its methods are safe for concurrent use; Close ends it.
type Server struct {
	opts Options
	key  *ecdsa.PrivateKey // Signs the access tokens, which nobody but the service may look into.

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu           sync.Mutex
	applications map[string]Application // By client id, in lower case.
	issuers      map[string]*rsa.PublicKey
	lifetime     time.Duration
	outage       int // The status of every answer; 0 is none.
	counts       Counts
	usedJTI      map[string]bool
	metadata     map[string]issued // What the machine keeps, by client id and resource.
	servers      []*http.Server
}

// issued is a token with when it was made.
type issued struct {
	Token
	at time.Time
}

// New starts a server that knows no application yet. It does no network traffic.
func New(opts Options) (*Server, error) {
	if opts.Tenant == "" {
		opts.Tenant = DefaultTenant
	}
	if opts.Lifetime == 0 {
		opts.Lifetime = time.Hour
	}
	if opts.Lifetime < time.Second {
		return nil, fmt.Errorf("start the fake Entra: option Lifetime %v: use a second or more", opts.Lifetime)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("start the fake Entra: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Server{
		opts: opts, key: key, ctx: ctx, cancel: cancel, lifetime: opts.Lifetime,
		applications: map[string]Application{}, issuers: map[string]*rsa.PublicKey{},
		usedJTI: map[string]bool{}, metadata: map[string]issued{},
	}, nil
}

// Close ends the listeners and waits for them. It may be called more than once.
func (s *Server) Close() {
	s.mu.Lock()
	servers := s.servers
	s.servers = nil
	s.mu.Unlock()
	s.cancel()
	for _, server := range servers {
		_ = server.Close() // What is still running is cut off: a test double has nothing to save.
	}
	s.wg.Wait()
}

// Register makes an application known, or replaces it.
func (s *Server) Register(a Application) error {
	if _, err := uuid.Parse(a.ClientID); err != nil {
		return fmt.Errorf("register application %q: the client id is no GUID: %w", a.ClientID, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applications[strings.ToLower(a.ClientID)] = a
	return nil
}

// Trust makes the public key of a token issuer known, which Entra would read from the
// issuer's own address. It gives nobody access: see FederatedCredential.
func (s *Server) Trust(i *Issuer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.issuers[i.URL] = &i.key.PublicKey
}

// SetLifetime changes how long tokens issued from now on are good for.
func (s *Server) SetLifetime(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lifetime = d
}

// SetOutage makes every answer one with this status and no word of why; 0 ends it.
func (s *Server) SetOutage(status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outage = status
}

// Counts gives what the server was asked so far.
func (s *Server) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts
}

// StartTLS serves on an address, such as "127.0.0.1:0", over TLS with a certificate
// from an authority made for this call. Close ends it. The endpoint's URL and Origin
// are the authority's host, to which callers add the tenant.
func (s *Server) StartTLS(addr string, extraNames ...string) (azuredevopstest.Endpoint, error) {
	fail := func(err error) (azuredevopstest.Endpoint, error) {
		return azuredevopstest.Endpoint{}, fmt.Errorf("serve the fake Entra on %s: %w", addr, err)
	}
	listener, err := new(net.ListenConfig).Listen(s.ctx, "tcp", addr)
	if err != nil {
		return fail(err)
	}
	host, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		return fail(errors.Join(err, listener.Close()))
	}
	certificate, caPEM, err := azuredevopstest.NewCertificate(append([]string{host, "localhost", "127.0.0.1"}, extraNames...))
	if err != nil {
		return fail(errors.Join(err, listener.Close()))
	}
	server := newHTTPServer(s)
	server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}
	s.serve(func() error { return server.ServeTLS(listener, "", "") }, server)
	origin := "https://" + net.JoinHostPort(host, port)
	return azuredevopstest.Endpoint{URL: origin, Origin: origin, CAPEM: caPEM}, nil
}

// StartMetadata serves the metadata endpoint on an address over plain HTTP, as the
// original does on 169.254.169.254:80, and gives the address. Close ends it.
func (s *Server) StartMetadata(addr string) (string, error) {
	listener, err := new(net.ListenConfig).Listen(s.ctx, "tcp", addr)
	if err != nil {
		return "", fmt.Errorf("serve the fake metadata endpoint on %s: %w", addr, err)
	}
	server := newHTTPServer(s.Metadata())
	s.serve(func() error { return server.Serve(listener) }, server)
	return listener.Addr().String(), nil
}

func newHTTPServer(handler http.Handler) *http.Server {
	return &http.Server{
		Handler: handler, ReadHeaderTimeout: 30 * time.Second,
		// Callers that do not trust the authority are part of the tests.
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
}

// serve runs a server until Close.
func (s *Server) serve(run func() error, server *http.Server) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.servers = append(s.servers, server)
	s.wg.Go(func() { _ = run() }) // It always ends with an error, and always because of Close.
}
