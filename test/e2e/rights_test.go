package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/test/e2e/env"
	"github.com/azp-scaler/azp-scaler/test/e2e/hostile"
)

const rulesPath = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"

// namespaces are those in which the intruder tries everything. It has rights in one.
func namespaces() []string {
	return []string{env.AgentsNamespace, env.ScalerNamespace, env.TargetNamespace, metav1.NamespaceDefault, metav1.NamespaceSystem}
}

// calls are what the intruder asks of the API server: what it may do, everything that
// could hold a token, and what would let it act as another or on another's build.
func calls(neighbourPod string) []hostile.Call {
	var all []hostile.Call
	refused := func(method, path string) {
		all = append(all, hostile.Call{Method: method, Path: path, Want: http.StatusForbidden})
	}
	resources := []string{
		"/api/v1|secrets", "/api/v1|configmaps", "/api/v1|pods", "/api/v1|events", "/api/v1|serviceaccounts", "/apis/batch/v1|jobs", "/apis/batch/v1|cronjobs",
		"/apis/apps/v1|deployments", "/apis/rbac.authorization.k8s.io/v1|roles", "/apis/rbac.authorization.k8s.io/v1|rolebindings", "/apis/coordination.k8s.io/v1|leases",
	}
	for _, resource := range resources {
		api, name, _ := strings.Cut(resource, "|")
		refused(http.MethodGet, api+"/"+name)
		for _, namespace := range namespaces() {
			call := hostile.Call{Method: http.MethodGet, Path: api + "/namespaces/" + namespace + "/" + name, Want: http.StatusForbidden}
			if namespace == env.TargetNamespace {
				call.Want = 0 // As its role says, which is looked at by itself.
			}
			all = append(all, call)
		}
	}
	for _, path := range []string{"/api/v1/nodes", "/api/v1/namespaces", "/metrics", "/logs/", "/debug/pprof/", "/configz", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"} {
		refused(http.MethodGet, path)
	}
	agents := "/api/v1/namespaces/" + env.AgentsNamespace
	batch := "/apis/batch/v1/namespaces/" + env.AgentsNamespace
	neighbour := neighbourPod[:strings.LastIndex(neighbourPod, "-")]
	for _, path := range []string{agents + "/secrets/" + env.TokenSecret, agents + "/configmaps/azp-ca", "/api/v1/namespaces/" + env.ScalerNamespace + "/serviceaccounts/" + env.ScalerAccount} {
		refused(http.MethodGet, path)
	}
	// Its own objects tell about its pod, and those of its neighbour are another's.
	for _, of := range []struct{ job, pod string }{{"{job}", "{pod}"}, {neighbour, neighbourPod}} {
		binding := "/apis/rbac.authorization.k8s.io/v1/namespaces/" + env.TargetNamespace + "/rolebindings/" + of.job
		for _, path := range []string{batch + "/jobs/" + of.job, agents + "/pods/" + of.pod, agents + "/serviceaccounts/" + of.job, agents + "/secrets/" + of.job, binding} {
			for _, method := range []string{http.MethodGet, http.MethodDelete} {
				refused(method, path)
			}
			all = append(all, hostile.Call{Method: http.MethodPatch, Path: path, Body: `{"metadata":{"labels":{"hostile":"yes"}}}`, Want: http.StatusForbidden})
		}
		for _, container := range []string{"agent", "remove", "configure"} {
			refused(http.MethodGet, agents+"/pods/"+of.pod+"/log?container="+container)
			refused(http.MethodPost, agents+"/pods/"+of.pod+"/exec?container="+container+"&command=cat&command=/run/azp/token/token&stdout=true")
			refused(http.MethodGet, agents+"/pods/"+of.pod+"/attach?container="+container+"&stdout=true")
		}
		refused(http.MethodPost, agents+"/pods/"+of.pod+"/eviction")
		all = append(all, hostile.Call{
			Method: http.MethodPost, Path: agents + "/serviceaccounts/" + of.job + "/token", Want: http.StatusForbidden,
			Body: `{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{}}`,
		})
	}
	all = append(all, actAsOthers(agents, batch)...)
	for _, namespace := range namespaces() {
		all = append(all, hostile.Call{
			Method: http.MethodPost, Path: rulesPath, Keep: true, Want: http.StatusCreated,
			Body: `{"apiVersion":"authorization.k8s.io/v1","kind":"SelfSubjectRulesReview","spec":{"namespace":"` + namespace + `"}}`,
		})
	}
	return all
}

