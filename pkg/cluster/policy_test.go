package cluster_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
)

// policyFiles are the manifests of the policy, in deploy/kustomize/policy.
func policyFiles() []string { return []string{"rolebindings.yaml", "jobs.yaml", "objects.yaml"} }

// fence applies the delivered policy for this environment's names. accounts are those that
// classes may name.
func (e *environment) fence(accounts ...string) {
	e.t.Helper()
	number := strings.TrimPrefix(e.agents, "agents-")
	names := strings.NewReplacer(
		"system:serviceaccount:azp-scaler:azp-scaler", "system:serviceaccount:scaler-"+number+":azp-scaler",
		"'azp-agents'", "'"+e.agents+"'", "'azp-scaler', 'kube-system'", "'scaler-"+number+"', 'kube-system'",
		`"['']"`, `"['`+strings.Join(accounts, "', '")+`']"`,
		"name: azp-scaler-", "name: azp-"+number+"-", "policyName: azp-scaler-", "policyName: azp-"+number+"-",
	)
	for _, file := range policyFiles() {
		text := must(os.ReadFile(filepath.Join("..", "..", "deploy", "kustomize", "policy", file)))(e.t)
		for document := range strings.SplitSeq(names.Replace(string(text)), "\n---\n") {
			if strings.Contains(document, "kind: ValidatingAdmissionPolicyBinding") {
				var binding admissionv1.ValidatingAdmissionPolicyBinding
				if err := yaml.UnmarshalStrict([]byte(document), &binding); err != nil {
					e.t.Fatal(err)
				}
				must(e.admin.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Create(e.t.Context(), &binding, metav1.CreateOptions{}))(e.t)
				continue
			}
			var policy admissionv1.ValidatingAdmissionPolicy
			if err := yaml.UnmarshalStrict([]byte(document), &policy); err != nil {
				e.t.Fatal(err)
			}
			must(e.admin.AdmissionregistrationV1().ValidatingAdmissionPolicies().Create(e.t.Context(), &policy, metav1.CreateOptions{}))(e.t)
			e.t.Cleanup(func() {
				_ = e.admin.AdmissionregistrationV1().ValidatingAdmissionPolicies().Delete(context.Background(), policy.Name, metav1.DeleteOptions{})
			})
		}
	}
}

// attempt is something that the scaler never does. Whoever has its account might.
type attempt struct {
	name string
	do   func(context.Context, kubernetes.Interface) error
	// rbac says that the scaler has no right to it, policy or not.
	rbac bool
}

var dry = []string{metav1.DryRunAll}

