package simulate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
)

// target is who a call is for.
type target string

const (
	toService target = "service"
	toCluster target = "cluster"
	// toRights are the calls that need rights which an administrator may take away.
	toRights target = "rights"
)

// trouble is a way for a call to fail.
type trouble string

const (
	fine        trouble = ""
	unavailable trouble = "unavailable"                // It does not get there.
	lost        trouble = "lost answer"                // It takes effect, and the answer is lost.
	slowThere   trouble = "time-out before it counted" // It hangs, and does not get there in time.
	slowBack    trouble = "time-out after it counted"
	throttled   trouble = "throttled"
	signIn      trouble = "sign-in page"
	unexpected  trouble = "unexpected answer"
	conflict    trouble = "conflict"
	quota       trouble = "quota"
	forbidden   trouble = "forbidden"
)

// errDead is what the calls of a process come to that is no more.
var errDead = errors.New("this process was killed")

// error gives what the package that makes the call would give.
func (t trouble) error(to target, kind string) error {
	if to == toService {
		known := map[trouble]error{
			throttled: &azuredevops.ThrottledError{RetryAfter: 10 * time.Second}, signIn: azuredevops.ErrAuthentication, unexpected: azuredevops.ErrUnexpectedAnswer,
			forbidden: azuredevops.ErrAuthorization,
		}
		e := &azuredevops.Error{Op: kind, Message: string(t), Kind: known[t]}
		if e.Kind == nil {
			e.Kind = azuredevops.ErrUnavailable
		}
		return e
	}
	known := map[trouble]error{conflict: cluster.ErrStale, quota: cluster.ErrQuota, forbidden: cluster.ErrForbidden}
	e := &cluster.Error{Op: kind, Object: "job", Kind: known[t], Err: errors.New(string(t))}
	if e.Kind == nil {
		e.Kind = cluster.ErrUnavailable
	}
	return e
}

// draw gives what goes wrong with a call. The caller holds the lock.
func (w *world) draw(d dice, to target, kind string) trouble {
	if w.calm {
		return fine
	}
	now := time.Now()
	for _, o := range w.outages {
		if (o.of == to || o.of == toRights && isCreation(kind)) && !now.Before(o.begin) && now.Before(o.over) {
			return o.how
		}
	}
	f := w.setup.Faults
	switch {
	case f.Quota && kind == "create" && d.oneIn(4):
		return quota
	case f.Calls && d.oneIn(15), f.HalfMade && isCreation(kind) && d.oneIn(8):
		if to == toService {
			return pick(d, unavailable, unavailable, lost, lost, slowThere, slowBack, throttled, signIn, unexpected)
		}
		return pick(d, unavailable, unavailable, lost, lost, slowThere, slowBack, conflict, conflict, forbidden)
	default:
		return fine
	}
}

// isCreation tells whether a call is a step on the way to a Job that runs.
func isCreation(kind string) bool {
	switch kind {
	case "create", "grant", "register", "hand over key", "let run":
		return true
	default:
		return false
	}
}

// forever is longer than any call is waited for.
const forever = time.Hour

// call is one call of a scaler. It counts at a moment between its beginning and its end,
// under the lock. What is on its way when its process is killed may count all the same.
func (r *replica) call(ctx context.Context, to target, kind, subject string, act func() error) error {
	w := r.world
	// What a loop that ends still asks for throws no dice: whether it asks is a matter of chance.
	if err := r.stopped(ctx); err != nil {
		return err
	}
	d := w.dice(r.name+" "+kind, subject)
	how := read(w, func() trouble { return w.draw(d, to, kind) })
	back := 1 + d.mostly(w.setup.Latency)
	if err := r.pause(ctx, 1+d.mostly(w.setup.Latency)); err != nil {
		if errors.Is(err, errDead) && how == fine && d.oneIn(2) {
			time.Sleep(1 + d.upTo(w.setup.Latency))
			w.with(func() { _ = act() })
		}
		return r.ended(ctx, err, to, kind)
	}
	if how != fine {
		w.with(func() { w.record(Event{Kind: Fault, By: r.name, Job: subject, Text: kind + ": " + string(how)}) })
	}
	switch how {
	case fine, lost, slowBack:
	case slowThere:
		return r.ended(ctx, r.pause(ctx, forever), to, kind)
	default:
		return how.error(to, kind)
	}
	w.mu.Lock()
	err := act()
	w.mu.Unlock()
	if how == slowBack {
		back = forever
	}
	if err := r.pause(ctx, back); err != nil {
		return r.ended(ctx, err, to, kind)
	}
	if err == nil && how == lost {
		return how.error(to, kind)
	}
	return err
}

// ended says why a call was given up.
func (r *replica) ended(ctx context.Context, err error, to target, kind string) error {
	if errors.Is(err, errDead) || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: %w", slowThere.error(to, kind), err)
}

// pause takes its time, unless the call is given up or the process is killed.
func (r *replica) pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-r.dead:
		return errDead
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// stopped says that no call is made any more.
func (r *replica) stopped(ctx context.Context) error {
	select {
	case <-r.dead:
		return errDead
	default:
		return ctx.Err()
	}
}

// write is a call that changes something of a Job or its agent. Calls that go by name alone say
// nothing of the UID.
func (r *replica) write(ctx context.Context, to target, kind string, of agentpool.AgentJob, act func() error) error {
	return r.call(ctx, to, kind, of.Name, func() error {
		r.world.record(Event{Kind: Writes, By: r.name, Job: of.Name, UID: of.UID, Text: kind})
		return act()
	})
}

// reasoned is an error with a reason of its own, as package app gives one for an agent
// that it could not register.
type reasoned struct {
	error
	reason agentpool.Reason
}

func (e reasoned) Reason() agentpool.Reason { return e.reason }

func (e reasoned) Unwrap() error { return e.error }
