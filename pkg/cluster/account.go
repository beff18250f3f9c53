package cluster

import (
	"context"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
)

// ServiceAccountTemplate reads the ServiceAccount that a class names: what each
// build's own account gets from it. The account itself is never given to a build.
// The error is an Error of kind ErrNotFound or ErrForbidden where it is one of
// these, with the remedy.
func (c *Cluster) ServiceAccountTemplate(ctx context.Context, name string) (agentjob.ServiceAccountTemplate, error) {
	var account *corev1.ServiceAccount
	err := c.bounded(ctx, func(ctx context.Context) (err error) {
		account, err = c.client.CoreV1().ServiceAccounts(c.config.Namespace).Get(ctx, name, metav1.GetOptions{})
		return err
	})
	if apierrors.IsNotFound(err) {
		return agentjob.ServiceAccountTemplate{}, &Error{
			Op: "get", Object: objectName(kindServiceAccount, c.config.Namespace, name), Kind: ErrNotFound, Err: err,
			Remedy: "create the ServiceAccount " + name + " in that namespace, or take serviceAccountName out of the class",
		}
	}
	if err != nil {
		return agentjob.ServiceAccountTemplate{}, fail("get", kindServiceAccount, c.config.Namespace, name, err)
	}
	template := agentjob.ServiceAccountTemplate{
		Labels:      copied(account.Labels),
		Annotations: copied(account.Annotations),
	}
	for _, secret := range account.ImagePullSecrets {
		template.ImagePullSecrets = append(template.ImagePullSecrets, secret.Name)
	}
	return template, nil
}

// copied leaves out what speaks of the account itself: what is ours, and what tells
// a tool that deploys it that it is the tool's own. Such a tool would take the
// accounts of running builds for leftovers, and prune them.
func copied(from map[string]string) map[string]string {
	to := maps.Clone(from)
	maps.DeleteFunc(to, func(key, _ string) bool {
		return slices.ContainsFunc([]string{
			agentjob.Prefix,
			corev1.LastAppliedConfigAnnotation,
			"app.kubernetes.io/instance", "app.kubernetes.io/managed-by", // By these, Argo CD and Helm know their own.
			"argocd.argoproj.io/", "helm.sh/", "meta.helm.sh/", "helm.toolkit.fluxcd.io/", "kustomize.toolkit.fluxcd.io/",
		}, func(prefix string) bool { return strings.HasPrefix(key, prefix) })
	})
	return to
}