// attempts are all of them. Those that only the policy refuses would be accepted otherwise,
// which is shown by trying without.
func (e *environment) attempts(ours *batchv1.Job) []attempt {
	var all []attempt
	jobs := func(name string, change func(*batchv1.Job)) {
		job := e.job(900+int64(len(all)), 0)
		change(job)
		all = append(all, attempt{name: "Job " + name, do: func(ctx context.Context, c kubernetes.Interface) error {
			_, err := c.BatchV1().Jobs(e.agents).Create(ctx, job, metav1.CreateOptions{DryRun: dry})
			return err
		}})
	}
	pod := func(name string, change func(*corev1.PodSpec)) {
		jobs(name, func(job *batchv1.Job) { change(&job.Spec.Template.Spec) })
	}
	container := func(name string, change func(*corev1.Container)) {
		pod(name, func(spec *corev1.PodSpec) { change(&spec.Containers[0]) })
		pod(name+" before the build", func(spec *corev1.PodSpec) { change(&spec.InitContainers[0]) })
	}
	jobs("without our labels", func(job *batchv1.Job) { job.Labels, job.Spec.Template.Labels = nil, nil }) // It gets its pod's.
	jobs("of another's labels", func(job *batchv1.Job) { job.Labels[agentjob.LabelManagedBy] = "helm" })
	jobs("of no instance", func(job *batchv1.Job) { delete(job.Labels, agentjob.LabelInstance) })
	pod("as another account", func(spec *corev1.PodSpec) {
		spec.ServiceAccountName, spec.DeprecatedServiceAccount = "privileged", "privileged"
	})
	pod("as the default account", func(spec *corev1.PodSpec) { spec.ServiceAccountName, spec.DeprecatedServiceAccount = "", "" })
	pod("in the node's network", func(spec *corev1.PodSpec) { spec.HostNetwork = true })
	pod("among the node's processes", func(spec *corev1.PodSpec) { spec.HostPID = true })
	pod("in the node's IPC", func(spec *corev1.PodSpec) { spec.HostIPC = true })
	pod("with the node's files", func(spec *corev1.PodSpec) {
		spec.Volumes = append(spec.Volumes, corev1.Volume{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}})
	})
	pod("with an NFS volume", func(spec *corev1.PodSpec) {
		spec.Volumes = append(spec.Volumes, corev1.Volume{Name: "nfs", VolumeSource: corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{Server: "s", Path: "/"}}})
	})
	pod("as root", func(spec *corev1.PodSpec) {
		spec.SecurityContext.RunAsUser, spec.SecurityContext.RunAsNonRoot = new(int64(0)), new(false)
	})
	pod("perhaps as root", func(spec *corev1.PodSpec) { spec.SecurityContext.RunAsNonRoot = nil })
	pod("without seccomp", func(spec *corev1.PodSpec) { spec.SecurityContext.SeccompProfile = nil })
	container("privileged", func(c *corev1.Container) {
		c.SecurityContext.Privileged, c.SecurityContext.AllowPrivilegeEscalation = new(true), nil
	})
	container("that may gain privileges", func(c *corev1.Container) { c.SecurityContext.AllowPrivilegeEscalation = new(true) })
	container("with a capability", func(c *corev1.Container) {
		c.SecurityContext.Capabilities = &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"SYS_ADMIN"}}
	})
	container("with all capabilities", func(c *corev1.Container) { c.SecurityContext.Capabilities = nil })
	container("with root for a user", func(c *corev1.Container) {
		c.SecurityContext.RunAsUser, c.SecurityContext.RunAsNonRoot = new(int64(0)), new(false)
	})
	container("unconfined", func(c *corev1.Container) {
		c.SecurityContext.SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeUnconfined}
	})
	container("with a port of the node", func(c *corev1.Container) {
		c.Ports = []corev1.ContainerPort{{ContainerPort: 9000, HostPort: 9000}}
	})

	binding := func(name string, change func(*rbacv1.RoleBinding)) {
		made := must(agentjob.RoleBindings(ours))(e.t)[0]
		made.Name = "attempt"
		change(made)
		all = append(all, attempt{name: "RoleBinding " + name, do: func(ctx context.Context, c kubernetes.Interface) error {
			_, err := c.RbacV1().RoleBindings(made.Namespace).Create(ctx, made, metav1.CreateOptions{DryRun: dry})
			return err
		}})
	}
	binding("for a user", func(b *rbacv1.RoleBinding) {
		b.Subjects = []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: "mallory"}}
	})
	binding("for everybody", func(b *rbacv1.RoleBinding) {
		b.Subjects = []rbacv1.Subject{{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: "system:authenticated"}}
	})
	binding("for an account elsewhere", func(b *rbacv1.RoleBinding) { b.Subjects[0].Namespace = e.target })
	binding("for another account", func(b *rbacv1.RoleBinding) { b.Subjects[0].Name = "default" })
	binding("for one more", func(b *rbacv1.RoleBinding) {
		b.Subjects = append(b.Subjects, rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: e.agents, Name: "default"})
	})
	binding("for nobody", func(b *rbacv1.RoleBinding) { b.Subjects = nil })
	binding("without our labels", func(b *rbacv1.RoleBinding) { b.Labels = nil })
	binding("of no build", func(b *rbacv1.RoleBinding) { delete(b.Labels, agentjob.LabelJobUID) })

	account := func(name string, change func(*corev1.ServiceAccount)) {
		made := must(agentjob.ServiceAccount(ours))(e.t)
		made.Name = "attempt"
		made.OwnerReferences[0].Name = "attempt"
		change(made)
		all = append(all, attempt{name: "ServiceAccount " + name, do: func(ctx context.Context, c kubernetes.Interface) error {
			_, err := c.CoreV1().ServiceAccounts(e.agents).Create(ctx, made, metav1.CreateOptions{DryRun: dry})
			return err
		}})
	}
	account("without our labels", func(a *corev1.ServiceAccount) { a.Labels = nil })
	account("that stays", func(a *corev1.ServiceAccount) { a.OwnerReferences = nil })
	account("of another's Job", func(a *corev1.ServiceAccount) { a.OwnerReferences[0].Name = ours.Name })

	secret := func(name string, made corev1.Secret) {
		made.Namespace = e.agents
		all = append(all, attempt{name: "Secret " + name, do: func(ctx context.Context, c kubernetes.Interface) error {
			_, err := c.CoreV1().Secrets(e.agents).Create(ctx, &made, metav1.CreateOptions{DryRun: dry})
			return err
		}})
	}
	owned := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: name, OwnerReferences: []metav1.OwnerReference{{APIVersion: "batch/v1", Kind: "Job", Name: ours.Name, UID: ours.UID}}}
	}
	secret("that stays", corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "attempt"}})
	secret("of another name than its Job", corev1.Secret{ObjectMeta: owned("attempt")})
	secret("to pull images with", corev1.Secret{ObjectMeta: owned(ours.Name), Type: corev1.SecretTypeDockercfg, Data: map[string][]byte{".dockercfg": []byte("{}")}})

	remove := func(name string, do func(context.Context, kubernetes.Interface, metav1.DeleteOptions) error) {
		all = append(all, attempt{name: "delete " + name, do: func(ctx context.Context, c kubernetes.Interface) error {
			return do(ctx, c, metav1.DeleteOptions{DryRun: dry})
		}})
	}
	remove("another's Job", func(ctx context.Context, c kubernetes.Interface, o metav1.DeleteOptions) error {
		return c.BatchV1().Jobs(e.agents).Delete(ctx, "foreign", o)
	})
	remove("another's pod", func(ctx context.Context, c kubernetes.Interface, o metav1.DeleteOptions) error {
		return c.CoreV1().Pods(e.agents).Delete(ctx, "foreign", o)
	})
	remove("another's account", func(ctx context.Context, c kubernetes.Interface, o metav1.DeleteOptions) error {
		return c.CoreV1().ServiceAccounts(e.agents).Delete(ctx, "foreign", o)
	})
	remove("another's RoleBinding", func(ctx context.Context, c kubernetes.Interface, o metav1.DeleteOptions) error {
		return c.RbacV1().RoleBindings(e.target).Delete(ctx, "foreign", o)
	})
	all = append(all, attempt{name: "claim another's Job", do: func(ctx context.Context, c kubernetes.Interface) error {
		patch := fmt.Appendf(nil, `{"metadata":{"labels":{%q:%q,%q:"abcdefgh"}}}`, agentjob.LabelManagedBy, agentjob.ManagedBy, agentjob.LabelInstance)
		_, err := c.BatchV1().Jobs(e.agents).Patch(ctx, "foreign", types.StrategicMergePatchType, patch, metav1.PatchOptions{DryRun: dry})
		return err
	}})
	return append(all, e.withoutRight(ours)...)
}

