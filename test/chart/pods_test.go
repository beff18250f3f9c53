package chart_test

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"

	"github.com/azp-scaler/azp-scaler/test/chart"
)

// pods are all that the chart makes or has made, by the object that they stand in.
func pods(t *testing.T, objects chart.Objects) map[string]corev1.PodTemplateSpec {
	t.Helper()
	found := map[string]corev1.PodTemplateSpec{}
	for _, object := range objects {
		name := object.GetKind() + " " + object.GetName()
		switch object.GetKind() {
		case "Deployment":
			found[name] = decode[appsv1.Deployment](t, object).Spec.Template
		case "Job":
			found[name] = decode[batchv1.Job](t, object).Spec.Template
		case "CronJob":
			found[name] = decode[batchv1.CronJob](t, object).Spec.JobTemplate.Spec.Template
		case "Pod":
			pod := decode[corev1.Pod](t, object)
			found[name] = corev1.PodTemplateSpec{ObjectMeta: pod.ObjectMeta, Spec: pod.Spec}
		}
	}
	return found
}

// TestPodsKeepToRestricted, the strictest Pod Security level, whichever of them.
func TestPodsKeepToRestricted(t *testing.T) {
	t.Parallel()
	checks, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	for name, values := range examples(t) {
		found := pods(t, render(t, values))
		if len(found) < 2 {
			t.Errorf("%s: pods %v", name, found)
		}
		for of, pod := range found {
			for _, result := range checks.EvaluatePod(restricted, &pod.ObjectMeta, &pod.Spec) {
				if !result.Allowed {
					t.Errorf("%s: %s: %s: %s", name, of, result.ForbiddenReason, result.ForbiddenDetail)
				}
			}
		}
	}
}

// TestDeploymentLikeTheDelivered: what is of the pod and not of the settings is as in the kustomize base.
func TestDeploymentLikeTheDelivered(t *testing.T) {
	t.Parallel()
	want := decode[appsv1.Deployment](t, delivered(t, "base/scaler/deployment.yaml").Kind("Deployment")[0]).Spec.Template.Spec
	got := scalerPod(t, render(t, minimal)).Spec
	for _, pod := range []*corev1.PodSpec{&want, &got} {
		pod.TerminationGracePeriodSeconds = nil
		pod.Volumes = nil
		container := &pod.Containers[0]
		container.Image, container.ImagePullPolicy, container.Env, container.EnvFrom, container.VolumeMounts = "", "", nil, nil, nil
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("pod of the scaler (-delivered +chart):\n%s", diff)
	}
}

// TestOthersRunLikeTheScaler: helm test and the clean-up see what the scaler sees, and both end.
func TestOthersRunLikeTheScaler(t *testing.T) {
	t.Parallel()
	for name, values := range examples(t) {
		objects := render(t, values)
		scaler := scalerPod(t, objects)
		found := pods(t, objects)
		for _, of := range []string{"Pod azp-scaler-check", "Job azp-scaler-cleanup"} {
			pod, is := found[of]
			if !is {
				t.Fatalf("%s: no %s", name, of)
			}
			if diff := cmp.Diff(scaler.Spec.Containers[0], pod.Spec.Containers[0],
				cmpopts.IgnoreFields(corev1.Container{}, "Name", "Args", "Ports", "LivenessProbe", "ReadinessProbe")); diff != "" {
				t.Errorf("%s: container of %s (-scaler +it):\n%s", name, of, diff)
			}
			if pod.Spec.ServiceAccountName != scaler.Spec.ServiceAccountName || !cmp.Equal(pod.Spec.Volumes, scaler.Spec.Volumes) || !cmp.Equal(pod.Spec.SecurityContext, scaler.Spec.SecurityContext) {
				t.Errorf("%s: %s has another account, other volumes or another security context", name, of)
			}
			if pod.Labels["azure.workload.identity/use"] != scaler.Labels["azure.workload.identity/use"] {
				t.Errorf("%s: %s has another identity", name, of)
			}
			if pod.Labels["app.kubernetes.io/component"] == scaler.Labels["app.kubernetes.io/component"] {
				t.Errorf("%s: the Service would take %s for a scaler", name, of)
			}
			if (pod.Spec.ActiveDeadlineSeconds == nil && !strings.HasPrefix(of, "Job ")) || pod.Spec.RestartPolicy != corev1.RestartPolicyNever {
				t.Errorf("%s: %s may go on for ever", name, of)
			}
		}
	}
}

