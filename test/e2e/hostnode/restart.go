package hostnode

import (
	"context"
	"time"
)

// restartBackOff is how long a kubelet waits before it restarts a container for the second
// time; it doubles each time. The first time it does not wait.
const restartBackOff = 10 * time.Second

// tend restarts a sidecar that has ended, until the context does: when the pod is to end.
func (p *pod) tend(ctx context.Context, c *container) {
	wait := time.Duration(0)
	for {
		select {
		case <-c.done():
		case <-ctx.Done():
			return
		}
		c.settle()
		p.report(ctx)
		c.backOff()
		if wait > 0 {
			p.report(ctx)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		started := c.start()
		p.report(ctx)
		if !started {
			return
		}
		wait = max(restartBackOff, 2*wait)
	}
}

// backOff has the container wait for its next start.
func (c *container) backOff() {
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	c.before = c.terminated()
	c.restarts++
	c.ended, c.message = false, ""
	c.waiting, c.waitingText = "CrashLoopBackOff", "the container has ended and is started again"
}