// withoutRight are attempts that RBAC refuses.
func (e *environment) withoutRight(ours *batchv1.Job) []attempt {
	calls := map[string]func(context.Context, kubernetes.Interface) error{
		"read the build's Secret": func(ctx context.Context, c kubernetes.Interface) error {
			_, err := c.CoreV1().Secrets(e.agents).Get(ctx, ours.Name, metav1.GetOptions{})
			return err
		},
		"list Secrets": func(ctx context.Context, c kubernetes.Interface) error {
			_, err := c.CoreV1().Secrets(e.agents).List(ctx, metav1.ListOptions{})
			return err
		},
		"list Secrets of the target": func(ctx context.Context, c kubernetes.Interface) error {
			_, err := c.CoreV1().Secrets(e.target).List(ctx, metav1.ListOptions{})
			return err
		},
		"list Secrets of the cluster": func(ctx context.Context, c kubernetes.Interface) error {
			_, err := c.CoreV1().Secrets("").List(ctx, metav1.ListOptions{})
			return err
		},
		"make a pod": func(ctx context.Context, c kubernetes.Interface) error {
			_, err := c.CoreV1().Pods(e.agents).Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, metav1.CreateOptions{DryRun: dry})
			return err
		},
		"exec into a pod": func(ctx context.Context, c kubernetes.Interface) error {
			return c.CoreV1().RESTClient().Post().Namespace(e.agents).Resource("pods").Name("foreign").SubResource("exec").Param("command", "sh").Do(ctx).Error()
		},
		"sign in as a build": func(ctx context.Context, c kubernetes.Interface) error {
			_, err := c.CoreV1().ServiceAccounts(e.agents).CreateToken(ctx, ours.Name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
			return err
		},
		"bind another role": func(ctx context.Context, c kubernetes.Interface) error {
			made := must(agentjob.RoleBindings(ours))(e.t)[0]
			made.Name, made.RoleRef.Name = "attempt", "admin"
			_, err := c.RbacV1().RoleBindings(e.target).Create(ctx, made, metav1.CreateOptions{DryRun: dry})
			return err
		},
		"bind a role beside the token": func(ctx context.Context, c kubernetes.Interface) error {
			made := must(agentjob.RoleBindings(ours))(e.t)[0]
			made.Namespace = e.agents
			_, err := c.RbacV1().RoleBindings(e.agents).Create(ctx, made, metav1.CreateOptions{DryRun: dry})
			return err
		},
		"make a role": func(ctx context.Context, c kubernetes.Interface) error {
			_, err := c.RbacV1().Roles(e.target).Create(ctx, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, metav1.CreateOptions{DryRun: dry})
			return err
		},
		"make a class": func(ctx context.Context, c kubernetes.Interface) error {
			_, err := c.BatchV1().CronJobs(e.agents).Create(ctx, &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, metav1.CreateOptions{DryRun: dry})
			return err
		},
		"delete all Jobs at once": func(ctx context.Context, c kubernetes.Interface) error {
			return c.BatchV1().Jobs(e.agents).DeleteCollection(ctx, metav1.DeleteOptions{DryRun: dry}, metav1.ListOptions{})
		},
		"take the policy away": func(ctx context.Context, c kubernetes.Interface) error {
			return c.AdmissionregistrationV1().ValidatingAdmissionPolicies().Delete(ctx, "azp-scaler-jobs", metav1.DeleteOptions{DryRun: dry})
		},
	}
	all := make([]attempt, 0, len(calls))
	for name, do := range calls {
		all = append(all, attempt{name: name, do: do, rbac: true})
	}
	return all
}

