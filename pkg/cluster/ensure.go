package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// Register registers the agent of a Job that is there and suspended, and gives the Secret
// that the agent runs on, and the agent's number in the pool.
type Register func(ctx context.Context, job *batchv1.Job) (secret *corev1.Secret, agentID int, err error)

// Ensure makes the suspended Job, then its ServiceAccount, then its rights, and
// then lets it run. A crash between any two of these leaves a suspended Job that
// Complete goes on with, from what the Job records.
//
// A Job of that name which is there already is gone on with if a live read shows
// that it is ours, unfinished and not being deleted; otherwise the error is
// ErrNameTaken. Beside another error, the returned AgentJob has its name and UID
// if a half-made Job is there.
//
// A Job whose agent the scaler registers has that done last of all, and the Job records
// the agent in the same write that lets it run. What an agent signs in with is nowhere but
// in its Secret, so such a Job is never gone on with by anybody else: one of that name
// which is suspended and records no agent is ErrNameTaken.
func (c *Cluster) Ensure(ctx context.Context, job *batchv1.Job, register Register) (agentpool.AgentJob, error) {
	if job.Spec.Suspend == nil || !*job.Spec.Suspend {
		return agentpool.AgentJob{}, &Error{
			Op: "create", Object: objectName(kindJob, job.Namespace, job.Name), Kind: ErrInvalid,
			Remedy: "a Job must be made suspended, so that its pod does not run before its rights are there",
		}
	}
	live, made, err := c.createJob(ctx, job)
	if err != nil {
		return agentpool.AgentJob{}, err
	}
	if !made && unregistered(live) {
		return agentpool.AgentJob{}, &Error{
			Op: "create", Object: objectName(kindJob, job.Namespace, job.Name), Kind: ErrNameTaken,
			Remedy: "its agent was never registered: it is replaced",
		}
	}
	agentID, err := c.complete(ctx, live, register)
	shown, ours := join(live, nil, nil)
	if !ours {
		return agentpool.AgentJob{}, errors.Join(err, &Error{
			Op: "create", Object: objectName(kindJob, job.Namespace, job.Name), Kind: ErrInvalid,
			Remedy: "the name is not one that agentjob.JobName gives, so it could never be found again",
		})
	}
	if err == nil {
		shown.Suspended, shown.AgentID = false, cmp.Or(shown.AgentID, agentID)
	}
	return shown, err
}

// Complete goes on with a half-made Job from what a live read shows. A Job that
// runs already, has ended, is being deleted or is gone is left alone: then there
// is nothing to complete, and that is no error.
func (c *Cluster) Complete(ctx context.Context, name, uid string) error {
	job, err := c.ourJob(ctx, name, uid)
	if err != nil || job == nil || !c.usable(job) {
		return err
	}
	_, err = c.complete(ctx, job, nil)
	return err
}

// unregistered reports whether a Job has no agent to run, and only whoever made it could
// have given it one.
func unregistered(job *batchv1.Job) bool {
	return job.Annotations[agentjob.AnnotationRegistration] == string(agentpool.RegistrationJIT) && job.Annotations[agentjob.AnnotationAgentID] == ""
}

// usable reports whether a Job is ours and can still run its agent.
func (c *Cluster) usable(job *batchv1.Job) bool {
	return c.isOurs(job) && job.DeletionTimestamp == nil && jobDone(job) == nil
}

// createJob creates the Job, or gives the one that is there if it is ours and
// still usable. It reports whether it has made it.
func (c *Cluster) createJob(ctx context.Context, job *batchv1.Job) (_ *batchv1.Job, made bool, err error) {
	created, err := func() (*batchv1.Job, error) {
		call, cancel := c.call(ctx)
		defer cancel()
		return c.client.BatchV1().Jobs(c.config.Namespace).Create(call, job, metav1.CreateOptions{FieldManager: component})
	}()
	if err == nil {
		return created, true, nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return nil, false, fail("create", kindJob, c.config.Namespace, job.Name, err)
	}
	// Only a live read tells an answer that was lost from a Job that has ended or
	// is another's: the cache may be older than both.
	live, err := c.getJob(ctx, job.Name)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, false, err
	}
	if err != nil || !c.usable(live) {
		return nil, false, &Error{Op: "create", Object: objectName(kindJob, c.config.Namespace, job.Name), Kind: ErrNameTaken}
	}
	return live, false, nil
}

