package e2e_test

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// stolen is what an agent signs in with, taken from the files that a build can read.
type stolen struct {
	name     string
	clientID string
	tokenURL string
	key      *rsa.PrivateKey
}

// parseAgent reads the three files of an agent: JSON that begins with a byte order mark,
// and numbers that are base64 and big-endian.
func parseAgent(files map[string][]byte) (stolen, error) {
	var agent struct {
		AgentName string `json:"agentName"`
	}
	var credentials struct {
		Data struct {
			ClientID         string `json:"clientId"`
			AuthorizationURL string `json:"authorizationUrl"`
		} `json:"data"`
	}
	var parameters struct {
		D, P, Q, Modulus, Exponent []byte
	}
	for name, into := range map[string]any{".agent": &agent, ".credentials": &credentials, ".credentials_rsaparams": &parameters} {
		if err := json.Unmarshal(bytes.TrimPrefix(files[name], []byte("\ufeff")), into); err != nil {
			return stolen{}, fmt.Errorf("the agent's file %s: %w", name, err)
		}
	}
	number := func(b []byte) *big.Int { return new(big.Int).SetBytes(b) }
	key := &rsa.PrivateKey{
		PublicKey: rsa.PublicKey{N: number(parameters.Modulus), E: int(number(parameters.Exponent).Int64())},
		D:         number(parameters.D), Primes: []*big.Int{number(parameters.P), number(parameters.Q)},
	}
	if err := key.Validate(); err != nil {
		return stolen{}, fmt.Errorf("the agent's key: %w", err)
	}
	return stolen{name: agent.AgentName, clientID: credentials.Data.ClientID, tokenURL: credentials.Data.AuthorizationURL, key: key}, nil
}

// signIn exchanges an assertion signed with the key for an access token (RFC 7523). An
// error is one of the connection; what the service says is in the code and the text.
func (s stolen) signIn(ctx context.Context, e *env.Env) (code int, token string, err error) {
	now := time.Now()
	assertion, err := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.RegisteredClaims{
		Issuer: s.clientID, Subject: s.clientID, Audience: jwt.ClaimStrings{s.tokenURL}, ID: uuid.NewString(),
		NotBefore: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(time.Minute)),
	}).SignedString(s.key)
	if err != nil {
		return 0, "", err
	}
	form := url.Values{
		"grant_type": {"client_credentials"}, "client_assertion": {assertion},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
	}
	code, body, err := call(ctx, e, http.MethodPost, s.tokenURL, "", "application/x-www-form-urlencoded", form.Encode())
	if err != nil {
		return 0, "", err
	}
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	_ = json.Unmarshal(body, &answer) // A refusal has none.
	return code, answer.AccessToken, nil
}

// tryOthers signs in as the agent, which works as long as it is registered, and tries what
// it must not: to act as another agent or on another's build, and to manage the pool. It
// gives the token that it has signed in with.
func (s stolen) tryOthers(ctx context.Context, e *env.Env, neighbour string) (token string, err error) {
	code, token, err := s.signIn(ctx, e)
	if err != nil || code != http.StatusOK {
		return "", fmt.Errorf("the stolen key of an agent that is there is answered %d: %w", code, err)
	}
	other, found := e.Service.Agent(neighbour)
	if !found {
		return token, fmt.Errorf("the neighbour's agent %s is not there", neighbour)
	}
	pool := fmt.Sprintf("%s/_apis/distributedtask/pools/%d", e.Service.URL, e.Service.PoolID)
	agent := fmt.Sprintf("%s/agents/%d", pool, other.ID)
	const version, lock = "?api-version=7.1-preview.1", "&lockToken=00000000-0000-0000-0000-000000000000"
	var wrong []error
	// It may look, so what follows is refused for what it is and not for who asks.
	if code, _, err := call(ctx, e, http.MethodGet, agent+version, token, "application/json", ""); err != nil || code != http.StatusOK {
		wrong = append(wrong, fmt.Errorf("an agent looks at another and is answered %d: %w", code, err))
	}
	for _, try := range []struct{ method, url, body string }{
		{http.MethodPost, pool + "/sessions" + version, fmt.Sprintf(`{"ownerName":"hostile","agent":{"id":%d,"name":%q,"version":%q}}`, other.ID, other.Name, other.Version)},
		{http.MethodGet, pool + "/messages" + version + "&sessionId=" + uuid.NewString() + "&lastMessageId=0", ""},
		{http.MethodPatch, fmt.Sprintf("%s/jobrequests/%d%s%s", pool, other.RequestID, version, lock), fmt.Sprintf(`{"requestId":%d,"result":"failed","finishTime":%q}`, other.RequestID, time.Now().UTC().Format(time.RFC3339))},
		{http.MethodPatch, agent + version, fmt.Sprintf(`{"id":%d,"enabled":false}`, other.ID)},
		{http.MethodDelete, agent + version, ""},
		{http.MethodPost, pool + "/agents" + version, `{"name":"hostile","version":"5.270.0","maxParallelism":1}`},
	} {
		code, body, err := call(ctx, e, try.method, try.url, token, "application/json", try.body)
		if err != nil || !refused(code) {
			wrong = append(wrong, fmt.Errorf("%s %s with another agent's key is answered %d, want a refusal: %w %s", try.method, strings.TrimPrefix(try.url, pool), code, err, body))
		}
	}
	return token, errors.Join(wrong...)
}

// judgeEndOfAgent says whether what a build could take of its agent is good for anything
// once the agent is out of the pool.
func (i *intruder) judgeEndOfAgent(ctx context.Context, agent stolen, token string) error {
	if err := await(ctx, "the end of the hostile build's registration", func() (bool, error) {
		_, there := i.env.Service.Agent(agent.name)
		return !there, nil
	}); err != nil {
		return err
	}
	var wrong []error
	if code, _, err := agent.signIn(ctx, i.env); err != nil || code != http.StatusBadRequest {
		wrong = append(wrong, fmt.Errorf("the key of an agent that is gone is answered %d at sign-in, want a refusal: %w", code, err))
	}
	sessions := fmt.Sprintf("%s/_apis/distributedtask/pools/%d/sessions?api-version=7.1-preview.1", i.env.Service.URL, i.env.Service.PoolID)
	code, _, err := call(ctx, i.env, http.MethodPost, sessions, token, "application/json", fmt.Sprintf(`{"ownerName":"hostile","agent":{"id":1,"name":%q,"version":"5.270.0"}}`, agent.name))
	if err != nil || !refused(code) {
		wrong = append(wrong, fmt.Errorf("a session of an agent that is gone is answered %d, want a refusal: %w", code, err))
	}
	return errors.Join(wrong...)
}

// refused reports whether the service has said no. It answers an access token that it does
// not know with the page of its sign-in, as 203.
func refused(code int) bool {
	return code == http.StatusNonAuthoritativeInfo || code >= http.StatusBadRequest && code < http.StatusInternalServerError
}

// call sends one request to the service.
func call(ctx context.Context, e *env.Env, method, url, token, kind, body string) (code int, answer []byte, err error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(e.Service.CA) {
		return 0, nil, errors.New("the service's certificate authority does not parse")
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true}
	client := &http.Client{Timeout: 30 * time.Second, Transport: transport}
	request, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("Content-Type", kind)
	request.Header.Set("Accept", "application/json")
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = response.Body.Close() }()
	answer, err = io.ReadAll(io.LimitReader(response.Body, 1<<20))
	return response.StatusCode, answer, err
}
