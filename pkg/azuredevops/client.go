package azuredevops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/google/uuid"
)

// request is one call of the SDK.
type request struct {
	call     call
	method   string
	location string
	route    map[string]string
	query    url.Values
	body     string // JSON; empty for none.
}

// send makes the call. The caller closes the answer's body.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	location, err := uuid.Parse(r.location)
	if err != nil {
		return nil, fmt.Errorf("location id %q: %w", r.location, err)
	}
	var (
		body      io.Reader
		mediaType string
	)
	if r.body != "" {
		body, mediaType = strings.NewReader(r.body), "application/json"
	}
	resp, err := c.sdk.Send(withCall(ctx, r.call), r.method, location, apiVersion, r.route, r.query, body, mediaType, "application/json", nil)
	if err != nil {
		return nil, c.failure(r.call.op, err)
	}
	return resp, nil
}

// failure gives the transport's own error without what the layers between put
// around it, or wraps what only the SDK can have failed at.
func (c *Client) failure(op string, err error) error {
	var known *Error
	if errors.As(err, &known) {
		return known
	}
	return &Error{Op: op, URL: c.url, Kind: ErrUnexpectedAnswer, Err: err, Remedy: remedyURL}
}

// drop closes a body that nobody needs to the end.
func drop(body io.Closer) { _ = body.Close() }

// list makes a call whose answer is a list and decodes it row by row. A row that
// take refuses is skipped, counted and, unless the last such answer had the same
// complaint, logged.
func list(ctx context.Context, c *Client, r request, take func(row []byte) error) (rows, malformed int, err error) {
	r.call.stream = true
	resp, err := c.send(ctx, r)
	if err != nil {
		return 0, 0, err
	}
	defer drop(resp.Body)
	var (
		first    error
		stop     error
		unframed bool
	)
	t, err := readCollection(resp.Body, func(row []byte, problem error) error {
		if problem == nil {
			problem = take(row)
		}
		var visited *visitError
		switch {
		case problem == nil:
			rows++
			return nil
		case errors.As(problem, &visited):
			stop = visited.err
			return problem
		}
		malformed++
		if first == nil {
			first = problem
		}
		unframed = unframed || !json.Valid(row)
		return nil
	})
	if stop != nil {
		return rows, malformed, stop
	}
	if err == nil && unframed && t.count < 0 {
		err = fmt.Errorf("a row is not JSON, and no count tells whether it hides others: %w", first)
	}
	if err != nil {
		return rows, malformed, c.broken(r, resp, err)
	}
	c.reportMalformed(ctx, r.call.op, rows, malformed, first)
	return rows, malformed, nil
}

// visitError carries the error of a caller's callback through the reading.
type visitError struct{ err error }

func (e *visitError) Error() string { return e.err.Error() }
func (e *visitError) Unwrap() error { return e.err }

// broken is the error of an answer that cannot be read to its end.
func (c *Client) broken(r request, resp *http.Response, err error) error {
	e := &Error{Kind: ErrUnexpectedAnswer, Message: "the answer cannot be read", Err: err}
	var known *Error
	switch {
	case errors.As(err, &known):
		e = known
	case errors.Is(err, errPage):
		e.Kind, e.Message, e.Remedy = ErrAuthentication, "a page came instead of JSON, as it does when the sign-in failed", remedyToken
	}
	e.Op, e.Method, e.URL, e.Status = r.call.op, r.method, c.url, resp.StatusCode
	if resp.Request != nil {
		e.URL = bareURL(resp.Request.URL)
	}
	return e
}

// reportMalformed says once that rows were skipped, and once that they are gone.
func (c *Client) reportMalformed(ctx context.Context, op string, rows, malformed int, first error) {
	if malformed == 0 {
		if c.malformed.changed(op, "") {
			c.log.InfoContext(ctx, "no malformed rows any more", slog.String("operation", op))
		}
		return
	}
	if c.malformed.changed(op, fmt.Sprint(malformed, first)) {
		c.log.WarnContext(ctx, "skipped malformed rows in an answer; the others are used",
			slog.String("operation", op), slog.Int("malformed", malformed), slog.Int("rows", rows), slog.Any("first", first))
	}
}

// act makes a call whose answer tells nothing but that it was done.
func (c *Client) act(ctx context.Context, r request) error {
	resp, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	defer drop(resp.Body)
	return nil
}

// one makes a call whose answer is a single object.
func one[T any](ctx context.Context, c *Client, r request) (T, error) {
	var value T
	resp, err := c.send(ctx, r)
	if err != nil {
		return value, err
	}
	defer drop(resp.Body)
	return value, c.decode(r, resp, &value)
}

// decode reads an answer that the transport holds whole.
func (c *Client) decode(r request, resp *http.Response, value any) error {
	body, err := io.ReadAll(resp.Body)
	if err == nil {
		err = json.Unmarshal(trimMark(body), value)
	}
	if err != nil {
		return c.broken(r, resp, err)
	}
	return nil
}

// changeLog remembers what was last said about each subject, so that one message
// is logged once and not at every poll.
type changeLog struct {
	mu   sync.Mutex
	last map[string]string
}

func newChangeLog() *changeLog { return &changeLog{last: map[string]string{}} }

// changed records what is to be said and reports whether it differs.
func (l *changeLog) changed(subject, text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.last[subject]
	l.last[subject] = text
	return before != text
}