// actAsOthers would have somebody read the token who may: a pod, the scaler, an
// administrator.
func actAsOthers(agents, batch string) []hostile.Call {
	pod := `"spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"` + env.AgentImage + `","command":["cat","/t/token"],"volumeMounts":[{"name":"t","mountPath":"/t"}]}],` +
		`"volumes":[{"name":"t","secret":{"secretName":"` + env.TokenSecret + `"}}]}`
	calls := []hostile.Call{
		{Method: http.MethodPost, Path: agents + "/pods", Body: `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"hostile"},` + pod + `}`},
		{Method: http.MethodPost, Path: batch + "/jobs", Body: `{"apiVersion":"batch/v1","kind":"Job","metadata":{"name":"hostile"},"spec":{"template":{` + pod + `}}}`},
		{
			Method: http.MethodPost, Path: "/api/v1/namespaces/" + env.ScalerNamespace + "/serviceaccounts/" + env.ScalerAccount + "/token",
			Body: `{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{}}`,
		},
		{Method: http.MethodGet, Path: agents + "/secrets", As: "system:serviceaccount:" + env.ScalerNamespace + ":" + env.ScalerAccount},
		{Method: http.MethodGet, Path: agents + "/secrets", As: "kubernetes-admin"},
	}
	for i := range calls {
		calls[i].Want = http.StatusForbidden
	}
	return calls
}

// judgeAnswers says which calls were not answered as they have to be.
func (i *intruder) judgeAnswers(report hostile.Report) error {
	var wrong []error
	for _, answer := range report.Answers {
		if answer.Call.Want != 0 && answer.Code != answer.Call.Want {
			wrong = append(wrong, fmt.Errorf("%s was answered %d, want %d", answer.Call, answer.Code, answer.Call.Want))
		}
	}
	if len(report.Answers) == 0 {
		wrong = append(wrong, errors.New("the hostile build asked the API server nothing"))
	}
	return errors.Join(wrong...)
}

// judgeRights compares what the API server says the build may do with the role that the
// configuration names, and with nothing, besides what the cluster gives every account.
func (i *intruder) judgeRights(ctx context.Context, report hostile.Report) error {
	everybody, err := i.everybody(ctx)
	if err != nil {
		return err
	}
	role, err := i.env.Admin.RbacV1().ClusterRoles().Get(ctx, "edit", metav1.GetOptions{})
	if err != nil {
		return err
	}
	var reviews []string
	for _, answer := range report.Answers {
		if answer.Call.Path == rulesPath {
			reviews = append(reviews, answer.Body)
		}
	}
	if len(reviews) != len(namespaces()) {
		return fmt.Errorf("the build was told its rules %d times, want %d", len(reviews), len(namespaces()))
	}
	var wrong []error
	for n, namespace := range namespaces() {
		var review authorizationv1.SelfSubjectRulesReview
		if err := json.Unmarshal([]byte(reviews[n]), &review); err != nil {
			return fmt.Errorf("the rules of the build in %s: %w", namespace, err)
		}
		want := everybody
		if namespace == env.TargetNamespace {
			want = append(slices.Clone(everybody), role.Rules...)
		}
		got := make([]rbacv1.PolicyRule, 0, len(review.Status.ResourceRules))
		for _, rule := range review.Status.ResourceRules {
			got = append(got, rbacv1.PolicyRule{Verbs: rule.Verbs, APIGroups: rule.APIGroups, Resources: rule.Resources, ResourceNames: rule.ResourceNames})
		}
		if diff := cmp.Diff(expand(want), expand(got)); diff != "" {
			wrong = append(wrong, fmt.Errorf("a build's rights in %s are not its role's (-role +build):\n%s", namespace, diff))
		}
	}
	return errors.Join(wrong...)
}

