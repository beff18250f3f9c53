package cluster_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
)

func TestEnsureMakesTheJobLast(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	job := e.job(1, 0)
	made := e.ensure(job)
	if diff := cmp.Diff([]string{"POST jobs", "POST serviceaccounts", "POST rolebindings", "PATCH jobs"}, e.wire.written()); diff != "" {
		t.Errorf("the order of the writes:\n%s", diff)
	}
	live := e.live(job.Name)
	if made.Name != job.Name || made.UID != string(live.UID) || made.Suspended || made.RequestID != 1 || made.Class != "default" {
		t.Errorf("told %+v", made)
	}
	// Under Pod Security "restricted", with the build's own ServiceAccount.
	pod := e.awaitPod(job.Name, anyPod)
	if pod.Spec.ServiceAccountName != job.Name {
		t.Errorf("the pod runs as %q", pod.Spec.ServiceAccountName)
	}
	account := must(e.admin.CoreV1().ServiceAccounts(e.agents).Get(t.Context(), job.Name, metav1.GetOptions{}))(t)
	if len(account.OwnerReferences) != 1 || account.OwnerReferences[0].UID != live.UID || account.OwnerReferences[0].BlockOwnerDeletion != nil {
		t.Errorf("the ServiceAccount's owner: %+v", account.OwnerReferences)
	}
	binding := must(e.admin.RbacV1().RoleBindings(e.target).Get(t.Context(), job.Name, metav1.GetOptions{}))(t)
	if binding.RoleRef.Name != "edit" || binding.Labels[agentjob.LabelJobUID] != string(live.UID) {
		t.Errorf("the RoleBinding: %+v", binding)
	}
	// Once more changes nothing.
	e.wire.restore()
	again := e.ensure(job)
	if again.UID != made.UID {
		t.Errorf("made another Job: %+v", again)
	}
	if diff := cmp.Diff([]string{"POST jobs"}, e.wire.written()); diff != "" {
		t.Errorf("writes of a second call:\n%s", diff)
	}
}

// TestEnsureSurvivesACrashAnywhere cuts the line before and after each write, and
// then goes on as a restarted scaler would.
func TestEnsureSurvivesACrashAnywhere(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	const writes = 4
	attempt := 0
	for n := 1; n <= writes; n++ {
		for _, sent := range []bool{false, true} {
			for _, resume := range []string{"Ensure", "Complete"} {
				name := fmt.Sprintf("write %d, sent %t, then %s", n, sent, resume)
				attempt++
				job := e.job(int64(n), attempt)
				e.wire.cut(n, sent)
				made, err := e.cluster.Ensure(t.Context(), job, nil)
				if !errors.Is(err, cluster.ErrUnavailable) || !errors.Is(err, errCut) {
					t.Fatalf("%s: the cut line gave %v", name, err)
				}
				e.wire.restore()
				live := e.live(job.Name)
				if there := n > 1 || sent; there != (live != nil) {
					t.Fatalf("%s: the Job is there: %t", name, live != nil)
				}
				if n > 1 && (made.UID != string(live.UID) || made.Name != job.Name) {
					t.Errorf("%s: a half-made Job is there, and was told as %+v", name, made)
				}
				if len(e.pods(job.Name)) > 0 && (n < writes || !sent) {
					t.Errorf("%s: a pod runs before its rights are there", name)
				}
				switch resume {
				case "Complete":
					if live == nil {
						continue // Nothing tells of it: the plan makes it anew.
					}
					if err := e.cluster.Complete(t.Context(), job.Name, string(live.UID)); err != nil {
						t.Fatalf("%s: %v", name, err)
					}
				default:
					e.ensure(job)
				}
				if got := e.live(job.Name); got == nil || *got.Spec.Suspend {
					t.Errorf("%s: the Job does not run", name)
				}
				e.awaitPod(job.Name, anyPod)
				if got := e.left(job.Name); got != "job pod serviceaccount rolebinding" {
					t.Errorf("%s: there is %q", name, got)
				}
			}
		}
	}
}

