package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// ErrLeft says that a cleanup has left something, which it has told.
var ErrLeft = errors.New("something is left")

// CleanupOptions say how long a cleanup takes.
type CleanupOptions struct {
	Wait    time.Duration // For builds that run; 0 leaves them at once.
	Timeout time.Duration // For everything.
	// TakeOver removes what another installation with the same id has in the pools.
	TakeOver bool
}

const (
	// leavePatience is how long a cleanup tries what fails and does not get any better. A pod
	// that is told to end while it waits for a build takes some seconds for that.
	leavePatience = 30 * time.Second
	leaveEvery    = time.Second
)

// Cleanup ends all that is of this installation, in its pools and in the cluster, and writes
// what it does. The scalers that run stand down before, and make nothing for holdDuration
// after. The error is ErrLeft if something is left, which it has written with the reason.
func (a *App) Cleanup(ctx context.Context, w io.Writer, options CleanupOptions) error {
	ctx, cancel := context.WithTimeoutCause(ctx, options.Timeout, errors.New("the time was over"))
	defer cancel()
	c := &cleanup{App: a, out: &lines{to: w}, options: options}
	group, held := errgroup.WithContext(ctx)
	working, done := context.WithCancel(held)
	if err := c.hold(working, group); err != nil {
		c.out.line("note     ", "a scaler that still runs is not kept from making what is removed here: "+err.Error())
	}
	group.Go(func() error {
		defer done()
		return c.run(held)
	})
	err := group.Wait()
	switch {
	case errors.Is(err, errCalledOff):
		c.out.line("stopped  ", err.Error())
		return errors.Join(err, c.out.err)
	case err != nil:
		return errors.Join(err, c.out.err)
	}
	return errors.Join(c.report(), c.out.err)
}

// cleanup is one Cleanup.
type cleanup struct {
	*App
	out     *lines
	options CleanupOptions

	mu   sync.Mutex
	left []remainder
}

// remainder is what is left of one pool's.
type remainder struct {
	scaler.Remainder
	of agentjob.Identity
}

// hold has the replicas stand down, and keeps them so until ctx ends.
func (c *cleanup) hold(ctx context.Context, group *errgroup.Group) error {
	if c.election == nil {
		return errors.New("AZP_LEADER_ELECTION is false, and there is no Lease to take: scale it to 0 before")
	}
	h := newHold(c.election)
	doubt, err := h.take(ctx, func(what string) { c.out.line("waiting  ", what) })
	if err != nil {
		return fmt.Errorf("the Lease %s can't be taken: %w", h.lease.Describe(), err)
	}
	group.Go(func() error { return h.keep(ctx) })
	if doubt != "" {
		return errors.New(doubt)
	}
	return nil
}