// everybody gives the rules that bind each ServiceAccount of the agents' namespace.
func (i *intruder) everybody(ctx context.Context) ([]rbacv1.PolicyRule, error) {
	groups := []string{"system:authenticated", "system:serviceaccounts", "system:serviceaccounts:" + env.AgentsNamespace}
	bindings, err := i.env.Admin.RbacV1().ClusterRoleBindings().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var rules []rbacv1.PolicyRule
	for _, binding := range bindings.Items {
		if !slices.ContainsFunc(binding.Subjects, func(s rbacv1.Subject) bool { return s.Kind == rbacv1.GroupKind && slices.Contains(groups, s.Name) }) {
			continue
		}
		role, err := i.env.Admin.RbacV1().ClusterRoles().Get(ctx, binding.RoleRef.Name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		rules = append(rules, role.Rules...)
	}
	return rules, nil
}

// expand makes of rules each single thing that they allow, in order.
func expand(rules []rbacv1.PolicyRule) []string {
	var all []string
	for _, rule := range rules {
		names := rule.ResourceNames
		if len(names) == 0 {
			names = []string{"any"}
		}
		for _, verb := range rule.Verbs {
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					for _, name := range names {
						all = append(all, strings.Join([]string{verb, group, resource, name}, " "))
					}
				}
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// judgeEndOfRights uses the account of a build that ends: from the end of its container
// on, its calls are refused soon, and its token a little later. The kubelet tells its time
// in whole seconds, rounded down.
func (i *intruder) judgeEndOfRights(ctx context.Context, report hostile.Report) error {
	build, err := i.env.As(report.Account)
	if err != nil {
		return err
	}
	if _, err := build.CoreV1().ConfigMaps(env.TargetNamespace).List(ctx, metav1.ListOptions{}); err != nil {
		return fmt.Errorf("the token that the build has handed over does not work while it runs: %w", err)
	}
	var ended, forbidden, unknown time.Time
	err = await(ctx, "the end of the hostile build and of its rights", func() (bool, error) {
		if ended.IsZero() {
			pod, err := i.env.Admin.CoreV1().Pods(env.AgentsNamespace).Get(ctx, report.Pod, metav1.GetOptions{})
			if err != nil {
				return false, fmt.Errorf("the pod of the hostile build went before its end was seen: %w", err)
			}
			ended = endOf(pod)
		}
		_, err := build.CoreV1().ConfigMaps(env.TargetNamespace).List(ctx, metav1.ListOptions{})
		switch {
		case err != nil && forbidden.IsZero():
			forbidden = time.Now()
			fallthrough
		case apierrors.IsUnauthorized(err):
			if apierrors.IsUnauthorized(err) {
				unknown = time.Now()
			}
		case err == nil && !forbidden.IsZero():
			return false, errors.New("the build's account may work again after it had been refused")
		case err != nil && !apierrors.IsForbidden(err):
			return false, err
		}
		return !ended.IsZero() && !unknown.IsZero(), nil
	})
	if err != nil {
		return err
	}
	var wrong []error
	if took := forbidden.Sub(ended); took > rightsLimit {
		wrong = append(wrong, fmt.Errorf("the build could still work in its target namespace %s after its end, want %s at most", took, rightsLimit))
	}
	if took := unknown.Sub(ended); took > tokenLimit {
		wrong = append(wrong, fmt.Errorf("the build's token was good until %s after its end, want %s at most", took, tokenLimit))
	}
	i.log("a build's calls were refused %s after its end, and its token %s after it", forbidden.Sub(ended), unknown.Sub(ended))
	return errors.Join(wrong...)
}

// endOf is when the container that runs the build has ended, as the kubelet says.
func endOf(pod *corev1.Pod) time.Time {
	for _, status := range pod.Status.ContainerStatuses {
		if status.Name == "agent" && status.State.Terminated != nil {
			return status.State.Terminated.FinishedAt.Time
		}
	}
	return time.Time{}
}
