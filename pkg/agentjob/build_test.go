package agentjob_test

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

var update = flag.Bool("update", false, "write the golden files anew")

func settings() agentjob.Settings {
	s := agentjob.DefaultSettings()
	s.Identity = agentjob.Identity{
		Instance:  "abcdefgh",
		Namespace: "agents",
		Pool:      agentpool.Pool{ID: 7, Name: "linux"},
		URL:       "https://dev.azure.com/acme",
	}
	return s
}

func class() agentpool.AgentClass {
	return agentpool.AgentClass{
		Name: "default",
		RoleBindings: []agentpool.RoleBinding{
			{Namespace: "shop", Kind: "ClusterRole", Name: "edit"},
			{Namespace: "shop", Kind: "Role", Name: "deployer"},
			{Namespace: "web", Kind: "ClusterRole", Name: "view"},
			{Namespace: "shop", Kind: "ClusterRole", Name: "edit"},
		},
		GracePeriod: 20 * time.Minute,
	}
}

func request() agentpool.JobRequest {
	return agentpool.JobRequest{
		ID:         4711,
		PoolID:     7,
		QueueTime:  time.Date(2026, 5, 6, 7, 8, 9, 123_456_700, time.UTC),
		Definition: agentpool.Link{ID: 3, Name: "shop / deploy"},
		Run:        agentpool.Link{ID: 12, Name: "12", URL: "https://dev.azure.com/acme/shop/_build/results?buildId=12"},
	}
}

func template() batchv1.JobTemplateSpec {
	return agentjob.DefaultTemplate(agentjob.DefaultClass{
		Image:            "registry.example/agent:1",
		PullPolicy:       corev1.PullIfNotPresent,
		ImagePullSecrets: []string{"pull"},
		Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("250m"), corev1.ResourceMemory: resource.MustParse("512Mi")},
		},
	})
}

// richTemplate is a class with everything that must be kept.
func richTemplate() batchv1.JobTemplateSpec {
	t := template()
	t.Labels = map[string]string{"team": "shop", agentjob.LabelInstance: "forged", agentjob.LabelJobUID: "forged"}
	t.Annotations = map[string]string{"team": "shop", agentjob.AnnotationRightsEnded: "forged", agentjob.AnnotationClassVersion: "forged"}
	t.Spec.BackoffLimit = new(int32(6))
	t.Spec.ActiveDeadlineSeconds = new(int64(60))
	t.Spec.CompletionMode = new(batchv1.IndexedCompletion)
	pod := &t.Spec.Template
	pod.Labels = map[string]string{"team": "shop", agentjob.LabelJobUID: "forged"}
	pod.Annotations = map[string]string{"team": "shop", agentjob.AnnotationRightsEnded: "forged"}
	pod.Spec.NodeSelector = map[string]string{"kubernetes.io/os": "linux"}
	pod.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
	pod.Spec.Volumes = []corev1.Volume{{Name: "cache", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	pod.Spec.InitContainers = []corev1.Container{{Name: "warm", Image: "registry.example/warm:1"}}
	agent := &pod.Spec.Containers[0]
	agent.Env = []corev1.EnvVar{
		{Name: "JAVA_HOME", Value: "/usr/lib/jvm/21"},
		{Name: "https_proxy", Value: "http://proxy.example:3128"},
		{Name: "AZP_URL", Value: "https://elsewhere.example/x"},
	}
	agent.VolumeMounts = []corev1.VolumeMount{{Name: "cache", MountPath: "/cache"}}
	agent.SecurityContext = &corev1.SecurityContext{RunAsUser: new(int64(1234))}
	agent.Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("4Gi")}
	pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "database", Image: "registry.example/db:1"})
	return t
}

// standing is a class whose builds run as an account that is not made for them.
func standing() agentpool.AgentClass {
	return agentpool.AgentClass{Name: "azure", ServiceAccount: "azure-builds"}
}

// azureTemplate asks Azure's webhook for an identity, in the build's container alone.
func azureTemplate() batchv1.JobTemplateSpec {
	t := template()
	t.Spec.Template.Labels = map[string]string{"azure.workload.identity/use": "true"}
	t.Spec.Template.Annotations = map[string]string{"azure.workload.identity/skip-containers": "remove;configure"}
	return t
}