// plant makes what is somebody else's, in the namespaces that the scaler works in.
func (e *environment) plant() {
	e.t.Helper()
	e.makeAccount(e.agents, "foreign")
	e.makeAccount(e.agents, "privileged")
	template := corev1.PodTemplateSpec{Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	must(e.admin.BatchV1().Jobs(e.agents).Create(e.t.Context(), &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: "foreign"}, Spec: batchv1.JobSpec{Suspend: new(true), Template: template},
	}, metav1.CreateOptions{}))(e.t)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "foreign"}, Spec: e.job(800, 0).Spec.Template.Spec}
	pod.Spec.ServiceAccountName = "foreign"
	must(e.admin.CoreV1().Pods(e.agents).Create(e.t.Context(), pod, metav1.CreateOptions{}))(e.t)
	must(e.admin.RbacV1().RoleBindings(e.target).Create(e.t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "foreign"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "view"},
	}, metav1.CreateOptions{}))(e.t)
}

const deniedByPolicy = "ValidatingAdmissionPolicy 'azp-"

// TestPolicyFencesTheScalerIn tries, as the scaler's account, what the scaler never does. RBAC
// alone would let most of it happen; with the policy nothing does.
func TestPolicyFencesTheScalerIn(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	e.plant()
	job := e.ensure(e.job(1, 0))
	attempts := e.attempts(e.live(job.Name))
	scaler := kubernetes.NewForConfigOrDie(e.signIn())
	onlyPolicy := 0
	for _, a := range attempts {
		err := a.do(t.Context(), scaler)
		if refused := err != nil; refused != a.rbac {
			t.Errorf("%s, without the policy: %v, want it refused: %t", a.name, err, a.rbac)
		}
		if !a.rbac {
			onlyPolicy++
		}
	}
	e.fence()
	var last error
	e.await("the policy", func() bool { // It comes into force a moment after it was made, each part for itself.
		for _, a := range attempts {
			if last = a.do(t.Context(), scaler); last == nil {
				last = fmt.Errorf("%s was not refused", a.name)
				return false
			}
		}
		return true
	}, func() any { return last })
	for _, a := range attempts {
		err := a.do(t.Context(), scaler)
		if err == nil || (!a.rbac && !strings.Contains(err.Error(), deniedByPolicy)) {
			t.Errorf("%s: %v, want it refused by the policy", a.name, err)
		}
	}
	if len(attempts) < 50 || onlyPolicy < 25 {
		t.Errorf("%d attempts, %d of which only the policy refuses: want 50 and 25 at least", len(attempts), onlyPolicy)
	}
	t.Logf("%d attempts were refused, %d of them by the policy alone", len(attempts), onlyPolicy)
	// Others are not concerned.
	for _, a := range attempts {
		if strings.HasPrefix(a.name, "Job without our labels") {
			if err := a.do(t.Context(), e.admin); err != nil {
				t.Errorf("the policy hinders an administrator: %v", err)
			}
		}
	}
}

