package azuredevops

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// gate holds back the requests of one client while the service wants to be left
// alone. All goroutines share it, since the service counts by identity.
type gate struct {
	limit time.Duration // The longest time it stays shut for one answer.

	mu    sync.Mutex
	until time.Time
}

// shut keeps the gate shut for d from now, and never opens it earlier than before.
func (g *gate) shut(d time.Duration) {
	until := time.Now().Add(min(d, g.limit))
	g.mu.Lock()
	defer g.mu.Unlock()
	if until.After(g.until) {
		g.until = until
	}
}

// remaining is how long the gate stays shut; 0 or less means that it is open.
func (g *gate) remaining() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return time.Until(g.until)
}

// wait returns once the gate is open, having waited as long as it says. A context
// that would end before that gets a ThrottledError at once: waiting for nothing
// would only hide the reason.
func (g *gate) wait(ctx context.Context) (time.Duration, error) {
	start := time.Now()
	for {
		left := g.remaining()
		if left <= 0 {
			return time.Since(start), ctx.Err()
		}
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < left {
			return time.Since(start), &ThrottledError{RetryAfter: left}
		}
		// Jitter, so that everybody who waits does not come back at one moment.
		if err := sleep(ctx, left+rand.N(min(left/10, time.Second)+1)); err != nil {
			return time.Since(start), err
		}
	}
}

// sleep waits for d or for the end of the context, whose error it gives.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
