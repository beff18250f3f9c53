package azuredevops

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	// maxAnswer bounds an answer that is read whole; lists are streamed.
	maxAnswer = 8 << 20
	// longestPause is the longest wait between two attempts at one request. A caller
	// is better told of a longer one; the gate holds its next request back anyway.
	longestPause = 10 * time.Second
	// longestBackOff bounds the wait after a failure that names none.
	longestBackOff = 2 * time.Second
)

// errAttemptTime is the cause of an attempt's end by our own limit.
var errAttemptTime = errors.New("time limit of the request")

// transport is the SDK's way to the service: it signs in, holds back, classifies,
// retries and records. Failed answers leave it as an *Error, never as an answer,
// so that no layer above can mistake them.
type transport struct {
	base     http.RoundTripper
	origin   *url.URL    // The only scheme and host that get the token.
	token    TokenSource // Nil signs in nowhere.
	scheme   Scheme
	agent    string // Added to the User-Agent.
	timeout  time.Duration
	attempts int
	backOff  time.Duration
	gate     *gate
	recorder Recorder
	log      *slog.Logger
}

// RoundTrip sends a request, again if that is safe and may help.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	c := callOf(req)
	if req.Body != nil {
		// Each attempt gets a body of its own from GetBody.
		defer func() { _ = req.Body.Close() }()
	}
	renewed := false
	for attempt := 1; ; attempt++ {
		resp, secret, err := t.attempt(req, c)
		if err == nil {
			return resp, nil
		}
		if !renewed && t.renew(req, secret, err) {
			// Once for each request, whatever comes of it.
			renewed = true
			attempt--
			continue
		}
		pause, again := t.pause(req, c, err, attempt)
		if !again {
			return nil, err
		}
		t.log.DebugContext(req.Context(), "request failed, trying again",
			slog.String("operation", c.op), slog.Int("attempt", attempt), slog.Duration("pause", pause), slog.Any("error", err))
		if sleep(req.Context(), pause) != nil {
			// The caller's end of patience: what failed says more than that.
			return nil, err
		}
	}
}

// renew says whether to send a request again since its token was refused and another
// one is to be had. Nothing was done for a caller who is not known, so any request may
// be sent again.
func (t *transport) renew(req *http.Request, secret Secret, err *Error) bool {
	source, ok := t.token.(RenewableSource)
	if !ok || secret == "" || !errors.Is(err.Kind, ErrAuthentication) || !sameOrigin(req.URL, t.origin) ||
		(req.Body != nil && req.GetBody == nil) || !source.Refused(secret) {
		return false
	}
	// One that can't be had, or the same one again, leaves the refusal as it is.
	next, failure := source.Token(req.Context())
	return failure == nil && next != secret
}

// pause says whether to try again after an error, and how long to wait on top of
// what the gate holds back.
func (t *transport) pause(req *http.Request, c call, err *Error, attempt int) (time.Duration, bool) {
	if attempt >= t.attempts || !err.retry || !c.repeatable(req.Method) || (req.Body != nil && req.GetBody == nil) {
		return 0, false
	}
	if t.gate.remaining() > longestPause {
		return 0, false
	}
	wait := min(t.backOff<<(attempt-1), longestBackOff)
	return wait/2 + rand.N(wait/2+1), true
}

