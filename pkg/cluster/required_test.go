package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
)

// refusals notes which calls the API server has refused.
type refusals struct {
	next http.RoundTripper
	// old has the API server be one that does not stream lists, as those before 1.34 may be:
	// what is watched is listed first.
	old bool

	mu   sync.Mutex
	seen []string // Method and path.
}

// RoundTrip implements http.RoundTripper.
func (r *refusals) RoundTrip(request *http.Request) (*http.Response, error) {
	if r.old && request.URL.Query().Get("sendInitialEvents") != "" {
		body := `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422,"message":"sendInitialEvents is forbidden"}`
		return &http.Response{
			Status: "422 Unprocessable Entity", StatusCode: http.StatusUnprocessableEntity, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: request,
			Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)),
		}, nil
	}
	answer, err := r.next.RoundTrip(request)
	if err == nil && answer.StatusCode == http.StatusForbidden {
		r.mu.Lock()
		r.seen = append(r.seen, request.Method+" "+request.URL.Path)
		r.mu.Unlock()
	}
	return answer, err
}

func (r *refusals) err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.seen) == 0 {
		return nil
	}
	return fmt.Errorf("refused: %s", strings.Join(r.seen, ", "))
}

// subject is the scaler under rights that lack one.
type subject struct {
	*environment

	client   kubernetes.Interface
	refusals *refusals
	lacks    bool // It has lost a right: where that shows only in time, it is waited for.
}

// capability is something that people see the scaler do, and that fails without one right.
type capability struct {
	name string
	// prepare is what happened before, while all rights were there.
	prepare func(*subject)
	do      func(context.Context, *subject) error
}

// capabilities has one for each verb of each right, by what the API server calls it.
func capabilities() map[string]capability {
	var job agentpool.AgentJob // Of the subject; each has a map of its own.
	made := func(s *subject) { job = s.ensure(s.job(1, 0)) }
	ensure := func(ctx context.Context, s *subject) error {
		_, err := s.cluster.Ensure(ctx, s.job(1, 0), nil)
		return err
	}
	endRights := func(ctx context.Context, s *subject) error { return s.cluster.EndRights(ctx, job) }
	unstarted := func(ctx context.Context, s *subject) error {
		_, err := s.cluster.DeleteUnstarted(ctx, job.Name, job.UID)
		return err
	}
	sweep := func(ctx context.Context, s *subject) error {
		_, err := s.cluster.Sweep(ctx, time.Minute, time.Now().Add(time.Hour))
		return err
	}
	watch := func(ctx context.Context, s *subject) error {
		return s.follow(ctx, s.cluster.Run, func() bool { return len(s.cluster.Jobs()) > 0 })
	}
	classes := func(ctx context.Context, s *subject) error {
		all, err := cluster.NewClasses(cluster.ClassesConfig{Client: s.client, Namespace: s.agents})
		if err != nil {
			return err
		}
		return s.follow(ctx, all.Run, all.Synced)
	}
	liveClasses := func(ctx context.Context, s *subject) error {
		all, err := cluster.NewClasses(cluster.ClassesConfig{Client: s.client, Namespace: s.agents})
		if err == nil {
			_, err = all.LiveCronJobs(ctx)
		}
		return err
	}
	report := func(ctx context.Context, s *subject) error { return s.report(ctx, job) }
	lease := func(ctx context.Context, s *subject) error { return s.elect(ctx) }
	token := func(ctx context.Context, s *subject) error {
		kept, err := cluster.NewTokenSecret(cluster.TokenSecretConfig{Client: s.client, Namespace: s.agents, Name: "azp-token", Key: "token", Owner: "abcdefgh"})
		if err != nil {
			return err
		}
		for _, value := range []string{"first", "second"} {
			if _, _, err := kept.Keep(ctx, value, time.Now().Add(time.Hour), true); err != nil {
				return err
			}
		}
		_, err = kept.Remove(ctx)
		return err
	}
	absent := func(name string) func(context.Context, *subject) error {
		return func(ctx context.Context, s *subject) error {
			in := installation()
			in.CAConfigMap = "azp-ca"
			for _, p := range s.cluster.PreflightInstallation(ctx, in) {
				if strings.Contains(p.What, name) && strings.Contains(p.What, "does not exist") {
					return nil
				}
			}
			return fmt.Errorf("nobody is told that %s is missing", name)
		}
	}
	return map[string]capability{
		"get jobs":       {"a Job whose making was answered too late is found again", made, ensure},
		"list jobs":      {"a scaler that starts knows the Jobs that are there", made, func(ctx context.Context, s *subject) error { _, err := s.cluster.LiveJobs(ctx); return err }},
		"watch jobs":     {"what becomes of a Job is seen at once", made, watch},
		"create jobs":    {"a queued build gets a Job", nil, ensure},
		"patch jobs":     {"the Job runs once its rights are there", nil, ensure},
		"delete jobs":    {"an agent that nobody needs goes", made, func(ctx context.Context, s *subject) error { return s.cluster.DeleteJob(ctx, job.Name, job.UID) }},
		"list cronjobs":  {"classes of agent are known", nil, liveClasses},
		"watch cronjobs": {"a changed class of agent is seen at once", nil, classes},
		"list pods":      {"an agent that has started is never ended as one that has not", made, unstarted},
		"watch pods":     {"that an agent has its build is seen at once", made, watch},
		"delete pods":    {"an agent that has not started ends without a build", func(s *subject) { made(s); s.awaitPod(job.Name, anyPod) }, unstarted},
		"list events":    {"why a pod does not start is known, from older API servers too", func(s *subject) { made(s); s.refusals.old = true }, watch},
		"watch events":   {"why a pod does not start is seen at once", made, watch},
		"create events":  {"what the scaler has to say of a Job is shown on it", made, report},
		"patch events":   {"what it says again is counted", made, report},
		"create secrets": {"a build whose agent the scaler registers gets what it signs in with", nil, func(ctx context.Context, s *subject) error {
			_, err := s.cluster.Ensure(ctx, s.job(1, 0, jit), (&registry{}).register)
			return err
		}},
		"get leases":    {"one of several replicas leads", nil, lease},
		"create leases": {"the first replica leads", nil, lease},
		"update leases": {"the replica that leads goes on", nil, lease},
		"get secrets azp-token": {"that the agents' token is missing is told before the first build", func(s *subject) {
			if err := s.admin.CoreV1().Secrets(s.agents).Delete(s.t.Context(), "azp-token", metav1.DeleteOptions{}); err != nil {
				s.t.Fatal(err)
			}
		}, absent("azp-token")},
		"get configmaps azp-ca":  {"that the agents' CA is missing is told before the first build", nil, absent("azp-ca")},
		"get serviceaccounts":    {"a build's account goes when it ends, and nobody else's", made, endRights},
		"list serviceaccounts":   {"an account that a crash left is found", nil, sweep},
		"create serviceaccounts": {"a build gets an account of its own", nil, ensure},
		"delete serviceaccounts": {"a build's account goes when it ends", made, endRights},
		"create localsubjectaccessreviews": {"an account that could read the token is told of", func(s *subject) { s.makeAccount(s.agents, "cloud") }, func(ctx context.Context, s *subject) error {
			problems, err := s.cluster.CheckStandingAccount(ctx, "cloud", "azp-token")
			if len(problems) > 0 {
				return errors.New(problems[0].String())
			}
			return err
		}},
		"get rolebindings":                {"a build's right goes when it ends, and nobody else's", made, endRights},
		"list rolebindings":               {"a right that a crash left is found", nil, sweep},
		"create rolebindings":             {"a build may deploy", nil, ensure},
		"delete rolebindings":             {"a build's right goes when it ends", made, endRights},
		"bind clusterroles edit":          {"a build gets the role that its class names", nil, ensure},
		"token: create secrets":           {"the token for pods is there", withoutToken, token},
		"token: update secrets azp-token": {"the token for pods is replaced before it ends", withoutToken, token},
		"token: delete secrets azp-token": {"cleanup leaves no token behind", withoutToken, token},
	}
}