// TestSelectors: what selects the scaler's pods does.
func TestSelectors(t *testing.T) {
	t.Parallel()
	objects := render(t, examples(t)["everything"])
	labels := scalerPod(t, objects).Labels
	for what, selector := range map[string]map[string]string{
		"Deployment":          decode[appsv1.Deployment](t, objects.Kind("Deployment")[0]).Spec.Selector.MatchLabels,
		"Service":             decode[corev1.Service](t, objects.Kind("Service")[0]).Spec.Selector,
		"PodDisruptionBudget": decode[policyv1.PodDisruptionBudget](t, objects.Kind("PodDisruptionBudget")[0]).Spec.Selector.MatchLabels,
		"spread":              scalerPod(t, objects).Spec.TopologySpreadConstraints[0].LabelSelector.MatchLabels,
	} {
		if len(selector) != 3 {
			t.Errorf("%s selects by %v", what, selector)
		}
		for key, value := range selector {
			if labels[key] != value {
				t.Errorf("%s selects %s=%s, and the pod has %q", what, key, value, labels[key])
			}
		}
	}
}

// TestOfThePod: what a user says of the scaler's pod gets there.
func TestOfThePod(t *testing.T) {
	t.Parallel()
	everything := scalerPod(t, render(t, examples(t)["everything"]))
	pod, container := everything.Spec, everything.Spec.Containers[0]
	for what, is := range map[string]bool{
		"digest":              container.Image == "ghcr.io/azp-scaler/scaler@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
		"pull secret":         len(pod.ImagePullSecrets) == 1 && pod.ImagePullSecrets[0].Name == "registry",
		"label":               everything.Labels["example.com/team"] == "build",
		"annotation":          everything.Annotations["example.com/owner"] == "build",
		"node selector":       pod.NodeSelector["kubernetes.io/os"] == "linux",
		"toleration":          len(pod.Tolerations) == 1,
		"affinity":            pod.Affinity != nil && pod.Affinity.NodeAffinity != nil,
		"priority class":      pod.PriorityClassName == "system-cluster-critical",
		"variable":            container.Env[len(container.Env)-1] == corev1.EnvVar{Name: "GOMEMLIMIT", Value: "400MiB"},
		"source of variables": len(container.EnvFrom) == 1,
		"volume":              pod.Volumes[len(pod.Volumes)-1].Name == "scratch" && container.VolumeMounts[len(container.VolumeMounts)-1].MountPath == "/tmp",
		"sidecar":             len(pod.Containers) == 2 && pod.Containers[1].Name == "sidecar",
		"credential by CSI":   pod.Volumes[0].CSI != nil && pod.Volumes[0].CSI.Driver == "secrets-store.csi.k8s.io",
	} {
		if !is {
			t.Errorf("%s is not where it belongs: %+v", what, everything)
		}
	}
	plain := scalerPod(t, render(t, minimal)).Spec
	if secret := plain.Volumes[0].Secret; secret == nil || secret.SecretName != "azp-token" || len(plain.TopologySpreadConstraints) > 0 {
		t.Errorf("volumes %+v, spread %v", plain.Volumes, plain.TopologySpreadConstraints)
	}
}

