package hostnode

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	retryEvery = 500 * time.Millisecond
	// defaultGrace is Kubernetes' own.
	defaultGrace = 30 * time.Second
)

// pod is one pod's life. One goroutine runs it; the state that probes and the
// status share is behind the mutex.
type pod struct {
	node    *Node
	object  *corev1.Pod
	dir     string
	volumes map[string]string // Directories by the volume's name.

	tending sync.WaitGroup // Those who restart sidecars.

	deleted    chan struct{} // Closed when the pod is being deleted.
	deleteOnce sync.Once
	grace      time.Duration // Set before deleted is closed.

	reporting sync.Mutex // Taken before mu.

	mu         sync.Mutex
	started    metav1.Time
	inits      []*container
	containers []*container
	phase      corev1.PodPhase
	ready      metav1.Time // When the pod last became ready or stopped being so.
	wasReady   bool
}

func newPod(n *Node, object *corev1.Pod) *pod {
	p := &pod{
		node: n, object: object, dir: filepath.Join(n.options.Dir, string(object.UID)), volumes: map[string]string{},
		deleted: make(chan struct{}), phase: corev1.PodPending, started: metav1.Now(),
	}
	for i := range object.Spec.InitContainers {
		p.inits = append(p.inits, newContainer(p, &object.Spec.InitContainers[i]))
	}
	for i := range object.Spec.Containers {
		p.containers = append(p.containers, newContainer(p, &object.Spec.Containers[i]))
	}
	return p
}

// delete starts the pod's end. Later calls change nothing.
func (p *pod) delete(graceSeconds *int64) {
	p.deleteOnce.Do(func() {
		p.grace = defaultGrace
		if graceSeconds != nil {
			p.grace = time.Duration(*graceSeconds) * time.Second
		}
		close(p.deleted)
	})
}

// run takes the pod from its start to its end. When the node closes, everything
// is killed.
func (p *pod) run(ctx context.Context) {
	living, stop := context.WithCancel(ctx)
	var refresh sync.WaitGroup
	defer func() {
		stop()
		refresh.Wait()
		p.tending.Wait()
		for _, c := range p.all() {
			c.kill()
		}
		if err := os.RemoveAll(p.dir); err != nil {
			p.node.options.Problem(fmt.Errorf("remove the files of pod %s: %w", p.object.Name, err))
		}
	}()
	p.report(ctx)
	if p.prepare(ctx) {
		refresh.Go(func() { p.refreshSecrets(living) })
		if p.initialise(ctx, living) {
			p.serve(ctx)
		}
	}
	stop() // A kubelet that ends a pod's sidecars shows it nothing new, and restarts none.
	p.tending.Wait()
	p.end(ctx)
	if ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	p.settle()
	p.mu.Unlock()
	p.report(ctx)
	// A finished pod stays as it is until its object goes.
	select {
	case <-p.deleted:
		p.remove(ctx)
	case <-ctx.Done():
	}
}

// prepare makes the volumes, again and again until what they need is there.
func (p *pod) prepare(ctx context.Context) bool {
	for {
		err := p.makeVolumes(ctx)
		if err == nil {
			return true
		}
		p.mu.Lock()
		for _, c := range p.all() {
			c.waiting, c.waitingText = "ContainerCreating", err.Error()
		}
		p.mu.Unlock()
		p.report(ctx)
		select {
		case <-ctx.Done():
			return false
		case <-p.deleted:
			return false
		case <-time.After(retryEvery):
		}
	}
}

// initialise runs the init containers in their order. Sidecars are started and
// stay, restarted as long as the pod lives; the others must end well.
func (p *pod) initialise(ctx, living context.Context) bool {
	for _, c := range p.inits {
		if !c.start() {
			p.report(ctx)
			return false
		}
		p.report(ctx)
		if c.sidecar() {
			p.tending.Go(func() { p.tend(living, c) })
			continue
		}
		select {
		case <-c.done():
		case <-p.deleted:
			return false
		case <-ctx.Done():
			return false
		}
		c.settle()
		p.report(ctx)
		if c.exitCode() != 0 {
			return false
		}
	}
	return true
}

// serve runs the pod's containers until all have ended, or the pod is deleted.
func (p *pod) serve(ctx context.Context) {
	probing, stop := context.WithCancel(ctx)
	var probes sync.WaitGroup
	defer probes.Wait()
	defer stop()
	for _, c := range p.containers {
		if !c.start() {
			p.report(ctx)
			return
		}
	}
	p.mu.Lock()
	p.phase = corev1.PodRunning
	p.mu.Unlock()
	p.report(ctx)
	for _, c := range p.containers {
		probes.Go(func() { c.probe(probing) })
	}
	for _, c := range p.containers {
		select {
		case <-c.done():
			c.settle()
			p.report(ctx)
		case <-p.deleted:
			return
		case <-ctx.Done():
			return
		}
	}
}

// end ends what still runs, as a kubelet does: at a deletion all preStop hooks
// run at once and the containers are told to end; the sidecars are told so when
// the containers have ended, in the reverse of their order.
func (p *pod) end(ctx context.Context) {
	deadline := time.Now().Add(p.graceLeft())
	var hooks, ends sync.WaitGroup
	for _, c := range p.all() {
		if c.sidecar() {
			hooks.Go(func() { c.preStop(ctx, deadline) })
		} else {
			ends.Go(func() {
				c.preStop(ctx, deadline)
				c.stop(ctx, deadline)
			})
		}
	}
	ends.Wait()
	p.report(ctx)
	hooks.Wait()
	for i := len(p.inits) - 1; i >= 0; i-- {
		p.inits[i].stop(ctx, deadline)
	}
}

// graceLeft is the grace period of the deletion, or of the pod's own end.
func (p *pod) graceLeft() time.Duration {
	select {
	case <-p.deleted:
		return p.grace
	default:
	}
	if seconds := p.object.Spec.TerminationGracePeriodSeconds; seconds != nil {
		return time.Duration(*seconds) * time.Second
	}
	return defaultGrace
}

// settle gives the pod its final phase. The mutex is held.
func (p *pod) settle() {
	p.phase = corev1.PodSucceeded
	for _, c := range p.all() {
		if c.sidecar() {
			continue
		}
		if c.process == nil || c.exitCodeLocked() != 0 {
			p.phase = corev1.PodFailed
		}
	}
}

// remove takes the pod's object away once nothing of it runs any more.
func (p *pod) remove(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	none := int64(0)
	err := p.node.client.CoreV1().Pods(p.object.Namespace).Delete(ctx, p.object.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &none, Preconditions: &metav1.Preconditions{UID: &p.object.UID},
	})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && ctx.Err() == nil {
		p.node.options.Problem(fmt.Errorf("remove pod %s/%s: %w", p.object.Namespace, p.object.Name, err))
	}
}

// all gives every container, in the order in which they start.
func (p *pod) all() []*container {
	return append(append(make([]*container, 0, len(p.inits)+len(p.containers)), p.inits...), p.containers...)
}
