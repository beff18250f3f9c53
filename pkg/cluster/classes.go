package cluster

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/azp-scaler/azp-scaler/pkg/agentclass"
)

// ClassesConfig is what a Classes is made from.
type ClassesConfig struct {
	Client    kubernetes.Interface
	Namespace string // Of the agents.
	Logger    *slog.Logger
	// OnChange is called after every change of a class. It must not block.
	OnChange    func()
	CallTimeout time.Duration // DefaultCallTimeout if 0.
}

// Classes watches the CronJobs that are classes of agent. One serves every pool.
type Classes struct {
	watcher  *watcher
	cronJobs cache.SharedIndexInformer
}

// NewClasses prepares the watch; it calls nothing.
func NewClasses(config ClassesConfig) (*Classes, error) {
	if err := errors.Join(checkPlace(config.Client, config.Namespace)...); err != nil {
		return nil, err
	}
	c := &Classes{watcher: newWatcher(config.Client, config.Namespace, config.Logger, config.CallTimeout, config.OnChange)}
	c.cronJobs = c.watcher.factory(func(o *metav1.ListOptions) { o.LabelSelector = agentclass.Label }).Batch().V1().CronJobs().Informer()
	return c, c.watcher.follow(c.cronJobs)
}

// Run keeps the cache until the context ends, then waits for what it started. It
// returns nil: a watch that fails is tried again and shows in Synced.
func (c *Classes) Run(ctx context.Context) error {
	c.watcher.run(ctx)
	return nil
}

// Synced reports whether the cache has been filled.
func (c *Classes) Synced() bool { return c.cronJobs.HasSynced() }

// CronJobs gives the classes from the cache, by name. They must not be changed.
func (c *Classes) CronJobs() []*batchv1.CronJob {
	return byName(typed[batchv1.CronJob](c.cronJobs.GetStore().List()))
}

// LiveCronJobs gives them from the API server.
func (c *Classes) LiveCronJobs(ctx context.Context) ([]*batchv1.CronJob, error) {
	client := c.watcher.client.BatchV1().CronJobs(c.watcher.namespace)
	found, err := pages(ctx, c.watcher, kindCronJob, c.watcher.namespace, agentclass.Label, func(ctx context.Context, o metav1.ListOptions) ([]batchv1.CronJob, string, error) {
		list, err := client.List(ctx, o)
		if err != nil {
			return nil, "", err
		}
		return list.Items, list.Continue, nil
	})
	return byName(found), err
}

// RecordEvent puts an Event on a class, for people who look at it. It does not
// wait and does not fail; without Run it does nothing.
func (c *Classes) RecordEvent(cronJob *batchv1.CronJob, warning bool, reason, message string) {
	c.watcher.record(corev1.ObjectReference{
		APIVersion: batchv1.SchemeGroupVersion.String(), Kind: kindCronJob, Name: cronJob.Name, UID: cronJob.UID,
	}, warning, reason, message)
}

// byName sorts in place.
func byName(cronJobs []*batchv1.CronJob) []*batchv1.CronJob {
	slices.SortFunc(cronJobs, func(a, b *batchv1.CronJob) int { return strings.Compare(a.Name, b.Name) })
	return cronJobs
}