// TestPolicyHindersNothing has the scaler do all that it does under the policy: every way of
// registration, every kind of account, the delivered classes, and the end of each.
func TestPolicyHindersNothing(t *testing.T) {
	t.Parallel()
	e := setUp(t)
	e.plant()
	e.makeAccount(e.agents, "cloud")
	e.apply(tokenManifest, e.agents, strings.Replace(e.agents, "agents", "scaler", 1))
	e.fence("cloud")
	scaler := kubernetes.NewForConfigOrDie(e.signIn())
	e.await("the policy", func() bool {
		err := scaler.CoreV1().ServiceAccounts(e.agents).Delete(t.Context(), "foreign", metav1.DeleteOptions{DryRun: dry})
		return err != nil && strings.Contains(err.Error(), deniedByPolicy)
	})
	download := func(*agentpool.AgentClass, *batchv1.JobTemplateSpec) {
		e.settings.AgentSource = agentjob.SourceDownload
	}
	agents := &registry{}
	for i, change := range []func(*agentpool.AgentClass, *batchv1.JobTemplateSpec){
		nil, jit, runAs("cloud"), download,
	} {
		changes := []func(*agentpool.AgentClass, *batchv1.JobTemplateSpec){}
		if change != nil {
			changes = append(changes, change)
		}
		job, err := e.cluster.Ensure(t.Context(), e.job(int64(i+1), 0, changes...), agents.register)
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			e.awaitPod(job.Name, anyPod)
			if deleted, err := e.cluster.DeleteUnstarted(t.Context(), job.Name, job.UID); err != nil || !deleted {
				t.Errorf("a pod that has not started: %t, %v", deleted, err)
			}
			continue
		}
		if err := e.cluster.EndRights(t.Context(), job); err != nil {
			t.Error(err)
		}
		if err := e.cluster.DeleteJob(t.Context(), job.Name, job.UID); err != nil {
			t.Error(err)
		}
	}
	for i, class := range exampleClasses(t, e.agents) {
		class.RoleBindings[0].Namespace = e.target
		job, err := agentjob.Build(e.settings, class.AgentClass, class.Template, agentpool.JobRequest{ID: int64(100 + i), PoolID: 7}, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.cluster.Ensure(t.Context(), job, nil); err != nil {
			t.Errorf("class %s: %v", class.Name, err)
		}
	}
	must(e.admin.RbacV1().RoleBindings(e.target).Create(t.Context(), e.orphan(), metav1.CreateOptions{}))(t)
	if report, err := e.cluster.Sweep(t.Context(), time.Minute, time.Now().Add(time.Hour)); err != nil || len(report.RoleBindings) != 1 {
		t.Errorf("the sweep: %+v, %v", report, err)
	}
	if err := e.admin.CoreV1().Secrets(e.agents).Delete(t.Context(), "azp-token", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	token := must(cluster.NewTokenSecret(cluster.TokenSecretConfig{Client: scaler, Namespace: e.agents, Name: "azp-token", Key: "token", Owner: "abcdefgh"}))(t)
	for _, value := range []string{"first", "second"} {
		if _, wrote, err := token.Keep(t.Context(), value, time.Now().Add(time.Hour), true); err != nil || !wrote {
			t.Errorf("the agents' token: %t, %v", wrote, err)
		}
	}
	if removed, err := token.Remove(t.Context()); err != nil || !removed {
		t.Errorf("the agents' token is removed: %t, %v", removed, err)
	}
}
