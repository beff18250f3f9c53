package cluster

import (
	"context"
	"errors"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// DeleteJobLeavingRights deletes the Job with all it owns, but leaves the RoleBindings of
// its build in the target namespaces: for an uninstall that may not touch them any more.
// The ServiceAccount that they name goes with the Job, so they give nobody anything.
func (c *Cluster) DeleteJobLeavingRights(ctx context.Context, name, uid string) error {
	job, err := c.ourJob(ctx, name, uid)
	if err != nil || job == nil {
		return err
	}
	return c.deleteOnly(ctx, job, "")
}

// Remains names everything of this instance that is there, by a live read: Jobs, pods and
// ServiceAccounts, and RoleBindings in the namespaces that Config.TargetNamespaces gives or
// a Job records. What can't be read is an error beside the rest.
func (c *Cluster) Remains(ctx context.Context) ([]string, error) {
	var names []string
	jobs, err := c.liveJobs(ctx)
	wrong := []error{err}
	names = append(names, namesOf(kindJob, jobs)...)
	pods, err := c.livePods(ctx, c.selector())
	wrong = append(wrong, err)
	names = append(names, namesOf(kindPod, pods)...)
	accounts, err := c.serviceAccounts(ctx)
	wrong = append(wrong, err)
	names = append(names, namesOf(kindServiceAccount, accounts)...)
	namespaces, err := c.targetNamespaces(jobs)
	wrong = append(wrong, err)
	for _, namespace := range namespaces {
		bindings, err := c.roleBindings(ctx, namespace)
		wrong = append(wrong, err)
		names = append(names, namesOf(kindRoleBinding, bindings)...)
	}
	slices.Sort(names)
	return names, errors.Join(wrong...)
}

func namesOf[T metav1.Object](kind string, objects []T) []string {
	names := make([]string, 0, len(objects))
	for _, object := range objects {
		names = append(names, objectName(kind, object.GetNamespace(), object.GetName()))
	}
	return names
}
