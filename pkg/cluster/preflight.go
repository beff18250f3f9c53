package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/discovery"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// minimumVersion has native sidecars on by default: the container that takes the
// registration back must be there before the agent registers and outlive it.
const minimumVersion = "1.29.0"

// Problem is something that keeps builds from being served as they should.
type Problem struct {
	What   string // What is wrong.
	Where  string // The namespace, or "cluster".
	Remedy string // What to do about it.
	// Fatal says that no agent can be made, or none would work. Otherwise something
	// could not be checked, or is only needed now and then.
	Fatal  bool
	Reason agentpool.Reason
}

// String gives the problem as one line.
func (p Problem) String() string { return fmt.Sprintf("%s: %s (%s)", p.Where, p.What, p.Remedy) }

// Installation is what PreflightInstallation checks the cluster for.
type Installation struct {
	TokenSecret string // Empty if no pod needs the pool's credential.
	TokenKey    string
	// TokenOwner is who keeps the token in the Secret, as TokenSecretConfig has it; empty if an
	// administrator does.
	TokenOwner  string
	CAConfigMap string // Empty if there is none.
	Election    bool   // Whether one of several replicas is elected to work.
}

// PreflightInstallation looks for everything that would keep builds of every class
// from being served, with the rights that the scaler has and without changing
// anything. It tells all problems at once, in a fixed order.
func (c *Cluster) PreflightInstallation(ctx context.Context, in Installation) []Problem {
	problems := c.checkVersion(ctx)
	rights := AgentsRights(in.TokenSecret, in.CAConfigMap)
	if in.Election {
		rights = append(rights, ElectionRights()...)
	}
	agents, usable := c.checkRights(ctx, c.config.Namespace, rights)
	problems = append(problems, agents...)
	if usable {
		if in.TokenSecret != "" && in.TokenOwner != "" {
			problems = append(problems, c.checkFurtherRights(ctx, c.config.Namespace, TokenRights(in.TokenSecret),
				"apply the Role and RoleBinding of deploy/kustomize/agent-token there: they let the scaler keep the agents' token")...)
		}
		problems = append(problems, c.checkToken(ctx, in)...)
		problems = append(problems, c.checkCA(ctx, in)...)
	}
	return problems
}

// PreflightClass does the same for one class: for what its pod, its Jobs and the
// rights of its builds need, and for nothing that only others need. The sample is
// a Job as it would be made, of a request that does not exist; it is not created.
// None, from here and from PreflightInstallation, means that the next Job can be
// made. Where the scaler has too few rights in the agents' namespace, only the
// latter tells.
//
// A namespace that is absent and one in which the scaler has no rights look the
// same to somebody without rights in the cluster; then the problem says both. An
// absent ClusterRole goes unseen where the scaler may bind it by name and may not
// read it: the API server makes such a RoleBinding without looking.
func (c *Cluster) PreflightClass(ctx context.Context, sample *batchv1.Job) []Problem {
	problems := c.checkJob(ctx, sample)
	if unregistered(sample) {
		problems = append(problems, c.checkFurtherRights(ctx, c.config.Namespace, JITRights(), "apply the Role and RoleBinding of deploy/kustomize/base there")...)
	}
	bindings, err := agentjob.RecordedRights(sample)
	if err != nil {
		problems = append(problems, Problem{
			What: err.Error(), Where: "class " + sample.Labels[agentjob.LabelClass], Remedy: "correct the role bindings",
			Fatal: true, Reason: agentpool.ReasonInvalid,
		})
	}
	own, found := c.ownNamespace(ctx, bindings)
	problems = append(problems, found...)
	for _, namespace := range namespacesOf(bindings) {
		if namespace == own {
			problems = append(problems, Problem{
				What: "builds would have a role in the scaler's own namespace, where it could read the pool's token", Where: "namespace " + namespace,
				Remedy: "have builds deploy into another namespace", Fatal: true, Reason: agentpool.ReasonInvalid,
			})
			continue
		}
		// What lets the scaler bind a role is shown by trying, below.
		found, usable := c.checkRights(ctx, namespace, TargetRights(namespace, nil, true))
		problems = append(problems, found...)
		if usable {
			problems = append(problems, c.checkBindings(ctx, namespace, sample)...)
		}
	}
	return problems
}