// TestEnsureTakesNoNameThatCannotBeGoneOnWith: only our own Job that can still
// run is what an AlreadyExists may stand for.
func TestEnsureTakesNoNameThatCannotBeGoneOnWith(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	for i, c := range []struct {
		name   string
		change func(*batchv1.Job)
		after  func(*batchv1.Job)
	}{
		{"of another instance", func(j *batchv1.Job) { j.Labels[agentjob.LabelInstance] = "other234" }, nil},
		// Without any labels, a Job gets those of its pod template from the API server.
		{"of nobody", func(j *batchv1.Job) { j.Labels = map[string]string{"app": "other"} }, nil},
		{"finished", nil, func(j *batchv1.Job) {
			now := time.Now().UTC().Format(time.RFC3339)
			condition := func(kind batchv1.JobConditionType) string {
				return fmt.Sprintf(`{"type":%q,"status":"True","reason":"Test","lastTransitionTime":%q}`, kind, now)
			}
			// The controller writes to the status too: a patch does not mind.
			patch := fmt.Sprintf(`{"status":{"startTime":%q,"conditions":[%s,%s]}}`, now, condition(batchv1.JobFailureTarget), condition(batchv1.JobFailed))
			must(e.admin.BatchV1().Jobs(e.agents).Patch(t.Context(), j.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status"))(t)
		}},
		{"being deleted", func(j *batchv1.Job) { j.Finalizers = []string{"example.com/hold"} }, func(j *batchv1.Job) {
			if err := e.admin.BatchV1().Jobs(e.agents).Delete(t.Context(), j.Name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		job := e.job(int64(i+1), 0)
		there := job.DeepCopy()
		if c.change != nil {
			c.change(there)
		}
		there = must(e.admin.BatchV1().Jobs(e.agents).Create(t.Context(), there, metav1.CreateOptions{}))(t)
		if c.after != nil {
			// The controller writes to the new Job too.
			e.await("the Job controller's first look", func() bool { there = e.live(job.Name); return len(there.Status.Conditions) > 0 })
			c.after(there)
		}
		e.wire.restore()
		made, err := e.cluster.Ensure(t.Context(), job, nil)
		if !errors.Is(err, cluster.ErrNameTaken) || made.UID != "" {
			t.Errorf("%s: %+v, %v", c.name, made, err)
		}
		if diff := cmp.Diff([]string{"POST jobs"}, e.wire.written()); diff != "" {
			t.Errorf("%s: writes:\n%s", c.name, diff)
		}
		if err := e.cluster.Complete(t.Context(), job.Name, string(there.UID)); err != nil {
			t.Errorf("%s: Complete: %v", c.name, err)
		}
		if live := e.live(job.Name); !*live.Spec.Suspend {
			t.Errorf("%s: it was let run", c.name)
		}
		if live := e.live(job.Name); len(live.Finalizers) > 0 {
			live.Finalizers = nil
			must(e.admin.BatchV1().Jobs(e.agents).Update(t.Context(), live, metav1.UpdateOptions{}))(t)
		}
	}
}

func TestCompleteLeavesAnotherJobOfTheNameAlone(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	job := must(e.admin.BatchV1().Jobs(e.agents).Create(t.Context(), e.job(1, 0), metav1.CreateOptions{}))(t)
	if err := e.cluster.Complete(t.Context(), job.Name, "another"); err != nil {
		t.Error(err)
	}
	if err := e.cluster.Complete(t.Context(), "azp-abcdefgh-7-2-0", "gone"); err != nil {
		t.Error(err)
	}
	if got := e.wire.written(); len(got) > 0 || !*e.live(job.Name).Spec.Suspend {
		t.Errorf("wrote %v", got)
	}
}

// TestEnsureReplacesLeftoversOnly: what an earlier Job of the same name has left
// goes; what is not ours stays, and stops the Job.
func TestEnsureReplacesLeftoversOnly(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	leftover := func(name string, labels map[string]string) {
		must(e.admin.CoreV1().ServiceAccounts(e.agents).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{}))(t)
		must(e.admin.RbacV1().RoleBindings(e.target).Create(t.Context(), &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "view"},
		}, metav1.CreateOptions{}))(t)
	}
	old := e.job(1, 0)
	leftover(old.Name, map[string]string{agentjob.LabelInstance: "abcdefgh", agentjob.LabelManagedBy: agentjob.ManagedBy, agentjob.LabelJobUID: "gone"})
	made := e.ensure(old)
	binding := must(e.admin.RbacV1().RoleBindings(e.target).Get(t.Context(), old.Name, metav1.GetOptions{}))(t)
	if binding.RoleRef.Name != "edit" || binding.Labels[agentjob.LabelJobUID] != made.UID {
		t.Errorf("the leftover is used: %+v", binding)
	}
	foreign := e.job(2, 0)
	leftover(foreign.Name, nil)
	_, err := e.cluster.Ensure(t.Context(), foreign, nil)
	if !errors.Is(err, cluster.ErrNameTaken) || !strings.Contains(err.Error(), "delete or rename it") {
		t.Errorf("a foreign ServiceAccount gave %v", err)
	}
	if !*e.live(foreign.Name).Spec.Suspend {
		t.Error("the Job runs as an account that is not ours")
	}
}

// TestEnsureTellsWhatToDo has every kind of refusal by the real API server.
func TestEnsureTellsWhatToDo(t *testing.T) {
	t.Parallel()
	right := func(kind, name string) func(*agentpool.AgentClass, *batchv1.JobTemplateSpec) {
		return func(c *agentpool.AgentClass, _ *batchv1.JobTemplateSpec) {
			c.RoleBindings[0].Kind, c.RoleBindings[0].Name = kind, name
		}
	}
	nowhere := func(c *agentpool.AgentClass, _ *batchv1.JobTemplateSpec) { c.RoleBindings[0].Namespace = "nowhere" }
	for _, c := range []struct {
		name    string
		prepare func(*environment)
		change  func(*agentpool.AgentClass, *batchv1.JobTemplateSpec)
		admin   bool
		kind    error
		reason  agentpool.Reason
		want    string
	}{
		{"no right to bind", nil, right("ClusterRole", "admin"), false, cluster.ErrForbidden, agentpool.ReasonForbidden, "verb bind on that role by name"},
		{"role absent, to be held", nil, right("Role", "absent"), false, cluster.ErrRoleAbsent, agentpool.ReasonMissingObject, `create the role "absent"`},
		{"namespace absent or no rights", nil, nowhere, false, cluster.ErrForbidden, agentpool.ReasonForbidden, `namespace "nowhere" does not exist, or`},
		{"namespace absent", nil, nowhere, true, cluster.ErrNamespaceAbsent, agentpool.ReasonMissingObject, `create namespace "nowhere"`},
		{"quota", func(e *environment) {
			must(e.admin.CoreV1().ResourceQuotas(e.agents).Create(t.Context(), &corev1.ResourceQuota{
				ObjectMeta: metav1.ObjectMeta{Name: "none"},
				Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"count/jobs.batch": resource.MustParse("0")}},
			}, metav1.CreateOptions{}))(t)
			e.await("the quota's first count", func() bool {
				q := must(e.admin.CoreV1().ResourceQuotas(e.agents).Get(t.Context(), "none", metav1.GetOptions{}))(t)
				return len(q.Status.Used) > 0
			})
		}, nil, false, cluster.ErrQuota, agentpool.ReasonQuota, "raise the ResourceQuota"},
		{"invalid", nil, func(_ *agentpool.AgentClass, t *batchv1.JobTemplateSpec) {
			t.Spec.Template.Spec.Containers[0].ImagePullPolicy = "Sometimes"
		}, false, cluster.ErrInvalid, agentpool.ReasonInvalid, "imagePullPolicy"},
		{"no rights", func(e *environment) {
			if err := e.admin.RbacV1().RoleBindings(e.agents).Delete(t.Context(), "azp-scaler", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}, nil, false, cluster.ErrForbidden, agentpool.ReasonForbidden, "lack the verb create on"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e := setUp(t)
			if c.prepare != nil {
				c.prepare(e)
			}
			if c.admin {
				e.cluster = e.connect(shared.RESTConfig(), e.target)
			}
			change := c.change
			if change == nil {
				change = func(*agentpool.AgentClass, *batchv1.JobTemplateSpec) {}
			}
			var err error
			attempt := 0
			e.await("the refusal", func() bool { // Authorisation and quota follow their objects by a moment.
				attempt++
				_, err = e.cluster.Ensure(t.Context(), e.job(1, attempt, change), nil)
				return errors.Is(err, c.kind)
			}, func() any { return err })
			if got := cluster.ReasonOf(err); got != c.reason {
				t.Errorf("reason %q, want %q", got, c.reason)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\ndoes not say %q", err, c.want)
			}
		})
	}
}

