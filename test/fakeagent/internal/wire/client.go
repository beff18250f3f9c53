package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

// Limits of a single call. A poll for messages is answered after about 50 seconds,
// so that the time for any call has to be well above.
const (
	callLimit = 100 * time.Second
	maxAnswer = 16 << 20
)

// apiVersion goes with every call, in the Accept header as the agent's client does.
const apiVersion = "6.0-preview.1"

// Options are what a client is made of.
type Options struct {
	URL        string // Of the organisation.
	Credential Credential
	SkipVerify bool
	Proxy      func(*http.Request) (*url.URL, error)
	UserAgent  string
}

// Client calls the service. It is safe for concurrent use.
type Client struct {
	base       *url.URL
	hc         *http.Client
	credential Credential
	userAgent  string
	// challenged is set once the service has asked for a sign-in: until then calls
	// go out without, as those of the real agent do.
	challenged atomic.Bool
	routes     atomic.Pointer[map[string]string]
}

// New makes a client. It trusts the system's roots, or those of SSL_CERT_FILE in their place.
func New(o Options) (*Client, error) {
	base, err := url.Parse(strings.TrimRight(o.URL, "/"))
	if err != nil || base.Host == "" || (base.Scheme != "http" && base.Scheme != "https") {
		return nil, fmt.Errorf("server URL %q is not a URL: want one such as https://dev.azure.com/acme", o.URL)
	}
	transport := &http.Transport{
		ForceAttemptHTTP2:   true,
		TLSHandshakeTimeout: 30 * time.Second,
		Proxy:               o.Proxy,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: o.SkipVerify},
	}
	return &Client{
		base: base,
		hc: &http.Client{
			Transport:     transport,
			Timeout:       callLimit,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		credential: o.Credential,
		userAgent:  o.UserAgent,
	}, nil
}

// Close drops the idle connections.
func (c *Client) Close() { c.hc.CloseIdleConnections() }

// call is one request to the service.
type call struct {
	method string
	path   string // Below the organisation.
	query  url.Values
	in     any // nil sends no body; []byte goes as it is.
	out    any // nil drops the answer.
}

// do sends the call, signing in when asked to. 202 and 204 leave out untouched.
func (c *Client) do(ctx context.Context, in call) error {
	var body []byte
	contentType := "application/json; charset=utf-8"
	switch value := in.in.(type) {
	case nil:
	case []byte:
		body, contentType = value, "application/octet-stream"
	default:
		encoded, err := json.Marshal(value)
		if err != nil {
			return fmt.Errorf("%s %s: write the body: %w", in.method, in.path, err)
		}
		body = encoded
	}
	attempt := func(sign, renew bool) (int, http.Header, []byte, error) {
		request, err := http.NewRequestWithContext(ctx, in.method, c.base.String()+in.path, bytes.NewReader(body))
		if err != nil {
			return 0, nil, nil, err
		}
		request.URL.RawQuery = in.query.Encode()
		request.Header.Set("Accept", "application/json; api-version="+apiVersion)
		request.Header.Set("User-Agent", c.userAgent)
		request.Header.Set("X-TFS-FedAuthRedirect", "Suppress")
		if body != nil {
			request.Header.Set("Content-Type", contentType)
		}
		if sign {
			value, err := c.credential.Authorize(ctx, c.hc, renew)
			if err != nil {
				return 0, nil, nil, err
			}
			request.Header.Set("Authorization", value)
		}
		response, err := c.hc.Do(request)
		if err != nil {
			return 0, nil, nil, err
		}
		defer func() { _ = response.Body.Close() }()
		answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
		return response.StatusCode, response.Header, answer, err
	}
	signed := c.challenged.Load()
	status, header, answer, err := attempt(signed, false)
	if err == nil && status == http.StatusUnauthorized && !signed && c.credential != nil {
		c.challenged.Store(true)
		signed = true
		status, header, answer, err = attempt(true, false)
	}
	if err == nil && status == http.StatusUnauthorized && signed && c.credential.Renewable() {
		status, header, answer, err = attempt(true, true)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", in.method, in.path, plain(err))
	}
	return c.read(in, status, header, answer)
}

// plain takes the query, which may hold a session's id, out of a transport's error.
func plain(err error) error {
	var sent *url.Error
	if errors.As(err, &sent) {
		return sent.Err
	}
	return err
}

func (c *Client) read(in call, status int, header http.Header, answer []byte) error {
	operation := in.method + " " + in.path
	media, _, _ := mime.ParseMediaType(header.Get("Content-Type"))
	switch {
	case status == http.StatusAccepted || status == http.StatusNoContent:
		return nil
	case status == http.StatusUnauthorized, status == http.StatusNonAuthoritativeInfo,
		status >= 300 && status < 400, status < 300 && media == "text/html":
		e := &UnauthorizedError{Host: c.base.Host, Status: status}
		if media != "text/html" {
			e.Message = refusal(operation, status, answer).Message
		}
		return e
	case status >= 400:
		return refusal(operation, status, answer)
	}
	if in.out == nil {
		return nil
	}
	if err := json.Unmarshal(trimMark(answer), in.out); err != nil {
		return fmt.Errorf("%s answered something that is not the JSON expected: %w", operation, err)
	}
	return nil
}
