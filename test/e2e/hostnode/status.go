package hostnode

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// reportTries is how often a status is sent until it is the next one's turn.
const reportTries = 5

// report sends the pod's status. The reporting mutex keeps an older picture from
// overtaking a newer one.
func (p *pod) report(ctx context.Context) {
	p.reporting.Lock()
	defer p.reporting.Unlock()
	p.mu.Lock()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.object.UID}, "status": p.status()})
	p.mu.Unlock()
	for try := 0; err == nil && try < reportTries; try++ {
		if err = p.send(ctx, patch); err == nil {
			return
		}
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) || ctx.Err() != nil {
			return // Its object is gone, or another has its name.
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryEvery):
		}
	}
	p.node.options.Problem(fmt.Errorf("status of pod %s/%s: %w", p.object.Namespace, p.object.Name, err))
}

func (p *pod) send(ctx context.Context, patch []byte) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	_, err := p.node.client.CoreV1().Pods(p.object.Namespace).Patch(ctx, p.object.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// status is the pod's status as it is now. The mutex is held.
func (p *pod) status() corev1.PodStatus {
	initialised, ready := true, p.phase == corev1.PodRunning
	status := corev1.PodStatus{Phase: p.phase, StartTime: &p.started, HostIP: "127.0.0.1", PodIP: "127.0.0.1"}
	for _, c := range p.inits {
		status.InitContainerStatuses = append(status.InitContainerStatuses, c.status())
		initialised = initialised && (c.sidecar() && !c.startedAt.IsZero() || c.ended && c.exitCodeLocked() == 0)
		ready = ready && (!c.sidecar() || !c.ended && c.waiting == "")
	}
	for _, c := range p.containers {
		status.ContainerStatuses = append(status.ContainerStatuses, c.status())
		ready = ready && c.isReady
	}
	if ready != p.wasReady {
		p.wasReady, p.ready = ready, metav1.Now()
	}
	reason := ""
	if !ready {
		reason = "ContainersNotReady"
		if p.phase == corev1.PodSucceeded {
			reason = "PodCompleted"
		}
	}
	status.Conditions = []corev1.PodCondition{
		condition(corev1.PodInitialized, initialised, p.started, ""),
		condition(corev1.ContainersReady, ready, p.changed(), reason),
		condition(corev1.PodReady, ready, p.changed(), reason),
	}
	return status
}

// changed is when the pod's readiness last changed: at its start, if never.
func (p *pod) changed() metav1.Time {
	if p.ready.IsZero() {
		return p.started
	}
	return p.ready
}

func condition(kind corev1.PodConditionType, is bool, since metav1.Time, reason string) corev1.PodCondition {
	status := corev1.ConditionFalse
	if is {
		status = corev1.ConditionTrue
	}
	return corev1.PodCondition{Type: kind, Status: status, LastTransitionTime: since, Reason: reason}
}

// status is the container's status as it is now. The pod's mutex is held.
func (c *container) status() corev1.ContainerStatus {
	status := corev1.ContainerStatus{
		Name: c.spec.Name, Image: c.spec.Image, Started: &c.isStarted, Ready: c.isReady,
		RestartCount: c.restarts, LastTerminationState: corev1.ContainerState{Terminated: c.before},
	}
	if c.process != nil {
		status.ContainerID = c.id()
		status.ImageID = c.spec.Image
	}
	switch {
	case c.ended:
		terminated := c.terminated()
		// An init container that ended well counts as ready.
		status.Ready = !c.sidecar() && terminated.ExitCode == 0 && c.isInit()
		status.State.Terminated = terminated
	case c.waiting != "" || c.startedAt.IsZero():
		status.State.Waiting = &corev1.ContainerStateWaiting{Reason: c.waiting, Message: c.waitingText}
	default:
		status.State.Running = &corev1.ContainerStateRunning{StartedAt: c.startedAt}
	}
	return status
}

// terminated is how the container ended. The pod's mutex is held.
func (c *container) terminated() *corev1.ContainerStateTerminated {
	terminated := &corev1.ContainerStateTerminated{
		ExitCode: int32(c.exitCodeLocked()), StartedAt: c.startedAt, FinishedAt: c.finishedAt, Message: c.message, Reason: "Completed", ContainerID: c.id(), //nolint:gosec // An exit status is small.
	}
	if terminated.ExitCode != 0 {
		terminated.Reason = "Error"
	}
	return terminated
}

// id names the container as long as it is not restarted. The pod's mutex is held.
func (c *container) id() string {
	return fmt.Sprintf("process://%s/%s/%d", c.pod.object.UID, c.spec.Name, c.restarts)
}

func (c *container) isInit() bool {
	for _, other := range c.pod.inits {
		if other == c {
			return true
		}
	}
	return false
}
