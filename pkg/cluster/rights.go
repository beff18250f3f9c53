package cluster

import (
	"context"
	"errors"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// EndRights takes back what the build was given: its RoleBindings, then its
// ServiceAccount. It may be called again and again; once it has succeeded, the
// Job records that, so that it costs nothing any more, after a restart either.
// Called for a Job that may still run its build, it would take the rights from
// under it: the caller looks first.
func (c *Cluster) EndRights(ctx context.Context, job agentpool.AgentJob) error {
	live, err := c.cachedJob(ctx, job.Name, job.UID)
	if errors.Is(err, ErrNotFound) {
		// The Job was the record of where the rights are. What is left of them, Sweep
		// finds by their labels.
		return nil
	}
	if err != nil {
		return err
	}
	if live.Annotations[agentjob.AnnotationRightsEnded] != "" || !givenRights(live) {
		return nil
	}
	if err := c.endRightsOf(ctx, live); err != nil {
		return err
	}
	err = c.patchJob(ctx, live.Name, map[string]any{"metadata": map[string]any{
		"uid":         live.UID,
		"annotations": map[string]any{agentjob.AnnotationRightsEnded: c.now().UTC().Format(time.RFC3339)},
	}})
	if err = stale(err); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fail("annotate", kindJob, live.Namespace, live.Name, err)
	}
	return nil
}

// givenRights reports whether there is anything to take back when the build ends. A build
// that runs as a standing account was given nothing.
func givenRights(job *batchv1.Job) bool {
	return agentjob.HasOwnAccount(job) || job.Annotations[agentjob.AnnotationRoleBindings] != ""
}

// cachedJob gives the Job from the cache, or live where the cache does not have
// it. What is read from it never changes, so its age does not matter.
func (c *Cluster) cachedJob(ctx context.Context, name, uid string) (*batchv1.Job, error) {
	if object, found, err := c.jobs.GetStore().GetByKey(c.config.Namespace + "/" + name); err == nil && found {
		if job, ok := object.(*batchv1.Job); ok && string(job.UID) == uid {
			return job, nil
		}
	}
	job, err := c.getJob(ctx, name)
	if err == nil && string(job.UID) != uid {
		return nil, &Error{Op: "get", Object: objectName(kindJob, c.config.Namespace, name), Kind: ErrNotFound}
	}
	return job, err
}

// endRightsOf deletes the rights that the Job records. One namespace that can't be
// reached does not keep the rights in another alive; the ServiceAccount goes last,
// as without it the bindings would look harmless to whoever lists them.
func (c *Cluster) endRightsOf(ctx context.Context, job *batchv1.Job) error {
	// A record that a person has spoilt in part still names the other rights.
	bindings, err := agentjob.RoleBindings(job)
	wrong := []error{err}
	if err != nil {
		wrong[0] = &Error{Op: "read the rights of", Object: objectName(kindJob, job.Namespace, job.Name), Kind: ErrInvalid, Err: err}
	}
	for _, binding := range bindings {
		wrong = append(wrong, c.endRoleBinding(ctx, binding.Namespace, binding.Name, job.UID))
	}
	if agentjob.HasOwnAccount(job) {
		wrong = append(wrong, c.endServiceAccount(ctx, job.Namespace, job.Name, job.UID))
	}
	return errors.Join(wrong...)
}

func (c *Cluster) endRoleBinding(ctx context.Context, namespace, name string, job types.UID) error {
	bindings := c.client.RbacV1().RoleBindings(namespace)
	return end(ctx, c, kindRoleBinding, namespace, name, job, func(ctx context.Context) (*rbacv1.RoleBinding, error) {
		return bindings.Get(ctx, name, metav1.GetOptions{})
	}, bindings.Delete)
}

func (c *Cluster) endServiceAccount(ctx context.Context, namespace, name string, job types.UID) error {
	accounts := c.client.CoreV1().ServiceAccounts(namespace)
	return end(ctx, c, kindServiceAccount, namespace, name, job, func(ctx context.Context) (*corev1.ServiceAccount, error) {
		return accounts.Get(ctx, name, metav1.GetOptions{})
	}, accounts.Delete)
}

// end deletes an object by name if it is the Job's. Whatever else has that name
// is left alone.
func end[T metav1.Object](ctx context.Context, c *Cluster, kind, namespace, name string, job types.UID,
	get func(context.Context) (T, error), remove func(context.Context, string, metav1.DeleteOptions) error,
) error {
	var found T
	err := c.bounded(ctx, func(ctx context.Context) (err error) {
		found, err = get(ctx)
		return err
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fail("get", kind, namespace, name, err)
	}
	if !c.isOurs(found) || found.GetLabels()[agentjob.LabelJobUID] != string(job) {
		return nil
	}
	return c.remove(ctx, kind, found, remove)
}

// remove deletes exactly the object that was looked at.
func (c *Cluster) remove(ctx context.Context, kind string, found metav1.Object, remove func(context.Context, string, metav1.DeleteOptions) error) error {
	err := c.bounded(ctx, func(ctx context.Context) error {
		return remove(ctx, found.GetName(), metav1.DeleteOptions{Preconditions: preconditions(found.GetUID(), "")})
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		// Gone, or another one by now.
		return nil
	}
	return fail("delete", kind, found.GetNamespace(), found.GetName(), err)
}