func withoutToken(s *subject) {
	if err := s.admin.CoreV1().Secrets(s.agents).Delete(s.t.Context(), "azp-token", metav1.DeleteOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

// follow runs a watch until it shows what is there, or the API server has refused something.
func (s *subject) follow(ctx context.Context, run func(context.Context) error, shows func() bool) error {
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	s.await("what the watches show, or that one is refused", func() bool { return shows() && !s.lacks || s.refusals.err() != nil })
	stop()
	return <-ended
}

// report says something of a Job, and the same again, until both are to be seen.
func (s *subject) report(ctx context.Context, job agentpool.AgentJob) error {
	return s.follow(ctx, s.cluster.Run, func() bool {
		s.cluster.RecordEvent(job, true, "Tried", "the same")
		list, err := s.admin.CoreV1().Events(s.agents).List(ctx, metav1.ListOptions{FieldSelector: "reason=Tried"})
		return err == nil && slices.ContainsFunc(list.Items, func(e corev1.Event) bool { return e.Count > 1 })
	})
}

// elect does what the election does, with the same library.
func (s *subject) elect(ctx context.Context) error {
	lock := &resourcelock.LeaseLock{
		LeaseMeta: metav1.ObjectMeta{Name: "azp-scaler-abcdefgh", Namespace: s.agents}, Client: s.client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: "one"},
	}
	record := resourcelock.LeaderElectionRecord{HolderIdentity: "one", LeaseDurationSeconds: 10}
	if err := lock.Create(ctx, record); err != nil {
		return err
	}
	if _, _, err := lock.Get(ctx); err != nil {
		return err
	}
	return lock.Update(ctx, record)
}

// newSubject sets an environment up, in which the calls that are refused are noted.
func newSubject(t *testing.T, token bool) *subject {
	t.Helper()
	s := &subject{environment: setUp(t), refusals: &refusals{}}
	if token {
		s.apply(tokenManifest, s.agents, strings.Replace(s.agents, "agents", "scaler", 1))
	}
	config := s.signIn()
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { s.refusals.next = next; return s.refusals })
	s.client = kubernetes.NewForConfigOrDie(config)
	s.cluster = s.connect(rest.CopyConfig(config), s.target)
	return s
}

