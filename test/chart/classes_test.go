package chart_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/azp-scaler/azp-scaler/pkg/agentclass"
	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// parseClass reads a class as the scaler does, and makes a Job of it.
func parseClass(t *testing.T, cronJob batchv1.CronJob) agentclass.Class {
	t.Helper()
	if _, marked := cronJob.Labels[agentclass.Label]; !marked {
		t.Errorf("CronJob %s lacks the label %s", cronJob.Name, agentclass.Label)
	}
	class, err := agentclass.Parse(&cronJob, agentclass.Defaults{Architecture: "X64", AgentRoot: agentjob.DefaultAgentRoot, GracePeriod: agentjob.DefaultGracePeriod})
	if err != nil {
		t.Fatalf("class %s: %v", cronJob.Name, err)
	}
	jobs := agentjob.DefaultSettings()
	jobs.Identity = agentjob.Identity{Instance: "abcdefgh", Namespace: cronJob.Namespace, Pool: agentpool.Pool{ID: 7, Name: "linux"}, URL: "https://dev.azure.com/contoso"}
	if _, err := agentjob.Build(jobs, class.AgentClass, class.Template, agentpool.JobRequest{ID: 1, PoolID: 7}, 0, 0); err != nil {
		t.Errorf("class %s: %v", cronJob.Name, err)
	}
	return class
}

// TestClassesOfTheExamples can all be read by the scaler, and made Jobs of.
func TestClassesOfTheExamples(t *testing.T) {
	t.Parallel()
	found := 0
	for _, values := range examples(t) {
		for _, object := range render(t, values).Kind("CronJob") {
			parseClass(t, decode[batchv1.CronJob](t, object))
			found++
		}
	}
	if found == 0 {
		t.Error("no example has a class")
	}
}

