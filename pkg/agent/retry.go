package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
)

// retry calls op until it succeeds, fails for good, or the context ends, with
// growing, jittered pauses that are never shorter than what the service asked for.
// At the context's end it gives op's last error.
func (s *Supervisor) retry(ctx context.Context, what string, again func(error) bool, op func(context.Context) error) error {
	pause := s.timing.retryFirst
	var last error
	for attempt := 1; ; attempt++ {
		err := op(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil && last != nil {
			// That the last try was cut off tells less than why the one before failed.
			return fmt.Errorf("given up after %d tries: %w", attempt, last)
		}
		if !again(err) {
			return err
		}
		last = err
		wait := pause/2 + rand.N(pause/2+1)
		var throttled *azuredevops.ThrottledError
		if errors.As(err, &throttled) {
			wait = max(wait, throttled.RetryAfter)
		}
		s.log.Warn("will try again", "what", what, "attempt", attempt, "wait", wait, "err", err)
		if !sleep(ctx, wait) {
			return fmt.Errorf("given up after %d tries: %w", attempt, err)
		}
		pause = min(2*pause, s.timing.retryMax)
	}
}

// transient reports whether the same call may succeed later.
func transient(err error) bool {
	var throttled *azuredevops.ThrottledError
	if errors.Is(err, azuredevops.ErrProxy) {
		// It refused, and the service was not even asked.
		return false
	}
	return errors.Is(err, azuredevops.ErrUnavailable) || errors.As(err, &throttled)
}

// patient reports the same where a token that is refused may be replaced: the kubelet shows a
// changed Secret in a running pod only after a minute or more.
func patient(err error) bool { return transient(err) || errors.Is(err, azuredevops.ErrAuthentication) }

// persistent reports whether an error is worth trying again to the end of a limit:
// at the end of an agent's life everything is, for the token's file may be replaced and
// a half answer may be whole the next time, but not a call that was given up.
func persistent(err error) bool { return !errors.Is(err, context.Canceled) }

// sleep waits, and reports whether it waited to the end.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// wait blocks until done says so, looking every poll, and reports whether it did
// before the context ended.
func (s *Supervisor) wait(ctx context.Context, done func() bool) bool {
	ticker := time.NewTicker(s.timing.poll)
	defer ticker.Stop()
	for {
		if done() {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
	}
}