// attempt sends a request once, and gives the token that it was sent with.
func (t *transport) attempt(req *http.Request, c call) (*http.Response, Secret, *Error) {
	fail := func(e *Error) *Error {
		e.Op, e.Method, e.URL = c.op, req.Method, bareURL(req.URL)
		return e
	}
	waited, err := t.gate.wait(req.Context())
	if waited > time.Millisecond {
		t.recorder.Waited(waited)
	}
	if err != nil {
		var throttled *ThrottledError
		if errors.As(err, &throttled) {
			return nil, "", fail(&Error{Kind: throttled, Message: "the service asked for a pause that outlasts the caller's time limit"})
		}
		return nil, "", fail(failed(req.Context(), err))
	}
	var secret Secret
	if t.token != nil {
		if secret, err = t.token.Token(req.Context()); err != nil {
			return nil, "", fail(noToken(req.Context(), err))
		}
	}

	ctx, cancel := context.WithCancelCause(req.Context())
	limit := time.AfterFunc(t.timeout, func() { cancel(errAttemptTime) })
	start := time.Now()
	done := func(outcome *Error) {
		limit.Stop()
		cancel(nil)
		var err error
		if outcome != nil {
			err = outcome
		}
		t.recorder.Request(c.op, Outcome(err), time.Since(start))
	}
	out, err := t.signed(ctx, req, secret)
	if err != nil {
		e := fail(&Error{Kind: ErrUnexpectedAnswer, Message: "the request's body cannot be sent again", Err: err})
		done(e)
		return nil, secret, e
	}
	resp, err := t.base.RoundTrip(out)
	if err != nil {
		e := hideSecret(fail(failed(ctx, err)), secret)
		done(e)
		return nil, secret, e
	}
	t.observe(resp.Header)
	// The SDK writes this header to a package variable without a lock. It looks it up
	// in this spelling, which net/http changes but another transport need not.
	delete(resp.Header, "X-TFS-Session")

	if c.stream && resp.StatusCode == http.StatusOK && !hasHTML(resp.Header) {
		resp.Body = &streamBody{ReadCloser: resp.Body, ctx: ctx, done: done, progress: func() {
			if c.files {
				// A file may take long; only one that stops coming is given up.
				limit.Reset(t.timeout)
			}
		}}
		return resp, secret, nil
	}
	if e := t.readWhole(ctx, resp, c); e != nil {
		e = hideSecret(fail(t.explain(e)), secret)
		done(e)
		return nil, secret, e
	}
	done(nil)
	return resp, secret, nil
}

// noToken classifies why there is no token: a source that can't reach whoever issues
// them says so by ErrUnavailable.
func noToken(ctx context.Context, err error) *Error {
	const message = "no token to sign in with"
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return failed(ctx, err)
	case ctx.Err() != nil, errors.Is(err, ErrUnavailable):
		return &Error{Kind: ErrUnavailable, Message: message, Err: err}
	default:
		return &Error{Kind: ErrAuthentication, Message: message, Err: err}
	}
}

// explain gives the remedy for the kind of token that was refused.
func (t *transport) explain(e *Error) *Error {
	if _, ok := t.token.(RenewableSource); ok && errors.Is(e.Kind, ErrAuthentication) {
		e.Remedy = remedyIdentity
	}
	return e
}

// signed is a copy of the request with a body, a context and a sign-in of its own.
func (t *transport) signed(ctx context.Context, req *http.Request, secret Secret) (*http.Request, error) {
	out := req.Clone(ctx)
	if req.GetBody != nil {
		body, err := req.GetBody()
		if err != nil {
			return nil, fmt.Errorf("body of %s: %w", req.Method, err)
		}
		out.Body = body
	}
	out.Header.Del("Authorization")
	// A followed redirect's, whose query may hold a signature.
	out.Header.Del("Referer")
	if t.token != nil && sameOrigin(req.URL, t.origin) {
		out.Header.Set("Authorization", authorization(t.scheme, secret))
	}
	if out.Header.Get("Accept") == "" {
		out.Header.Set("Accept", "application/json")
	}
	out.Header.Set("X-Tfs-Fedauthredirect", "Suppress")
	out.Header.Set("User-Agent", strings.TrimSpace(t.agent+" "+out.Header.Get("User-Agent")))
	return out, nil
}

// authorization is the header's value.
func authorization(scheme Scheme, secret Secret) string {
	if scheme == SchemeBearer {
		return "Bearer " + secret.Reveal()
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(":"+secret.Reveal()))
}

