package app

import (
	"context"
	"log/slog"
	"time"

	"k8s.io/client-go/kubernetes"
	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
)

// UseCluster has a test's cluster instead of the one that the kubeconfig names, for one
// replica.
func (a *App) UseCluster(client kubernetes.Interface) { a.kube, a.election = client, nil }

// UseRenewing has the scaler's token come from a source that renews it, which is looked at so often.
func (a *App) UseRenewing(source renewing, every time.Duration) {
	a.renewing, a.keepEvery = source, every
}

// UsePatience has a cleanup try what fails for so long.
func (a *App) UsePatience(patience time.Duration) { a.patience = patience }

// Election is one for tests.
type Election struct{ of *election }

// NewElection makes the election of a replica.
func NewElection(client coordinationv1.LeasesGetter, config Config, log *slog.Logger) (Election, error) {
	e, err := newElection(client, config, log)
	return Election{e}, err
}

// Lead takes part in the election.
func (e Election) Lead(ctx context.Context, work func(context.Context) error) error {
	return e.of.lead(ctx, work)
}

// NotReady says why the replica is not ready.
func (e Election) NotReady() string { return e.of.notReady() }

// Hold takes the Lease as a cleanup does, and gives what then keeps it until ctx ends.
func (e Election) Hold(ctx context.Context, say func(string)) (keep func(context.Context) error, doubt string, err error) {
	h := newHold(e.of)
	doubt, err = h.take(ctx, say)
	return h.keep, doubt, err
}

// Cleaning reports whether the replica has seen a cleanup hold the Lease.
func (e Election) Cleaning() bool { return e.of.cleaning() }
