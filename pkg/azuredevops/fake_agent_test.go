package azuredevops

import (
	"bytes"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

// handAgent is an agent played by hand, as far as it takes to be assigned a build.
type handAgent struct {
	t       *testing.T
	http    *http.Client
	pool    string // The pool's URL.
	id      int
	bearer  string
	session string
}

// register adds an agent to a pool with the manager's token, and signs in as the agent.
func register(t *testing.T, client *http.Client, organisation string, poolID int, name string) *handAgent {
	t.Helper()
	key := agentKey(t, 2048)
	a := newHandAgent(t, client, organisation, poolID, 0)
	var answer struct {
		ID            int
		Authorization struct{ ClientID, AuthorizationURL string }
	}
	a.send(http.MethodPost, "/agents", fmt.Sprintf(
		`{"name":%q,"version":"4.248.0","maxParallelism":1,"systemCapabilities":{"Agent.Version":"4.248.0","Agent.OS":"Linux"},"authorization":{"publicKey":{"exponent":"AQAB","modulus":%q}}}`,
		name, base64.StdEncoding.EncodeToString(key.N.FillBytes(make([]byte, 256)))), &answer)
	a.id = answer.ID
	if status := a.signIn(key, answer.Authorization.ClientID, answer.Authorization.AuthorizationURL); status != http.StatusOK {
		t.Fatalf("agent %s can't sign in: %d", name, status)
	}
	return a
}

// newHandAgent is an agent that has not signed in: what it sends has the manager's token.
func newHandAgent(t *testing.T, client *http.Client, organisation string, poolID, id int) *handAgent {
	t.Helper()
	return &handAgent{
		t: t, http: client, id: id, pool: fmt.Sprintf("%s/_apis/distributedtask/pools/%d", organisation, poolID),
		bearer: "Basic " + base64.StdEncoding.EncodeToString([]byte(":"+managerToken)),
	}
}

// signIn exchanges a proof of the key for a token of the agent's, and gives the status.
func (a *handAgent) signIn(key *rsa.PrivateKey, clientID, authorizationURL string) int {
	a.t.Helper()
	now := time.Now()
	assertion, err := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.RegisteredClaims{
		Issuer: clientID, Subject: clientID, Audience: jwt.ClaimStrings{authorizationURL},
		ID: uuid.NewString(), NotBefore: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(5 * time.Minute)),
	}).SignedString(key)
	if err != nil {
		a.t.Fatal(err)
	}
	form := url.Values{"grant_type": {"client_credentials"}, "client_assertion": {assertion}, "client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}}
	req, err := http.NewRequestWithContext(a.t.Context(), http.MethodPost, authorizationURL, strings.NewReader(form.Encode()))
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := a.http.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer drop(resp.Body)
	var token struct {
		AccessToken string `json:"access_token"`
	}
	if resp.StatusCode == http.StatusOK {
		text, err := io.ReadAll(resp.Body)
		if err == nil {
			err = json.Unmarshal(trimMark(text), &token)
		}
		if err != nil {
			a.t.Fatal(err)
		}
		a.bearer = "Bearer " + token.AccessToken
	}
	return resp.StatusCode
}

// connect opens a session: from then on the agent is online.
func (a *handAgent) connect() {
	a.t.Helper()
	var session struct{ SessionID string }
	a.send(http.MethodPost, "/sessions", fmt.Sprintf(`{"ownerName":"hand","agent":{"id":%d,"name":"hand","version":"4.248.0"}}`, a.id), &session)
	a.session = session.SessionID
}

// receive takes the next message without acknowledging it.
func (a *handAgent) receive() (messageID int64) {
	a.t.Helper()
	var message struct{ MessageID int64 }
	a.send(http.MethodGet, "/messages?sessionId="+a.session, "", &message)
	return message.MessageID
}

// accept acknowledges a message, which makes its job a running one.
func (a *handAgent) accept(messageID int64) {
	a.t.Helper()
	a.send(http.MethodDelete, fmt.Sprintf("/messages/%d?sessionId=%s", messageID, a.session), "", nil)
}

func (a *handAgent) send(method, path, body string, into any) {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.pool+path, bytes.NewReader([]byte(body)))
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Accept", "application/json;api-version=7.1-preview.1")
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Authorization", a.bearer)
	a.do(req, into)
}

func (a *handAgent) do(req *http.Request, into any) {
	a.t.Helper()
	resp, err := a.http.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer drop(resp.Body)
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode/100 != 2 {
		a.t.Fatalf("%s %s: %d %s, %v", req.Method, req.URL, resp.StatusCode, text, err)
	}
	if into != nil {
		if err := json.Unmarshal(trimMark(text), into); err != nil {
			a.t.Fatalf("%s %s: %s: %v", req.Method, req.URL, text, err)
		}
	}
}