// complete takes a Job from wherever it is to running. Every step finds what an
// earlier attempt has made. It gives the number of the agent that it had registered, if any.
func (c *Cluster) complete(ctx context.Context, job *batchv1.Job, register Register) (agentID int, err error) {
	if job.Spec.Suspend == nil || !*job.Spec.Suspend {
		return 0, nil
	}
	if register == nil && unregistered(job) {
		return 0, &Error{
			Op: "complete", Object: objectName(kindJob, job.Namespace, job.Name), Kind: ErrInvalid,
			Remedy: "its agent was never registered: it has to be replaced",
		}
	}
	if agentjob.HasOwnAccount(job) {
		if err := c.ensureServiceAccount(ctx, job); err != nil {
			return 0, err
		}
	}
	bindings, err := agentjob.RoleBindings(job)
	if err != nil {
		return 0, &Error{Op: "complete", Object: objectName(kindJob, job.Namespace, job.Name), Kind: ErrInvalid, Err: err}
	}
	for _, binding := range bindings {
		if err := c.ensureRoleBinding(ctx, job, binding); err != nil {
			return 0, err
		}
	}
	if unregistered(job) {
		if agentID, err = c.register(ctx, job, register); err != nil {
			return 0, err
		}
	}
	return agentID, c.unsuspend(ctx, job, agentID)
}

// register has the agent registered and puts what it runs on into the Job's Secret.
func (c *Cluster) register(ctx context.Context, job *batchv1.Job, register Register) (agentID int, err error) {
	secret, agentID, err := register(ctx, job)
	if err != nil {
		return 0, err
	}
	err = c.bounded(ctx, func(ctx context.Context) error {
		_, err := c.client.CoreV1().Secrets(job.Namespace).Create(ctx, secret, metav1.CreateOptions{FieldManager: component})
		return err
	})
	// One that is there already is of another agent, and can't be told to be otherwise, as
	// no Secret is read here.
	return agentID, fail("create", kindSecret, secret.Namespace, secret.Name, err)
}

func (c *Cluster) ensureServiceAccount(ctx context.Context, job *batchv1.Job) error {
	account, err := agentjob.ServiceAccount(job)
	if err != nil {
		return &Error{Op: "complete", Object: objectName(kindJob, job.Namespace, job.Name), Kind: ErrInvalid, Err: err}
	}
	accounts := c.client.CoreV1().ServiceAccounts(job.Namespace)
	return ensureMade(ctx, c, kindServiceAccount, job, account, steps[*corev1.ServiceAccount]{
		create: func(ctx context.Context, o *corev1.ServiceAccount) (*corev1.ServiceAccount, error) {
			return accounts.Create(ctx, o, metav1.CreateOptions{FieldManager: component})
		},
		get: func(ctx context.Context, name string) (*corev1.ServiceAccount, error) {
			return accounts.Get(ctx, name, metav1.GetOptions{})
		},
		remove: accounts.Delete,
	})
}

func (c *Cluster) ensureRoleBinding(ctx context.Context, job *batchv1.Job, binding *rbacv1.RoleBinding) error {
	bindings := c.client.RbacV1().RoleBindings(binding.Namespace)
	return ensureMade(ctx, c, kindRoleBinding, job, binding, steps[*rbacv1.RoleBinding]{
		create: func(ctx context.Context, o *rbacv1.RoleBinding) (*rbacv1.RoleBinding, error) {
			return bindings.Create(ctx, o, metav1.CreateOptions{FieldManager: component})
		},
		get: func(ctx context.Context, name string) (*rbacv1.RoleBinding, error) {
			return bindings.Get(ctx, name, metav1.GetOptions{})
		},
		remove: bindings.Delete,
	})
}