// ownNamespace is that of the ServiceAccount that the scaler has signed in as: there its
// own pod has the pool's credential. It is empty for another kind of user.
func (c *Cluster) ownNamespace(ctx context.Context, bindings []agentpool.RoleBinding) (string, []Problem) {
	if len(bindings) == 0 {
		return "", nil
	}
	user, err := c.signedInAs(ctx)
	if err != nil {
		return "", []Problem{{
			What: fmt.Sprintf("whom the scaler has signed in as can't be read: %v", err), Where: "cluster", Remedy: "check that the API server is reachable",
			Fatal: true, Reason: agentpool.ReasonAPIUnavailable,
		}}
	}
	account, isAccount := strings.CutPrefix(user, accountUsers)
	if !isAccount {
		return "", nil
	}
	namespace, _, _ := strings.Cut(account, ":")
	return namespace, nil
}

// accountUsers begins the names by which the API server knows ServiceAccounts:
// system:serviceaccount:NAMESPACE:NAME.
const accountUsers = "system:serviceaccount:"

// signedInAs asks the API server who the scaler is to it.
func (c *Cluster) signedInAs(ctx context.Context) (user string, err error) {
	err = c.bounded(ctx, func(ctx context.Context) error {
		review, err := c.client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		if err == nil {
			user = review.Status.UserInfo.Username
		}
		return err
	})
	return user, err
}

// namespacesOf gives the namespaces that rights lie in, each once, in order.
func namespacesOf(bindings []agentpool.RoleBinding) []string {
	namespaces := make([]string, 0, len(bindings))
	for _, binding := range bindings {
		namespaces = append(namespaces, binding.Namespace)
	}
	slices.Sort(namespaces)
	return slices.Compact(namespaces)
}

func (c *Cluster) checkVersion(ctx context.Context) []Problem {
	call, cancel := c.call(ctx)
	defer cancel()
	info, err := discovery.ToServerVersionInterfaceWithContext(c.client.Discovery()).ServerVersionWithContext(call)
	if err != nil {
		return []Problem{{What: fmt.Sprintf("the API server's version can't be read: %v", err), Where: "cluster", Remedy: "check that the API server is reachable", Fatal: true, Reason: agentpool.ReasonAPIUnavailable}}
	}
	have, err := version.ParseGeneric(info.GitVersion)
	if err != nil {
		return []Problem{{What: fmt.Sprintf("the API server's version %q does not parse", info.GitVersion), Where: "cluster", Remedy: "want Kubernetes " + minimumVersion + " or later", Reason: agentpool.ReasonUnknown}}
	}
	if have.LessThan(version.MustParseGeneric(minimumVersion)) {
		return []Problem{{
			What:  fmt.Sprintf("Kubernetes %s has no native sidecars, which take an agent's registration back", info.GitVersion),
			Where: "cluster", Remedy: "upgrade the cluster to " + minimumVersion + " or later", Fatal: true, Reason: agentpool.ReasonInvalid,
		}}
	}
	return nil
}

// checkRights asks for every right in a namespace. usable says that at least one
// is there, so that looking further makes sense.
func (c *Cluster) checkRights(ctx context.Context, namespace string, rights []Right) (problems []Problem, usable bool) {
	missing, asked, err := c.missingRights(ctx, namespace, rights)
	switch {
	case err != nil:
		return []Problem{unchecked(namespace, err)}, false
	case len(missing) == 0:
		return nil, true
	case len(missing) == asked:
		return []Problem{c.noRights(ctx, namespace)}, false
	default:
		return []Problem{lacking(namespace, missing, "apply the Role and RoleBinding of deploy/kustomize/base there")}, true
	}
}

