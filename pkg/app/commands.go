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
