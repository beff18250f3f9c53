package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
)

// suspendPoll is how often a Job that is being suspended is looked at.
const suspendPoll = 100 * time.Millisecond

// podEndPoll is how often a pod that is being deleted is looked at.
const podEndPoll = 250 * time.Millisecond

// looks is how often a Job is looked at anew because it changed under the look.
const looks = 3

// DeleteJob ends the build's rights and deletes the Job with all it owns. The
// caller has made sure that its agent has no build. A Job that is gone, or that
// is another one of the same name, is no error.
func (c *Cluster) DeleteJob(ctx context.Context, name, uid string) error {
	job, err := c.ourJob(ctx, name, uid)
	if err != nil || job == nil {
		return err
	}
	return c.deleteJob(ctx, job)
}

// ourJob reads a Job of ours live; nil without an error is one that is gone, or another one
// of the same name.
func (c *Cluster) ourJob(ctx context.Context, name, uid string) (*batchv1.Job, error) {
	job, err := c.getJob(ctx, name)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, nil //nolint:nilnil // Nothing to be done is no error.
	case err != nil:
		return nil, err
	case string(job.UID) != uid || !c.isOurs(job):
		return nil, nil //nolint:nilnil // As above.
	}
	return job, nil
}

// deleteJob takes the rights first: the Job is the record of where they are, so
// it must be the last to go.
func (c *Cluster) deleteJob(ctx context.Context, job *batchv1.Job) error {
	if err := c.endRightsOf(ctx, job); err != nil {
		return err
	}
	return c.deleteOnly(ctx, job, "")
}

