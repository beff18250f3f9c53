package azuredevopstest_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

const (
	managePAT  = "pat-manage"
	readPAT    = "pat-read"
	nothingPAT = "pat-nothing"
	expiredPAT = "pat-expired"
	blindPAT   = "pat-blind"
	limit      = time.Minute
)

func allTokens() []azuredevopstest.Token {
	return []azuredevopstest.Token{
		{Secret: managePAT, Identity: "manager", Rights: azuredevopstest.RightsManage},
		{Secret: readPAT, Identity: "reader", Rights: azuredevopstest.RightsRead},
		{Secret: nothingPAT, Identity: "nobody"},
		{Secret: expiredPAT, Identity: "late", Rights: azuredevopstest.RightsManage, Expired: true},
		{Secret: blindPAT, Identity: "blind", Rights: azuredevopstest.RightsManage, Pools: []string{"elsewhere"}},
	}
}

// service is a running fake with one pool and a client that trusts it.
type service struct {
	t    *testing.T
	srv  *azuredevopstest.Server
	url  string
	ep   azuredevopstest.Endpoint
	http *http.Client
	pool int
}

// start serves a fake over TLS until the test ends. Times are short unless set.
func start(t *testing.T, opts azuredevopstest.Options) *service {
	t.Helper()
	if opts.Tick == 0 {
		opts.Tick = 5 * time.Millisecond
	}
	if opts.Tokens == nil {
		opts.Tokens = allTokens()
	}
	srv, err := azuredevopstest.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	ep, err := srv.StartTLS("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ep.CAPEM) {
		t.Fatal("the authority's certificate does not parse")
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	t.Cleanup(transport.CloseIdleConnections)
	return &service{
		t: t, srv: srv, url: ep.URL, ep: ep, pool: srv.CreatePool("builds"),
		http: &http.Client{
			Transport:     transport,
			Timeout:       limit,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// reply is an answer read to its end.
type reply struct {
	status int
	header http.Header
	body   string
	err    error
}

func (r reply) into(t *testing.T, v any) {
	t.Helper()
	if r.err != nil {
		t.Fatalf("request failed: %v", r.err)
	}
	if r.status != http.StatusOK && r.status != http.StatusCreated {
		t.Fatalf("status %d: %s", r.status, r.body)
	}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(r.body, "\xef\xbb\xbf")), v); err != nil {
		t.Fatalf("answer %q: %v", r.body, err)
	}
}

func basic(pat string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(":"+pat))
}

// send makes one request with JSON and an api-version.
func (s *service) send(ctx context.Context, method, path, auth string, body any) reply {
	var in io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return reply{err: err}
		}
		in = bytes.NewReader(text)
	}
	at := path
	if !strings.HasPrefix(path, "https://") {
		at = s.url + path
	}
	req, err := http.NewRequestWithContext(ctx, method, at, in)
	if err != nil {
		return reply{err: err}
	}
	req.Header.Set("Accept", "application/json;api-version=7.1-preview.1")
	if body != nil {
		req.Header.Set("Content-Type", "application/json; charset=utf-8")
	}
	if auth != "" {
		req.Header.Set("Authorization", auth)
	}
	return s.do(req)
}

func (s *service) do(req *http.Request) reply {
	resp, err := s.http.Do(req)
	if err != nil {
		return reply{err: err}
	}
	text, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	return reply{status: resp.StatusCode, header: resp.Header, body: string(text), err: err}
}

func (s *service) manage(method, path string, body any) reply {
	return s.send(s.t.Context(), method, path, basic(managePAT), body)
}

func (s *service) poolPath(rest string) string {
	return fmt.Sprintf("/_apis/distributedtask/pools/%d/%s", s.pool, rest)
}

func (s *service) queue(b azuredevopstest.Build) int64 {
	s.t.Helper()
	b.PoolID = s.pool
	id, err := s.srv.Queue(b)
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

func (s *service) status(id int64) azuredevopstest.BuildStatus {
	s.t.Helper()
	status, err := s.srv.Build(id)
	if err != nil {
		s.t.Fatal(err)
	}
	return status
}

// await waits until a condition holds.
func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, limit)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (s *service) awaitState(id int64, state string) azuredevopstest.BuildStatus {
	s.t.Helper()
	await(s.t, fmt.Sprintf("request %d is %s", id, state), func() bool { return s.status(id).State == state })
	return s.status(id)
}

// events returns the names of the events about a request.
func (s *service) events(requestID int64) []string {
	var names []string
	for _, e := range s.srv.Events(0) {
		if e.RequestID == requestID {
			names = append(names, e.Event)
		}
	}
	return names
}

func itoa(n int) string { return fmt.Sprint(n) }

// inProcess starts a fake without a network, for tests in a bubble of fake
// time. The key pair must have been made outside.
func inProcess(t *testing.T, opts azuredevopstest.Options) *service {
	t.Helper()
	opts.Tokens = allTokens()
	srv, err := azuredevopstest.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	return &service{
		t: t, srv: srv, url: "https://fake/acme", pool: srv.CreatePool("builds"),
		http: &http.Client{Transport: handlerTransport{srv}},
	}
}

// handlerTransport answers requests by calling a handler.
type handlerTransport struct{ handler http.Handler }

func (h handlerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.TLS = &tls.ConnectionState{}
	r.Host = r.URL.Host
	if r.Body == nil {
		r.Body = http.NoBody
	}
	w := httptest.NewRecorder()
	h.handler.ServeHTTP(w, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return w.Result(), nil
}
