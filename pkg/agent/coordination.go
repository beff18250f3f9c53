package agent

import (
	"context"
	"log/slog"
	"sync"
)

// coordination is how run tells of its claim and learns whether it may go.
type coordination interface {
	// claimed is told, at most once, that a build was claimed. It must not block.
	claimed()
	// ask finds out whether the idle agent may be stopped. It ends with its context.
	ask(ctx context.Context) verdict
	// ended is told that the agent program has ended. It must not block.
	ended()
	// close ends what claimed may have started.
	close()
}

// podCoordination goes by files: the sidecar, which holds the token, acts.
type podCoordination struct {
	supervisor *Supervisor
	log        *slog.Logger
}

func (c *podCoordination) claimed() {
	dir := c.supervisor.settings.ClaimedDir
	if !isFolder(dir) {
		c.log.Warn("the claim could not be told, for there is no such folder: the sidecar does not disable the agent, and the service may assign it a second build", "dir", dir)
		return
	}
	if err := markClaimed(dir); err != nil {
		c.log.Warn("the claim could not be told: the agent may not be disabled in time", "err", err)
	}
}

func (c *podCoordination) ask(ctx context.Context) verdict {
	dir := c.supervisor.settings.VerdictDir
	if !isFolder(dir) {
		c.log.Warn("there is no folder for a verdict: stopping without one", "dir", dir)
		return verdictNone
	}
	c.log.Info("waiting for the verdict whether the agent is idle")
	v := verdictNone
	c.supervisor.wait(ctx, func() bool {
		v = readVerdict(dir)
		return v != verdictNone
	})
	return v
}

func (c *podCoordination) ended() {}

func (c *podCoordination) close() {}

// scalerCoordination leaves both to the scaler, which sees on the pod that a build was
// claimed or that the pod is told to stop, and has the pool's credential. Nothing comes back
// from it: an idle agent whose registration it withdraws ends by itself.
type scalerCoordination struct {
	log  *slog.Logger
	over chan struct{}
}

func newScalerCoordination(log *slog.Logger) *scalerCoordination {
	return &scalerCoordination{log: log, over: make(chan struct{}, 1)}
}

func (c *scalerCoordination) claimed() {}

// ask gives the scaler the time to withdraw the agent.
func (c *scalerCoordination) ask(ctx context.Context) verdict {
	c.log.Info("leaving the scaler time to withdraw the agent")
	select {
	case <-c.over: // Of an earlier start of the agent program.
	default:
	}
	select {
	case <-ctx.Done():
	case <-c.over:
	}
	return verdictNone
}

func (c *scalerCoordination) ended() {
	select {
	case c.over <- struct{}{}:
	default:
	}
}

func (c *scalerCoordination) close() {}

// directCoordination holds the token itself: the all-in-one form.
type directCoordination struct {
	supervisor *Supervisor
	reg        registration
	log        *slog.Logger

	ctx    context.Context //nolint:containedctx // It is the life of the goroutine that claimed starts.
	cancel context.CancelFunc
	done   sync.WaitGroup
}

func newDirectCoordination(ctx context.Context, s *Supervisor, reg registration) *directCoordination {
	// Asking to stop must not stop the disabling of a running agent.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	return &directCoordination{supervisor: s, reg: reg, log: s.log, ctx: ctx, cancel: cancel}
}

func (c *directCoordination) claimed() {
	c.done.Go(func() { c.supervisor.disableAgent(c.ctx, c.reg) })
}

func (c *directCoordination) ask(ctx context.Context) verdict {
	v, err := c.supervisor.withdraw(ctx, c.reg)
	if err != nil {
		c.log.Warn("the agent could not be withdrawn", "err", err)
	}
	return v
}

func (c *directCoordination) ended() {}

func (c *directCoordination) close() {
	c.cancel()
	c.done.Wait()
}
