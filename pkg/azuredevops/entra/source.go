package entra

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
)

const (
	// aheadLimit is for a renewal while the present token is still good: the one caller
	// who does it has other things to do.
	aheadLimit = 10 * time.Second
	// longestBackOff is between renewals that fail.
	longestBackOff = time.Minute
	// refusedEvery is how often a token may be given up since the service refuses it. A
	// service that takes none at all must not cost a new one for each request.
	refusedEvery = time.Minute
	// longestMargin is how long before its end a token is used no more: a request takes
	// time, and clocks differ.
	longestMargin = time.Minute
)

// grant is a token as it was issued.
type grant struct {
	token   azuredevops.Secret
	expires time.Time
	refresh time.Time // When its issuer wants it renewed; zero where it says nothing.
}

// Source gives the present token of an identity. It is safe for concurrent use: all
// callers share one token. It has no goroutine of its own. The first caller after two
// thirds of the token's life renews it, while the others go on with the one that is
// still good; without a good one, all wait for one caller's renewal.
type Source struct {
	about   string
	fetch   func(context.Context) (grant, error)
	timeout time.Duration // For a renewal that callers wait for.
	backOff time.Duration // After the first failed renewal; it doubles.
	log     *slog.Logger

	mu       sync.Mutex
	token    azuredevops.Secret
	expires  time.Time
	unusable time.Time // When the token is used no more, ahead of its end.
	renewAt  time.Time
	// suspect says that the service refused the token.
	suspect     bool
	lastRefused time.Time
	renewing    chan struct{} // Closed at the end of the renewal that runs; nil if none does.
	failures    int           // Since the last renewal that went well.
	failure     error         // Of the last renewal; nil if it went well.
	retryAt     time.Time     // No renewal before this, after one that failed.
}

var _ azuredevops.RenewableSource = (*Source)(nil)

// Token gives the present token.
func (s *Source) Token(ctx context.Context) (azuredevops.Secret, error) {
	token, _, err := s.Current(ctx)
	return token, err
}

// Current gives the present token and when it ends. It returns at once, unless there
// is no good token or it is this caller who renews it.
func (s *Source) Current(ctx context.Context) (azuredevops.Secret, time.Time, error) {
	for {
		token, expires, wait, err := s.look(ctx)
		if wait == nil {
			return token, expires, err
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return "", time.Time{}, fmt.Errorf("waiting for a token of %s: %w", s.about, context.Cause(ctx))
		}
	}
}

// look gives the token, renewing it first where that is due, or what to wait for.
func (s *Source) look(ctx context.Context) (azuredevops.Secret, time.Time, <-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	good := s.token != "" && now.Before(s.unusable)
	switch {
	case good && !s.suspect && (now.Before(s.renewAt) || s.renewing != nil || now.Before(s.retryAt)):
		return s.token, s.expires, nil, nil
	case s.renewing != nil:
		return "", time.Time{}, s.renewing, nil
	case !good && now.Before(s.retryAt):
		return "", time.Time{}, nil, s.failure
	}
	limit := s.timeout
	if good {
		limit = min(limit, aheadLimit)
	}
	err := s.renew(ctx, limit)
	if s.token != "" && time.Now().Before(s.unusable) {
		// A failed renewal takes nothing away: what is still good is used on.
		return s.token, s.expires, nil, nil
	}
	if err == nil {
		err = fmt.Errorf("%w: the new token of %s ended before it could be used", azuredevops.ErrUnavailable, s.about)
	}
	return "", time.Time{}, nil, err
}

// renew gets a new token. It is called with the mutex, which it gives up meanwhile.
func (s *Source) renew(ctx context.Context, limit time.Duration) error {
	done := make(chan struct{})
	s.renewing = done
	s.mu.Unlock()
	limited, cancel := context.WithTimeout(ctx, limit)
	start := time.Now()
	got, err := s.fetch(limited)
	cancel()
	s.mu.Lock()
	s.renewing = nil
	close(done)
	s.suspect = false
	if err != nil {
		return s.failed(ctx, err)
	}
	if s.failures > 0 {
		s.log.InfoContext(ctx, "signing in to Microsoft Entra works again", slog.Int("failures", s.failures))
	}
	s.failures, s.failure, s.retryAt = 0, nil, time.Time{}
	s.token, s.expires = got.token, got.expires
	left := got.expires.Sub(start)
	s.unusable = got.expires.Add(-min(longestMargin, left/10))
	s.renewAt = start.Add(left * 2 / 3)
	if !got.refresh.IsZero() && got.refresh.Before(s.renewAt) {
		s.renewAt = got.refresh
		// An issuer that keeps its tokens may name a time that is over.
		if earliest := start.Add(left / 10); s.renewAt.Before(earliest) {
			s.renewAt = earliest
		}
	}
	s.log.DebugContext(ctx, "got a token of Microsoft Entra", slog.Time("expires", s.expires), slog.Time("renewal", s.renewAt))
	return nil
}

// failed notes a renewal that failed. The end of a caller's own patience says nothing
// about the next renewal.
func (s *Source) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: given up by the caller: %w", err, context.Cause(ctx))
	}
	wait := min(s.backOff<<min(s.failures, 16), longestBackOff)
	s.failures++
	s.failure, s.retryAt = err, time.Now().Add(wait)
	if time.Now().Before(s.unusable) {
		s.log.WarnContext(ctx, "the token could not be renewed, the present one is used until it ends",
			slog.Time("expires", s.expires), slog.String("retry_in", wait.String()), slog.Any("error", err))
	}
	return err
}

// Refused tells that the service does not take a token. It is renewed before the next
// use, but no more than once a minute.
func (s *Source) Refused(token azuredevops.Secret) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	switch {
	case token != s.token || s.suspect:
		return true // Somebody has seen to it.
	case now.Before(s.lastRefused.Add(refusedEvery)), now.Before(s.retryAt):
		return false
	}
	s.suspect, s.lastRefused = true, now
	s.log.Info("the service refused a token that has not ended, getting another one", slog.Time("expires", s.expires))
	return true
}

// Format keeps the token out of every print of the source.
func (s *Source) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.about) }

// Error is a sign-in to Microsoft Entra that failed: why, and what to do.
type Error struct {
	Method  Method
	Code    string // Entra's own, such as AADSTS7000215; empty if it gave none.
	Message string
	Remedy  string
	kind    error
}

// Error says everything in one line.
func (e *Error) Error() string {
	text := fmt.Sprintf("sign in to Microsoft Entra by %s: ", e.Method)
	if e.Code != "" {
		text += e.Code + ": "
	}
	text += e.Message
	if e.Remedy != "" {
		text += ": " + e.Remedy
	}
	return text
}

// Unwrap gives azuredevops.ErrAuthentication, or azuredevops.ErrUnavailable where
// trying again may help.
func (e *Error) Unwrap() error { return e.kind }
