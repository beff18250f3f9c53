package app

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	coordinationapi "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
)

// cleanerPrefix begins what a cleanup is called as the holder of the Lease.
const cleanerPrefix = "scaler-cleanup-of-"

// annotationStoodDown is on the Lease, and names the replica whose work has ended because a
// cleanup has taken the Lease from it.
const annotationStoodDown = agentjob.Prefix + "stood-down"

const (
	// holdDuration is how long no replica works after a cleanup has ended or was killed: what
	// stops the replicas comes within seconds of it, or not at all.
	holdDuration = 2 * time.Minute
	holdEvery    = 10 * time.Second
	holdPoll     = 500 * time.Millisecond
	// leaderLook is how long a leader that does nothing is watched for a sign of life: it
	// renews every second, and gives up when it could not for renewDeadline.
	leaderLook = renewDeadline + 2*leaseRetry
	// standDownLimit is for what a leader has begun when it loses the Lease.
	standDownLimit = leaseRetry + callTimeout + takeBackLimit
	leaseTimeout   = 10 * time.Second
)

// hold is the Lease of an installation in the hands of a cleanup. While it is, and for
// holdDuration after, no replica of the scaler makes anything, as none leads. A Lease that
// somebody deletes calls the cleanup off.
type hold struct {
	*election
	identity string
}

func newHold(e *election) *hold { return &hold{election: e, identity: cleanerPrefix + e.identity} }

// cleans reports whether the holder of a Lease is a cleanup.
func cleans(holder string) bool { return strings.HasPrefix(holder, cleanerPrefix) }

// errCalledOff ends a cleanup that does not have the Lease any more.
var errCalledOff = errors.New("the cleanup was called off")

// take takes the Lease, by force from a replica that works, and waits until that has ended
// its work. It says what it waits for. doubt is a reason to believe that a replica works all
// the same.
func (h *hold) take(ctx context.Context, say func(string)) (doubt string, err error) {
	from, err := h.seize(ctx)
	if err != nil || from == "" {
		return "", err
	}
	say(fmt.Sprintf("replica %s works: it stands down", from))
	limit, cancel := context.WithTimeout(ctx, standDownLimit)
	defer cancel()
	for {
		lease, err := h.read(limit)
		if err == nil && lease.Annotations[annotationStoodDown] == from {
			return "", nil
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-limit.Done():
			return fmt.Sprintf("replica %s has not said within %s that it has stood down", from, standDownLimit), nil
		case <-time.After(holdPoll):
		}
	}
}

// seize makes the Lease the cleanup's, and names the replica that it was taken from if that
// showed a sign of life.
func (h *hold) seize(ctx context.Context) (from string, err error) {
	first, err := h.read(ctx)
	if err != nil && !apierrors.IsNotFound(err) {
		return "", err
	}
	if err == nil && holder(first) != "" && !cleans(holder(first)) {
		lives, err := h.lives(ctx, first)
		if err != nil {
			return "", err
		}
		if lives {
			from = holder(first)
		}
	}
	return from, h.write(ctx, true)
}

// lives watches whether the holder of the Lease renews it.
func (h *hold) lives(ctx context.Context, first *coordinationapi.Lease) (bool, error) {
	if first.Spec.RenewTime == nil {
		return false, nil
	}
	look, cancel := context.WithTimeout(ctx, leaderLook)
	defer cancel()
	for {
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-look.Done():
			return false, nil
		case <-time.After(holdPoll):
		}
		now, err := h.read(look)
		if err == nil && holder(now) == holder(first) && now.Spec.RenewTime != nil && !now.Spec.RenewTime.Equal(first.Spec.RenewTime) {
			return true, nil
		}
	}
}

// keep renews the Lease until ctx ends, and returns errCalledOff if it is somebody else's
// or gone. What else is in the way passes, or holds long enough.
func (h *hold) keep(ctx context.Context) error {
	tick := time.NewTicker(holdEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := h.write(ctx, false); errors.Is(err, errCalledOff) {
			return err
		}
	}
}

// write makes the Lease the cleanup's from now on. Unless it seizes it, it must be already.
func (h *hold) write(ctx context.Context, seize bool) error {
	const tries = 5 // A replica that works writes once a second.
	var err error
	for range tries {
		if err = h.writeOnce(ctx, seize); !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			break
		}
	}
	return err
}

func (h *hold) writeOnce(ctx context.Context, seize bool) error {
	call, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	leases := h.lease.Client.Leases(h.lease.LeaseMeta.Namespace)
	lease, err := leases.Get(call, h.lease.LeaseMeta.Name, metav1.GetOptions{})
	gone := apierrors.IsNotFound(err)
	switch {
	case gone && !seize:
		return fmt.Errorf("%w: somebody has deleted Lease %s", errCalledOff, h.lease.Describe())
	case gone:
		lease = &coordinationapi.Lease{ObjectMeta: metav1.ObjectMeta{Name: h.lease.LeaseMeta.Name, Namespace: h.lease.LeaseMeta.Namespace, Labels: h.lease.Labels}}
	case err != nil:
		return err
	case !seize && holder(lease) != h.identity:
		return fmt.Errorf("%w: Lease %s is held by %s", errCalledOff, h.lease.Describe(), holder(lease))
	}
	now, seconds := metav1.NewMicroTime(time.Now()), int32(holdDuration/time.Second)
	if seize {
		delete(lease.Annotations, annotationStoodDown)
		transitions := int32(1)
		if lease.Spec.LeaseTransitions != nil {
			transitions += *lease.Spec.LeaseTransitions
		}
		lease.Spec.LeaseTransitions, lease.Spec.AcquireTime = &transitions, &now
	}
	lease.Spec.HolderIdentity, lease.Spec.LeaseDurationSeconds, lease.Spec.RenewTime = &h.identity, &seconds, &now
	if gone {
		_, err = leases.Create(call, lease, metav1.CreateOptions{})
	} else {
		_, err = leases.Update(call, lease, metav1.UpdateOptions{})
	}
	return err
}

func (h *hold) read(ctx context.Context) (*coordinationapi.Lease, error) {
	call, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	return h.lease.Client.Leases(h.lease.LeaseMeta.Namespace).Get(call, h.lease.LeaseMeta.Name, metav1.GetOptions{})
}

func holder(lease *coordinationapi.Lease) string {
	if lease.Spec.HolderIdentity == nil {
		return ""
	}
	return *lease.Spec.HolderIdentity
}

// standDown tells a cleanup that has taken the Lease that this replica's work has ended. If
// that can't be told, the cleanup waits for its limit.
func (e *election) standDown(ctx context.Context) {
	e.log.Info("a cleanup has taken the lease: this replica makes nothing until that is over", "replica", e.identity)
	call, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	leases := e.lease.Client.Leases(e.lease.LeaseMeta.Namespace)
	for call.Err() == nil {
		lease, err := leases.Get(call, e.lease.LeaseMeta.Name, metav1.GetOptions{})
		if err != nil || !cleans(holder(lease)) {
			return
		}
		metav1.SetMetaDataAnnotation(&lease.ObjectMeta, annotationStoodDown, e.identity)
		if _, err = leases.Update(call, lease, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
			return
		}
	}
}
