package app_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clienttesting "k8s.io/client-go/testing"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/app"
)

// soon are options of a cleanup that waits for no build.
func soon() app.CleanupOptions { return app.CleanupOptions{Timeout: waitLimit} }

// instance is the id of the installation in one pool.
func (w *world) instance(pool string) string {
	return agentjob.InstanceID(w.variables["AZP_URL"], pool, "agents", "azp-scaler")
}

// labels are those of everything that a build of the pool has.
func (w *world) labels(pool, job string) map[string]string {
	return map[string]string{
		agentjob.LabelManagedBy: agentjob.ManagedBy, agentjob.LabelInstance: w.instance(pool), agentjob.LabelJobUID: "uid-" + job, agentjob.LabelJob: job,
	}
}

// ended puts a Job into the cluster whose build is over, with the rights that it had.
func (w *world) ended(t *testing.T, pool string) string {
	t.Helper()
	name := agentjob.JobName(w.instance(pool), w.pools[pool], 41, 0)
	meta := metav1.ObjectMeta{Name: name, Namespace: "agents", UID: "uid-of-job", Labels: w.labels(pool, name)}
	job := &batchv1.Job{ObjectMeta: meta}
	job.Status.Conditions = []batchv1.JobCondition{{Type: batchv1.JobComplete, Status: corev1.ConditionTrue}}
	binding := &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", UID: "uid-of-binding", Labels: w.labels(pool, name)}}
	for _, object := range []runtime.Object{job, binding} {
		if err := w.clientset.Tracker().Add(object); err != nil {
			t.Fatal(err)
		}
	}
	return name
}

func TestCleanupRemovesOnlyItsOwn(t *testing.T) {
	w := newWorld(t, nil, class("java", "java", "role-bindings", "shop Role/deployer"))
	other := w.placeholder(t, "kubernetes", "other-release", "java")
	var own []string
	for _, pool := range []string{"kubernetes", "large"} {
		own = append(own, w.placeholder(t, pool, "azp-scaler", "java"), w.placeholder(t, pool, "azp-scaler", "npm"))
	}
	job := w.ended(t, "kubernetes")
	if err := w.client.AddPlaceholder(t.Context(), w.pools["kubernetes"], job, nil); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	if err := w.Cleanup(t.Context(), &text, soon()); err != nil {
		t.Errorf("%v:\n%s", err, text.String())
	}
	contains(t, text.String(), own...)
	contains(t, text.String(), "from pool kubernetes", "from pool large", "removed  Job "+job, "1 of kind rolebinding", "done     nothing is left", "scale it to 0 before")
	if diff := cmp.Diff([]string{other}, slices.Concat(w.registered("kubernetes"), w.registered("large"))); diff != "" {
		t.Errorf("agents that are left (-want +got):\n%s", diff)
	}
	jobs, err := w.clientset.BatchV1().Jobs("agents").List(t.Context(), metav1.ListOptions{})
	bindings, errBindings := w.clientset.RbacV1().RoleBindings("shop").List(t.Context(), metav1.ListOptions{})
	if errors.Join(err, errBindings) != nil || len(jobs.Items)+len(bindings.Items) != 0 {
		t.Errorf("left: %v and %v (%v, %v)", jobs, bindings, err, errBindings)
	}
	text.Reset()
	if err := w.Cleanup(t.Context(), &text, soon()); err != nil {
		t.Error(err)
	}
	contains(t, text.String(), "nothing  to remove from pool kubernetes\n", "nothing  to remove from pool large\n", "done     nothing is left\n")
}

func TestCleanupTellsWhatItCanNotRemove(t *testing.T) {
	forbidden := apierrors.NewForbidden(schema.GroupResource{Group: "rbac.authorization.k8s.io", Resource: "rolebindings"}, "", errors.New("no"))
	for name, test := range map[string]struct {
		changes map[string]string
		spoil   func(w *world)
		wants   []string
	}{
		"a pool that is gone": {
			changes: map[string]string{"AZP_POOL": "gone,kubernetes"},
			wants:   []string{`pool "gone"`, "of pool gone, as far as there are any", "to do    run scaler cleanup again when the service answers"},
		},
		"a credential that is refused": {
			changes: map[string]string{"AZP_TOKEN": "bad-token"},
			wants:   []string{"LEFT     agents azp-", "credential refused", "to do    "},
		},
		"a namespace without rights": {
			spoil: func(w *world) {
				w.clientset.PrependReactor("*", "rolebindings", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, forbidden })
			},
			wants: []string{"LEFT     what builds were given: ", "namespace shop", "to do    kubectl delete "},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, test.changes, class("java", "java", "role-bindings", "shop Role/deployer"))
			own := w.placeholder(t, "kubernetes", "azp-scaler", "java")
			job := w.ended(t, "kubernetes")
			if test.spoil != nil {
				test.spoil(w)
			}
			w.UsePatience(2 * time.Second)
			var text strings.Builder
			if err := w.Cleanup(t.Context(), &text, soon()); !errors.Is(err, app.ErrLeft) {
				t.Errorf("want it to fail for what is left, got %v", err)
			}
			contains(t, text.String(), append(test.wants, "removed  Job "+job)...)
			if refused := test.changes["AZP_TOKEN"] != ""; refused != slices.Contains(w.registered("kubernetes"), own) {
				t.Errorf("the pool has %v", w.registered("kubernetes"))
			}
		})
	}
}

func TestCleanupEndsWhenItIsToldTo(t *testing.T) {
	w := newWorld(t, nil)
	w.clientset.PrependReactor("list", "jobs", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("no answer")
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var text strings.Builder
	began := time.Now()
	if err := w.Cleanup(ctx, &text, soon()); !errors.Is(err, app.ErrLeft) {
		t.Errorf("want it to fail for what is left, got %v", err)
	}
	if took := time.Since(began); took > waitLimit/2 {
		t.Errorf("it took %s", took)
	}
	contains(t, text.String(), "LEFT     what else there is of pool kubernetes: ", "run scaler cleanup again")
}
