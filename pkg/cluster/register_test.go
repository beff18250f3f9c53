package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
)

// jit has the scaler register the agents of a class.
func jit(class *agentpool.AgentClass, _ *batchv1.JobTemplateSpec) {
	class.Registration = agentpool.RegistrationJIT
}

// registry counts the agents that are registered, and numbers them from 1.
type registry struct {
	agents []string
	err    error
}

func (r *registry) register(_ context.Context, job *batchv1.Job) (*corev1.Secret, int, error) {
	if r.err != nil {
		return nil, 0, r.err
	}
	r.agents = append(r.agents, job.Name)
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: job.Name, Namespace: job.Namespace, OwnerReferences: []metav1.OwnerReference{{
			APIVersion: "batch/v1", Kind: "Job", Name: job.Name, UID: job.UID,
		}}},
		Data: map[string][]byte{".agent": []byte("{}"), ".credentials": []byte("{}"), ".credentials_rsaparams": []byte("{}")},
	}, len(r.agents), nil
}

func (e *environment) secret(name string) bool {
	e.t.Helper()
	_, err := e.admin.CoreV1().Secrets(e.agents).Get(e.t.Context(), name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		e.t.Fatal(err)
	}
	return err == nil
}

func TestEnsureHasTheAgentRegisteredLast(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	job := e.job(1, 0, jit)
	e.wire.restore()
	agents := &registry{}
	made, err := e.cluster.Ensure(t.Context(), job, agents.register)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"POST jobs", "POST serviceaccounts", "POST rolebindings", "POST secrets", "PATCH jobs"}
	if diff := cmp.Diff(want, e.wire.written()); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}
	live := e.live(job.Name)
	if made.AgentID != 1 || made.Suspended || made.Unregistered() || live.Annotations[agentjob.AnnotationAgentID] != "1" || *live.Spec.Suspend {
		t.Errorf("the Job runs and records its agent: %+v, %v", made, live.Annotations)
	}
	shown := must(e.cluster.LiveJobs(t.Context()))(t)
	if len(shown) != 1 || shown[0].AgentID != 1 || shown[0].Registration != agentpool.RegistrationJIT {
		t.Errorf("the Job is shown as %+v", shown)
	}
	if err := e.cluster.DeleteJob(t.Context(), job.Name, made.UID); err != nil {
		t.Fatal(err)
	}
	e.await("the Secret goes with its Job", func() bool { return !e.secret(job.Name) })
}

// TestNobodyElseGoesOnWithAnUnregisteredJob cuts the line before and after each write: what
// is left is suspended and records no agent until the very last one, and neither a restarted
// scaler nor a second one lets it run.
func TestNobodyElseGoesOnWithAnUnregisteredJob(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	const writes = 5
	attempt := 0
	for n := 1; n <= writes; n++ {
		for _, sent := range []bool{false, true} {
			attempt++
			name := fmt.Sprintf("write %d, sent %t", n, sent)
			job := e.job(int64(n), attempt, jit)
			e.wire.cut(n, sent)
			agents := &registry{}
			made, err := e.cluster.Ensure(t.Context(), job, agents.register)
			if !errors.Is(err, errCut) {
				t.Fatalf("%s: the cut line gave %v", name, err)
			}
			e.wire.restore()
			live := e.live(job.Name)
			if live == nil {
				if n > 1 {
					t.Errorf("%s: the Job is gone", name)
				}
				continue
			}
			if n > 1 && made.UID != string(live.UID) {
				t.Errorf("%s: a half-made Job is there, and was told as %+v", name, made)
			}
			if runs := n == writes && sent; *live.Spec.Suspend == runs {
				t.Errorf("%s: it is suspended: %t", name, *live.Spec.Suspend)
				continue
			} else if runs {
				continue
			}
			if _, err := e.cluster.Ensure(t.Context(), job, agents.register); !errors.Is(err, cluster.ErrNameTaken) {
				t.Errorf("%s: a second scaler got %v", name, err)
			}
			if err := e.cluster.Complete(t.Context(), job.Name, string(live.UID)); !errors.Is(err, cluster.ErrInvalid) {
				t.Errorf("%s: a restarted scaler got %v", name, err)
			}
			if live = e.live(job.Name); !*live.Spec.Suspend || len(e.pods(job.Name)) > 0 {
				t.Errorf("%s: it was let run", name)
			}
			if deleted, err := e.cluster.DeleteUnstarted(t.Context(), job.Name, string(live.UID)); err != nil || !deleted {
				t.Errorf("%s: it can't be replaced: %t, %v", name, deleted, err)
			}
			e.await(name+": nothing is left", func() bool { return e.left(job.Name) == "" && !e.secret(job.Name) },
				func() any { return e.left(job.Name) })
		}
	}
}

func TestAnAgentThatCannotBeRegisteredLetsNothingRun(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	job := e.job(1, 0, jit)
	refused := errors.New("the pool does not allow it")
	made, err := e.cluster.Ensure(t.Context(), job, (&registry{err: refused}).register)
	if !errors.Is(err, refused) || made.UID == "" || !made.Unregistered() {
		t.Errorf("want the service's error beside what is there, got %+v, %v", made, err)
	}
	if live := e.live(job.Name); !*live.Spec.Suspend || e.secret(job.Name) {
		t.Error("it runs, or has a Secret")
	}
}

// TestRightsForRegistering says that the scaler needs no more than the documented rights,
// and that it tells of them where a class needs them.
func TestRightsForRegistering(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	if problems := e.preflight(installation(), e.job(1, 0, jit)); len(problems) > 0 {
		t.Errorf("nothing is wrong: %v", problems)
	}
	scaler := must(kubernetes.NewForConfig(must(clientcmd.BuildConfigFromFlags("", e.kubeconfig))(t)))(t)
	if _, err := e.cluster.Ensure(t.Context(), e.job(1, 0, jit), (&registry{}).register); err != nil {
		t.Fatal(err)
	}
	secrets := scaler.CoreV1().Secrets(e.agents)
	_, list := secrets.List(t.Context(), metav1.ListOptions{})
	_, get := secrets.Get(t.Context(), e.job(1, 0).Name, metav1.GetOptions{})
	for verb, err := range map[string]error{"list": list, "get": get, "delete": secrets.Delete(t.Context(), e.job(1, 0).Name, metav1.DeleteOptions{})} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("the scaler may %s the Secrets of builds: %v", verb, err)
		}
	}
}
