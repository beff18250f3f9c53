package azuredevops

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// The kinds of failure that callers decide on. Each is wrapped in an [*Error]:
// test for them with errors.Is. Throttling is a [*ThrottledError]: use errors.As.
var (
	// ErrAuthentication means that the service does not know who asks: the token is
	// wrong, expired, revoked or of another organisation, or could not be read.
	ErrAuthentication = errors.New("credential refused")
	// ErrAuthorization means that the token is known and lacks a right.
	ErrAuthorization = errors.New("not allowed")
	// ErrNotFound means that the service itself says there is no such thing.
	ErrNotFound = errors.New("not found")
	// ErrConflict means that the thing exists already, such as an agent's name.
	ErrConflict = errors.New("conflict")
	// ErrAmbiguous means that a name fits several things.
	ErrAmbiguous = errors.New("ambiguous name")
	// ErrAgentBusy means that an agent was not deleted since it runs a job.
	ErrAgentBusy = errors.New("agent is running a job")
	// ErrUnavailable means that no answer came, or one that says to try later.
	ErrUnavailable = errors.New("service unavailable")
	// ErrUnexpectedAnswer means that an answer came that is not what the request
	// asked for: truncated, not the documented shape, an unforeseen refusal.
	ErrUnexpectedAnswer = errors.New("unexpected answer")
	// ErrWrongHash means that a package is not the one that the service announced.
	ErrWrongHash = errors.New("wrong SHA-256")
)

// ThrottledError means that the identity has used up what the service allows it.
type ThrottledError struct {
	// RetryAfter is how long the service wants to be left alone. The client holds
	// its next request back for that long by itself, up to a limit.
	RetryAfter time.Duration
}

// Error says how long to wait.
func (e *ThrottledError) Error() string {
	return fmt.Sprintf("throttled: retry after %v", e.RetryAfter.Round(time.Millisecond))
}

// Error is a failed operation: what failed, on what, why, and what to do.
type Error struct {
	Op      string // One of [Operations].
	Method  string // Empty if nothing was sent.
	URL     string // Without query, user or password; empty if nothing was sent.
	Status  int    // The HTTP status; 0 if no answer came.
	TypeKey string // The service's own name of the error, such as TaskAgentNotFoundException.
	Message string // In the service's words, or in ours where it had none.
	Remedy  string // What a person can do; empty where there is nothing special.
	Kind    error  // One of the Err… values or a *ThrottledError; nil if the caller's context ended it.
	Err     error  // What caused it; may be nil.

	retry bool // Sending the same request again may help.
}

// Error gives everything but the stack of causes in one line.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.URL != "" {
		fmt.Fprintf(&b, ": %s %s", e.Method, e.URL)
	}
	if e.Status != 0 {
		fmt.Fprintf(&b, ": status %d", e.Status)
	}
	if e.Kind != nil {
		b.WriteString(": " + e.Kind.Error())
	}
	if e.Message != "" {
		b.WriteString(": " + e.Message)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	if e.Remedy != "" {
		b.WriteString(": " + e.Remedy)
	}
	return b.String()
}

// Unwrap gives the kind and the cause.
func (e *Error) Unwrap() []error {
	var causes []error
	if e.Kind != nil {
		causes = append(causes, e.Kind)
	}
	if e.Err != nil {
		causes = append(causes, e.Err)
	}
	return causes
}

// The outcomes of a request, a closed set that can label a metric.
const (
	OutcomeOK             = "ok"
	OutcomeAuthentication = "authentication"
	OutcomeAuthorization  = "authorization"
	OutcomeThrottled      = "throttled"
	OutcomeNotFound       = "not-found"
	OutcomeConflict       = "conflict"
	OutcomeAgentBusy      = "agent-busy"
	OutcomeUnavailable    = "unavailable"
	OutcomeUnexpected     = "unexpected-answer"
	OutcomeCanceled       = "canceled"
)

// Outcomes lists every outcome that a [Recorder] may be told.
func Outcomes() []string {
	return []string{
		OutcomeOK, OutcomeAuthentication, OutcomeAuthorization, OutcomeThrottled, OutcomeNotFound, OutcomeConflict,
		OutcomeAgentBusy, OutcomeUnavailable, OutcomeUnexpected, OutcomeCanceled,
	}
}

// Outcome names the kind of an error of this package; nil is ok.
func Outcome(err error) string {
	var throttled *ThrottledError
	switch {
	case err == nil:
		return OutcomeOK
	case errors.As(err, &throttled):
		return OutcomeThrottled
	case errors.Is(err, ErrAuthentication):
		return OutcomeAuthentication
	case errors.Is(err, ErrAuthorization):
		return OutcomeAuthorization
	case errors.Is(err, ErrNotFound):
		return OutcomeNotFound
	case errors.Is(err, ErrConflict):
		return OutcomeConflict
	case errors.Is(err, ErrAgentBusy):
		return OutcomeAgentBusy
	case errors.Is(err, ErrUnavailable):
		return OutcomeUnavailable
	case errors.Is(err, context.Canceled):
		return OutcomeCanceled
	default:
		return OutcomeUnexpected
	}
}
