package e2e_test

import (
	"context"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/e2e/env"
	"github.com/azp-scaler/azp-scaler/test/e2e/hostile"
)

// allInOneName is the Deployment's, and that of a pool of its own, as the scaler has not
// made its agents.
const allInOneName = "all-in-one"

// allInOne is the counterpart of the hostile build in a Job: the same search in a
// Deployment of somebody's own, in which one container does everything and has the token.
// There it is found, as the documentation says; if it were not, the search would be worth
// nothing.
func allInOne(t *testing.T, e *env.Env) {
	t.Helper()
	begun := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), playLimit)
	defer cancel()
	set, err := e.Canaries()
	if err != nil {
		t.Fatal(err)
	}
	listener, err := hostile.Listen(e.HostAddress(), set)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := listener.Close(); err != nil {
			t.Error(err)
		}
	}()
	pool := e.Service.CreatePool(allInOneName)
	deployments := e.Admin.AppsV1().Deployments(env.AgentsNamespace)
	if _, err := deployments.Create(ctx, allInOneDeployment(e), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := deployments.Delete(context.WithoutCancel(ctx), allInOneName, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	}()
	if err := await(ctx, "the agent of a Deployment", func() (bool, error) {
		return slices.ContainsFunc(e.Service.Agents(pool), func(a azuredevopstest.AgentStatus) bool { return a.Online }), nil
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Service.Queue(azuredevopstest.Build{PoolID: pool, Name: hostileName, Steps: hostileSteps(listener.URL(), "nothing-to-find")}); err != nil {
		t.Fatal(err)
	}
	listener.Give(hostile.Plan{Shapes: set.Shapes(), Elsewhere: listener.Trap()})
	report, err := listener.Report(ctx)
	if err != nil {
		t.Fatal(err)
	}
	listener.Release()
	if kinds := report.Found(env.TokenName(e.Name)); !slices.Contains(kinds, hostile.InFile) {
		t.Errorf("a hostile build does not find the token in the file of its own container, only in %q: its search shows nothing\n%s", kinds, report.Redacted())
	}
	t.Logf("in a Deployment of its own a hostile build finds the token, %s later: %v", time.Since(begun).Round(time.Second/10), report.Findings)
}

// allInOneDeployment is as docs/agent.md has it: the entrypoint without a subcommand, the
// token in a file.
func allInOneDeployment(e *env.Env) *appsv1.Deployment {
	labels := map[string]string{"app": allInOneName}
	user, no, yes, grace, mode := int64(1000), false, true, int64(60), int32(0o444)
	pod := corev1.PodSpec{
		AutomountServiceAccountToken: &no, TerminationGracePeriodSeconds: &grace,
		SecurityContext: &corev1.PodSecurityContext{
			RunAsNonRoot: &yes, RunAsUser: &user, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		Containers: []corev1.Container{{
			Name: "agent", Image: env.AgentImage, ImagePullPolicy: corev1.PullNever,
			Env: []corev1.EnvVar{
				{Name: "AZP_URL", Value: e.Service.URL},
				{Name: "AZP_POOL", Value: allInOneName},
				{Name: "AZP_TOKEN_FILE", Value: "/run/secrets/azp/token"},
				{Name: "AZP_CA_FILE", Value: "/run/ca/ca.crt"},
				{Name: "AZP_GRACE_PERIOD", Value: (time.Duration(grace) * time.Second).String()},
				{Name: "AZP_REMOVE_SHARE", Value: "20s"},
			},
			SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}},
			VolumeMounts:    []corev1.VolumeMount{{Name: "token", MountPath: "/run/secrets/azp", ReadOnly: true}, {Name: "ca", MountPath: "/run/ca", ReadOnly: true}},
		}},
		Volumes: []corev1.Volume{
			{Name: "token", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: env.TokenSecret, DefaultMode: &mode}}},
			{Name: "ca", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "azp-ca"}}}},
		},
	}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: allInOneName},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod},
		},
	}
}
