package wire

import (
	"context"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

// Credential signs requests.
type Credential interface {
	// Authorize gives the value of the Authorization header. renew asks for one
	// that is not the last, which the service did not take.
	Authorize(ctx context.Context, hc *http.Client, renew bool) (string, error)
	// Renewable tells whether renewing can help.
	Renewable() bool
}

// patUser is the user name that the agent sends with a personal access token.
const patUser = "VstsAgent"

// PAT is a personal access token.
type PAT string

// Authorize signs by Basic.
func (p PAT) Authorize(context.Context, *http.Client, bool) (string, error) {
	request := http.Request{Header: http.Header{}}
	request.SetBasicAuth(patUser, string(p))
	return request.Header.Get("Authorization"), nil
}

// Renewable is false: a token that was refused stays refused.
func (PAT) Renewable() bool { return false }

// Bearer is a token that was given to us, such as a job's.
type Bearer string

// Authorize signs by Bearer.
func (b Bearer) Authorize(context.Context, *http.Client, bool) (string, error) {
	return "Bearer " + string(b), nil
}

// Renewable is false: nobody gives us another.
func (Bearer) Renewable() bool { return false }

// OAuth is the agent's own credential: it trades an assertion signed with its key
// for a token. It is safe for concurrent use.
type OAuth struct {
	ClientID         string
	AuthorizationURL string // The assertion's audience.
	EndpointURL      string // Where the trade is done.
	Key              *rsa.PrivateKey

	mu      sync.Mutex
	token   string
	expires time.Time
}

// How long an assertion lives, and how long before its end a token is renewed.
const (
	assertionLife = 5 * time.Minute
	tokenMargin   = time.Minute
)

// Renewable is true: the trade can be done again.
func (o *OAuth) Renewable() bool { return true }

// Authorize signs by Bearer with a token that it trades for when it has none.
func (o *OAuth) Authorize(ctx context.Context, hc *http.Client, renew bool) (string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.token == "" || renew || time.Until(o.expires) < tokenMargin {
		if err := o.trade(ctx, hc); err != nil {
			return "", err
		}
	}
	return "Bearer " + o.token, nil
}

func (o *OAuth) trade(ctx context.Context, hc *http.Client) error {
	now := time.Now()
	assertion, err := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.RegisteredClaims{
		Issuer:    o.ClientID,
		Subject:   o.ClientID,
		Audience:  jwt.ClaimStrings{o.AuthorizationURL},
		ID:        uuid.NewString(),
		NotBefore: jwt.NewNumericDate(now),
		ExpiresAt: jwt.NewNumericDate(now.Add(assertionLife)),
	}).SignedString(o.Key)
	if err != nil {
		return fmt.Errorf("sign the assertion of client %s: %w", o.ClientID, err)
	}
	form := url.Values{
		"grant_type":            {"client_credentials"},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
		"client_assertion":      {assertion},
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, o.EndpointURL, strings.NewReader(form.Encode()))
	if err != nil {
		return fmt.Errorf("trade the assertion for a token: %w", err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Accept", "application/json")
	response, err := hc.Do(request)
	if err != nil {
		return fmt.Errorf("trade the assertion for a token: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("trade the assertion for a token: %w", err)
	}
	var answer struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	// A refusal need not be JSON, and then there is no token in it either.
	_ = json.Unmarshal(trimMark(body), &answer)
	if response.StatusCode >= http.StatusInternalServerError {
		return &ServiceError{Operation: "POST " + request.URL.Path, Status: response.StatusCode}
	}
	if response.StatusCode != http.StatusOK || answer.AccessToken == "" {
		return &UnauthorizedError{Host: request.URL.Host, Status: response.StatusCode, Message: strings.TrimSpace(answer.Error + " " + answer.Description)}
	}
	o.token = answer.AccessToken
	o.expires = now.Add(time.Hour)
	if answer.ExpiresIn > 0 {
		o.expires = now.Add(time.Duration(answer.ExpiresIn) * time.Second)
	}
	return nil
}
