package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// component names us in Events and as the manager of fields.
const component = "azp-scaler"

// DefaultCallTimeout bounds one call to the API server.
const DefaultCallTimeout = 15 * time.Second

// listPage bounds one answer of a live list.
const listPage = 500

// Config is what a Cluster is made from.
type Config struct {
	Client    kubernetes.Interface
	Namespace string // Of the agents.
	Instance  string // As agentjob.InstanceID gives it.
	// TargetNamespaces are those in which builds get rights. Sweep looks there.
	TargetNamespaces []string
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
	config Config
	client kubernetes.Interface
	log    *slog.Logger
	now    func() time.Time

	factories []informers.SharedInformerFactory
	jobs      cache.SharedIndexInformer
	pods      cache.SharedIndexInformer
	events    cache.SharedIndexInformer

	recorder  record.EventRecorder
	broadcast record.EventBroadcaster
}

// New prepares a Cluster; it calls nothing. Run starts the watches.
func New(config Config) (*Cluster, error) {
	var wrong []error
	if config.Client == nil {
		wrong = append(wrong, errors.New("cluster: no client: pass one made from the kubeconfig or the pod's ServiceAccount"))
	}
	if config.Namespace == "" {
		wrong = append(wrong, errors.New("cluster: no namespace of the agents: name one, such as azp-agents"))
	}
	if config.Instance == "" {
		wrong = append(wrong, errors.New("cluster: no instance id: without it nothing could be told from what others own"))
	}
	if slices.Contains(config.TargetNamespaces, config.Namespace) {
		wrong = append(wrong, fmt.Errorf("cluster: target namespace %q is the agents' own: a build with a right there could reach the pool's credential: deploy into another one", config.Namespace))
	}
	if len(wrong) > 0 {
		return nil, errors.Join(wrong...)
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if config.Clock == nil {
		config.Clock = time.Now
	}
	if config.OnChange == nil {
		config.OnChange = func() {}
	}
	if config.CallTimeout <= 0 {
		config.CallTimeout = DefaultCallTimeout
	}
	if config.SuspendWait <= 0 {
		config.SuspendWait = 10 * time.Second
	}
	if config.PodEndWait <= 0 {
		config.PodEndWait = 10 * time.Second
	}
	config.TargetNamespaces = slices.Compact(slices.Sorted(slices.Values(config.TargetNamespaces)))
	c := &Cluster{config: config, client: config.Client, log: config.Logger, now: config.Clock}
	if err := c.watch(); err != nil {
		return nil, err
	}
	// The broadcaster is ended with Run; before that, Events queue up in it.
	c.broadcast = record.NewBroadcaster()
	c.recorder = c.broadcast.NewRecorder(scheme.Scheme, corev1.EventSource{Component: component})
	return c, nil
}

// watch sets up the informers: our Jobs and pods by label, and the warnings about
// them. A readiness probe that fails is how an agent shows that it has a build,
// so the Event about that is no news and there would be one for every build.
func (c *Cluster) watch() error {
	ours := informers.NewSharedInformerFactoryWithOptions(c.client, 0,
		informers.WithNamespace(c.config.Namespace),
		informers.WithTransform(trim),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = c.selector() }))
	warnings := informers.NewSharedInformerFactoryWithOptions(c.client, 0,
		informers.WithNamespace(c.config.Namespace),
		informers.WithTransform(trim),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.AndSelectors(
				fields.OneTermEqualSelector("type", corev1.EventTypeWarning),
				fields.OneTermNotEqualSelector("reason", eventUnhealthy),
			).String()
		}))
	c.factories = []informers.SharedInformerFactory{ours, warnings}
	c.jobs = ours.Batch().V1().Jobs().Informer()
	c.pods = ours.Core().V1().Pods().Informer()
	c.events = warnings.Core().V1().Events().Informer()
	for _, informer := range []cache.SharedIndexInformer{c.jobs, c.pods, c.events} {
		// Nothing is counted by these events: whoever is told reads the store. So a
		// tombstone needs no unwrapping, and a missed event costs only time.
		_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { c.config.OnChange() },
			UpdateFunc: func(any, any) { c.config.OnChange() },
			DeleteFunc: func(any) { c.config.OnChange() },
		})
		if err != nil {
			return fmt.Errorf("cluster: watch namespace %q: %w", c.config.Namespace, err)
		}
		if err := informer.SetWatchErrorHandlerWithContext(c.watchFailed); err != nil {
			return fmt.Errorf("cluster: watch namespace %q: %w", c.config.Namespace, err)
		}
	}
	return nil
}

