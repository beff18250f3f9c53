package agentjob

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// HasOwnAccount reports whether the Job's build runs as a ServiceAccount made for it, which
// has the Job's name. Otherwise it runs as somebody's standing one, which is never touched. The
// pod's template tells, as nobody can change that once the Job is there.
func HasOwnAccount(job *batchv1.Job) bool {
	return job.Spec.Template.Spec.ServiceAccountName == job.Name
}

// ServiceAccount makes the account of one build from what its Job records. The
// Job must have its UID: the account goes with the Job. It fails only where the
// record has been tampered with.
func ServiceAccount(job *batchv1.Job) (*corev1.ServiceAccount, error) {
	var extra ServiceAccountTemplate
	if record := job.Annotations[AnnotationServiceAccount]; record != "" {
		if err := json.Unmarshal([]byte(record), &extra); err != nil {
			return nil, fmt.Errorf("job %s/%s: annotation %s: %w: delete the Job, it will be made again", job.Namespace, job.Name, AnnotationServiceAccount, err)
		}
	}
	labels := merge(extra.Labels, ownLabels(job))
	labels[LabelJobUID] = string(job.UID)
	account := &corev1.ServiceAccount{
		TypeMeta: metav1.TypeMeta{APIVersion: corev1.SchemeGroupVersion.String(), Kind: "ServiceAccount"},
		ObjectMeta: metav1.ObjectMeta{
			Name:            job.Name,
			Namespace:       job.Namespace,
			Labels:          labels,
			Annotations:     maps.Clone(extra.Annotations),
			OwnerReferences: []metav1.OwnerReference{ownedBy(job)},
		},
		// The pod mounts the token itself, where it is wanted.
		AutomountServiceAccountToken: new(false),
	}
	for _, name := range extra.ImagePullSecrets {
		account.ImagePullSecrets = append(account.ImagePullSecrets, corev1.LocalObjectReference{Name: name})
	}
	return account, nil
}

// ownedBy has an object go with the Job. It is not a controller, and never blocking: an
// uninstall must not hang.
func ownedBy(job *batchv1.Job) metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: batchv1.SchemeGroupVersion.String(), Kind: "Job", Name: job.Name, UID: job.UID}
}

// RoleBindings makes the rights of one build from what its Job records. The Job
// must have its UID, by which a sweep tells whose the right is: an owner in
// another namespace is not possible.
func RoleBindings(job *batchv1.Job) ([]*rbacv1.RoleBinding, error) {
	wanted, err := RecordedRights(job)
	if err != nil {
		return nil, err
	}
	inNamespace := map[string]int{}
	bindings := make([]*rbacv1.RoleBinding, 0, len(wanted))
	for _, right := range wanted {
		inNamespace[right.Namespace]++
		name := job.Name
		if n := inNamespace[right.Namespace]; n > 1 {
			name += "-" + strconv.Itoa(n)
		}
		labels := map[string]string{
			LabelManagedBy: ManagedBy,
			LabelName:      AgentName,
			LabelInstance:  job.Labels[LabelInstance],
			LabelJob:       job.Name,
			LabelJobUID:    string(job.UID),
		}
		bindings = append(bindings, &rbacv1.RoleBinding{
			TypeMeta:   metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "RoleBinding"},
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: right.Namespace, Labels: labels},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: right.Kind, Name: right.Name},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: job.Name, Namespace: job.Namespace}},
		})
	}
	return bindings, nil
}

// RecordedRights reads the rights that the Job records. What can be read is
// returned beside the error, so that it can still be taken back.
func RecordedRights(job *batchv1.Job) ([]agentpool.RoleBinding, error) {
	var rights []agentpool.RoleBinding
	var wrong []error
	for line := range strings.Lines(job.Annotations[AnnotationRoleBindings]) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		right, err := agentpool.ParseRoleBinding(strings.TrimSpace(line))
		if err != nil {
			wrong = append(wrong, fmt.Errorf("job %s/%s: annotation %s: %w", job.Namespace, job.Name, AnnotationRoleBindings, err))
			continue
		}
		if right.Namespace == job.Namespace {
			wrong = append(wrong, fmt.Errorf("job %s/%s: annotation %s: %q is in the agents' own namespace", job.Namespace, job.Name, AnnotationRoleBindings, right))
			continue
		}
		if !slices.Contains(rights, right) {
			rights = append(rights, right)
		}
	}
	return rights, errors.Join(wrong...)
}

// ownLabels are the Job's labels without those that came with its template.
func ownLabels(job *batchv1.Job) map[string]string {
	labels := map[string]string{}
	for _, key := range []string{LabelManagedBy, LabelName, LabelInstance, LabelClass, LabelPoolID, LabelRequestID, LabelAttempt} {
		if value, ok := job.Labels[key]; ok {
			labels[key] = value
		}
	}
	return labels
}
