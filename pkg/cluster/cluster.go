package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// Config is what a Cluster is made from.
type Config struct {
	Client    kubernetes.Interface
	Namespace string // Of the agents.
	Instance  string // As agentjob.InstanceID gives it.
	// TargetNamespaces gives those in which builds get rights now; nil is none. Sweep
	// looks there, and in those that our Jobs record.
	TargetNamespaces func() []string
	Logger           *slog.Logger
	Clock            func() time.Time // time.Now if nil.
	// OnChange is called after every change of a Job, a pod or an Event of ours. It
	// must not block.
	OnChange    func()
	CallTimeout time.Duration // DefaultCallTimeout if 0.
	// SuspendWait bounds how long a deletion waits for the Job controller to
	// acknowledge that it will make no pod; 10 s if 0.
	SuspendWait time.Duration
	// PodEndWait bounds how long a deletion waits for the end of a pod whose agent
	// has not started; 10 s if 0.
	PodEndWait time.Duration
}

// Cluster shows and changes what is ours in one namespace of agents and the
// namespaces that their builds deploy to. Its methods may be called at any time
// and by many at once.
type Cluster struct {
	*watcher

	config Config
	now    func() time.Time

	jobs   cache.SharedIndexInformer
	pods   cache.SharedIndexInformer
	events cache.SharedIndexInformer
}

// New prepares a Cluster; it calls nothing. Run starts the watches.
func New(config Config) (*Cluster, error) {
	wrong := checkPlace(config.Client, config.Namespace)
	if config.Instance == "" {
		wrong = append(wrong, errors.New("cluster: no instance id: without it nothing could be told from what others own"))
	}
	if len(wrong) > 0 {
		return nil, errors.Join(wrong...)
	}
	if config.TargetNamespaces == nil {
		config.TargetNamespaces = func() []string { return nil }
	}
	if config.Clock == nil {
		config.Clock = time.Now
	}
	if config.SuspendWait <= 0 {
		config.SuspendWait = 10 * time.Second
	}
	if config.PodEndWait <= 0 {
		config.PodEndWait = 10 * time.Second
	}
	c := &Cluster{
		watcher: newWatcher(config.Client, config.Namespace, config.Logger, config.CallTimeout, config.OnChange),
		config:  config,
		now:     config.Clock,
	}
	return c, c.watch()
}

// checkPlace tells what is missing of what every watch needs.
func checkPlace(client kubernetes.Interface, namespace string) []error {
	var wrong []error
	if client == nil {
		wrong = append(wrong, errors.New("cluster: no client: pass one made from the kubeconfig or the pod's ServiceAccount"))
	}
	if namespace == "" {
		wrong = append(wrong, errors.New("cluster: no namespace of the agents: name one, such as azp-agents"))
	}
	return wrong
}

// watch sets up the informers: our Jobs and pods by label, and the warnings about
// them. A readiness probe that fails is how an agent shows that it has a build,
// so the Event about that is no news and there would be one for every build.
func (c *Cluster) watch() error {
	ours := c.factory(func(o *metav1.ListOptions) { o.LabelSelector = c.selector() })
	warnings := c.factory(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.AndSelectors(
			fields.OneTermEqualSelector("type", corev1.EventTypeWarning),
			fields.OneTermNotEqualSelector("reason", eventUnhealthy),
		).String()
	})
	c.jobs = ours.Batch().V1().Jobs().Informer()
	c.pods = ours.Core().V1().Pods().Informer()
	c.events = warnings.Core().V1().Events().Informer()
	return c.follow(c.jobs, c.pods, c.events)
}

// selector finds everything of this instance.
func (c *Cluster) selector() string {
	return labels.Set{agentjob.LabelInstance: c.config.Instance, agentjob.LabelManagedBy: agentjob.ManagedBy}.String()
}

// Run keeps the caches until the context ends, then waits for what it started.
// It returns nil: a watch that fails is tried again and shows in Synced.
func (c *Cluster) Run(ctx context.Context) error {
	c.run(ctx)
	return nil
}

// Synced reports whether the caches of Jobs and pods have been filled. That of
// the Events does not count: what they explain, they explain late anyway.
func (c *Cluster) Synced() bool { return c.jobs.HasSynced() && c.pods.HasSynced() }

// WaitForSync waits until Synced, or fails when the context ends.
func (c *Cluster) WaitForSync(ctx context.Context) error {
	if cache.WaitForCacheSync(ctx.Done(), c.jobs.HasSynced, c.pods.HasSynced) {
		return nil
	}
	return fmt.Errorf("cluster: the Jobs and pods of namespace %q could not be read in time (check that the API server is reachable and that the scaler's Role there is applied): %w",
		c.config.Namespace, context.Cause(ctx))
}

// Jobs gives our Jobs from the cache, each joined with its pod and with what is
// known about why it is not getting on. The result is the caller's own.
func (c *Cluster) Jobs() []agentpool.AgentJob {
	jobs := typed[batchv1.Job](c.jobs.GetStore().List())
	return joinAll(jobs, typed[corev1.Pod](c.pods.GetStore().List()), typed[corev1.Event](c.events.GetStore().List()))
}

// LiveJobs gives them from the API server itself, without the Events.
func (c *Cluster) LiveJobs(ctx context.Context) ([]agentpool.AgentJob, error) {
	jobs, err := c.liveJobs(ctx)
	if err != nil {
		return nil, err
	}
	// The pods come last, as they are what changes fastest.
	pods, err := c.livePods(ctx, c.selector())
	if err != nil {
		return nil, err
	}
	return joinAll(jobs, pods, nil), nil
}

// JobExistsLive asks the API server whether there is a Job of ours of that name,
// finished ones included.
func (c *Cluster) JobExistsLive(ctx context.Context, name string) (bool, error) {
	job, err := c.getJob(ctx, name)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return c.isOurs(job), nil
}

// isOurs reports whether an object carries the marks of this instance.
func (c *Cluster) isOurs(object metav1.Object) bool {
	return object.GetLabels()[agentjob.LabelInstance] == c.config.Instance && object.GetLabels()[agentjob.LabelManagedBy] == agentjob.ManagedBy
}

func (c *Cluster) getJob(ctx context.Context, name string) (*batchv1.Job, error) {
	call, cancel := c.call(ctx)
	defer cancel()
	job, err := c.client.BatchV1().Jobs(c.config.Namespace).Get(call, name, metav1.GetOptions{})
	if err != nil {
		return nil, fail("get", kindJob, c.config.Namespace, name, err)
	}
	return job, nil
}

// liveJobs lists our Jobs with a quorum read, page by page from one version.
func (c *Cluster) liveJobs(ctx context.Context) ([]*batchv1.Job, error) {
	return pages(ctx, c.watcher, kindJob, c.config.Namespace, c.selector(), func(ctx context.Context, o metav1.ListOptions) ([]batchv1.Job, string, error) {
		list, err := c.client.BatchV1().Jobs(c.config.Namespace).List(ctx, o)
		if err != nil {
			return nil, "", err
		}
		return list.Items, list.Continue, nil
	})
}

func (c *Cluster) livePods(ctx context.Context, selector string) ([]*corev1.Pod, error) {
	return pages(ctx, c.watcher, kindPod, c.config.Namespace, selector, func(ctx context.Context, o metav1.ListOptions) ([]corev1.Pod, string, error) {
		list, err := c.client.CoreV1().Pods(c.config.Namespace).List(ctx, o)
		if err != nil {
			return nil, "", err
		}
		return list.Items, list.Continue, nil
	})
}
