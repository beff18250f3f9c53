package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/azp-scaler/azp-scaler/pkg/agentclass"
	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
)

// watchClasses watches the classes with the scaler's own rights, until the test
// ends. changes counts what it is told of.
func (e *environment) watchClasses(log *slog.Logger) (classes *cluster.Classes, changes *atomic.Int64) {
	e.t.Helper()
	changes = &atomic.Int64{}
	classes, err := cluster.NewClasses(cluster.ClassesConfig{
		Client: kubernetes.NewForConfigOrDie(e.signIn()), Namespace: e.agents, Logger: log, OnChange: func() { changes.Add(1) },
	})
	if err != nil {
		e.t.Fatal(err)
	}
	e.start(classes.Run)
	return classes, changes
}

// cronJob makes one, as a class if it has the label.
func (e *environment) cronJob(name string, labels map[string]string) *batchv1.CronJob {
	e.t.Helper()
	template := agentjob.DefaultTemplate(agentjob.DefaultClass{Image: "agent:1"})
	template.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
	return must(e.admin.BatchV1().CronJobs(e.agents).Create(e.t.Context(), &batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec:       batchv1.CronJobSpec{Schedule: "@yearly", Suspend: new(true), JobTemplate: template},
	}, metav1.CreateOptions{FieldManager: "test"}))(e.t)
}

func namesOf(cronJobs []*batchv1.CronJob) []string {
	names := make([]string, 0, len(cronJobs))
	for _, cronJob := range cronJobs {
		names = append(names, cronJob.Name)
	}
	return names
}