// run cleans up each pool, all at the same time, as the wait for builds is common to them.
func (c *cleanup) run(ctx context.Context) error {
	catalogue, err := c.liveCatalogue(ctx)
	if catalogue == nil {
		return err
	}
	if err != nil {
		c.out.line("note     ", err.Error()+": namespaces that only a class names are not looked into")
	}
	var group errgroup.Group
	for _, name := range c.config.Pools {
		group.Go(func() error { return c.cleanPool(ctx, name, catalogue) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if slices.ContainsFunc(c.left, func(r remainder) bool { return r.Kind == scaler.RemainderBuild }) {
		return nil // Their pods remove their agents with the token.
	}
	if err := c.cleanToken(ctx); err != nil {
		c.leave(agentjob.Identity{}, scaler.Remainder{Kind: scaler.RemainderObject, What: "Secret " + c.config.Namespace + "/" + c.config.AgentTokenSecret, Why: err.Error()})
	}
	return nil
}

// unasked is a service that can't be asked for anything.
type unasked struct {
	scaler.Service // Nil: nothing else is asked of one that does not list its agents.
	err            error
}

// Agents implements scaler.Service.
func (u unasked) Agents(context.Context, int) ([]agentpool.Agent, error) { return nil, u.err }

func (c *cleanup) cleanPool(ctx context.Context, name string, catalogue *catalogue) error {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var at scaler.Service = service{c.client}
	unreachable := callTimeout
	pool, err := c.client.PoolByName(call, name)
	if err != nil {
		// The client has tried often enough by now.
		pool, at, unreachable = agentpool.Pool{Name: name}, unasked{err: err}, 0
	}
	settings := jobSettings(c.config, name, pool)
	k := kube{settings: settings, catalogue: catalogue, now: time.Now}
	if k.Cluster, err = c.clusterOf(settings.Identity, catalogue); err != nil {
		return err
	}
	config := loopConfig(c.config, settings)
	if !c.options.TakeOver {
		config.Mark = c.mark
	}
	acted := false
	left := scaler.Leave(ctx, scaler.LeaveConfig{
		Config: config, Wait: c.options.Wait, Patience: c.patience, Unreachable: unreachable, Every: leaveEvery,
		Tell: func(done, what string) {
			c.mu.Lock()
			acted = true
			c.mu.Unlock()
			c.out.line(fmt.Sprintf("%-9s", done), what)
		},
	}, at, k, c.log, time.Now)
	if len(left) == 0 && !acted {
		c.out.line("nothing  ", "to remove from pool "+pool.Name)
	}
	c.leave(settings.Identity, left...)
	return nil
}

func (c *cleanup) leave(of agentjob.Identity, left ...scaler.Remainder) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range left {
		c.left = append(c.left, remainder{Remainder: r, of: of})
	}
}

// cleanToken removes the Secret of the agents' token if the scaler has made it, which it may have
// done when it signed in otherwise than it does now. Where it may not look there is none.
func (c *cleanup) cleanToken(ctx context.Context) error {
	secret, err := c.tokenSecret()
	if err != nil {
		return err
	}
	removed, err := secret.Remove(ctx)
	switch {
	case errors.Is(err, cluster.ErrForbidden) && c.renewing == nil:
		return nil
	case err != nil:
		return fmt.Errorf("the token that pods register with can't be removed: %w", err)
	case removed:
		c.out.line("removed  ", "Secret "+secret.String())
	}
	return nil
}

// report writes what is left, and what to do about each kind of it.
func (c *cleanup) report() error {
	if len(c.left) == 0 {
		c.out.line("done     ", "nothing is left")
		return nil
	}
	var remedies []string
	for _, r := range c.left {
		c.out.line("LEFT     ", r.What+": "+r.Why)
		if remedy := c.remedy(r); remedy != "" && !slices.Contains(remedies, remedy) {
			remedies = append(remedies, remedy)
		}
	}
	for _, remedy := range remedies {
		c.out.line("to do    ", remedy)
	}
	return ErrLeft
}

// remedy says how to remove what is left by hand.
func (c *cleanup) remedy(r remainder) string {
	switch r.Kind {
	case scaler.RemainderBuild:
		return "wait until the builds end, or cancel them in Azure DevOps, and run scaler cleanup again: until then their Jobs, RoleBindings and registrations stay"
	case scaler.RemainderPool:
		return fmt.Sprintf("run scaler cleanup again when the service answers; or, unless another installation has them, delete the agents in the settings of pool %s, those whose names begin with %s or %s",
			r.of.Pool.Name, agentjob.NamePrefix(r.of.Instance), agentjob.PlaceholderPrefix(r.of.Instance))
	case scaler.RemainderJob, scaler.RemainderObject:
		if r.of.Instance == "" {
			return ""
		}
		return fmt.Sprintf("kubectl delete jobs,pods,serviceaccounts --namespace %s --selector %s=%s, and rolebindings with the same selector in the target namespaces",
			c.config.Namespace, agentjob.LabelInstance, r.of.Instance)
	case scaler.RemainderInterrupted:
		return "run scaler cleanup again, with more time"
	default:
		return ""
	}
}

// lines writes a report, from several goroutines.
type lines struct {
	mu  sync.Mutex
	to  io.Writer
	err error
}

func (l *lines) line(mark, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := fmt.Fprintln(l.to, mark+text)
	l.err = errors.Join(l.err, err)
}
