package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// The kinds of failure a caller may decide on, by errors.Is.
var (
	// ErrForbidden is a missing right or an admission policy that says no.
	ErrForbidden = errors.New("forbidden")
	// ErrQuota is a ResourceQuota that is used up or wants what is not stated.
	ErrQuota = errors.New("quota exceeded")
	// ErrNamespaceAbsent is a namespace that is not there or is being deleted.
	ErrNamespaceAbsent = errors.New("namespace absent")
	// ErrRoleAbsent is a role that a build is to be given and that is not there.
	ErrRoleAbsent = errors.New("role absent")
	// ErrInvalid is an object that the API server will not take as it is.
	ErrInvalid = errors.New("invalid")
	// ErrNameTaken is a name under which there is something that can't be gone on
	// with: take the next one.
	ErrNameTaken = errors.New("name taken")
	// ErrNotFound is an object that is gone.
	ErrNotFound = errors.New("not found")
	// ErrStale is an object that has changed since it was looked at: look again.
	ErrStale = errors.New("changed since it was looked at")
	// ErrUnavailable is an API server that does not answer, or not in time.
	ErrUnavailable = errors.New("API server unavailable")
)

// Error is a failed call to Kubernetes.
type Error struct {
	Op     string // What was being done, such as "create".
	Object string // On what: kind, namespace and name.
	Kind   error  // One of the errors above, or nil.
	Remedy string // What to do about it; empty where trying again is all there is.
	Err    error  // What the client returned.
}

// Error tells what failed, why, and what to do.
func (e *Error) Error() string {
	text := fmt.Sprintf("%s %s: ", e.Op, e.Object)
	if e.Kind != nil {
		text += e.Kind.Error()
		if e.Err != nil {
			text += ": "
		}
	}
	if e.Err != nil {
		text += e.Err.Error()
	}
	if e.Remedy != "" {
		text += " (" + e.Remedy + ")"
	}
	return text
}

// Unwrap gives the kind and what the client returned.
func (e *Error) Unwrap() []error {
	var inner []error
	if e.Kind != nil {
		inner = append(inner, e.Kind)
	}
	if e.Err != nil {
		inner = append(inner, e.Err)
	}
	return inner
}

// Reason gives the failure as one of the closed set.
func (e *Error) Reason() agentpool.Reason { return ReasonOf(e) }

// ReasonOf sorts any error of this package into the closed set of reasons;
// ReasonNone for no error.
func ReasonOf(err error) agentpool.Reason {
	switch {
	case err == nil:
		return agentpool.ReasonNone
	case errors.Is(err, ErrQuota):
		return agentpool.ReasonQuota
	case errors.Is(err, ErrForbidden):
		return agentpool.ReasonForbidden
	case errors.Is(err, ErrNamespaceAbsent), errors.Is(err, ErrRoleAbsent), errors.Is(err, ErrNotFound):
		return agentpool.ReasonMissingObject
	case errors.Is(err, ErrInvalid):
		return agentpool.ReasonInvalid
	case errors.Is(err, ErrUnavailable), errors.Is(err, ErrStale), errors.Is(err, context.DeadlineExceeded):
		return agentpool.ReasonAPIUnavailable
	default:
		return agentpool.ReasonUnknown
	}
}

// fail wraps what a call returned. It returns nil for nil.
func fail(op, kind, namespace, name string, err error) error {
	if err == nil {
		return nil
	}
	e := &Error{Op: op, Object: objectName(kind, namespace, name), Err: err}
	e.Remedy, e.Kind = classify(op, kind, namespace, err)
	return e
}

func objectName(kind, namespace, name string) string {
	switch {
	case name == "":
		return kind + "s in namespace " + namespace
	case namespace == "":
		return kind + " " + name
	default:
		return kind + " " + namespace + "/" + name
	}
}

// classify tells what kind of failure it is and what to do about it.
func classify(op, kind, namespace string, err error) (remedy string, sort error) {
	message := err.Error()
	switch {
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return fmt.Sprintf("namespace %q is being deleted: wait until it is gone and make it again", namespace), ErrNamespaceAbsent
	case apierrors.IsForbidden(err):
		return classifyForbidden(op, kind, namespace, message)
	case apierrors.IsNotFound(err):
		return classifyNotFound(kind, err)
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err), apierrors.IsRequestEntityTooLargeError(err):
		return "correct the settings or the class that this object is made from", ErrInvalid
	case apierrors.IsConflict(err):
		return "", ErrStale
	case apierrors.IsAlreadyExists(err):
		return "", ErrNameTaken
	case apierrors.IsUnauthorized(err):
		return "the API server does not know the scaler's ServiceAccount: check its token or kubeconfig", ErrForbidden
	case errors.Is(err, context.Canceled):
		return "", nil
	default:
		// Too many requests, time-outs, connections refused, internal errors: all
		// pass, and none is anybody's mistake.
		return "", ErrUnavailable
	}
}

func classifyForbidden(op, kind, namespace, message string) (remedy string, sort error) {
	switch {
	case isQuotaMessage(message):
		return fmt.Sprintf("raise the ResourceQuota of namespace %q, lower the class's requests or the agents per pool", namespace), ErrQuota
	case strings.Contains(message, "attempting to grant RBAC permissions not currently held"):
		return fmt.Sprintf("the scaler may not bind this role in namespace %q: give its Role there the verb bind on that role by name, or bind the role to the scaler's own ServiceAccount", namespace), ErrForbidden
	case strings.Contains(message, "admission webhook"), strings.Contains(message, "ValidatingAdmissionPolicy"), strings.Contains(message, "violates PodSecurity"):
		return "an admission policy of the cluster refuses it: change the class, or the policy", ErrForbidden
	default:
		return fmt.Sprintf("namespace %q does not exist, or the scaler's Role and RoleBinding are not applied there, or lack the verb %s on %s", namespace, op, resourceOf(kind)), ErrForbidden
	}
}

// classifyNotFound tells what it is that is not there. When a RoleBinding is made,
// a role that is missing is answered as a RoleBinding by the role's name.
func classifyNotFound(kind string, err error) (remedy string, sort error) {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Details == nil {
		return "", ErrNotFound
	}
	missing := status.Status().Details
	switch {
	case missing.Kind == "namespaces":
		return fmt.Sprintf("create namespace %q and apply the scaler's Role there, or correct the setting", missing.Name), ErrNamespaceAbsent
	case kind == kindRoleBinding:
		return fmt.Sprintf("create the role %q, or correct the role binding in the settings", missing.Name), ErrRoleAbsent
	default:
		return "", ErrNotFound
	}
}

// isQuotaMessage knows the words of the quota admission plug-in.
func isQuotaMessage(message string) bool {
	return strings.Contains(message, "exceeded quota") || strings.Contains(message, "failed quota")
}

// The kinds of object this package names in errors.
const (
	kindJob            = "Job"
	kindCronJob        = "CronJob"
	kindPod            = "Pod"
	kindEvent          = "Event"
	kindServiceAccount = "ServiceAccount"
	kindRoleBinding    = "RoleBinding"
	kindSecret         = "Secret"
)

// resourceOf gives the name that RBAC knows a kind by.
func resourceOf(kind string) string { return strings.ToLower(kind) + "s" }