// TestWorkloadIdentity: account, pod and variables are as the webhook wants them, and nothing secret is mounted.
func TestWorkloadIdentity(t *testing.T) {
	t.Parallel()
	objects := render(t, examples(t)["workload-identity"])
	account := find[corev1.ServiceAccount](t, objects, "ServiceAccount", "azp", "azp-scaler")
	if diff := cmp.Diff(map[string]string{
		"azure.workload.identity/client-id": "00000000-0000-0000-0000-000000000001",
		"azure.workload.identity/tenant-id": "00000000-0000-0000-0000-000000000002",
	}, account.Annotations); diff != "" {
		t.Errorf("annotations of the account (-want +got):\n%s", diff)
	}
	pod := scalerPod(t, objects)
	if pod.Labels["azure.workload.identity/use"] != "true" || len(pod.Spec.Volumes) > 0 {
		t.Errorf("labels %v, volumes %v", pod.Labels, pod.Spec.Volumes)
	}
	variables := settings(t, objects)
	for _, name := range []string{"AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_AUTHORITY_HOST", "AZURE_FEDERATED_TOKEN_FILE", "AZP_TOKEN_FILE"} {
		if value, set := variables[name]; set {
			t.Errorf("%s is set to %q: the webhook leaves alone what is there", name, value)
		}
	}
}

// TestAuthority is known to scaler and agents, where the chart is given the certificate.
func TestAuthority(t *testing.T) {
	t.Parallel()
	objects := render(t, examples(t)["server"])
	for _, namespace := range []string{"azp", "azp-agents"} {
		if authority := find[corev1.ConfigMap](t, objects, "ConfigMap", namespace, "azp-scaler-ca"); len(authority.Data["ca.crt"]) < 100 {
			t.Errorf("authority in %s: %q", namespace, authority.Data)
		}
	}
	variables := settings(t, objects)
	if variables["AZP_CA_FILE"] != "/run/azp/ca/ca.crt" || variables["AZP_AGENT_CA_CONFIGMAP"] != "azp-scaler-ca" {
		t.Errorf("variables %v", variables)
	}
	if scalerPod(t, objects).Annotations["checksum/ca"] == "" {
		t.Error("another certificate does not start the scaler anew")
	}
}

// TestCleanup ends in any case, by itself before Kubernetes ends it, and does not hold up a later one.
func TestCleanup(t *testing.T) {
	t.Parallel()
	for values, want := range map[string][]string{"{}": {"cleanup", "--wait=150s", "--timeout=240s"}, "{waitSeconds: 0}": {"cleanup", "--wait=0s", "--timeout=90s"}} {
		job := find[batchv1.Job](t, render(t, minimal+"cleanup: "+values), "Job", "azp", "azp-scaler-cleanup")
		if diff := cmp.Diff(want, job.Spec.Template.Spec.Containers[0].Args); diff != "" {
			t.Errorf("arguments (-want +got):\n%s", diff)
		}
		own, err := time.ParseDuration(strings.TrimPrefix(want[2], "--timeout="))
		if err != nil {
			t.Fatal(err)
		}
		if deadline := job.Spec.ActiveDeadlineSeconds; deadline == nil || time.Duration(*deadline)*time.Second <= own || time.Duration(*deadline)*time.Second > own+time.Minute {
			t.Errorf("with %s the Job may take %v", values, deadline)
		}
		if job.Spec.BackoffLimit == nil || *job.Spec.BackoffLimit != 0 || job.Annotations["helm.sh/hook"] != "pre-delete" || !strings.Contains(job.Annotations["helm.sh/hook-delete-policy"], "before-hook-creation") {
			t.Errorf("Job %+v, annotations %v", job.Spec, job.Annotations)
		}
	}
	if off := render(t, minimal+"cleanup: {enabled: false}").Kind("Job"); len(off) > 0 {
		t.Errorf("there is a clean-up though it is off: %v", names(off))
	}
}

// TestCommands of the hooks are understood by the scaler: it gets as far as its settings.
func TestCommands(t *testing.T) {
	t.Parallel()
	scaler := filepath.Join(t.TempDir(), "scaler")
	// Compiling has the time that the test has.
	build := exec.CommandContext(t.Context(), "go", "build", "-o", scaler, "./cmd/scaler")
	build.Dir = dir.Root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for of, pod := range pods(t, render(t, minimal)) {
		args := pod.Spec.Containers[0].Args
		if len(args) == 0 {
			continue // The scaler itself.
		}
		out, err := exec.CommandContext(ctx, scaler, args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "AZP_URL is not set") || strings.Contains(string(out), "Usage:") {
			t.Errorf("%s: scaler %v: want nothing but the settings to be missing, got %v:\n%s", of, args, err, out)
		}
	}
}
