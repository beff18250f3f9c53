// Package hostnode is a node of Kubernetes whose containers are processes of
// this machine: no namespaces, no images, no root. It lets the real entrypoint
// and a real agent program run where a real node cannot.
//
// What it does as a kubelet does: the order of init containers and native
// sidecars, emptyDir, Secret, ConfigMap and projected volumes, HTTP probes for
// start-up and readiness, preStop hooks, the grace period, termination messages,
// exit codes and the pod's conditions; a sidecar that ends is restarted as long as the pod
// lives; a changed Secret shows in its volume after some
// seconds. What it does not do: isolate anything
// (a process could read what belongs to another container), restart another container than
// a sidecar, limit resources, pull images. Paths that a container is told by its environment
// are rewritten to where they are on this machine, and so are the ports of probes.
package hostnode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

const (
	leaseNamespace = "kube-node-lease"
	leaseSeconds   = 40
	renewEvery     = 10 * time.Second
	callLimit      = 15 * time.Second
	syncLimit      = 30 * time.Second
)

// Options says what node to be.
type Options struct {
	// Name of the node.
	Name string
	// Config has an administrator's rights.
	Config *rest.Config
	// Dir holds the pods' volumes. A pod's directory goes with the pod.
	Dir string
	// LogDir receives a file per container with its output; it stays.
	LogDir string
	// Supervisor is the path of the built program cmd/supervise.
	Supervisor string
	// Path is the PATH of containers: where their programs are.
	Path string
	// Image is the content of every image: directories of this machine by their
	// path in the container. Each pod gets copies, made when it starts.
	Image map[string]string
	// Environment is added to that of every container.
	Environment []string
	// Problem is told what went wrong and is not a pod's own failure. It may be nil.
	Problem func(error)
}

// Node is a running node. Close ends it and the processes of all its pods.
type Node struct {
	options Options
	client  kubernetes.Interface
	cancel  context.CancelFunc
	tasks   sync.WaitGroup

	mu   sync.Mutex
	pods map[types.UID]*pod
}

// Start registers the node and runs the pods that are bound to it. The context
// bounds the start only.
func Start(ctx context.Context, options Options) (*Node, error) {
	if options.Problem == nil {
		options.Problem = func(error) {}
	}
	config := rest.CopyConfig(options.Config)
	config.QPS, config.Burst = -1, -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("node %s: client: %w", options.Name, err)
	}
	for _, dir := range []*string{&options.Dir, &options.LogDir} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return nil, fmt.Errorf("node %s: %w", options.Name, err)
		}
		if err := os.MkdirAll(*dir, 0o700); err != nil {
			return nil, fmt.Errorf("node %s: %w", options.Name, err)
		}
	}
	living, cancel := context.WithCancel(context.WithoutCancel(ctx)) // Until Close.
	n := &Node{options: options, client: client, cancel: cancel, pods: map[types.UID]*pod{}}
	if err := n.register(ctx); err != nil {
		cancel()
		return nil, err
	}
	n.tasks.Go(func() { n.keepLease(living) })
	if err := n.watch(ctx, living); err != nil {
		return nil, errors.Join(err, n.Close(context.WithoutCancel(ctx)))
	}
	return n, nil
}

