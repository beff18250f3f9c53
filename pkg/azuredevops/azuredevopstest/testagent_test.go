package azuredevopstest_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

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