// watchFailed says why the caches can't follow. The informer tries again by itself.
func (c *Cluster) watchFailed(ctx context.Context, _ *cache.Reflector, err error) {
	if ctx.Err() != nil {
		return
	}
	c.log.WarnContext(ctx, "watching the agents' namespace fails, trying again", "namespace", c.config.Namespace, "error", err,
		"remedy", "if it is forbidden, apply the scaler's Role and RoleBinding in that namespace")
}

// trim drops what nobody reads, as a cache of thousands of pods holds it for long.
func trim(object any) (any, error) {
	if accessor, err := meta.Accessor(object); err == nil {
		accessor.SetManagedFields(nil)
	}
	return object, nil
}

// selector finds everything of this instance.
func (c *Cluster) selector() string {
	return labels.Set{agentjob.LabelInstance: c.config.Instance, agentjob.LabelManagedBy: agentjob.ManagedBy}.String()
}

// Run keeps the caches until the context ends, then waits for what it started.
// It returns nil: a watch that fails is tried again and shows in Synced.
func (c *Cluster) Run(ctx context.Context) error {
	sink := c.broadcast.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: c.client.CoreV1().Events(c.config.Namespace)})
	var informing sync.WaitGroup
	for _, factory := range c.factories {
		factory.StartWithContext(ctx)
	}
	informing.Go(func() {
		<-ctx.Done()
		for _, factory := range c.factories {
			factory.Shutdown()
		}
	})
	<-ctx.Done()
	sink.Stop()
	c.broadcast.Shutdown()
	informing.Wait()
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
	return pages(ctx, c, kindJob, c.config.Namespace, c.selector(), func(ctx context.Context, o metav1.ListOptions) ([]batchv1.Job, string, error) {
		list, err := c.client.BatchV1().Jobs(c.config.Namespace).List(ctx, o)
		if err != nil {
			return nil, "", err
		}
		return list.Items, list.Continue, nil
	})
}

func (c *Cluster) livePods(ctx context.Context, selector string) ([]*corev1.Pod, error) {
	return pages(ctx, c, kindPod, c.config.Namespace, selector, func(ctx context.Context, o metav1.ListOptions) ([]corev1.Pod, string, error) {
		list, err := c.client.CoreV1().Pods(c.config.Namespace).List(ctx, o)
		if err != nil {
			return nil, "", err
		}
		return list.Items, list.Continue, nil
	})
}

// pages reads a list to its end. A list that is not whole is an error.
func pages[T any](ctx context.Context, c *Cluster, kind, namespace, selector string, list func(context.Context, metav1.ListOptions) ([]T, string, error)) ([]*T, error) {
	var all []*T
	options := metav1.ListOptions{LabelSelector: selector, Limit: listPage}
	for {
		items, next, err := func() ([]T, string, error) {
			call, cancel := c.call(ctx)
			defer cancel()
			return list(call, options)
		}()
		if err != nil {
			return nil, fail("list", kind, namespace, "", err)
		}
		for i := range items {
			all = append(all, &items[i])
		}
		if next == "" {
			return all, nil
		}
		options.Continue = next
	}
}

// call bounds one call to the API server.
func (c *Cluster) call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, c.config.CallTimeout)
}

// typed takes a store's objects as what they are. What is of another type is a
// tombstone, and so is gone.
func typed[T any](objects []any) []*T {
	all := make([]*T, 0, len(objects))
	for _, object := range objects {
		if item, ok := object.(*T); ok {
			all = append(all, item)
		}
	}
	return all
}
