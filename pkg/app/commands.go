package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
	"github.com/azp-scaler/azp-scaler/pkg/explain"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// ErrUnknownRequest says that a request is in the queue of none of the pools.
var ErrUnknownRequest = errors.New("no such request waits, is assigned or runs")

// look gives the pools with the cluster as it is now, for commands that change nothing.
func (a *App) look(ctx context.Context) ([]kube, error) {
	catalogue, err := a.liveCatalogue(ctx)
	if err != nil {
		return nil, err
	}
	var pools []kube
	for _, name := range a.config.Pools {
		k, err := a.lookAt(ctx, name, catalogue)
		if err != nil {
			return nil, err
		}
		pools = append(pools, k)
	}
	return pools, nil
}

// lookAt gives one pool.
func (a *App) lookAt(ctx context.Context, name string, catalogue *catalogue) (kube, error) {
	pool, err := a.client.PoolByName(ctx, name)
	if err != nil {
		return kube{}, err
	}
	return a.connect(name, pool, catalogue, func() bool { return true })
}

// liveCatalogue reads the classes once. The catalogue tells nobody of them: what is new
// to this process is no news. Where they can't be read it is empty.
func (a *App) liveCatalogue(ctx context.Context) (*catalogue, error) {
	watch, err := cluster.NewClasses(cluster.ClassesConfig{Client: a.kube, Namespace: a.config.Namespace, Logger: a.log})
	if err != nil {
		return nil, err
	}
	cronJobs, err := watch.LiveCronJobs(ctx)
	if err != nil {
		err = fmt.Errorf("the classes of agent can't be read: %w", err)
	}
	return a.newCatalogue(func() []*batchv1.CronJob { return cronJobs }, func(*batchv1.CronJob, bool, string, string) {}, slog.New(slog.DiscardHandler)), err
}

// plans makes the plan that the next cycle of each pool would make.
func (a *App) plans(ctx context.Context) ([]explain.Pool, error) {
	pools, err := a.look(ctx)
	if err != nil {
		return nil, err
	}
	var snapshots []plan.Snapshot
	for _, k := range pools {
		snapshot, err := scaler.Look(ctx, loopConfig(a.config, k.settings), k.service, k, time.Now)
		if err != nil {
			return nil, err
		}
		snapshots = append(snapshots, snapshot)
	}
	shareParallelJobs(snapshots)
	var plans []explain.Pool
	for _, snapshot := range snapshots {
		plans = append(plans, explain.Pool{Snapshot: snapshot, Plan: plan.Make(snapshot)})
	}
	return plans, nil
}

// shareParallelJobs tells each pool what runs in the others, as the loops do.
func shareParallelJobs(pools []plan.Snapshot) {
	running := make([]int, len(pools))
	all := 0
	for i, pool := range pools {
		for _, request := range pool.Requests {
			if request.UnderWay() {
				running[i]++
				all++
			}
		}
	}
	for i := range pools {
		pools[i].OtherPools = all - running[i]
	}
}

// Plan writes what the next cycle would do and why, as a table or, for programs, as
// JSON. It changes nothing.
func (a *App) Plan(ctx context.Context, w io.Writer, json bool) error {
	plans, err := a.plans(ctx)
	if err != nil {
		return err
	}
	if json {
		return explain.WriteJSON(w, plans)
	}
	return explain.WriteTable(w, plans)
}

// Explain writes why a request waits, or every queued one if it is 0. It changes
// nothing. The error is ErrUnknownRequest for a request that is in no queue.
func (a *App) Explain(ctx context.Context, w io.Writer, request int64) error {
	plans, err := a.plans(ctx)
	if err != nil {
		return err
	}
	found, err := explain.WriteRequest(w, plans, request)
	if err != nil {
		return err
	}
	if !found && request != 0 {
		return fmt.Errorf("request %d: %w in pool %s: a request that has ended is not in the queue any more",
			request, ErrUnknownRequest, strings.Join(a.config.Pools, ", "))
	}
	return nil
}

// Cleanup removes the placeholder agents of this installation from its pools, and the token that
// it has kept for pods, and says which. What can't be removed does not keep the others from it. A scaler that still
// runs would register them again.
func (a *App) Cleanup(ctx context.Context, w io.Writer) error {
	removed := 0
	var problems []error
	for _, name := range a.config.Pools {
		pool, err := a.client.PoolByName(ctx, name)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		n, err := a.cleanPool(ctx, w, jobSettings(a.config, name, pool).Identity)
		removed += n
		if err != nil {
			problems = append(problems, err)
		}
	}
	if err := a.cleanToken(ctx, w); err != nil {
		problems = append(problems, err)
	}
	if removed > 0 {
		_, err := fmt.Fprintln(w, "note     a scaler that still runs registers them again: stop it before")
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// cleanToken removes the Secret of the agents' token if the scaler has made it, which it may have
// done when it signed in otherwise than it does now. Where it may not look there is none.
func (a *App) cleanToken(ctx context.Context, w io.Writer) error {
	secret, err := a.tokenSecret()
	if err != nil {
		return err
	}
	removed, err := secret.Remove(ctx)
	switch {
	case errors.Is(err, cluster.ErrForbidden) && a.renewing == nil:
		return nil
	case err != nil:
		return fmt.Errorf("the token that pods register with can't be removed: %w", err)
	case !removed:
		return nil
	}
	_, err = fmt.Fprintf(w, "removed  Secret %s\n", secret)
	return err
}

// cleanPool gives how many it has removed.
func (a *App) cleanPool(ctx context.Context, w io.Writer, of agentjob.Identity) (removed int, err error) {
	at := service{a.client}
	agents, err := at.Agents(ctx, of.Pool.ID)
	if err != nil {
		return 0, fmt.Errorf("the agents of pool %s can't be listed: %w", of.Pool.Name, err)
	}
	found := false
	var problems []error
	for _, agent := range agents {
		if !strings.HasPrefix(agent.Name, agentjob.PlaceholderPrefix(of.Instance)) {
			continue
		}
		found = true
		gone, err := at.WithdrawAgent(ctx, of.Pool.ID, agentpool.AgentRef{ID: agent.ID, Name: agent.Name})
		switch {
		case err != nil:
			problems = append(problems, fmt.Errorf("placeholder %s of pool %s can't be removed: %w", agent.Name, of.Pool.Name, err))
		case !gone:
			problems = append(problems, fmt.Errorf("placeholder %s of pool %s can't be removed: the service says that it has a build, which a placeholder never takes: look at it in the pool's agents", agent.Name, of.Pool.Name))
		default:
			removed++
			if _, err := fmt.Fprintf(w, "removed  %s from pool %s\n", agent.Name, of.Pool.Name); err != nil {
				return removed, err
			}
		}
	}
	if !found {
		_, err := fmt.Fprintf(w, "nothing  to remove from pool %s\n", of.Pool.Name)
		problems = append(problems, err)
	}
	return removed, errors.Join(problems...)
}
