package env

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/azp-scaler/azp-scaler/test/cluster"
	"github.com/azp-scaler/azp-scaler/test/e2e/canary"
)

// observed are the kinds of objects in which something of a build can be.
func observed() []schema.GroupVersionResource {
	var all []schema.GroupVersionResource
	for group, resources := range map[schema.GroupVersion][]string{
		{Version: "v1"}:                                     {"pods", "configmaps", "serviceaccounts", "secrets", "events"},
		{Group: "batch", Version: "v1"}:                     {"jobs", "cronjobs"},
		{Group: "apps", Version: "v1"}:                      {"deployments", "replicasets"},
		{Group: "rbac.authorization.k8s.io", Version: "v1"}: {"rolebindings"},
		{Group: "coordination.k8s.io", Version: "v1"}:       {"leases"},
	} {
		for _, resource := range resources {
			all = append(all, group.WithResource(resource))
		}
	}
	return all
}

// observer keeps every version of every object that the API server shows, and what each
// container says, as both are gone when a run is over.
type observer struct {
	dir     string // Receives the containers' logs; it stays.
	logs    func(ctx context.Context, namespace, pod, container string) (io.ReadCloser, error)
	gone    func(ctx context.Context, pod *corev1.Pod) bool
	factory dynamicinformer.DynamicSharedInformerFactory
	ctx     context.Context //nolint:containedctx // It is the life of what the informers start.
	cancel  context.CancelFunc
	streams sync.WaitGroup

	mu       sync.Mutex
	objects  *os.File // A line for each; not in the directory that stays, as Secrets are among them.
	keys     map[string]string
	followed map[string]bool
	problems []error
}

// startObserver begins to keep what the sweep will look into.
func (e *Env) startObserver() (err error) {
	// What an earlier run has left is not this one's.
	for _, name := range []string{containersDir, pagesDir, buildsDir} {
		if err := os.RemoveAll(filepath.Join(e.dir, name)); err != nil {
			return fmt.Errorf("the last run's logs: %w", err)
		}
	}
	if e.observer, err = newObserver(filepath.Join(e.dir, containersDir), filepath.Join(e.private, "objects.jsonl")); err != nil {
		return err
	}
	return e.observer.watch(e.config, e.Admin, e.Node() == cluster.Real)
}

// newObserver makes one that watches nothing yet.
func newObserver(dir, objects string) (*observer, error) {
	file, err := os.OpenFile(objects, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("observe the cluster: %w", err)
	}
	o := &observer{dir: dir, objects: file, keys: map[string]string{}, followed: map[string]bool{}}
	o.ctx, o.cancel = context.WithCancel(context.Background())
	return o, nil
}

// watch observes until close.
func (o *observer) watch(config *rest.Config, pods kubernetes.Interface, containers bool) error {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("observe the cluster: %w", err)
	}
	o.gone = func(ctx context.Context, pod *corev1.Pod) bool {
		live, err := pods.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
		return apierrors.IsNotFound(err) || err == nil && live.UID != pod.UID
	}
	if containers { // Elsewhere the containers' logs are files already, or there are none.
		o.logs = func(ctx context.Context, namespace, pod, container string) (io.ReadCloser, error) {
			return pods.CoreV1().Pods(namespace).GetLogs(pod, &corev1.PodLogOptions{Container: container, Follow: true}).Stream(ctx)
		}
	}
	o.factory = dynamicinformer.NewDynamicSharedInformerFactory(client, 0)
	for _, resource := range observed() {
		_, err := o.factory.ForResource(resource).Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: o.see, UpdateFunc: func(_, object any) { o.see(object) }, DeleteFunc: o.see,
		})
		if err != nil {
			return fmt.Errorf("observe %s: %w", resource.Resource, err)
		}
	}
	o.factory.Start(o.ctx.Done())
	return nil
}

func (o *observer) see(object any) {
	if missed, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = missed.Obj
	}
	seen, ok := object.(*unstructured.Unstructured)
	if !ok {
		return
	}
	o.keep(seen)
	if seen.GetKind() == "Pod" && o.logs != nil {
		o.follow(seen)
	}
}

