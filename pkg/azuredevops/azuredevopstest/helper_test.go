package azuredevopstest_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

const (
	managePAT  = "pat-manage"
	readPAT    = "pat-read"
	nothingPAT = "pat-nothing"
	expiredPAT = "pat-expired"
	blindPAT   = "pat-blind"
	limit      = 20 * time.Second
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

// keyPair is shared: making one takes a while, and which it is does not matter.
var keyPair = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

// agent is a registration with what is needed to speak as the agent.
type agent struct {
	s       *service
	ID      int
	Name    string
	auth    struct{ ClientID, AuthorizationURL string }
	key     *rsa.PrivateKey
	bearer  string
	session string
	last    int64
}

func agentBody(t *testing.T, name string, capabilities map[string]string) (map[string]any, *rsa.PrivateKey) {
	t.Helper()
	key, err := keyPair()
	if err != nil {
		t.Fatal(err)
	}
	caps := map[string]string{"Agent.Name": name, "Agent.Version": "4.260.0", "Agent.OS": "Linux"}
	for k, v := range capabilities {
		caps[k] = v
	}
	return map[string]any{
		"name": name, "version": "4.260.0", "osDescription": "Linux", "maxParallelism": 1, "provisioningState": "Provisioned",
		"systemCapabilities": caps,
		"authorization": map[string]any{"publicKey": map[string]string{
			"exponent": base64.StdEncoding.EncodeToString(big.NewInt(int64(key.E)).Bytes()),
			"modulus":  base64.StdEncoding.EncodeToString(key.N.FillBytes(make([]byte, 256))),
		}},
	}, key
}

// register adds an agent to the pool.
func (s *service) register(name string, capabilities map[string]string) *agent {
	s.t.Helper()
	body, key := agentBody(s.t, name, capabilities)
	var answer struct {
		ID            int
		Name          string
		Authorization struct{ ClientID, AuthorizationURL string }
	}
	s.manage(http.MethodPost, s.poolPath("agents"), body).into(s.t, &answer)
	a := &agent{s: s, ID: answer.ID, Name: answer.Name, key: key}
	a.auth.ClientID, a.auth.AuthorizationURL = answer.Authorization.ClientID, answer.Authorization.AuthorizationURL
	return a
}

func (a *agent) claims() jwt.RegisteredClaims {
	now := time.Now()
	return jwt.RegisteredClaims{
		Issuer: a.auth.ClientID, Subject: a.auth.ClientID, Audience: jwt.ClaimStrings{a.auth.AuthorizationURL},
		ID: uuid.NewString(), NotBefore: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(5 * time.Minute)),
	}
}

// exchange posts an assertion made of claims.
func (a *agent) exchange(claims jwt.Claims, method jwt.SigningMethod, key any) reply {
	text, err := jwt.NewWithClaims(method, claims).SignedString(key)
	if err != nil {
		return reply{err: err}
	}
	form := url.Values{
		"grant_type":            {"client_credentials"},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
		"client_assertion":      {text},
	}
	req, err := http.NewRequestWithContext(a.s.t.Context(), http.MethodPost, a.auth.AuthorizationURL, strings.NewReader(form.Encode()))
	if err != nil {
		return reply{err: err}
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return a.s.do(req)
}

// connect signs in and opens a session.
func (a *agent) connect() {
	a.s.t.Helper()
	var token struct {
		AccessToken string `json:"access_token"`
	}
	a.exchange(a.claims(), jwt.SigningMethodRS256, a.key).into(a.s.t, &token)
	a.bearer = "Bearer " + token.AccessToken
	var session struct{ SessionID string }
	a.open().into(a.s.t, &session)
	a.session, a.last = session.SessionID, 0
}

func (a *agent) open() reply {
	return a.send(http.MethodPost, a.s.poolPath("sessions"), map[string]any{
		"ownerName": "host-" + a.Name, "agent": map[string]any{"id": a.ID, "name": a.Name, "version": "4.260.0"},
	})
}

func (a *agent) close() reply {
	return a.send(http.MethodDelete, a.s.poolPath("sessions/"+a.session), nil)
}

func (a *agent) send(method, path string, body any) reply {
	return a.s.send(a.s.t.Context(), method, path, a.bearer, body)
}

// message is what a poll brings.
type message struct {
	MessageID   int64
	MessageType string
	Body        string
}

// job is the body of a job's message, as far as tests look at it.
type job struct {
	RequestID int64
	JobID     string
	JobName   string `json:"jobDisplayName"`
	Plan      struct{ ScopeIdentifier, PlanType, PlanID string }
	Timeline  struct{ ID string }
	Resources struct {
		Endpoints []struct {
			Name, URL     string
			Authorization struct{ Parameters map[string]string }
		}
	}
	Variables map[string]struct {
		Value    string
		IsSecret bool
	}
	Steps []struct {
		ID, Name    string
		Inputs      map[string]string
		Environment map[string]string
	}
}

// poll asks once for a message.
func (a *agent) poll(ctx context.Context) reply {
	return a.s.send(ctx, http.MethodGet, a.s.poolPath(fmt.Sprintf("messages?sessionId=%s&lastMessageId=%d", a.session, a.last)), a.bearer, nil)
}

// next polls until a message comes.
func (a *agent) next() message {
	a.s.t.Helper()
	deadline := time.Now().Add(limit)
	for time.Now().Before(deadline) {
		r := a.poll(a.s.t.Context())
		if r.status == http.StatusAccepted {
			continue
		}
		var m message
		r.into(a.s.t, &m)
		a.last = m.MessageID
		return m
	}
	a.s.t.Fatalf("%s got no message within %s", a.Name, limit)
	return message{}
}

// nextJob polls until a job comes.
func (a *agent) nextJob() (message, job) {
	a.s.t.Helper()
	m := a.next()
	if m.MessageType != "PipelineAgentJobRequest" {
		a.s.t.Fatalf("message %s %s, want a job", m.MessageType, m.Body)
	}
	var j job
	if err := json.Unmarshal([]byte(m.Body), &j); err != nil {
		a.s.t.Fatal(err)
	}
	return m, j
}

func (a *agent) update(requestID int64, body map[string]any) reply {
	return a.send(http.MethodPatch, a.s.poolPath(fmt.Sprintf("jobrequests/%d?lockToken=%s", requestID, uuid.Nil)), body)
}

func (a *agent) renew(requestID int64) reply {
	return a.update(requestID, map[string]any{"requestId": requestID})
}

func (a *agent) finish(requestID int64, result any) reply {
	return a.update(requestID, map[string]any{"requestId": requestID, "finishTime": time.Now().UTC(), "result": result})
}

func (a *agent) deleteMessage(id int64) reply {
	return a.send(http.MethodDelete, a.s.poolPath(fmt.Sprintf("messages/%d?sessionId=%s", id, a.session)), nil)
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