// register makes the Node and its first lease.
func (n *Node) register(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name:   n.options.Name,
		Labels: map[string]string{corev1.LabelHostname: n.options.Name, corev1.LabelOSStable: "linux"},
	}}
	if _, err := n.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("register node %s: %w", n.options.Name, err)
	}
	now := metav1.Now()
	room := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("64"), corev1.ResourceMemory: resource.MustParse("256Gi"), corev1.ResourcePods: resource.MustParse("500"),
		corev1.ResourceEphemeralStorage: resource.MustParse("1Ti"),
	}
	// A patch, since the node's controllers write to it as well.
	status, err := json.Marshal(map[string]any{"status": corev1.NodeStatus{
		Capacity: room, Allocatable: room,
		Conditions: []corev1.NodeCondition{{
			Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "HostProcesses", LastHeartbeatTime: now, LastTransitionTime: now,
			Message: "containers are processes of this machine",
		}},
		Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}},
		NodeInfo:  corev1.NodeSystemInfo{OperatingSystem: "linux", ContainerRuntimeVersion: "process://1"},
	}})
	if err != nil {
		return fmt.Errorf("status of node %s: %w", n.options.Name, err)
	}
	if _, err := n.client.CoreV1().Nodes().Patch(ctx, n.options.Name, types.StrategicMergePatchType, status, metav1.PatchOptions{}, "status"); err != nil {
		return fmt.Errorf("status of node %s: %w", n.options.Name, err)
	}
	return n.renew(ctx)
}

// keepLease shows that the node is there until the context ends.
func (n *Node) keepLease(ctx context.Context) {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := n.renew(ctx); err != nil && ctx.Err() == nil {
				n.options.Problem(err)
			}
		}
	}
}

func (n *Node) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	leases := n.client.CoordinationV1().Leases(leaseNamespace)
	now, seconds := metav1.NowMicro(), int32(leaseSeconds)
	lease, err := leases.Get(ctx, n.options.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		lease = &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: n.options.Name},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: &n.options.Name, LeaseDurationSeconds: &seconds, RenewTime: &now},
		}
		_, err = leases.Create(ctx, lease, metav1.CreateOptions{})
	case err == nil:
		lease.Spec.RenewTime = &now
		_, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("lease of node %s: %w", n.options.Name, err)
	}
	return nil
}

// watch follows the pods of the node.
func (n *Node) watch(ctx, living context.Context) error {
	factory := informers.NewSharedInformerFactoryWithOptions(n.client, 0, informers.WithTweakListOptions(func(options *metav1.ListOptions) {
		options.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", n.options.Name).String()
	}))
	informer := factory.Core().V1().Pods().Informer()
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { n.seen(living, object) },
		UpdateFunc: func(_, object any) { n.seen(living, object) },
		DeleteFunc: n.gone,
	}); err != nil {
		return fmt.Errorf("watch the pods of node %s: %w", n.options.Name, err)
	}
	n.tasks.Go(func() { informer.RunWithContext(living) })
	ctx, cancel := context.WithTimeout(ctx, syncLimit)
	defer cancel()
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return fmt.Errorf("the pods of node %s could not be read within %s", n.options.Name, syncLimit)
	}
	return nil
}

// seen starts a new pod and tells a known one that it is being deleted.
func (n *Node) seen(living context.Context, object any) {
	read, ok := object.(*corev1.Pod)
	if !ok {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	p, known := n.pods[read.UID]
	if !known {
		if read.Status.Phase == corev1.PodSucceeded || read.Status.Phase == corev1.PodFailed || living.Err() != nil {
			return
		}
		p = newPod(n, read.DeepCopy())
		n.pods[read.UID] = p
		n.tasks.Go(func() { p.run(living) })
	}
	if read.DeletionTimestamp != nil {
		p.delete(read.DeletionGracePeriodSeconds)
	}
}

// gone ends a pod whose object is no more.
func (n *Node) gone(object any) {
	if tombstone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = tombstone.Obj
	}
	read, ok := object.(*corev1.Pod)
	if !ok {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if p, known := n.pods[read.UID]; known {
		none := int64(0)
		p.delete(&none)
		delete(n.pods, read.UID)
	}
}

// Close kills what the pods run and takes the node out of the cluster, if that
// still answers.
func (n *Node) Close(ctx context.Context) error {
	n.cancel()
	n.tasks.Wait()
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	if err := n.client.CoreV1().Nodes().Delete(ctx, n.options.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove node %s: %w", n.options.Name, err)
	}
	if err := os.RemoveAll(n.options.Dir); err != nil {
		return fmt.Errorf("remove the files of node %s: %w", n.options.Name, err)
	}
	return nil
}
