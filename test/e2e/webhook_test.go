package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// installWebhook has the API server do what the webhook of Azure's workload identity does to a
// pod with its label: mount a token for Entra, and tell where it is. The original does it to
// every container that the pod does not except; one is enough here.
//
// https://azure.github.io/azure-workload-identity/docs/installation/mutating-admission-webhook.html
func installWebhook(t *testing.T, e *env.Env) {
	t.Helper()
	const name, directory, file = "azure-identity-token", "/var/run/secrets/azure/tokens", "azure-identity-token"
	patches := []string{
		fmt.Sprintf(`JSONPatch{op: "add", path: "/spec/volumes/-", value: Object.spec.volumes{name: %q,
			projected: Object.spec.volumes.projected{sources: [Object.spec.volumes.projected.sources{
				serviceAccountToken: Object.spec.volumes.projected.sources.serviceAccountToken{path: %q, audience: %q, expirationSeconds: 3600}}]}}}`, name, file, entraAudience),
		fmt.Sprintf(`JSONPatch{op: "add", path: "/spec/containers/0/volumeMounts/-", value: Object.spec.containers.volumeMounts{name: %q, mountPath: %q, readOnly: true}}`, name, directory),
		fmt.Sprintf(`JSONPatch{op: "add", path: "/spec/containers/0/env/-", value: Object.spec.containers.env{name: "AZURE_FEDERATED_TOKEN_FILE", value: %q}}`, directory+"/"+file),
	}
	fail, scope := admissionregistrationv1.Fail, admissionregistrationv1.NamespacedScope
	policy := &admissionregistrationv1.MutatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "azure-workload-identity"},
		Spec: admissionregistrationv1.MutatingAdmissionPolicySpec{
			MatchConstraints: &admissionregistrationv1.MatchResources{
				ObjectSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"azure.workload.identity/use": "true"}},
				ResourceRules: []admissionregistrationv1.NamedRuleWithOperations{{RuleWithOperations: admissionregistrationv1.RuleWithOperations{
					Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
					Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}, Scope: &scope},
				}}},
			},
			FailurePolicy:      &fail,
			ReinvocationPolicy: admissionregistrationv1.NeverReinvocationPolicy,
			Mutations: []admissionregistrationv1.Mutation{{
				PatchType: admissionregistrationv1.PatchTypeJSONPatch,
				JSONPatch: &admissionregistrationv1.JSONPatch{Expression: "[" + strings.Join(patches, ",\n") + "]"},
			}},
		},
	}
	binding := &admissionregistrationv1.MutatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: policy.Name}, Spec: admissionregistrationv1.MutatingAdmissionPolicyBindingSpec{PolicyName: policy.Name},
	}
	client := e.Admin.AdmissionregistrationV1()
	if _, err := client.MutatingAdmissionPolicies().Create(t.Context(), policy, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.MutatingAdmissionPolicyBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "trial", Labels: map[string]string{"azure.workload.identity/use": "true"}},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{
				Name: "trial", Image: env.AgentImage, Env: []corev1.EnvVar{{Name: "A", Value: "b"}}, VolumeMounts: []corev1.VolumeMount{{Name: "v", MountPath: "/v"}},
			}},
			Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
		},
	}
	waitUntil(t.Context(), t, "pods are given a token for Entra", func() (string, bool) { // A policy is in force a moment after it is made.
		made, err := e.Admin.CoreV1().Pods(metav1.NamespaceDefault).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			return err.Error(), false
		}
		return fmt.Sprint(made.Spec.Containers[0].Env), len(made.Spec.Containers[0].Env) == 2
	})
}
