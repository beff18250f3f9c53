package app

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
)

// scalerName is what the scaler's own objects are called and labelled.
const scalerName = "azp-scaler"

// The times of an election. A standby asks again after one to 2.2 times the retry. So it sees
// the leader's last renewal 2.2 seconds late at the most, waits out the lease from then on,
// and takes it when it next asks: after a crash that is at the latest 14.4 seconds after the
// last renewal. A leader that can't renew tries for the deadline from its next retry on, and
// so stops four seconds before anybody may follow it.
const (
	leaseDuration = 10 * time.Second
	renewDeadline = 5 * time.Second
	leaseRetry    = time.Second
)

// election decides which of several replicas works. It spares work that would be done
// twice; that nothing is made twice does not rest on it. One lease is for all pools, as
// they share the organisation's parallel jobs.
type election struct {
	lease    *lease
	log      *slog.Logger
	leader   atomic.Pointer[string] // Who was last seen to lead; nil before the first time.
	identity string
}

// newElection makes the election of an installation. Its replicas have the same
// configuration, but for what they are called.
func newElection(client coordinationv1.LeasesGetter, config Config, log *slog.Logger) (*election, error) {
	identity := config.Replica
	if identity == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("this replica has no name: %w: set AZP_REPLICA", err)
		}
		// In a container the process always has the same id, so that one which is started
		// again finds the lease its own.
		identity = fmt.Sprintf("%s_%d", host, os.Getpid())
	}
	lock := &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Name: leaseName(config), Namespace: config.Namespace},
		Client:     client,
		LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
		Labels:     map[string]string{agentjob.LabelName: scalerName},
	}
	return &election{lease: &lease{LeaseLock: lock, log: log}, log: log.With("lease", lock.Describe()), identity: identity}, nil
}

// cleaning reports whether a cleanup has the Lease, as far as was seen, so that nothing is to
// be made.
func (e *election) cleaning() bool {
	return e != nil && e.lease.cleaned.Load()
}

// leaseName is the name of an installation's Lease: two that share a namespace and differ
// in release or pools do not wait for each other.
func leaseName(config Config) string {
	pools := make([]string, 0, len(config.Pools))
	for _, pool := range config.Pools {
		pools = append(pools, strings.ToLower(pool))
	}
	slices.Sort(pools)
	return scalerName + "-" + agentjob.InstanceID(config.URL, strings.Join(pools, ","), config.Namespace, config.Release)
}

// lead has work done whenever this replica leads, until ctx ends. work must end soon after
// its context does, and may be called again. An error of work ends the election.
func (e *election) lead(ctx context.Context, work func(context.Context) error) error {
	for ctx.Err() == nil {
		if err := e.term(ctx, work); err != nil {
			return err
		}
	}
	return nil
}

// term waits until this replica leads, and has work done until it does not lead any more.
func (e *election) term(ctx context.Context, work func(context.Context) error) error {
	leading := make(chan context.Context, 1)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: e.lease, Name: e.lease.LeaseMeta.Name,
		LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: leaseRetry,
		ReleaseOnCancel: true, // So that the next one need not wait until the lease has run out.
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) { leading <- ctx },
			OnStoppedLeading: func() {},
			OnNewLeader:      e.follow,
		},
	})
	if err != nil {
		return fmt.Errorf("leader election: %w", err)
	}
	// The lease is given back when the work has ended, which is after ctx has. What the
	// library has to say is said here, or by the lease.
	held, release := context.WithCancel(logr.NewContext(context.WithoutCancel(ctx), logr.Discard()))
	over := make(chan struct{})
	go func() {
		defer close(over)
		elector.Run(held)
	}()
	defer func() {
		release()
		<-over
	}()
	select {
	case <-ctx.Done():
		return nil
	case <-over:
		return nil
	case led := <-leading:
		e.log.Info("this replica leads", "replica", e.identity)
		working, stop := context.WithCancel(ctx)
		defer stop()
		defer context.AfterFunc(led, stop)() //nolint:contextcheck // It ends when this replica does not lead any more.
		e.lease.stop.Store(&stop)
		err := work(working)
		if ctx.Err() == nil && err == nil && e.cleaning() {
			e.standDown(ctx)
			return nil
		}
		if ctx.Err() == nil && err == nil {
			e.log.Warn("the lease could not be renewed in time: this replica stands by until it gets it again", "replica", e.identity, "error", e.lease.lastTrouble())
		}
		return err
	}
}

func (e *election) follow(leader string) {
	before := e.leader.Swap(&leader)
	if leader != e.identity && leader != "" && (before == nil || *before != leader) {
		e.log.Info("another replica leads, this one stands by", "replica", leader)
	}
}

// leads tells whether this replica was the last one that was seen to lead.
func (e *election) leads() bool {
	leader := e.leader.Load()
	return leader != nil && *leader == e.identity
}

// notReady says why this replica neither leads nor knows that another one does, or nothing.
func (e *election) notReady() string {
	if leader := e.leader.Load(); leader != nil && *leader != "" {
		return ""
	}
	if trouble := e.lease.lastTrouble(); trouble != "" {
		return trouble
	}
	return "it is not known yet which replica leads, as told by Lease " + e.lease.Describe()
}

// lease is a Lease that tells why it can't be had, which the library only logs.
type lease struct {
	*resourcelock.LeaseLock
	log     *slog.Logger
	trouble atomic.Pointer[string]
	cleaned atomic.Bool                        // A cleanup was the last that was seen to hold it.
	stop    atomic.Pointer[context.CancelFunc] // Ends the work of this replica.
}

// Get implements resourcelock.Interface.
func (l *lease) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := l.LeaseLock.Get(ctx)
	if err == nil {
		l.cleaned.Store(cleans(record.HolderIdentity))
		// Not to lead is noticed late, as a leader tries for a while to renew its Lease.
		if stop := l.stop.Load(); stop != nil && l.cleaned.Load() {
			(*stop)()
		}
	}
	return record, raw, l.note(ctx, "read", err)
}

// Create implements resourcelock.Interface.
func (l *lease) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return l.own(l.note(ctx, "created", l.LeaseLock.Create(ctx, record)))
}

// Update implements resourcelock.Interface.
func (l *lease) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return l.own(l.note(ctx, "renewed", l.LeaseLock.Update(ctx, record)))
}

// own notes that the Lease is this replica's, unless there was an error.
func (l *lease) own(err error) error {
	if err == nil {
		l.cleaned.Store(false)
	}
	return err
}

// note remembers and tells what is new about the trouble with the lease. That another
// replica was quicker is none, and neither is that this one is told to end.
func (l *lease) note(ctx context.Context, what string, err error) error {
	text := ""
	switch {
	case ctx.Err() != nil || apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err):
		return err
	case apierrors.IsForbidden(err):
		text = fmt.Sprintf("Lease %s can't be %s: %v: give the scaler get, create and update on leases.coordination.k8s.io in namespace %s, or set AZP_LEADER_ELECTION to false and run one replica",
			l.Describe(), what, err, l.LeaseMeta.Namespace)
	case err != nil && !(what == "read" && apierrors.IsNotFound(err)):
		text = fmt.Sprintf("Lease %s can't be %s: %v", l.Describe(), what, err)
	}
	if before := l.trouble.Swap(&text); text != "" && (before == nil || *before != text) {
		l.log.Warn("no leader can be elected, trying again", "error", text)
	}
	return err
}

// lastTrouble is why the lease could not be had when it was last asked for, or nothing.
func (l *lease) lastTrouble() string {
	if text := l.trouble.Load(); text != nil {
		return *text
	}
	return ""
}