// checkFurtherRights asks for rights in a namespace where others are known to be there.
func (c *Cluster) checkFurtherRights(ctx context.Context, namespace string, rights []Right, remedy string) []Problem {
	missing, _, err := c.missingRights(ctx, namespace, rights)
	switch {
	case err != nil:
		return []Problem{unchecked(namespace, err)}
	case len(missing) == 0:
		return nil
	default:
		return []Problem{lacking(namespace, missing, remedy)}
	}
}

// missingRights names those of the rights that are not there, and counts what it asked for.
func (c *Cluster) missingRights(ctx context.Context, namespace string, rights []Right) (missing []string, asked int, err error) {
	for _, right := range rights {
		for _, verb := range right.Verbs {
			names := right.Names
			if len(names) == 0 {
				names = []string{""}
			}
			for _, name := range names {
				asked++
				allowed, err := c.may(ctx, namespace, verb, right.Group, right.Resource, name)
				if err != nil {
					return nil, asked, err
				}
				if !allowed {
					missing = append(missing, strings.TrimSpace(verb+" "+right.Resource+" "+name))
				}
			}
		}
	}
	return missing, asked, nil
}

func unchecked(namespace string, err error) Problem {
	return Problem{
		What: fmt.Sprintf("the scaler's rights can't be checked: %v", err), Where: "namespace " + namespace,
		Remedy: "check that the API server is reachable", Fatal: true, Reason: agentpool.ReasonAPIUnavailable,
	}
}

func lacking(namespace string, missing []string, remedy string) Problem {
	return Problem{
		What: "the scaler lacks rights: " + strings.Join(missing, ", "), Where: "namespace " + namespace,
		Remedy: remedy, Fatal: true, Reason: agentpool.ReasonForbidden,
	}
}

// noRights tells an absent namespace from one in which the scaler may do nothing,
// where it may ask.
func (c *Cluster) noRights(ctx context.Context, namespace string) Problem {
	err := c.bounded(ctx, func(ctx context.Context) error {
		_, err := c.client.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
		return err
	})
	p := Problem{Where: "namespace " + namespace, Fatal: true, Reason: agentpool.ReasonForbidden}
	switch {
	case apierrors.IsNotFound(err):
		p.What, p.Reason = "the namespace does not exist", agentpool.ReasonMissingObject
		p.Remedy = "create it and apply the scaler's Role and RoleBinding there, or correct the setting"
	case err == nil:
		p.What, p.Remedy = "the scaler has no rights there", "apply the Role and RoleBinding of deploy/kustomize/base there"
	default:
		p.What = "the namespace does not exist, or the scaler has no rights there"
		p.Remedy = "create it if it is missing, and apply the Role and RoleBinding of deploy/kustomize/base there; or correct the setting"
	}
	return p
}

func (c *Cluster) may(ctx context.Context, namespace, verb, group, resource, name string) (bool, error) {
	var review *authorizationv1.SelfSubjectAccessReview
	err := c.bounded(ctx, func(ctx context.Context) (err error) {
		review, err = c.client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
			Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
				Namespace: namespace, Verb: verb, Group: group, Resource: resource, Name: name,
			}},
		}, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return false, err
	}
	return review.Status.Allowed, nil
}

func (c *Cluster) checkCA(ctx context.Context, in Installation) []Problem {
	if in.CAConfigMap == "" {
		return nil
	}
	const key = "ca.crt"
	var bundle *corev1.ConfigMap
	err := c.bounded(ctx, func(ctx context.Context) (err error) {
		bundle, err = c.client.CoreV1().ConfigMaps(c.config.Namespace).Get(ctx, in.CAConfigMap, metav1.GetOptions{})
		return err
	})
	where := "namespace " + c.config.Namespace
	remedy := fmt.Sprintf("kubectl create configmap %s --namespace %s --from-file=%s=FILE", in.CAConfigMap, c.config.Namespace, key)
	switch {
	case apierrors.IsNotFound(err):
		return []Problem{{What: fmt.Sprintf("the ConfigMap %q with the CA certificate does not exist", in.CAConfigMap), Where: where, Remedy: remedy, Fatal: true, Reason: agentpool.ReasonMissingObject}}
	case apierrors.IsForbidden(err):
		return nil
	case err != nil:
		return []Problem{{What: fmt.Sprintf("the ConfigMap %q can't be read: %v", in.CAConfigMap, err), Where: where, Remedy: "check that the API server is reachable", Reason: ReasonOf(fail("get", "ConfigMap", c.config.Namespace, in.CAConfigMap, err))}}
	case bundle.Data[key] == "":
		return []Problem{{What: fmt.Sprintf("the ConfigMap %q has no key %q", in.CAConfigMap, key), Where: where, Remedy: remedy, Fatal: true, Reason: agentpool.ReasonMissingObject}}
	}
	return nil
}

