package app

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/azp-scaler/azp-scaler/pkg/agentclass"
	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
)

// takeBackLimit is for removing what a creation that failed has left.
const takeBackLimit = 15 * time.Second

// register makes a key pair for the agent of a Job, registers the agent with it, and gives
// the Secret that the agent runs on. The key is kept nowhere else.
func (k kube) register(settings agentjob.Settings, class agentpool.AgentClass) cluster.Register {
	return func(ctx context.Context, job *batchv1.Job) (*corev1.Secret, int, error) {
		key, err := rsa.GenerateKey(rand.Reader, agentjob.KeyBits)
		if err != nil {
			return nil, 0, fmt.Errorf("register agent %s: make its key: %w", job.Name, err)
		}
		registered, err := k.service.RegisterAgent(ctx, settings.Identity.Pool.ID, azuredevops.Registration{
			Name: job.Name, Version: settings.Package.Version, Capabilities: class.Claims, PublicKey: &key.PublicKey,
		})
		if err != nil {
			return nil, 0, &registrationError{agent: job.Name, err: err}
		}
		secret, err := agentjob.Secret(settings, job, agentjob.AgentCredentials{
			AgentID: registered.AgentID, ClientID: registered.ClientID, AuthorizationURL: registered.AuthorizationURL, Key: key,
		})
		return secret, registered.AgentID, err
	}
}

// registrationError is an agent that could not be registered.
type registrationError struct {
	agent string // Its name, or whose it would have been.
	err   error
}

func (e *registrationError) Error() string { return "register agent " + e.agent + ": " + e.err.Error() }

func (e *registrationError) Unwrap() error { return e.err }

// Reason implements agentpool.ReasonedError: with the reasons that a pod has which registers
// its agent itself.
func (e *registrationError) Reason() agentpool.Reason {
	var throttled *azuredevops.ThrottledError
	switch {
	case errors.Is(e.err, azuredevops.ErrAuthentication), errors.Is(e.err, azuredevops.ErrAuthorization):
		return agentpool.ReasonCredential
	case errors.Is(e.err, azuredevops.ErrUnavailable), errors.As(e.err, &throttled), errors.Is(e.err, context.DeadlineExceeded):
		return agentpool.ReasonUnreachable
	default:
		return agentpool.ReasonConfigureFailed
	}
}

// takeBack removes a Job whose agent could not be registered or whose key could not be
// handed over, as nobody can go on with it, and the registration. A Job that runs after all
// is a success whose answer was lost. What can't be removed is found again by the plan,
// which replaces it, and by the sweep.
func (k kube) takeBack(ctx context.Context, made agentpool.AgentJob, cause error) (agentpool.AgentJob, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeBackLimit)
	defer cancel()
	deleted, err := k.DeleteUnstarted(ctx, made)
	switch {
	case err != nil:
		return made, fmt.Errorf("%w; and what is there of its Job can't be removed yet: %w", cause, err)
	case !deleted:
		made.Suspended = false
		return made, nil
	}
	if _, err := k.service.WithdrawAgent(ctx, made.PoolID, agentpool.AgentRef{Name: made.Name}); err != nil {
		cause = fmt.Errorf("%w; and the registration of its agent is left to the sweep: %w", cause, err)
	}
	// It is gone, and what the garbage collector and the sweep have yet to remove goes by its name.
	return agentpool.AgentJob{Name: made.Name, RequestID: made.RequestID, Attempt: made.Attempt}, cause
}

// packageAge is how long what the service said of a package is taken to be so.
const packageAge = 10 * time.Minute

// packages knows which package of the agent program the service offers, by platform and
// version.
type packages struct{ *recent[azuredevops.Package] }

func newPackages(ask func(ctx context.Context, platform, version string) (azuredevops.Package, error), now func() time.Time) packages {
	return packages{newRecent(func(ctx context.Context, name string) (azuredevops.Package, error) {
		platform, version, _ := strings.Cut(name, " ")
		return ask(ctx, platform, version)
	}, packageAge, now)}
}

// of gives the package that agents of a class run, or what is to be said of one that is in
// the image: only its version, which the agent corrects when it comes online. While the
// service is not to be asked, what it said last holds.
func (p packages) of(ctx context.Context, settings agentjob.Settings, class agentclass.Class) (agentjob.Package, error) {
	platform, version := agentjob.ProgramOf(settings, class.Template)
	download := settings.AgentSource == agentjob.SourceDownload
	if !download && version != "" {
		return agentjob.Package{Version: version}, nil
	}
	platform = cmp.Or(platform, platformOf(class.Capabilities))
	found, err := p.get(ctx, platform+" "+version)
	switch {
	case err == nil, found.Version != "" && passing(err):
		return agentjob.Package{Platform: platform, Version: found.Version, URL: found.URL, SHA256: found.SHA256}, nil
	case download:
		return agentjob.Package{}, fmt.Errorf("the agent program's package: %w", err)
	default:
		return agentjob.Package{}, fmt.Errorf("the version of the agent program (set AZP_AGENT_VERSION to do without asking): %w", err)
	}
}

// platformOf names the package for the processor that a class's agents run on.
func platformOf(capabilities agentpool.Capabilities) string {
	switch strings.ToUpper(capabilities["agent.osarchitecture"]) {
	case "ARM64":
		return "linux-arm64"
	case "ARM":
		return "linux-arm"
	default:
		return "linux-x64"
	}
}
