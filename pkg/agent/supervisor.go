package agent

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
)

// Registry is what the steps ask of the service about their agent.
// [azuredevops.Client] is one.
type Registry interface {
	PoolByName(ctx context.Context, name string) (agentpool.Pool, error)
	AgentByName(ctx context.Context, poolID int, name string) (agentpool.Agent, error)
	DisableAgent(ctx context.Context, poolID, agentID int) error
	DeleteAgent(ctx context.Context, poolID, agentID int) error
	// Withdraw takes an idle agent out of the pool in the one safe order, and gives
	// false if it is not idle.
	Withdraw(ctx context.Context, poolID, agentID int) (bool, error)
}

// Packages is where the agent program is downloaded from.
// [azuredevops.Client] is one.
type Packages interface {
	Downloads
	Package(ctx context.Context, platform, version string) (azuredevops.Package, error)
}

// Service is Azure DevOps as the steps need it.
type Service interface {
	Registry
	Packages
}

// Downloads is where a package that is known is downloaded from.
// [azuredevops.Downloader] is one.
type Downloads interface {
	Download(ctx context.Context, pkg azuredevops.Package, w io.Writer, progress func(done, total int64)) error
}

// Supervisor carries out the steps.
type Supervisor struct {
	settings Settings
	service  Service
	log      *slog.Logger
	stdout   io.Writer
	stderr   io.Writer
	timing   timing
	// tokenSeen is the pool's token once a step has read it; it serves to find the
	// token where it must not be.
	tokenSeen string
}

// timing holds the lengths of time that are no settings.
type timing struct {
	// poll is how often a file of another container is looked for.
	poll time.Duration
	// retryFirst and retryMax bound the pause between tries.
	retryFirst, retryMax time.Duration
	// cleanup is the limit for taking back what a failed configure may have left.
	cleanup time.Duration
	// updateWait is how long bin/ may be away after an update (the agent's own script
	// allows itself about as much), updateSettle how long an unchanged bin/ is doubted.
	updateWait, updateSettle time.Duration
	// assigned is how long after a refused withdrawal the build may take to arrive.
	assigned time.Duration
	// idleRetry is the pause before a withdrawal for idleness that failed is tried again.
	idleRetry time.Duration
	// drain is how long the last lines of an ended listener are waited for.
	drain time.Duration
	// progress is how often a download is reported.
	progress time.Duration
	// look is how often the worker of a build that is to be held is looked for.
	look time.Duration
}

func defaultTiming() timing {
	return timing{
		poll:         100 * time.Millisecond,
		retryFirst:   500 * time.Millisecond,
		retryMax:     10 * time.Second,
		cleanup:      30 * time.Second,
		updateWait:   20 * time.Second,
		updateSettle: 5 * time.Second,
		assigned:     2 * time.Minute,
		idleRetry:    time.Minute,
		drain:        time.Second,
		progress:     5 * time.Second,
		look:         5 * time.Millisecond,
	}
}

// New makes a supervisor. The settings must be valid for the step that is called.
// The service may be nil for Run and Download. What the agent program prints goes to stdout
// and stderr, without the token.
func New(settings Settings, service Service, log *slog.Logger, stdout, stderr io.Writer) *Supervisor {
	return &Supervisor{
		settings: settings,
		service:  service,
		log:      log,
		stdout:   stdout,
		stderr:   stderr,
		timing:   defaultTiming(),
	}
}