// checkJob has the API server look at a Job as it would be made: its own rules,
// admission policies and the quota of Jobs.
func (c *Cluster) checkJob(ctx context.Context, sample *batchv1.Job) []Problem {
	err := c.bounded(ctx, func(ctx context.Context) error {
		_, err := c.client.BatchV1().Jobs(c.config.Namespace).Create(ctx, sample, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldManager: component})
		return err
	})
	if err == nil || apierrors.IsAlreadyExists(err) || lacksRight(err) {
		return nil
	}
	return []Problem{problem("a Job of the class can't be made", c.config.Namespace, fail("create", kindJob, c.config.Namespace, sample.Name, err))}
}

// lacksRight reports whether it was the authoriser that refused to make a Job,
// rather than a quota or a policy.
func lacksRight(err error) bool {
	return apierrors.IsForbidden(err) && strings.Contains(err.Error(), `cannot create resource "jobs"`)
}

// checkBindings tries to give a build its roles in one namespace. To try is the
// only honest check: the API server decides by the verb bind, or by whether the
// scaler holds all that the role gives.
func (c *Cluster) checkBindings(ctx context.Context, namespace string, sample *batchv1.Job) []Problem {
	// What is wrong with the record has been told already.
	bindings, _ := agentjob.RoleBindings(sample)
	var problems []Problem
	for _, binding := range bindings {
		if binding.Namespace != namespace {
			continue
		}
		what := fmt.Sprintf("builds can't be given the %s %q", binding.RoleRef.Kind, binding.RoleRef.Name)
		err := c.bounded(ctx, func(ctx context.Context) error {
			_, err := c.client.RbacV1().RoleBindings(namespace).Create(ctx, binding, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldManager: component})
			return err
		})
		if err == nil || apierrors.IsAlreadyExists(err) {
			err = c.checkRole(ctx, binding)
		}
		if err != nil {
			problems = append(problems, problem(what, namespace, fail("create", kindRoleBinding, namespace, binding.Name, err)))
		}
	}
	return problems
}

// checkRole looks whether the role is there, as far as the scaler may see.
func (c *Cluster) checkRole(ctx context.Context, binding *rbacv1.RoleBinding) error {
	err := c.bounded(ctx, func(ctx context.Context) error {
		var err error
		if binding.RoleRef.Kind == "Role" {
			_, err = c.client.RbacV1().Roles(binding.Namespace).Get(ctx, binding.RoleRef.Name, metav1.GetOptions{})
		} else {
			_, err = c.client.RbacV1().ClusterRoles().Get(ctx, binding.RoleRef.Name, metav1.GetOptions{})
		}
		return err
	})
	if apierrors.IsForbidden(err) {
		return nil
	}
	return err
}

// problem makes a problem of an error of this package.
func problem(what, namespace string, err error) Problem {
	p := Problem{What: fmt.Sprintf("%s: %v", what, err), Where: "namespace " + namespace, Fatal: true, Reason: ReasonOf(err), Remedy: "try again"}
	var failure *Error
	if errors.As(err, &failure) {
		p.What = what
		if failure.Err != nil {
			p.What += ": " + failure.Err.Error()
		}
		if failure.Remedy != "" {
			p.Remedy = failure.Remedy
		}
	}
	return p
}
