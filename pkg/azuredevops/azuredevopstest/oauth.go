package azuredevopstest

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

const (
	oauthPath = "_apis/oauth2/token"
	// grantLifetime is how long an agent's access token is good for.
	grantLifetime = 50 * time.Minute
	// maxAssertionLife is how far ahead an assertion may expire.
	maxAssertionLife = 10 * time.Minute
)

// oauthError is the body of RFC 6749 §5.2.
type oauthError struct {
	Error       string `json:"error"`
	Description string `json:"error_description"`
}

// oauthToken exchanges an assertion, signed with the key that an agent
// registered, for an access token of that agent (RFC 7523 §2.2).
func (c *call) oauthToken() error {
	c.r.Body = http.MaxBytesReader(c.w, c.r.Body, maxBody)
	if err := c.r.ParseForm(); err != nil {
		return c.refuseToken(nil, "invalid_request", "the body is not a form: "+err.Error())
	}
	form := c.r.PostForm
	if got := form.Get("grant_type"); got != "client_credentials" {
		return c.refuseToken(nil, "unsupported_grant_type", "grant_type must be client_credentials")
	}
	if got := form.Get("client_assertion_type"); got != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" {
		return c.refuseToken(nil, "invalid_request", "client_assertion_type must be urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
	}
	s := c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	a, err := s.verifyAssertion(form.Get("client_assertion"), now)
	if err != nil {
		return c.refuseToken(a, "invalid_client", err.Error())
	}
	secret := s.newSecret("agent")
	s.grants[secret] = grant{agent: a, expires: now.Add(grantLifetime)}
	c.who = identity{name: a.identity(), agent: a}
	s.audit.record(Event{Event: "token-issued", Pool: a.pool.id, AgentID: a.id, AgentName: a.name, By: a.identity()})
	return c.reply(http.StatusOK, map[string]any{
		"access_token": secret,
		"token_type":   "bearer",
		"expires_in":   int(grantLifetime.Seconds()),
	})
}

// refuseToken answers an exchange that failed. The caller may hold the mutex.
func (c *call) refuseToken(a *agent, code, why string) error {
	e := Event{Event: "token-refused", By: "anonymous", Result: code, Detail: why}
	if a != nil {
		e.Pool, e.AgentID, e.AgentName = a.pool.id, a.id, a.name
	}
	c.srv.audit.record(e)
	return c.reply(http.StatusBadRequest, oauthError{code, why})
}

// verifyAssertion checks an agent's JWT. It returns the agent as soon as it is
// known, also with an error. The caller holds the mutex.
func (s *Server) verifyAssertion(text string, now time.Time) (*agent, error) {
	var found *agent
	claims := &jwt.RegisteredClaims{}
	_, err := jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodRS256.Alg()}),
		jwt.WithExpirationRequired(),
		jwt.WithLeeway(30*time.Second),
		jwt.WithTimeFunc(func() time.Time { return now }),
	).ParseWithClaims(text, claims, func(*jwt.Token) (any, error) {
		id, err := uuid.Parse(claims.Issuer)
		if err != nil {
			return nil, errors.New("iss must be the clientId of the registration")
		}
		found = s.clients[id]
		if found == nil || found.publicKey == nil {
			return nil, errors.New("no agent has this clientId")
		}
		return found.publicKey, nil
	})
	switch {
	case err != nil:
		return found, err
	case claims.Subject != claims.Issuer:
		return found, errors.New("sub must equal iss")
	case len(claims.Audience) != 1 || !strings.EqualFold(claims.Audience[0], found.authorizationURL):
		return found, errors.New("aud must be the authorizationUrl of the registration, " + found.authorizationURL)
	case claims.ExpiresAt.Sub(now) > maxAssertionLife:
		return found, errors.New("exp is too far ahead")
	case claims.ID == "":
		return found, errors.New("jti is missing")
	}
	for jti, until := range found.usedJTI {
		if now.After(until) {
			delete(found.usedJTI, jti)
		}
	}
	if _, used := found.usedJTI[claims.ID]; used {
		return found, errors.New("jti was used before")
	}
	found.usedJTI[claims.ID] = claims.ExpiresAt.Add(time.Minute)
	return found, nil
}