// deleteOnly deletes the Job, at the version looked at where one is given.
func (c *Cluster) deleteOnly(ctx context.Context, job *batchv1.Job, version string) error {
	// Without a policy, a batch/v1 Job is deleted and what it owns is orphaned.
	policy := metav1.DeletePropagationBackground
	options := metav1.DeleteOptions{Preconditions: preconditions(job.UID, version), PropagationPolicy: &policy}
	err := c.bounded(ctx, func(ctx context.Context) error {
		return c.client.BatchV1().Jobs(job.Namespace).Delete(ctx, job.Name, options)
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return fail("delete", kindJob, job.Namespace, job.Name, err)
}

func preconditions(uid types.UID, version string) *metav1.Preconditions {
	p := &metav1.Preconditions{UID: &uid}
	if version != "" {
		p.ResourceVersion = &version
	}
	return p
}

// DeleteUnstarted deletes the Job if its agent can't have been given a build: if
// live reads show that the agent's container does not run and will not. It
// reports whether the Job is gone; false without an error means that the agent
// has started, and that ending it is another matter.
//
//	suspended, no pod   no pod comes: delete the Job at the version looked at
//	a pod, not started  delete the pod at the version looked at, wait until it is
//	                    gone, then delete the Job
//	a pod, started      leave it
//	no pod, not         the Job controller may be making the pod at this moment:
//	suspended           suspend the Job, wait until the controller says that it has
//	                    seen that, and look again
//
// Where the cluster has moved on since the look, the version tells, and it is
// looked at again, a few times; then the error is ErrStale.
//
// A pod's status is late by a moment, and a kubelet that is about to start the
// agent hears of the deletion after that: such an agent may still be given a
// build, which it runs within its grace period. So the rights and the Job stay
// until the pod is gone. If its agent starts after all, or if it is not gone
// within Config.PodEndWait, the answer is false: whether the agent has a build is
// then for the service to say.
func (c *Cluster) DeleteUnstarted(ctx context.Context, name, uid string) (deleted bool, err error) {
	for range looks {
		deleted, err = c.deleteUnstarted(ctx, name, uid)
		if !errors.Is(err, ErrStale) {
			break
		}
	}
	return deleted, err
}

// deleteUnstarted is one look, and what follows from it.
func (c *Cluster) deleteUnstarted(ctx context.Context, name, uid string) (bool, error) {
	job, err := c.ourJob(ctx, name, uid)
	if err != nil {
		return false, err
	}
	if job == nil || job.DeletionTimestamp != nil {
		return true, nil
	}
	pods, err := c.podsOf(ctx, job)
	if err != nil {
		return false, err
	}
	if len(pods) == 0 && !suspendedJob(job) {
		if job, err = c.suspend(ctx, job); err != nil {
			return false, err
		}
		if pods, err = c.podsOf(ctx, job); err != nil {
			return false, err
		}
	}
	for _, pod := range pods {
		if agentBegun(pod) {
			return false, nil
		}
	}
	if len(pods) == 0 {
		return c.deleteSuspended(ctx, job)
	}
	for _, pod := range pods {
		if pod.DeletionTimestamp != nil || podOver(pod) {
			continue
		}
		err := c.bounded(ctx, func(ctx context.Context) error {
			return c.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{Preconditions: preconditions(pod.UID, pod.ResourceVersion)})
		})
		if err != nil && !apierrors.IsNotFound(err) {
			return false, fail("delete", kindPod, pod.Namespace, pod.Name, err)
		}
	}
	if over, err := c.awaitPodsEnd(ctx, job); err != nil || !over {
		return false, err
	}
	// The pod's end changes the Job's version, and there is nothing left in it that
	// could start: the UID is enough.
	if err := c.deleteJob(ctx, job); err != nil {
		return false, err
	}
	return true, nil
}

// awaitPodsEnd waits until no pod of the Job is left that could run the agent. It
// reports false as soon as an agent has started, or when the wait is over.
func (c *Cluster) awaitPodsEnd(ctx context.Context, job *batchv1.Job) (bool, error) {
	begun := false
	// A look that has begun is finished, within its own limit: one cut short by the
	// end of the wait would be told as a failure.
	err := wait.PollUntilContextTimeout(ctx, podEndPoll, c.config.PodEndWait, true, func(context.Context) (bool, error) {
		pods, err := c.podsOf(ctx, job)
		if err != nil {
			return false, err
		}
		begun = slices.ContainsFunc(pods, agentBegun)
		return begun || !slices.ContainsFunc(pods, mayRun), nil
	})
	if wait.Interrupted(err) && ctx.Err() == nil {
		return false, nil
	}
	return err == nil && !begun, err
}

// deleteSuspended deletes a Job that has no pod and gets none. Here the Job goes
// first: should somebody have let it run meanwhile, the version keeps it, and its
// build must not find its rights gone. What a crash leaves between the two, Sweep
// removes.
func (c *Cluster) deleteSuspended(ctx context.Context, job *batchv1.Job) (bool, error) {
	if err := c.deleteOnly(ctx, job, job.ResourceVersion); err != nil {
		return false, err
	}
	if err := c.endRightsOf(ctx, job); err != nil {
		c.log.WarnContext(ctx, "rights of a deleted Job are left to the next sweep", "job", job.Name, "error", err)
	}
	return true, nil
}

// podsOf lists the pods of one Job live.
func (c *Cluster) podsOf(ctx context.Context, job *batchv1.Job) ([]*corev1.Pod, error) {
	pods, err := c.livePods(ctx, c.selector()+","+batchv1.ControllerUidLabel+"="+string(job.UID))
	if err != nil {
		return nil, err
	}
	owned := pods[:0]
	for _, pod := range pods {
		if owner := metav1.GetControllerOf(pod); owner != nil && owner.UID == job.UID {
			owned = append(owned, pod)
		}
	}
	return owned, nil
}

// mayRun reports whether a pod that is being deleted can still come to run. One
// without a node can't: it is bound to none any more, though it may stay around.
func mayRun(pod *corev1.Pod) bool { return !podOver(pod) && pod.Spec.NodeName != "" }

func suspendedJob(job *batchv1.Job) bool { return job.Spec.Suspend != nil && *job.Spec.Suspend }

// agentBegun reports whether the agent's container runs or has run. It need not
// have passed its startup probe: an agent is assignable a moment before that.
func agentBegun(pod *corev1.Pod) bool {
	status := containerStatus(pod.Status.ContainerStatuses, agentjob.ContainerAgent)
	return status != nil && (status.State.Running != nil || status.State.Terminated != nil || status.LastTerminationState.Terminated != nil)
}

// suspend stops the Job controller from making a pod, and waits until it says
// that it has seen that. The pod that it may have made in between is then there to
// be looked at.
func (c *Cluster) suspend(ctx context.Context, job *batchv1.Job) (*batchv1.Job, error) {
	err := c.patchJob(ctx, job.Name, map[string]any{
		"metadata": map[string]any{"uid": job.UID, "resourceVersion": job.ResourceVersion},
		"spec":     map[string]any{"suspend": true},
	})
	if err != nil {
		return nil, fail("suspend", kindJob, job.Namespace, job.Name, stale(err))
	}
	live := job
	err = wait.PollUntilContextTimeout(ctx, suspendPoll, c.config.SuspendWait, true, func(context.Context) (bool, error) {
		var err error
		if live, err = c.getJob(ctx, job.Name); err != nil {
			return false, err
		}
		if live.UID != job.UID || !suspendedJob(live) {
			return false, &Error{Op: "suspend", Object: objectName(kindJob, job.Namespace, job.Name), Kind: ErrStale}
		}
		return jobDone(live) != nil || acknowledgedSuspension(live), nil
	})
	switch {
	case err == nil:
		return live, nil
	case wait.Interrupted(err):
		return nil, &Error{
			Op: "suspend", Object: objectName(kindJob, job.Namespace, job.Name), Kind: ErrUnavailable, Err: err,
			Remedy: fmt.Sprintf("the Job controller has not answered within %s: look at kube-controller-manager", c.config.SuspendWait),
		}
	default:
		return nil, err
	}
}

func acknowledgedSuspension(job *batchv1.Job) bool {
	for _, condition := range job.Status.Conditions {
		if condition.Type == batchv1.JobSuspended {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}
