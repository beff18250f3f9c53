package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"
)

// errNobodyDisables says that nobody was told of the claim who could disable the agent at
// once, so that there is nothing to wait for.
var errNobodyDisables = errors.New("nobody is told that the agent has its build")

// coordination is how run tells of its claim and learns whether it may go.
type coordination interface {
	// claimed is told, at most once, that a build was claimed, and returns when the agent is
	// disabled. It tries until its context ends. The error is errNobodyDisables where it
	// will not know.
	claimed(ctx context.Context) error
	// ask finds out whether the idle agent may be stopped. It ends with its context.
	ask(ctx context.Context) verdict
	// ended is told that the agent program has ended. It must not block.
	ended()
}

// podCoordination goes by files: the sidecar, which holds the token, acts.
type podCoordination struct {
	supervisor *Supervisor
	log        *slog.Logger
}

func (c *podCoordination) claimed(ctx context.Context) error {
	dir := c.supervisor.settings.ClaimedDir
	if !isFolder(dir) {
		c.log.Warn("the claim could not be told, for there is no such folder: the sidecar does not disable the agent, and the service may assign it a second build", "dir", dir)
		return errNobodyDisables
	}
	if err := markClaimed(dir); err != nil {
		c.log.Warn("the claim could not be told: the agent may not be disabled in time", "err", err)
		return errNobodyDisables
	}
	if !c.supervisor.wait(ctx, func() bool { return exists(filepath.Join(c.supervisor.settings.VerdictDir, disabledFile)) }) {
		return ctx.Err()
	}
	return nil
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

// scalerCoordination leaves both to the scaler, which has the pool's credential. It is called
// when a build was claimed, and answers when the agent is disabled; where it can't be reached
// it sees so on the pod. That the pod is told to stop it sees there as well, and nothing comes
// back: an idle agent whose registration it withdraws ends by itself.
type scalerCoordination struct {
	supervisor *Supervisor
	log        *slog.Logger
	over       chan struct{}
}

func newScalerCoordination(s *Supervisor) *scalerCoordination {
	return &scalerCoordination{supervisor: s, log: s.log, over: make(chan struct{}, 1)}
}

// callbackLimit is for one call of the scaler, which calls the service meanwhile.
const callbackLimit = 30 * time.Second

func (c *scalerCoordination) claimed(ctx context.Context) error {
	settings := c.supervisor.settings
	if settings.CallbackURL == "" {
		return errNobodyDisables
	}
	address, err := url.JoinPath(settings.CallbackURL, "agents", settings.JobUID, "claimed")
	if err != nil {
		return fmt.Errorf("AZP_CALLBACK_URL: %w", err)
	}
	// It is in the cluster: no proxy leads there.
	client := &http.Client{Timeout: callbackLimit, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	return c.supervisor.retry(ctx, "telling the scaler that the agent has its build", persistent, func(ctx context.Context) error {
		return c.call(ctx, client, address)
	})
}

// call tells the scaler once.
func (c *scalerCoordination) call(ctx context.Context, client *http.Client, address string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, address, nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("the scaler can't be reached (AZP_CALLBACK_URL, and what may keep this pod from it, such as a NetworkPolicy): %w", err)
	}
	defer func() { _ = answer.Body.Close() }()
	why, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<10)) // What is missing of it is only told.
	if answer.StatusCode != http.StatusNoContent {
		return fmt.Errorf("the scaler answered %s: %s", answer.Status, strings.TrimSpace(string(why)))
	}
	return nil
}

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

// directCoordination holds the token itself: the all-in-one form.
type directCoordination struct {
	supervisor *Supervisor
	reg        registration
}

func (c directCoordination) claimed(ctx context.Context) error {
	return c.supervisor.disableAgent(ctx, c.reg)
}

func (c directCoordination) ask(ctx context.Context) verdict {
	v, err := c.supervisor.withdraw(ctx, c.reg)
	if err != nil {
		c.supervisor.log.Warn("the agent could not be withdrawn", "err", err)
	}
	return v
}

func (c directCoordination) ended() {}
