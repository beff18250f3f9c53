package cluster

import (
	"context"
	"errors"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
)

// SweepReport says what a sweep has removed, as namespace/name.
type SweepReport struct {
	RoleBindings    []string
	ServiceAccounts []string
}

// Counts gives the numbers by kind, for metrics.
func (r SweepReport) Counts() map[string]int {
	return map[string]int{"rolebinding": len(r.RoleBindings), "serviceaccount": len(r.ServiceAccounts)}
}

// Sweep removes RoleBindings and ServiceAccounts of this instance that are older
// than the grace at now and whose Job is gone or has ended, in every namespace that
// Config.TargetNamespaces gives or a Job of ours records. The Jobs are listed
// live, after the rights: so a Job whose rights are in the list was made before
// the Jobs are read, and is missing only if it is gone. What can't be read is
// kept, and is an error beside what could be done; a namespace that can't be
// listed stops only itself.
func (c *Cluster) Sweep(ctx context.Context, grace time.Duration, now time.Time) (SweepReport, error) {
	var report SweepReport
	jobs, err := c.liveJobs(ctx)
	if err != nil {
		return report, err
	}
	namespaces, err := c.targetNamespaces(jobs)
	wrong := []error{err}
	var bindings []*rbacv1.RoleBinding
	for _, namespace := range namespaces {
		found, err := c.roleBindings(ctx, namespace)
		if err != nil {
			wrong = append(wrong, err)
			continue
		}
		bindings = append(bindings, aged(found, grace, now)...)
	}
	accounts, err := c.serviceAccounts(ctx)
	wrong = append(wrong, err)
	accounts = aged(accounts, grace, now)
	if len(bindings)+len(accounts) == 0 {
		return report, errors.Join(wrong...)
	}
	jobs, err = c.liveJobs(ctx)
	if err != nil {
		return report, errors.Join(append(wrong, err)...)
	}
	living := make(map[string]bool, len(jobs))
	for _, job := range jobs {
		living[string(job.UID)] = jobDone(job) == nil
	}
	for _, binding := range bindings {
		if living[binding.Labels[agentjob.LabelJobUID]] {
			continue
		}
		if err := c.remove(ctx, kindRoleBinding, binding, c.client.RbacV1().RoleBindings(binding.Namespace).Delete); err != nil {
			wrong = append(wrong, err)
			continue
		}
		report.RoleBindings = append(report.RoleBindings, binding.Namespace+"/"+binding.Name)
	}
	for _, account := range accounts {
		if living[account.Labels[agentjob.LabelJobUID]] {
			continue
		}
		if err := c.remove(ctx, kindServiceAccount, account, c.client.CoreV1().ServiceAccounts(account.Namespace).Delete); err != nil {
			wrong = append(wrong, err)
			continue
		}
		report.ServiceAccounts = append(report.ServiceAccounts, account.Namespace+"/"+account.Name)
	}
	return report, errors.Join(wrong...)
}

// targetNamespaces gives the namespaces in which there may be rights of ours, each
// once: those that the configuration gives now, and those that our Jobs record,
// whose class may be gone. The agents' own is never one of them; that it is named
// is an error beside the others.
func (c *Cluster) targetNamespaces(jobs []*batchv1.Job) ([]string, error) {
	namespaces := slices.Clone(c.config.TargetNamespaces())
	for _, job := range jobs {
		// A record that a person has spoilt in part still names the other namespaces.
		bindings, _ := agentjob.RecordedRights(job)
		namespaces = append(namespaces, namespacesOf(bindings)...)
	}
	slices.Sort(namespaces)
	namespaces = slices.Compact(namespaces)
	i, found := slices.BinarySearch(namespaces, c.config.Namespace)
	if !found {
		return namespaces, nil
	}
	return slices.Delete(namespaces, i, i+1), &Error{
		Op: "sweep", Object: objectName(kindRoleBinding, c.config.Namespace, ""), Kind: ErrInvalid,
		Remedy: "a target namespace is the agents' own, where a right could reach the pool's credential: deploy into another one",
	}
}

func (c *Cluster) roleBindings(ctx context.Context, namespace string) ([]*rbacv1.RoleBinding, error) {
	return pages(ctx, c.watcher, kindRoleBinding, namespace, c.selector(), func(ctx context.Context, o metav1.ListOptions) ([]rbacv1.RoleBinding, string, error) {
		list, err := c.client.RbacV1().RoleBindings(namespace).List(ctx, o)
		if err != nil {
			return nil, "", err
		}
		return list.Items, list.Continue, nil
	})
}

func (c *Cluster) serviceAccounts(ctx context.Context) ([]*corev1.ServiceAccount, error) {
	return pages(ctx, c.watcher, kindServiceAccount, c.config.Namespace, c.selector(), func(ctx context.Context, o metav1.ListOptions) ([]corev1.ServiceAccount, string, error) {
		list, err := c.client.CoreV1().ServiceAccounts(c.config.Namespace).List(ctx, o)
		if err != nil {
			return nil, "", err
		}
		return list.Items, list.Continue, nil
	})
}

// aged keeps what carries a Job's UID, is older than the grace and is not being
// deleted already. What has no UID was not made here, whatever its other labels.
func aged[T metav1.Object](objects []T, grace time.Duration, now time.Time) []T {
	var old []T
	for _, object := range objects {
		made := object.GetCreationTimestamp()
		if object.GetLabels()[agentjob.LabelJobUID] != "" && object.GetDeletionTimestamp() == nil && now.Sub(made.Time) >= grace {
			old = append(old, object)
		}
	}
	return old
}