func TestBuildGolden(t *testing.T) {
	t.Parallel()
	rich := settings()
	rich.AgentSource = agentjob.SourceDownload
	rich.CAConfigMap = "azp-ca"
	rich.WorkDir = "_w"
	rich.ConfigureLimit = 90 * time.Second
	rich.ServiceAccount = agentjob.ServiceAccountTemplate{
		Labels:           map[string]string{"azure.workload.identity/use": "true", agentjob.LabelInstance: "forged"},
		Annotations:      map[string]string{"azure.workload.identity/client-id": "11111111-2222-3333-4444-555555555555"},
		ImagePullSecrets: []string{"pull"},
	}
	calling := settings()
	calling.CallbackURL = "http://azp-scaler.azp-scaler:8080"
	rich.CallbackURL = calling.CallbackURL // In vain: its agents are not registered by the scaler.
	for name, c := range map[string]struct {
		settings agentjob.Settings
		class    agentpool.AgentClass
		template batchv1.JobTemplateSpec
		attempt  int
		failures int
	}{
		"default": {settings(), class(), template(), 0, 0},
		"class":   {rich, class(), richTemplate(), 2, 1},
		"jit":     {calling, jit(), template(), 0, 0},
		"account": {settings(), standing(), azureTemplate(), 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			job, err := agentjob.Build(c.settings, c.class, c.template, request(), c.attempt, c.failures)
			if err != nil {
				t.Fatal(err)
			}
			job.UID = "0000-uid"
			objects := []any{job}
			if agentjob.HasOwnAccount(job) {
				account, err := agentjob.ServiceAccount(job)
				if err != nil {
					t.Fatal(err)
				}
				objects = append(objects, account)
			}
			bindings, err := agentjob.RoleBindings(job)
			if err != nil {
				t.Fatal(err)
			}
			for _, binding := range bindings {
				objects = append(objects, binding)
			}
			golden(t, name, objects)
		})
	}
}

func golden(t *testing.T, name string, objects []any) {
	t.Helper()
	var documents []string
	for _, object := range objects {
		text, err := yaml.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		documents = append(documents, string(text))
	}
	got := strings.Join(documents, "---\n")
	file := filepath.Join("testdata", name+".yaml")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil { //nolint:gosec // A file of the repository.
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (run with -update if that is meant):\n%s", file, diff)
	}
}