// TestEnsureGivesARoleThatTheScalerHolds: the other way to bind, without the verb.
func TestEnsureGivesARoleThatTheScalerHolds(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	_, hold := manifest(t, "base/target/rbac-target.yaml")
	hold.Name, hold.Namespace = "hold", e.target
	hold.Subjects[0].Namespace = strings.Replace(e.agents, "agents", "scaler", 1)
	hold.RoleRef = rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "view"}
	must(e.admin.RbacV1().RoleBindings(e.target).Create(t.Context(), hold, metav1.CreateOptions{}))(t)
	job := e.job(1, 0, func(c *agentpool.AgentClass, _ *batchv1.JobTemplateSpec) { c.RoleBindings[0].Name = "view" })
	var err error
	e.await("the role is given", func() bool { _, err = e.cluster.Ensure(t.Context(), job, nil); return err == nil }, func() any { return err })
}

func TestEnsureRefusesAJobThatIsNotSuspended(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	job := e.job(1, 0)
	job.Spec.Suspend = nil
	if _, err := e.cluster.Ensure(t.Context(), job, nil); !errors.Is(err, cluster.ErrInvalid) || e.live(job.Name) != nil {
		t.Errorf("made it: %v", err)
	}
}

// TestUnsuspendHoldsToItsJob: between look and patch the Job is replaced by
// another one of the same name, which must stay suspended.
func TestUnsuspendHoldsToItsJob(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	job := e.job(1, 0)
	var other types.UID
	e.wire.intercept(func(write string) {
		if write != "PATCH jobs" || other != "" {
			return
		}
		client := kubernetes.NewForConfigOrDie(shared.RESTConfig()).BatchV1().Jobs(e.agents)
		policy := metav1.DeletePropagationBackground
		if err := client.Delete(t.Context(), job.Name, metav1.DeleteOptions{PropagationPolicy: &policy}); err != nil {
			t.Error(err)
			return
		}
		again, err := client.Create(t.Context(), job.DeepCopy(), metav1.CreateOptions{})
		if err != nil {
			t.Error(err)
			return
		}
		other = again.UID
	})
	_, err := e.cluster.Ensure(t.Context(), job, nil)
	if !errors.Is(err, cluster.ErrStale) {
		t.Errorf("the other Job was patched: %v", err)
	}
	if live := e.live(job.Name); live.UID != other || !*live.Spec.Suspend {
		t.Errorf("the other Job runs: %+v", live.Spec.Suspend)
	}
}
