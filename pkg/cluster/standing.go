package cluster

import (
	"context"
	"fmt"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// CheckStandingAccount looks whether builds may run as a ServiceAccount that is somebody's
// own: it is there, it is not the scaler's, and it can't reach the credentials in the agents'
// namespace, the pool's (in tokenSecret) and those of other builds. Otherwise the error is an
// Error with the remedy. The problems are what could not be found out; none of them is fatal.
// Nothing is changed.
func (c *Cluster) CheckStandingAccount(ctx context.Context, name, tokenSecret string) ([]Problem, error) {
	err := c.bounded(ctx, func(ctx context.Context) error {
		_, err := c.client.CoreV1().ServiceAccounts(c.config.Namespace).Get(ctx, name, metav1.GetOptions{})
		return err
	})
	switch {
	case apierrors.IsNotFound(err):
		return nil, c.unusable(name, ErrNotFound, err, fmt.Sprintf("kubectl create serviceaccount %s --namespace %s, or correct the class", name, c.config.Namespace))
	case err != nil:
		return nil, fail("get", kindServiceAccount, c.config.Namespace, name, err)
	}
	user := accountUsers + c.config.Namespace + ":" + name
	own, err := c.signedInAs(ctx)
	switch {
	case err != nil:
		return nil, fail("create", "SelfSubjectReview", "", "of the scaler", err)
	case own == user:
		return nil, c.unusable(name, ErrForbidden, nil, "it is the scaler's own, and builds could do all that the scaler can: make another one for the class")
	}
	return c.checkReach(ctx, name, user, tokenSecret)
}

func (c *Cluster) unusable(name string, kind, err error, remedy string) error {
	return &Error{Op: "let builds run as", Object: objectName(kindServiceAccount, c.config.Namespace, name), Kind: kind, Err: err, Remedy: remedy}
}

// reach lists the rights in the agents' namespace that each lead to a credential there. The
// Secret is one in it, or none.
func reach(secret string) []authorizationv1.ResourceAttributes {
	rights := []authorizationv1.ResourceAttributes{
		{Verb: "get", Resource: "secrets"},
		{Verb: "list", Resource: "secrets"},
		{Verb: "create", Resource: "pods"},
		{Verb: "create", Resource: "pods", Subresource: "exec"},
		{Verb: "get", Resource: "pods", Subresource: "exec"}, // Enough for it before Kubernetes 1.35.
		{Verb: "update", Resource: "pods", Subresource: "ephemeralcontainers"},
		{Verb: "create", Group: "batch", Resource: "jobs"},
		{Verb: "patch", Group: "batch", Resource: "cronjobs"}, // Classes of agent are these.
		{Verb: "create", Group: "apps", Resource: "deployments"},
		{Verb: "create", Resource: "serviceaccounts", Subresource: "token"},
		{Verb: "impersonate", Resource: "serviceaccounts"},
	}
	if secret != "" {
		rights = append(rights, authorizationv1.ResourceAttributes{Verb: "get", Resource: "secrets", Name: secret})
	}
	return rights
}

// checkReach refuses an account that could read the credentials in the agents' namespace. It
// takes a right of its own to ask for another's rights.
func (c *Cluster) checkReach(ctx context.Context, name, user, secret string) ([]Problem, error) {
	var found []string
	var unknown []Problem
	for _, right := range reach(secret) {
		right.Namespace = c.config.Namespace
		var review *authorizationv1.LocalSubjectAccessReview
		err := c.bounded(ctx, func(ctx context.Context) (err error) {
			review, err = c.client.AuthorizationV1().LocalSubjectAccessReviews(c.config.Namespace).Create(ctx, &authorizationv1.LocalSubjectAccessReview{
				ObjectMeta: metav1.ObjectMeta{Namespace: c.config.Namespace},
				Spec: authorizationv1.SubjectAccessReviewSpec{
					User:               user,
					Groups:             []string{"system:serviceaccounts", "system:serviceaccounts:" + c.config.Namespace, "system:authenticated"},
					ResourceAttributes: &right,
				},
			}, metav1.CreateOptions{})
			return err
		})
		if err != nil {
			unknown = []Problem{{
				What:  fmt.Sprintf("whether the ServiceAccount %q can read the pool's token or what other builds have can't be found out: %v", name, err),
				Where: "namespace " + c.config.Namespace, Remedy: "make sure that no role is bound to it there; or let the scaler create localsubjectaccessreviews there, as the Role of deploy/kustomize/base does",
				Reason: ReasonOf(fail("create", "LocalSubjectAccessReview", c.config.Namespace, name, err)),
			}}
			break
		}
		if review.Status.Allowed {
			found = append(found, strings.Join(strings.Fields(right.Verb+" "+strings.TrimSuffix(right.Resource+"/"+right.Subresource, "/")+" "+right.Name), " "))
		}
	}
	if len(found) == 0 {
		return unknown, nil
	}
	return nil, c.unusable(name, ErrForbidden, fmt.Errorf("it has rights in the agents' own namespace by which builds could read the pool's token or what other builds have: %s", strings.Join(found, ", ")),
		fmt.Sprintf("take the bindings in namespace %q from it", c.config.Namespace))
}