// TestAnnotations: each of a class has a value of the chart, and says what it is to.
func TestAnnotations(t *testing.T) {
	t.Parallel()
	objects := render(t, minimal+`
agents:
  classes:
    java:
      pools: [linux, large]
      capabilities: [java=17, maven]
      maxAgents: 20
      minIdle: 0
      priority: -1000000
      roleBindings: [{namespace: shop, kind: ClusterRole, name: edit}, {namespace: web, kind: Role, name: deployer}]
      registration: jit
      gracePeriod: 2h
    azure:
      sharedServiceAccount: azure-builds
    plain:
targetNamespaces:
  - {name: shop, roles: [{kind: ClusterRole, name: edit}]}
  - {name: web, roles: [{kind: Role, name: deployer}]}
`)
	java := find[batchv1.CronJob](t, objects, "CronJob", "azp-agents", "java")
	azure := find[batchv1.CronJob](t, objects, "CronJob", "azp-agents", "azure")
	for _, annotation := range agentclass.Annotations() {
		if java.Annotations[annotation.Name] == "" && azure.Annotations[annotation.Name] == "" {
			t.Errorf("no value of a class becomes the annotation %s", annotation.Name)
		}
	}
	got := parseClass(t, java)
	want := agentpool.AgentClass{
		Name: "java", MaxAgents: 20, MinIdle: 0, Priority: -1_000_000, Registration: agentpool.RegistrationJIT, GracePeriod: 2 * time.Hour,
		RoleBindings: []agentpool.RoleBinding{{Namespace: "shop", Kind: "ClusterRole", Name: "edit"}, {Namespace: "web", Kind: "Role", Name: "deployer"}},
	}
	if diff := cmp.Diff(want, got.AgentClass, cmpopts.IgnoreFields(agentpool.AgentClass{}, "Capabilities", "Claims", "Version")); diff != "" {
		t.Errorf("class java (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"linux", "large"}, got.Pools); diff != "" {
		t.Errorf("pools (-want +got):\n%s", diff)
	}
	if _, maven := got.Claims["maven"]; got.Claims["java"] != "17" || !maven {
		t.Errorf("claims %v", got.Claims)
	}
	if account := parseClass(t, azure).ServiceAccount; account != "azure-builds" {
		t.Errorf("builds of azure run as %q", account)
	}
	if plain := find[batchv1.CronJob](t, objects, "CronJob", "azp-agents", "plain"); len(plain.Annotations) > 0 {
		t.Errorf("a class that says nothing says %v", plain.Annotations)
	}
}

// TestClassesLikeTheDelivered: the two classes of deploy/kustomize/classes can be had from values, field by field.
func TestClassesLikeTheDelivered(t *testing.T) {
	t.Parallel()
	objects := render(t, minimal+`
agents:
  image: {tag: latest}
  resources: {requests: {cpu: 500m, memory: 1Gi}, limits: {memory: 2Gi}}
  classes:
    general:
      roleBindings: [{namespace: azp-target, kind: ClusterRole, name: edit}]
    java:
      capabilities: [java, maven]
      roleBindings: [{namespace: azp-target, kind: ClusterRole, name: edit}]
      maxAgents: 20
      minIdle: 1
      priority: -10
      gracePeriod: 2h
      podLabels: {team: shop}
      nodeSelector: {kubernetes.io/arch: amd64}
      tolerations: [{key: builds, operator: Exists, effect: NoSchedule}]
      image: {repository: azp-agent-java, tag: latest}
      env: [{name: MAVEN_OPTS, value: -Dmaven.repo.local=/cache/m2}]
      resources: {requests: {cpu: "2", memory: 4Gi}, limits: {memory: 6Gi}}
      volumes: [{name: cache, emptyDir: {sizeLimit: 10Gi}}]
      volumeMounts: [{name: cache, mountPath: /cache}]
targetNamespaces: [{name: azp-target, roles: [{kind: ClusterRole, name: edit}]}]
`)
	for _, name := range []string{"general", "java"} {
		want := decode[batchv1.CronJob](t, delivered(t, "classes/"+name+".yaml").Kind("CronJob")[0])
		want.Namespace = "azp-agents" // The kustomization has it.
		got := find[batchv1.CronJob](t, objects, "CronJob", "azp-agents", name)
		agent := &got.Spec.JobTemplate.Spec.Template.Spec.Containers[0]
		agent.Image = strings.TrimSuffix(agent.Image, ":latest") // The kustomization has the tag.
		agent.ImagePullPolicy = ""                               // Kubernetes' own choice there.
		if diff := cmp.Diff(want.Spec, got.Spec); diff != "" {
			t.Errorf("class %s (-delivered +chart):\n%s", name, diff)
		}
		a, b := parseClass(t, want), parseClass(t, got)
		a.Version, b.Version = "", ""
		if diff := cmp.Diff(a.AgentClass, b.AgentClass); diff != "" {
			t.Errorf("class %s as the scaler reads it (-delivered +chart):\n%s", name, diff)
		}
	}
}

// TestSpot: builds of such a class go to spot nodes of AKS, beside what else the class says.
func TestSpot(t *testing.T) {
	t.Parallel()
	objects := render(t, minimal+"agents: {classes: {a: {spot: aks, nodeSelector: {size: large}, tolerations: [{key: b, operator: Exists}]}}}")
	pod := find[batchv1.CronJob](t, objects, "CronJob", "azp-agents", "a").Spec.JobTemplate.Spec.Template.Spec
	if diff := cmp.Diff(map[string]string{"size": "large", "kubernetes.azure.com/scalesetpriority": "spot"}, pod.NodeSelector); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
	taint := corev1.Taint{Key: "kubernetes.azure.com/scalesetpriority", Value: "spot", Effect: corev1.TaintEffectNoSchedule}
	if len(pod.Tolerations) != 2 || pod.Tolerations[1].Key != taint.Key || pod.Tolerations[1].Value != taint.Value || pod.Tolerations[1].Effect != taint.Effect {
		t.Errorf("tolerations %+v, want one for %+v", pod.Tolerations, taint)
	}
}

// TestImageOfAClass takes from the agents' image what it does not say itself.
func TestImageOfAClass(t *testing.T) {
	t.Parallel()
	const digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for values, want := range map[string]string{
		"{}":                                     "r.example/agent:v1",
		"{image: {tag: v2}}":                     "r.example/agent:v2",
		"{image: {repository: r.example/other}}": "r.example/other:v1",
		"{image: {digest: '" + digest + "'}}":    "r.example/agent@" + digest,
		"{image: {repository: r.example/other, tag: '3.10'}}": "r.example/other:3.10",
	} {
		objects := render(t, minimal+"agents: {image: {repository: r.example/agent, tag: v1}, classes: {a: "+values+"}}")
		if got := find[batchv1.CronJob](t, objects, "CronJob", "azp-agents", "a").Spec.JobTemplate.Spec.Template.Spec.Containers[0].Image; got != want {
			t.Errorf("%s: image %q, want %q", values, got, want)
		}
	}
	const pinned = "agents: {image: {repository: r.example/agent, digest: '" + digest + "'}, classes: {a: {image: {tag: v2}}, b: }}"
	for name, want := range map[string]string{"a": "r.example/agent:v2", "b": "r.example/agent@" + digest} {
		if got := find[batchv1.CronJob](t, render(t, minimal+pinned), "CronJob", "azp-agents", name).Spec.JobTemplate.Spec.Template.Spec.Containers[0].Image; got != want {
			t.Errorf("class %s beside a pinned image: %q, want %q", name, got, want)
		}
	}
}
