package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
)

// component names us in Events and as the manager of fields.
const component = "azp-scaler"

// DefaultCallTimeout bounds one call to the API server.
const DefaultCallTimeout = 15 * time.Second

// listPage bounds one answer of a live list.
const listPage = 500

// watcher is what Cluster and Classes have in common: calls with a limit, watches
// on the agents' namespace, and Events in it.
type watcher struct {
	client    kubernetes.Interface
	namespace string
	log       *slog.Logger
	timeout   time.Duration
	onChange  func()

	factories []informers.SharedInformerFactory
	recorder  record.EventRecorder
	broadcast record.EventBroadcaster
}

// newWatcher fills in what may be left out. onChange may be nil.
func newWatcher(client kubernetes.Interface, namespace string, log *slog.Logger, timeout time.Duration, onChange func()) *watcher {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if timeout <= 0 {
		timeout = DefaultCallTimeout
	}
	if onChange == nil {
		onChange = func() {}
	}
	w := &watcher{client: client, namespace: namespace, log: log, timeout: timeout, onChange: onChange}
	// The broadcaster is ended with run. Before that nobody listens to it, and Events
	// are dropped: who only looks at the cluster leaves none there.
	w.broadcast = record.NewBroadcaster()
	w.recorder = w.broadcast.NewRecorder(scheme.Scheme, corev1.EventSource{Component: component})
	return w
}

// factory makes informers for what the tweaked options select.
func (w *watcher) factory(tweak func(*metav1.ListOptions)) informers.SharedInformerFactory {
	made := informers.NewSharedInformerFactoryWithOptions(w.client, 0,
		informers.WithNamespace(w.namespace),
		informers.WithTransform(trim),
		informers.WithTweakListOptions(tweak))
	w.factories = append(w.factories, made)
	return made
}

// follow has onChange called for every change that the informers see.
func (w *watcher) follow(informers ...cache.SharedIndexInformer) error {
	for _, informer := range informers {
		// Nothing is counted by these events: whoever is told reads the store. So a
		// tombstone needs no unwrapping, and a missed event costs only time.
		_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { w.onChange() },
			UpdateFunc: func(any, any) { w.onChange() },
			DeleteFunc: func(any) { w.onChange() },
		})
		if err != nil {
			return fmt.Errorf("cluster: watch namespace %q: %w", w.namespace, err)
		}
		if err := informer.SetWatchErrorHandlerWithContext(w.watchFailed); err != nil {
			return fmt.Errorf("cluster: watch namespace %q: %w", w.namespace, err)
		}
	}
	return nil
}

// watchFailed says why the caches can't follow. The informer tries again by itself.
func (w *watcher) watchFailed(ctx context.Context, _ *cache.Reflector, err error) {
	if ctx.Err() != nil {
		return
	}
	w.log.WarnContext(ctx, "watching the agents' namespace fails, trying again", "namespace", w.namespace, "error", err,
		"remedy", "if it is forbidden, apply the scaler's Role and RoleBinding in that namespace")
}

// trim drops what nobody reads, as a cache of thousands of pods holds it for long.
func trim(object any) (any, error) {
	if accessor, err := meta.Accessor(object); err == nil {
		accessor.SetManagedFields(nil)
	}
	return object, nil
}

// run keeps the caches and sends the Events until the context ends, then waits
// for what it started.
func (w *watcher) run(ctx context.Context) {
	sink := w.broadcast.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: w.client.CoreV1().Events(w.namespace)})
	var informing sync.WaitGroup
	for _, factory := range w.factories {
		factory.StartWithContext(ctx)
	}
	informing.Go(func() {
		<-ctx.Done()
		for _, factory := range w.factories {
			factory.Shutdown()
		}
	})
	<-ctx.Done()
	sink.Stop()
	w.broadcast.Shutdown()
	informing.Wait()
}

// record puts an Event on an object of the agents' namespace. It does not wait and
// does not fail: Events are sent one by one in the background, alike ones are
// counted on one object, and many about one object are dropped, as are those
// before run.
func (w *watcher) record(about corev1.ObjectReference, warning bool, reason, message string) {
	kind := corev1.EventTypeNormal
	if warning {
		kind = corev1.EventTypeWarning
	}
	about.Namespace = w.namespace
	w.recorder.Event(&about, kind, reason, oneLine(message))
}

// call bounds one call to the API server.
func (w *watcher) call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, w.timeout)
}

// bounded makes one call within its limit.
func (w *watcher) bounded(ctx context.Context, do func(context.Context) error) error {
	return within(ctx, w.timeout, do)
}

// within makes one call within a limit.
func within(ctx context.Context, limit time.Duration, do func(context.Context) error) error {
	call, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return do(call)
}

// pages reads a list to its end. A list that is not whole is an error.
func pages[T any](ctx context.Context, w *watcher, kind, namespace, selector string, list func(context.Context, metav1.ListOptions) ([]T, string, error)) ([]*T, error) {
	var all []*T
	options := metav1.ListOptions{LabelSelector: selector, Limit: listPage}
	for {
		items, next, err := func() ([]T, string, error) {
			call, cancel := w.call(ctx)
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