func TestBuildChangesNothingItIsGiven(t *testing.T) {
	t.Parallel()
	before, s, c := richTemplate(), settings(), class()
	given := *before.DeepCopy()
	job, err := agentjob.Build(s, c, given, request(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	job.Spec.Template.Spec.Containers[0].Env[0].Value = "changed"
	job.Spec.Template.Spec.NodeSelector["kubernetes.io/os"] = "changed"
	job.Labels["team"] = "changed"
	if diff := cmp.Diff(before, given); diff != "" {
		t.Errorf("the template was changed:\n%s", diff)
	}
	if diff := cmp.Diff(class(), c); diff != "" {
		t.Errorf("the class was changed:\n%s", diff)
	}
}

// TestCredentialStaysWithItsContainers looks at the pod as a build could: no
// container but the two has the token, and neither of those is given anything
// that the build can write, or a right in the cluster.
func TestCredentialStaysWithItsContainers(t *testing.T) {
	t.Parallel()
	s := settings()
	s.AgentSource, s.CAConfigMap = agentjob.SourceDownload, "azp-ca"
	job, err := agentjob.Build(s, class(), richTemplate(), request(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	pod := job.Spec.Template.Spec
	if *pod.AutomountServiceAccountToken {
		t.Error("the ServiceAccount's token is mounted into every container")
	}
	writable := map[string]bool{}
	for _, c := range pod.Containers {
		for _, m := range c.VolumeMounts {
			if !m.ReadOnly {
				writable[m.Name] = true
			}
		}
	}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		mounts := map[string]corev1.VolumeMount{}
		for _, m := range c.VolumeMounts {
			if m.SubPath != "" {
				t.Errorf("container %s mounts %s by subPath, which stops updating", c.Name, m.Name)
			}
			mounts[m.Name] = m
		}
		_, token := mounts["token"]
		_, account := mounts["service-account"]
		holds := c.Name == agentjob.ContainerRemove || c.Name == agentjob.ContainerConfigure
		if token != holds {
			t.Errorf("container %s: token mounted is %t, want %t", c.Name, token, holds)
		}
		if account == holds {
			t.Errorf("container %s: ServiceAccount mounted is %t, want %t", c.Name, account, !holds)
		}
		if slices.ContainsFunc(c.Env, func(v corev1.EnvVar) bool { return strings.HasPrefix(v.Name, "AZP_TOKEN") }) != holds {
			t.Errorf("container %s: the token's place in the environment is not %t", c.Name, holds)
		}
	}
	sidecar := pod.InitContainers[0]
	if sidecar.Name != agentjob.ContainerRemove || sidecar.RestartPolicy == nil || *sidecar.RestartPolicy != corev1.ContainerRestartPolicyAlways {
		t.Fatalf("the first init container is not the native sidecar: %+v", sidecar)
	}
	for _, m := range sidecar.VolumeMounts {
		if writable[m.Name] && m.Name != "claimed" {
			t.Errorf("the sidecar mounts %s, which the build can write", m.Name)
		}
		if m.Name == "handover" || m.Name == "agent" {
			t.Errorf("the sidecar mounts %s", m.Name)
		}
	}
	if *sidecar.SecurityContext.RunAsUser == *pod.Containers[0].SecurityContext.RunAsUser {
		t.Error("the sidecar runs as the build's user")
	}
}

func TestBuildRefusesWhatBreaksAPromise(t *testing.T) {
	t.Parallel()
	type input struct {
		settings agentjob.Settings
		class    agentpool.AgentClass
		template batchv1.JobTemplateSpec
		request  agentpool.JobRequest
	}
	for _, c := range []struct {
		name   string
		change func(*input)
		want   string
	}{
		{"instance", func(i *input) { i.settings.Identity.Instance = "Short" }, "InstanceID"},
		{"namespace", func(i *input) { i.settings.Identity.Namespace = "" }, "namespace of the agents"},
		{"pool", func(i *input) { i.settings.Identity.Pool = agentpool.Pool{} }, "Identity.Pool"},
		{"url", func(i *input) { i.settings.Identity.URL = "acme" }, "https://dev.azure.com/acme"},
		{"url with credential", func(i *input) { i.settings.Identity.URL = "https://u:secretpat@dev.azure.com/acme" }, "must not carry a credential"},
		{"token secret", func(i *input) { i.settings.TokenSecret = "A B" }, "TokenSecret"},
		{"token key", func(i *input) { i.settings.TokenKey = "a/b" }, "TokenKey"},
		{"ca", func(i *input) { i.settings.CAConfigMap = "A B" }, "CAConfigMap"},
		{"root", func(i *input) { i.settings.UID = 0 }, "refuses to run as root"},
		{"gid", func(i *input) { i.settings.GID = 0 }, "GID"},
		{"agent root", func(i *input) { i.settings.AgentRoot = "azp/../x" }, "AgentRoot"},
		{"source", func(i *input) { i.settings.AgentSource = "auto" }, "want image"},
		{"start-up limit", func(i *input) { i.settings.StartupLimit = 0 }, "StartupLimit"},
		{"ttl", func(i *input) { i.settings.TTL = -1 }, "TTL"},
		{"class name", func(i *input) { i.class.Name = "Big One" }, "not that of a Kubernetes object"},
		{"grace", func(i *input) { i.class.GracePeriod = -1 }, "grace period"},
		{"request", func(i *input) { i.request.ID = -1 }, "request -1"},
		{"own namespace", func(i *input) { i.class.RoleBindings[0].Namespace = "agents" }, "the agents' own"},
		{"no namespace", func(i *input) { i.class.RoleBindings[0].Namespace = "" }, "names no namespace"},
		{"an account and roles", func(i *input) { i.class.ServiceAccount = "cloud" }, "bind the role to that account yourself"},
		{"a build's account", func(i *input) { i.class = agentpool.AgentClass{Name: "x", ServiceAccount: "azp-other234-1-42-0"} }, "accounts of single builds"},
		{"no agent", func(i *input) { i.template.Spec.Template.Spec.Containers[0].Name = "x" }, `exactly one container named "agent"`},
		{"no image", func(i *input) { i.template.Spec.Template.Spec.Containers[0].Image = "" }, "has no image"},
		{"our container", func(i *input) { i.template.Spec.Template.Spec.Containers[1].Name = "remove" }, "the name is ours"},
		{"our volume", func(i *input) { i.template.Spec.Template.Spec.Volumes[0].Name = "verdict" }, "the name is ours"},
		{"process namespace", func(i *input) { i.template.Spec.Template.Spec.ShareProcessNamespace = new(true) }, "shareProcessNamespace"},
		{"host processes", func(i *input) { i.template.Spec.Template.Spec.HostPID = true }, "hostPID"},
		{"token variable", func(i *input) {
			i.template.Spec.Template.Spec.Containers[1].Env = []corev1.EnvVar{{Name: "AZP_TOKEN", Value: "secretpat"}}
		}, "AZP_TOKEN"},
		{"token by reference", func(i *input) {
			i.template.Spec.Template.Spec.Containers[1].Env = []corev1.EnvVar{{Name: "X", ValueFrom: &corev1.EnvVarSource{
				SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "azp-token"}, Key: "token"},
			}}}
		}, "comes from the Secret"},
		{"token by envFrom", func(i *input) {
			i.template.Spec.Template.Spec.Containers[1].EnvFrom = []corev1.EnvFromSource{{
				SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "azp-token"}},
			}}
		}, "envFrom"},
		{"token by volume", func(i *input) {
			i.template.Spec.Template.Spec.Volumes[0].VolumeSource = corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "azp-token"}}
		}, "holds the Secret"},
		{"token by projection", func(i *input) {
			i.template.Spec.Template.Spec.Volumes[0].VolumeSource = corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
				Sources: []corev1.VolumeProjection{{Secret: &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "azp-token"}}}},
			}}
		}, "holds the Secret"},
		{"token by a driver", func(i *input) {
			i.template.Spec.Template.Spec.Volumes[0].VolumeSource = corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
				Driver: "secrets.example", NodePublishSecretRef: &corev1.LocalObjectReference{Name: "azp-token"},
			}}
		}, "holds the Secret"},
		{"token by a driver's attribute", func(i *input) {
			i.template.Spec.Template.Spec.Volumes[0].VolumeSource = corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
				Driver: "files.example", VolumeAttributes: map[string]string{"secretName": "azp-token"},
			}}
		}, "holds the Secret"},
		{"token for config.sh", func(i *input) {
			i.template.Spec.Template.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "vsts_agent_input_token", Value: "secretpat"}}
		}, "vsts_agent_input_token"},
		{"our volume mounted", func(i *input) {
			i.template.Spec.Template.Spec.Containers[0].VolumeMounts[0].Name = "token"
		}, `mounts the volume "token"`},
		{"our place", func(i *input) {
			i.template.Spec.Template.Spec.Containers[0].VolumeMounts[0].MountPath = "/run/azp/../azp/verdict/"
		}, "is ours"},
		{"ephemeral container", func(i *input) {
			i.template.Spec.Template.Spec.EphemeralContainers = []corev1.EphemeralContainer{{}}
		}, "ephemeralContainers"},
		{"privileged", func(i *input) {
			i.template.Spec.Template.Spec.Containers[0].SecurityContext.Privileged = new(true)
		}, "privileged=true"},
		{"privileged beside the build", func(i *input) {
			i.template.Spec.Template.Spec.Containers[1].SecurityContext = &corev1.SecurityContext{Privileged: new(true)}
		}, `container "database" must not set securityContext.privileged=true`},
		{"the node's files", func(i *input) {
			i.template.Spec.Template.Spec.Volumes[0].VolumeSource = corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/var/lib"}}
		}, "hostPath"},
		{"the node's network", func(i *input) { i.template.Spec.Template.Spec.HostNetwork = true }, "hostNetwork=true"},
		{"a capability", func(i *input) {
			i.template.Spec.Template.Spec.Containers[0].SecurityContext.Capabilities = &corev1.Capabilities{Add: []corev1.Capability{"SYS_ADMIN"}}
		}, "SYS_ADMIN"},
		{"the sidecar's user", func(i *input) {
			i.template.Spec.Template.Spec.Containers[0].SecurityContext.RunAsUser = new(int64(65532))
		}, `container "agent": user 65532`},
		{"the sidecar's user for the pod", func(i *input) {
			i.template.Spec.Template.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: new(int64(65532))}
		}, `container "database": user 65532`},
		{"the sidecar's user by default", func(i *input) { i.settings.UID = 65532 }, `container "warm": user 65532`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			in := input{settings(), class(), richTemplate(), request()}
			c.change(&in)
			job, err := agentjob.Build(in.settings, in.class, in.template, in.request, 0, 0)
			if err == nil {
				t.Fatalf("made %s", job.Name)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("the error does not say %q: %v", c.want, err)
			}
			if strings.Contains(err.Error(), "secretpat") {
				t.Errorf("the error repeats a credential: %v", err)
			}
		})
	}
}

