package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
)

// renewing is a sign-in by tokens that end and are renewed. Pods can't do the same: an identity
// takes twenty federated credentials at most, and there is a ServiceAccount for each build; a
// managed identity in the pod would be the build's as well; a client's secret is good for long.
// So the scaler lends them its present token.
type renewing interface {
	// Current gives the present token, renewed if that is due, and when it ends.
	Current(ctx context.Context) (token azuredevops.Secret, ends time.Time, err error)
}

const (
	// keepEvery is how often the token is compared with what is in the Secret. It is far below
	// the time in which the kubelet shows a changed Secret in a pod.
	keepEvery = 15 * time.Second
	// tokenMargin is what a token must still have left for a pod that is made now.
	tokenMargin = 30 * time.Second
	// keepShare is the part of a token's life that both are at most, where that is short.
	keepShare = 10
	// keepTimeout bounds one renewal with its writes.
	keepTimeout = time.Minute
	syncPoll    = 50 * time.Millisecond
)

// tokenKeeper keeps the present token in the Secret that pods mount which register themselves.
// A nil one stands for a token that an administrator keeps there.
type tokenKeeper struct {
	source  renewing
	secret  *cluster.TokenSecret
	needed  func() bool // Whether any class registers from its pods; asked once the classes are known.
	held    func() bool // Whether a cleanup removes the Secret.
	changed func()      // Called when missing has begun or ceased to give an error.
	metric  *TokenMetric
	log     *slog.Logger
	now     func() time.Time
	every   time.Duration // Between turns that nothing else asks for.
	wake    chan struct{}

	// The loop's own.
	seen   azuredevops.Secret // The token that was last seen to.
	said   string
	lacked bool // What missing came to when changed was called last.

	mu    sync.Mutex
	tried bool          // The first turn is over.
	until time.Time     // The end of the token that is in the Secret, as far as is known.
	life  time.Duration // What it had left when it was first seen there.
	err   error         // Why the last turn failed.
}

// newTokenKeeper gives nil where the scaler's token is not one that is renewed.
func (a *App) newTokenKeeper(catalogue *catalogue, pools []agentpool.Pool) (*tokenKeeper, error) {
	if a.renewing == nil {
		return nil, nil //nolint:nilnil // Nothing to keep is no error.
	}
	secret, err := a.tokenSecret()
	if err != nil {
		return nil, err
	}
	return &tokenKeeper{
		source: a.renewing, secret: secret, metric: a.metrics.Token, log: a.log, now: time.Now, every: a.keepEvery, wake: make(chan struct{}, 1),
		held: a.election.cleaning,
		needed: func() bool {
			for _, pool := range pools {
				for _, class := range catalogue.of(pool.Name).usable {
					if class.Registration != agentpool.RegistrationJIT {
						return true
					}
				}
			}
			return false
		},
		changed: func() {
			for _, l := range a.running() {
				l.Recheck()
			}
		},
	}, nil
}

// tokenSecret is the Secret that the scaler keeps the agents' token in.
func (a *App) tokenSecret() (*cluster.TokenSecret, error) {
	return cluster.NewTokenSecret(cluster.TokenSecretConfig{
		Client: a.kube, Namespace: a.config.Namespace, Name: a.config.AgentTokenSecret, Key: a.config.AgentTokenKey, Owner: tokenOwner(a.config),
	})
}

// tokenOwner is the installation's id on its Secret, which is of no pool: all of them are served
// with one token.
func tokenOwner(c Config) string { return agentjob.InstanceID(c.URL, "", c.Namespace, c.Release) }

// run keeps the token until ctx ends. What is in the Secret stays: pods whose build still runs
// remove their agents with it.
func (k *tokenKeeper) run(ctx context.Context, synced func() bool) error {
	for !synced() {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(syncPoll):
		}
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-k.wake:
		}
		k.turn(ctx)
		timer.Reset(k.pause())
	}
}

// pause is the time until the next turn.
func (k *tokenKeeper) pause() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	return max(min(k.every, k.life/keepShare), min(k.every, time.Second))
}

// look has the keeper look soon, as the classes have changed. It never blocks.
func (k *tokenKeeper) look() {
	if k == nil {
		return
	}
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// turn sees once to what is in the Secret.
func (k *tokenKeeper) turn(ctx context.Context) {
	if k.needed() && !k.held() {
		call, cancel := context.WithTimeout(ctx, keepTimeout)
		defer cancel()
		err := k.keep(call)
		if ctx.Err() != nil {
			return
		}
		k.say(err)
	}
	k.mu.Lock()
	k.tried = true
	k.mu.Unlock()
	// A token ends between two turns, too.
	if missing := k.missing() != nil; missing != k.lacked {
		k.lacked = missing
		k.changed()
	}
}

func (k *tokenKeeper) keep(ctx context.Context) error {
	token, ends, err := k.source.Current(ctx)
	if err != nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.err = fmt.Errorf("there is no new one: %w", err)
		return k.err
	}
	until, wrote, err := k.secret.Keep(ctx, token.Reveal(), ends, token != k.seen)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.err = err
	// An API server that can't be asked has changed nothing either.
	if !errors.Is(err, cluster.ErrUnavailable) && !until.Equal(k.until) {
		k.until, k.life = until, max(0, until.Sub(k.now()))
		k.metric.set(until)
	}
	if err == nil {
		k.seen = token
	}
	if wrote {
		k.log.Info("put the present token where pods register with it", "secret", k.secret.String(), "ends", until)
	}
	return err
}

// say tells of a trouble once, and of its end.
func (k *tokenKeeper) say(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text == k.said {
		return
	}
	if text != "" {
		k.log.Warn("the token that pods register with can't be renewed, trying again", "secret", k.secret.String(), "error", err)
	} else if k.said != "" {
		k.log.Info("the token that pods register with is renewed again", "secret", k.secret.String())
	}
	k.said = text
}

// ready reports whether the keeper has seen to the Secret once.
func (k *tokenKeeper) ready() bool {
	if k == nil {
		return true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.tried
}

// missing says why a pod that is made now could not register with the token, or nothing.
func (k *tokenKeeper) missing() error {
	if k == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.now().Add(min(tokenMargin, k.life/keepShare)).Before(k.until) {
		return nil
	}
	return &noTokenError{secret: k.secret.String(), until: k.until, err: k.err}
}

// noTokenError is a Secret without a valid token for pods to register with.
type noTokenError struct {
	secret string
	until  time.Time
	err    error // May be nil.
}

func (e *noTokenError) Error() string {
	text := "the Secret " + e.secret + " has no valid token for pods to register with"
	if !e.until.IsZero() {
		text += ", as that in it ends at " + e.until.UTC().Format(time.RFC3339)
	}
	if e.err != nil {
		text += ": " + e.err.Error()
	}
	return text
}

func (e *noTokenError) Unwrap() error { return e.err }

// Reason implements agentpool.ReasonedError.
func (e *noTokenError) Reason() agentpool.Reason {
	var reasoned agentpool.ReasonedError
	switch {
	case errors.Is(e.err, cluster.ErrNameTaken):
		return agentpool.ReasonMissingObject
	case errors.As(e.err, &reasoned):
		return reasoned.Reason()
	case errors.Is(e.err, azuredevops.ErrUnavailable):
		return agentpool.ReasonUnreachable
	default:
		return agentpool.ReasonCredential
	}
}