// without takes a verb of one rule from a Role.
func (s *subject) without(namespace, role string, right cluster.Right, verb string) {
	s.t.Helper()
	found := must(s.admin.RbacV1().Roles(namespace).Get(s.t.Context(), role, metav1.GetOptions{}))(s.t)
	for i, rule := range found.Rules {
		if rule.Resources[0] == right.Resource && rule.APIGroups[0] == right.Group && slices.Equal(rule.ResourceNames, right.Names) {
			found.Rules[i].Verbs = slices.DeleteFunc(rule.Verbs, func(v string) bool { return v == verb })
		}
	}
	found.Rules = slices.DeleteFunc(found.Rules, func(rule rbacv1.PolicyRule) bool { return len(rule.Verbs) == 0 })
	must(s.admin.RbacV1().Roles(namespace).Update(s.t.Context(), found, metav1.UpdateOptions{}))(s.t)
}

// awaitLoss waits until the API server knows that a right is gone.
func (s *subject) awaitLoss(namespace string, right cluster.Right, verb string) {
	s.t.Helper()
	review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
		Namespace: namespace, Verb: verb, Group: right.Group, Resource: right.Resource, Name: strings.Join(right.Names, ""),
	}}}
	scaler := kubernetes.NewForConfigOrDie(s.signIn())
	s.await("the lost right", func() bool {
		answer, err := scaler.AuthorizationV1().SelfSubjectAccessReviews().Create(s.t.Context(), review, metav1.CreateOptions{})
		return err == nil && !answer.Status.Allowed
	})
}

// TestEachRightIsNeeded takes each verb of each rule away in turn. With it what it is for
// works, without it that fails; and the check before the first build names it.
func TestEachRightIsNeeded(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("needs a control plane")
	}
	agents, target := defaultRights()
	tested := map[string]bool{}
	for prefix, rights := range map[string][]cluster.Right{"": agents, "target": target, "token: ": cluster.TokenRights("azp-token")} {
		for _, right := range rights {
			for _, verb := range right.Verbs {
				lost := strings.TrimSpace(verb + " " + right.Resource + " " + strings.Join(right.Names, ""))
				key := strings.TrimPrefix(prefix, "target") + lost
				tested[key] = true
				c, known := capabilities()[key]
				if !known {
					t.Errorf("nothing is known to fail without the right to %s: it is not needed, or a capability is missing here", key)
					continue
				}
				t.Run(strings.ReplaceAll(key, " ", "-"), func(t *testing.T) {
					t.Parallel()
					token := prefix == "token: "
					control := newSubject(t, token)
					if c.prepare != nil {
						c.prepare(control)
					}
					if err := errors.Join(c.do(t.Context(), control), control.refusals.err()); err != nil {
						t.Fatalf("with all rights, %s fails: %v", c.name, err)
					}
					s := newSubject(t, token)
					if c.prepare != nil {
						c.prepare(s)
					}
					namespace, role := s.agents, "azp-scaler"
					if prefix == "target" {
						namespace = s.target
					}
					if token {
						role = "azp-scaler-agent-token"
						if verb == "create" { // The other Role has it, too, for classes with jit.
							s.without(s.agents, "azp-scaler", cluster.JITRights()[0], verb)
						}
					}
					s.without(namespace, role, right, verb)
					s.awaitLoss(namespace, right, verb)
					s.lacks = true
					err := errors.Join(c.do(t.Context(), s), s.refusals.err())
					if err == nil {
						t.Errorf("without the right to %s, %s all the same: the right is not needed", key, c.name)
					}
					s.namesTheRight(lost, token)
				})
			}
		}
	}
	for key := range capabilities() {
		if !tested[key] {
			t.Errorf("a capability is for the right to %s, which the scaler does not ask for", key)
		}
	}
}

// namesTheRight: the check says which right is missing, or of a role, that it can't be given.
func (s *subject) namesTheRight(lost string, token bool) {
	s.t.Helper()
	if strings.HasSuffix(lost, "localsubjectaccessreviews") {
		return // Its absence is told of where a class names an account, by what was tried.
	}
	in := installation()
	in.CAConfigMap, in.Election = "azp-ca", true
	if token {
		in.TokenOwner = "abcdefgh"
	}
	problems := append(s.preflight(in, s.sample()), s.cluster.PreflightClass(s.t.Context(), s.sample(jit))...)
	want := lost
	if role, isBind := strings.CutPrefix(lost, "bind clusterroles "); isBind {
		want = fmt.Sprintf("ClusterRole %q", role)
	}
	if !slices.ContainsFunc(problems, func(p cluster.Problem) bool { return strings.Contains(p.String(), want) }) {
		s.t.Errorf("the check does not name the right to %s: %v", lost, problems)
	}
}