// sameOrigin reports whether two URLs lead to the same scheme, host and port.
func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	if u.Scheme == "https" {
		return "443"
	}
	return "80"
}

// observe obeys and records what the service says about the use of it, whatever
// the status.
func (t *transport) observe(h http.Header) {
	if limit, ok := rateLimit(h); ok {
		t.recorder.RateLimit(limit)
	}
	if wait, ok := retryAfter(h, time.Now()); ok {
		t.gate.shut(wait)
	}
}

// readWhole reads the body, so that a cut one is noticed here and its connection
// freed whatever the SDK does with it, and gives the error the answer stands for.
func (t *transport) readWhole(ctx context.Context, resp *http.Response, c call) *Error {
	defer func() { _ = resp.Body.Close() }()
	success := resp.StatusCode >= 200 && resp.StatusCode < 300
	limit := int64(maxErrorBody)
	if success {
		limit = maxAnswer
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	r := reply{status: resp.StatusCode, header: resp.Header, body: body}
	if c.files && err == nil && isRedirect(resp) {
		// For the http.Client of the downloads to follow.
		resp.Body = http.NoBody
		return nil
	}
	if e := classify(r, c.files, time.Now()); e != nil {
		var throttled *ThrottledError
		if errors.As(e.Kind, &throttled) {
			t.gate.shut(throttled.RetryAfter)
		}
		if c.op == OpDiscover && errors.Is(e.Kind, ErrNotFound) {
			// The organisation is not there, which says nothing about an agent.
			e.Kind, e.Remedy = ErrUnexpectedAnswer, remedyURL
		}
		return e
	}
	switch {
	case err != nil:
		return cut(ctx, err)
	case int64(len(body)) > limit:
		return &Error{Status: resp.StatusCode, Kind: ErrUnexpectedAnswer, Message: fmt.Sprintf("the answer is over %d bytes long", limit)}
	}
	if c.op == OpDiscover {
		if body, err = checkRoutes(body); err != nil {
			return &Error{Status: resp.StatusCode, Kind: ErrUnexpectedAnswer, Message: "the list of routes is not Azure DevOps'", Err: err, Remedy: remedyURL}
		}
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	resp.ContentLength = int64(len(body))
	return nil
}

// cut classifies a body that ended early, be it that the connection was closed or
// reset: an answer had begun, so the service is there.
func cut(ctx context.Context, err error) *Error {
	if ctx.Err() == nil {
		return &Error{Kind: ErrUnexpectedAnswer, Message: "the answer was cut short", Err: err, retry: true}
	}
	return failed(ctx, err)
}

// isRedirect reports whether the answer says where else to ask.
func isRedirect(resp *http.Response) bool {
	return resp.StatusCode >= 300 && resp.StatusCode < 400 && resp.Header.Get("Location") != ""
}

// hasHTML reports whether the answer says that it is a page.
func hasHTML(h http.Header) bool { return strings.Contains(h.Get("Content-Type"), "html") }

// hideSecret keeps the token out of an error even where the service echoes it.
func hideSecret(e *Error, secret Secret) *Error {
	if secret == "" {
		return e
	}
	e.Message = strings.ReplaceAll(e.Message, secret.Reveal(), redacted)
	return e
}

// streamBody is the body of an answer that is read by the caller. It ends the
// attempt when it is closed.
type streamBody struct {
	io.ReadCloser
	ctx      context.Context // The attempt's, whose end says why reading failed.
	done     func(*Error)
	progress func()
	failed   *Error
	closed   bool
}

// Read reads on, turning failures into an *Error.
func (b *streamBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.progress()
	}
	if err == nil || errors.Is(err, io.EOF) {
		return n, err
	}
	b.failed = cut(b.ctx, err)
	return n, b.failed
}

// Close frees the connection and records the request.
func (b *streamBody) Close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	err := b.ReadCloser.Close()
	b.done(b.failed)
	return err
}