// keep writes an object down.
func (o *observer) keep(seen *unstructured.Unstructured) {
	seen = seen.DeepCopy()
	seen.SetManagedFields(nil)
	text, err := seen.MarshalJSON()
	if err == nil && seen.GetKind() == "Secret" {
		text, err = decoded(seen, text)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil {
		_, err = fmt.Fprintf(o.objects, "%s\t%s\n", nameOf(seen), bytes.TrimSpace(text))
	}
	if err == nil && seen.GetKind() == "Secret" {
		err = o.learn(seen)
	}
	if err != nil {
		o.problems = append(o.problems, fmt.Errorf("observe %s: %w", nameOf(seen), err))
	}
}

// decoded adds what a Secret holds to its text, as that may be base64 itself.
func decoded(secret *unstructured.Unstructured, text []byte) ([]byte, error) {
	data, _, err := unstructured.NestedStringMap(secret.Object, "data")
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(data)) {
		value, err := base64.StdEncoding.DecodeString(data[name])
		if err != nil {
			return nil, err
		}
		text = fmt.Appendf(bytes.TrimSpace(text), " %q", value)
	}
	return text, nil
}

// nameOf names an object as findings do.
func nameOf(object *unstructured.Unstructured) string {
	return object.GetKind() + " " + object.GetNamespace() + "/" + object.GetName()
}

// keyFile is where an agent's private key is; in a Secret where the scaler has registered
// the agent.
const keyFile = ".credentials_rsaparams"

// learn remembers the private parts of an agent's key, to look for them elsewhere.
func (o *observer) learn(secret *unstructured.Unstructured) error {
	encoded, found, err := unstructured.NestedString(secret.Object, "data", keyFile)
	if err != nil || !found {
		return err
	}
	text, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return err
	}
	var key map[string]any
	if err := json.Unmarshal(bytes.TrimPrefix(text, []byte("\ufeff")), &key); err != nil {
		return err
	}
	for _, field := range privateParts() {
		part, isText := key[field].(string)
		if !isText {
			return fmt.Errorf("%s has no field %q", keyFile, field)
		}
		o.keys[keyPrefix+nameOf(secret)+" "+field] = part
	}
	return nil
}

// keyPrefix begins the names under which parts of keys are looked for; what follows is
// where they belong.
const keyPrefix = "key of "

// privateParts are the fields of an RSA key that nobody else may know.
func privateParts() []string { return []string{"d", "p", "q", "dp", "dq", "inverseQ"} }

// follow keeps what the containers of a pod say, from their start to their end.
func (o *observer) follow(seen *unstructured.Unstructured) {
	var pod corev1.Pod
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(seen.Object, &pod); err != nil {
		o.problem(fmt.Errorf("observe pod %s: %w", seen.GetName(), err))
		return
	}
	for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		key := string(pod.UID) + " " + status.ContainerID
		o.mu.Lock()
		known := o.followed[key] || status.ContainerID == "" || o.ctx.Err() != nil
		o.followed[key] = true
		o.mu.Unlock()
		if !known {
			o.streams.Go(func() {
				// One that goes before it is asked takes its log with it.
				if err := o.stream(pod.Namespace, pod.Name, status.Name); err != nil && o.ctx.Err() == nil && !o.gone(o.ctx, &pod) {
					o.problem(fmt.Errorf("observe container %s of pod %s: %w", status.Name, pod.Name, err))
				}
			})
		}
	}
}

func (o *observer) stream(namespace, pod, container string) (err error) {
	from, err := o.logs(o.ctx, namespace, pod, container)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(filepath.Join(o.dir, strings.Join([]string{namespace, pod, container}, "_")+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	_, err = io.Copy(file, from)
	return err
}

func (o *observer) problem(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.problems = append(o.problems, err)
}

// stop ends the watching; what was observed stays until close.
func (o *observer) stop() {
	o.cancel()
	if o.factory != nil {
		o.factory.Shutdown()
	}
	o.streams.Wait()
}

func (o *observer) close() error { return o.objects.Close() }

// canaries adds to the tokens the parts of keys that were seen.
func (o *observer) canaries(tokens map[string]string) (*canary.Set, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	set := &canary.Set{}
	for _, secrets := range []map[string]string{tokens, o.keys} {
		for _, name := range slices.Sorted(maps.Keys(secrets)) {
			if err := set.Add(name, secrets[name]); err != nil {
				return nil, err
			}
		}
	}
	return set, nil
}