// TestClassesFollowTheCronJobs with the documented rights only.
func TestClassesFollowTheCronJobs(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	e.cronJob("backup", nil)
	e.cronJob("python", map[string]string{agentclass.Label: ""})
	classes, changes := e.watchClasses(nil)
	shows := func(want ...string) {
		t.Helper()
		e.await("the classes "+strings.Join(want, ", "), func() bool { return classes.Synced() && slices.Equal(namesOf(classes.CronJobs()), want) },
			func() any { return namesOf(classes.CronJobs()) })
		live, err := classes.LiveCronJobs(t.Context())
		if diff := cmp.Diff(want, namesOf(live)); err != nil || diff != "" {
			t.Errorf("live: %v\n%s", err, diff)
		}
	}
	shows("python")
	if fields := classes.CronJobs()[0].ManagedFields; len(fields) > 0 {
		t.Errorf("the cache holds what nobody reads: %v", fields)
	}

	e.cronJob("java", map[string]string{agentclass.Label: "true"})
	shows("java", "python")

	before := changes.Load()
	patch := []byte(`{"spec":{"jobTemplate":{"spec":{"template":{"spec":{"containers":[{"name":"agent","image":"agent:2"}]}}}}}}`)
	must(e.admin.BatchV1().CronJobs(e.agents).Patch(t.Context(), "java", types.StrategicMergePatchType, patch, metav1.PatchOptions{}))(t)
	e.await("the new image", func() bool {
		return classes.CronJobs()[0].Spec.JobTemplate.Spec.Template.Spec.Containers[0].Image == "agent:2" && changes.Load() > before
	})

	// A class ends by its label, or with its CronJob.
	patch = []byte(`{"metadata":{"labels":{"` + agentclass.Label + `":null}}}`)
	must(e.admin.BatchV1().CronJobs(e.agents).Patch(t.Context(), "java", types.MergePatchType, patch, metav1.PatchOptions{}))(t)
	shows("python")
	if err := e.admin.BatchV1().CronJobs(e.agents).Delete(t.Context(), "python", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	e.await("no class", func() bool { return len(classes.CronJobs()) == 0 })
	jobs := must(e.admin.BatchV1().Jobs(e.agents).List(t.Context(), metav1.ListOptions{}))(t)
	if len(jobs.Items) > 0 {
		t.Errorf("a class was run: %v", jobs.Items)
	}
}

func TestEventReachesTheClass(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	java := e.cronJob("java", map[string]string{agentclass.Label: ""})
	classes, _ := e.watchClasses(nil)
	e.await("the cache", classes.Synced)
	classes.RecordEvent(java, true, "BrokenClass", "annotation max-agents:\n\"many\"")
	e.await("the Event", func() bool {
		events := must(e.admin.CoreV1().Events(e.agents).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=java"}))(t)
		return slices.ContainsFunc(events.Items, func(event corev1.Event) bool {
			about := event.InvolvedObject
			return event.Reason == "BrokenClass" && event.Message == `annotation max-agents: "many"` && event.Type == corev1.EventTypeWarning &&
				about.Kind == "CronJob" && about.APIVersion == "batch/v1" && about.UID == java.UID
		})
	})
}

// TestNoClassesWithoutRights: what can't be read is never taken for no class, and
// the log says what to do.
func TestNoClassesWithoutRights(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	e.cronJob("java", map[string]string{agentclass.Label: ""})
	role := must(e.admin.RbacV1().Roles(e.agents).Get(t.Context(), "azp-scaler", metav1.GetOptions{}))(t)
	role.Rules = slices.DeleteFunc(role.Rules, func(rule rbacv1.PolicyRule) bool { return slices.Contains(rule.Resources, "cronjobs") })
	must(e.admin.RbacV1().Roles(e.agents).Update(t.Context(), role, metav1.UpdateOptions{}))(t)
	probe, err := cluster.NewClasses(cluster.ClassesConfig{Client: kubernetes.NewForConfigOrDie(e.signIn()), Namespace: e.agents})
	if err != nil {
		t.Fatal(err)
	}
	e.await("the right is gone", func() bool { _, err = probe.LiveCronJobs(t.Context()); return err != nil })
	if !errors.Is(err, cluster.ErrForbidden) || !strings.Contains(err.Error(), "lack the verb list on cronjobs") {
		t.Errorf("live: %v", err)
	}
	log := &safeBuffer{}
	classes, _ := e.watchClasses(slog.New(slog.NewTextHandler(log, nil)))
	e.await("the remedy in the log", func() bool {
		return strings.Contains(log.String(), "apply the scaler's Role") && strings.Contains(log.String(), e.agents)
	}, func() any { return log.String() })
	if classes.Synced() {
		t.Error("the cache counts as filled")
	}
	e.await("the missing right is told", func() bool {
		problems := e.cluster.PreflightInstallation(t.Context(), installation())
		return len(problems) == 1 && strings.Contains(problems[0].String(), "lacks rights: list cronjobs, watch cronjobs")
	})
}

// safeBuffer may be written to and read at the same time.
type safeBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// TestServiceAccountTemplate copies what a build's account is to have, and no mark
// by which somebody knows the account itself.
func TestServiceAccountTemplate(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	must(e.admin.CoreV1().ServiceAccounts(e.agents).Create(t.Context(), &corev1.ServiceAccount{
		ObjectMeta: metav1.ObjectMeta{
			Name: "builder",
			Labels: map[string]string{
				"azure.workload.identity/use": "true", "app.kubernetes.io/name": "builder", "app.kubernetes.io/instance": "platform",
				"app.kubernetes.io/managed-by": "Helm", "helm.sh/chart": "platform-1", agentjob.LabelInstance: "abcdefgh",
			},
			Annotations: map[string]string{
				"azure.workload.identity/client-id": "1234", corev1.LastAppliedConfigAnnotation: "{}",
				"argocd.argoproj.io/tracking-id": "x", agentjob.AnnotationRightsEnded: "now",
			},
		},
		Secrets:          []corev1.ObjectReference{{Name: "not-for-builds"}},
		ImagePullSecrets: []corev1.LocalObjectReference{{Name: "registry"}, {Name: "mirror"}},
	}, metav1.CreateOptions{}))(t)
	got, err := e.cluster.ServiceAccountTemplate(t.Context(), "builder")
	want := agentjob.ServiceAccountTemplate{
		Labels:           map[string]string{"azure.workload.identity/use": "true", "app.kubernetes.io/name": "builder"},
		Annotations:      map[string]string{"azure.workload.identity/client-id": "1234"},
		ImagePullSecrets: []string{"registry", "mirror"},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}

	fails := func(kind error, reason string, texts ...string) {
		t.Helper()
		e.await("the error "+reason, func() bool {
			_, err = e.cluster.ServiceAccountTemplate(t.Context(), "absent")
			return errors.Is(err, kind)
		},
			func() any { return err })
		if string(cluster.ReasonOf(err)) != reason {
			t.Errorf("reason %q, want %q", cluster.ReasonOf(err), reason)
		}
		for _, text := range texts {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%v\ndoes not say %q", err, text)
			}
		}
	}
	fails(cluster.ErrNotFound, "missing-object", e.agents+"/absent", "create the ServiceAccount", "serviceAccountName")
	if err := e.admin.RbacV1().RoleBindings(e.agents).Delete(t.Context(), "azp-scaler", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	fails(cluster.ErrForbidden, "forbidden", "the verb get on serviceaccounts")
}

// TestClassesEndWithTheirContext leaves nothing behind that still watches.
func TestClassesEndWithTheirContext(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	classes, err := cluster.NewClasses(cluster.ClassesConfig{Client: kubernetes.NewForConfigOrDie(e.signIn()), Namespace: e.agents})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- classes.Run(ctx) }()
	e.await("the cache", classes.Synced)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	e.cronJob("late", map[string]string{agentclass.Label: ""})
	if got := classes.CronJobs(); len(got) > 0 {
		t.Errorf("it still watches: %v", namesOf(got))
	}
}