// TestBuildAllowsWhatHarmsNothing: what a class may have, as the credential is not in reach.
func TestBuildAllowsWhatHarmsNothing(t *testing.T) {
	t.Parallel()
	node := func(pod *corev1.PodSpec) {
		pod.Containers[0].SecurityContext.Privileged = new(true)
		pod.HostNetwork = true
		pod.Volumes[0].VolumeSource = corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/var/cache"}}
	}
	for _, c := range []struct {
		name   string
		class  agentpool.AgentClass
		change func(*corev1.PodSpec)
	}{
		{"the node, where no pod has the token", jit(), node},
		{"the sidecar's user, where there is no sidecar", jit(), func(pod *corev1.PodSpec) { pod.Containers[0].SecurityContext.RunAsUser = new(int64(65532)) }},
		{"another Secret", class(), func(pod *corev1.PodSpec) {
			pod.Volumes[0].VolumeSource = corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "npm"}}
		}},
		{"a ConfigMap of the Secret's name", class(), func(pod *corev1.PodSpec) {
			pod.Volumes[0].VolumeSource = corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "azp-token"}}}
		}},
		{"root beside the build", class(), func(pod *corev1.PodSpec) {
			pod.Containers[1].SecurityContext = &corev1.SecurityContext{RunAsUser: new(int64(0)), Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"CHOWN"}}}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			template := richTemplate()
			c.change(&template.Spec.Template.Spec)
			if _, err := agentjob.Build(settings(), c.class, template, request(), 0, 0); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRightsComeFromTheJobAlone(t *testing.T) {
	t.Parallel()
	job := &batchv1.Job{}
	job.Name, job.Namespace, job.UID = "azp-abcdefgh-7-4711-0", "agents", "u1"
	job.Labels = map[string]string{agentjob.LabelInstance: "abcdefgh"}
	for _, c := range []struct {
		name, record string
		want         []string
		wrong        string
	}{
		{"none", "", nil, ""},
		{"several", "shop ClusterRole/edit\n\n  web Role/x \nshop Role/y\nshop ClusterRole/edit\n", []string{"shop/azp-abcdefgh-7-4711-0", "web/azp-abcdefgh-7-4711-0", "shop/azp-abcdefgh-7-4711-0-2"}, ""},
		{"broken", "shop ClusterRole/edit\nnonsense", nil, "nonsense"},
		{"own namespace", "agents ClusterRole/edit", nil, "own namespace"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			job := job.DeepCopy()
			job.Annotations = map[string]string{agentjob.AnnotationRoleBindings: c.record}
			bindings, err := agentjob.RoleBindings(job)
			if (err != nil) != (c.wrong != "") || (err != nil && !strings.Contains(err.Error(), c.wrong)) {
				t.Fatalf("error %v, want %q in it", err, c.wrong)
			}
			var got []string
			for _, b := range bindings {
				got = append(got, b.Namespace+"/"+b.Name)
				if b.Labels[agentjob.LabelJobUID] != "u1" || len(b.OwnerReferences) != 0 {
					t.Errorf("binding %s: labels %v, owners %v", b.Name, b.Labels, b.OwnerReferences)
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	broken := job.DeepCopy()
	broken.Annotations = map[string]string{agentjob.AnnotationServiceAccount: "{"}
	if _, err := agentjob.ServiceAccount(broken); err == nil || !strings.Contains(err.Error(), agentjob.AnnotationServiceAccount) {
		t.Errorf("a broken record gave %v", err)
	}
}