// steps are the calls by which an object is made.
type steps[T metav1.Object] struct {
	create func(context.Context, T) (T, error)
	get    func(context.Context, string) (T, error)
	remove func(context.Context, string, metav1.DeleteOptions) error
}

// ensureMade creates an object that belongs to the Job. One of that name that
// belongs to this very Job is an earlier attempt's. One that belongs to an earlier
// Job of the same name is what a crash has left: that Job can't exist any more,
// so it is removed and made anew. Anything else is not ours to touch.
func ensureMade[T metav1.Object](ctx context.Context, c *Cluster, kind string, job *batchv1.Job, object T, do steps[T]) error {
	namespace, name := object.GetNamespace(), object.GetName()
	// Twice: once more after a leftover has been removed.
	for range 2 {
		err := c.bounded(ctx, func(ctx context.Context) error {
			_, err := do.create(ctx, object)
			return err
		})
		if !apierrors.IsAlreadyExists(err) {
			return fail("create", kind, namespace, name, err)
		}
		var found T
		err = c.bounded(ctx, func(ctx context.Context) (err error) {
			found, err = do.get(ctx, name)
			return err
		})
		switch {
		case apierrors.IsNotFound(err):
			continue
		case err != nil:
			return fail("get", kind, namespace, name, err)
		case !c.isOurs(found):
			return &Error{
				Op: "create", Object: objectName(kind, namespace, name), Kind: ErrNameTaken,
				Remedy: "an object of that name exists that is not of this installation: delete or rename it",
			}
		case found.GetLabels()[agentjob.LabelJobUID] == string(job.UID):
			return nil
		}
		uid := found.GetUID()
		err = c.bounded(ctx, func(ctx context.Context) error {
			return do.remove(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
		})
		if err != nil && !apierrors.IsNotFound(err) {
			return fail("delete", kind, namespace, name, err)
		}
	}
	return &Error{
		Op: "create", Object: objectName(kind, namespace, name), Kind: ErrStale,
		Remedy: "somebody else makes and removes an object of that name",
	}
}

// unsuspend lets the Job run, and records the agent that was registered for it, if any.
// The UID in the patch has the API server refuse it for another Job of the same name.
func (c *Cluster) unsuspend(ctx context.Context, job *batchv1.Job, agentID int) error {
	metadata := map[string]any{"uid": job.UID}
	if agentID != 0 {
		metadata["annotations"] = map[string]any{agentjob.AnnotationAgentID: strconv.Itoa(agentID)}
	}
	err := c.patchJob(ctx, job.Name, map[string]any{"metadata": metadata, "spec": map[string]any{"suspend": false}})
	if err != nil {
		return fail("unsuspend", kindJob, job.Namespace, job.Name, stale(err))
	}
	return nil
}

// patchJob sends a merge patch.
func (c *Cluster) patchJob(ctx context.Context, name string, patch map[string]any) error {
	body, err := json.Marshal(patch)
	if err != nil {
		return fmt.Errorf("write the patch of job %q: %w", name, err)
	}
	return c.bounded(ctx, func(ctx context.Context) error {
		_, err := c.client.BatchV1().Jobs(c.config.Namespace).Patch(ctx, name, types.MergePatchType, body, metav1.PatchOptions{FieldManager: component})
		return err
	})
}

// stale gives the error for a UID that differs as the conflict it is: the API
// server answers a patch with another UID as an invalid change of the field.
func stale(err error) error {
	var status apierrors.APIStatus
	if !apierrors.IsInvalid(err) || !errors.As(err, &status) || status.Status().Details == nil {
		return err
	}
	for _, cause := range status.Status().Details.Causes {
		if cause.Field == "metadata.uid" {
			return apierrors.NewConflict(batchv1.Resource("jobs"), status.Status().Details.Name, err)
		}
	}
	return err
}
