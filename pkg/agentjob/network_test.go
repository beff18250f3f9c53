package agentjob_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// behindProxy are settings with everything that pods need to reach the service.
func behindProxy() agentjob.Settings {
	s := settings()
	s.AgentSource = agentjob.SourceDownload
	s.Package = agentjob.Package{Platform: "linux-x64", Version: "4.248.0", URL: "https://cdn.example/agent.tar.gz", SHA256: strings.Repeat("0f", 32)}
	s.CAConfigMap = "azp-ca"
	s.ProxyURL, s.ProxySecret, s.NoProxy = "http://proxy.example:3128", "azp-proxy", ".internal.example"
	return s
}

func TestBuildDownloadWithoutTheCredential(t *testing.T) {
	t.Parallel()
	golden(t, "jit-download", []any{build(t, behindProxy(), jit(), richTemplate())})
}

// TestEveryContainerHasTheSameWay says that every container of ours reaches the service by
// the same way, whoever registers the agent.
func TestEveryContainerHasTheSameWay(t *testing.T) {
	t.Parallel()
	ours := map[agentpool.Registration][]string{
		agentpool.RegistrationConfig: {agentjob.ContainerRemove, agentjob.ContainerConfigure, agentjob.ContainerAgent},
		agentpool.RegistrationJIT:    {agentjob.ContainerDownload, agentjob.ContainerAgent},
	}
	want := []corev1.EnvVar{
		{Name: "AZP_CA_FILE", Value: "/run/azp/ca/ca.crt"},
		{Name: "AZP_NO_PROXY", Value: ".internal.example"},
		{Name: "AZP_PROXY_PASSWORD_FILE", Value: "/run/azp/proxy/password"},
		{Name: "AZP_PROXY_URL", Value: "http://proxy.example:3128"},
		{Name: "AZP_PROXY_USERNAME_FILE", Value: "/run/azp/proxy/username"},
	}
	for registration, names := range ours {
		c := class()
		c.Registration = registration
		pod := build(t, behindProxy(), c, richTemplate()).Spec.Template.Spec
		var found []string
		for _, container := range slices.Concat(pod.InitContainers, pod.Containers) {
			if !slices.Contains(names, container.Name) {
				if slices.ContainsFunc(container.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == "proxy" }) {
					t.Errorf("%s: %s of the class has the proxy's credential", registration, container.Name)
				}
				continue
			}
			found = append(found, container.Name)
			for _, variable := range want {
				if !slices.Contains(container.Env, variable) {
					t.Errorf("%s: %s has no %v", registration, container.Name, variable)
				}
			}
			for name, path := range map[string]string{"ca": "/run/azp/ca", "proxy": "/run/azp/proxy"} {
				if !slices.ContainsFunc(container.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == name && m.MountPath == path && m.ReadOnly }) {
					t.Errorf("%s: %s does not mount %s", registration, container.Name, name)
				}
			}
		}
		if !slices.Equal(found, names) {
			t.Errorf("%s: containers %q, want %q", registration, found, names)
		}
	}
}

// TestAClassesWayReachesTheDownload says that a proxy which only a class names is known to
// what downloads for it, and that nothing else of the class's environment is.
func TestAClassesWayReachesTheDownload(t *testing.T) {
	t.Parallel()
	s := behindProxy()
	s.ProxyURL, s.ProxySecret, s.NoProxy = "", "", ""
	pod := build(t, s, jit(), richTemplate()).Spec.Template.Spec
	text, err := json.Marshal(pod.InitContainers[0])
	if err != nil {
		t.Fatal(err)
	}
	if pod.InitContainers[0].Name != agentjob.ContainerDownload || !strings.Contains(string(text), "https_proxy") || strings.Contains(string(text), "JAVA_HOME") {
		t.Errorf("the first init container is %s", text)
	}
}

func TestNetworkRefusesWhatBreaksAPromise(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(*agentjob.Settings, *corev1.PodSpec)
		want   string
	}{
		"no package": {func(s *agentjob.Settings, _ *corev1.PodSpec) { s.Package = agentjob.Package{} }, "package is not known"},
		"a proxy's password": {func(s *agentjob.Settings, _ *corev1.PodSpec) {
			s.ProxyURL = "http://me:hunter2@proxy.example"
		}, "without a user or password"},
		"no proxy's URL":      {func(s *agentjob.Settings, _ *corev1.PodSpec) { s.ProxyURL = "proxy.example" }, "want the proxy's URL"},
		"a Secret for naught": {func(s *agentjob.Settings, _ *corev1.PodSpec) { s.ProxyURL = "" }, "there is none"},
		"an odd Secret":       {func(s *agentjob.Settings, _ *corev1.PodSpec) { s.ProxySecret = "A B" }, `"A B"`},
		"the token's Secret":  {func(s *agentjob.Settings, _ *corev1.PodSpec) { s.ProxySecret = s.TokenSecret }, "use two"},
		"our container":       {func(_ *agentjob.Settings, p *corev1.PodSpec) { p.Containers[1].Name = agentjob.ContainerDownload }, "the name is ours"},
		"our volume":          {func(_ *agentjob.Settings, p *corev1.PodSpec) { p.Volumes[0].Name = "proxy" }, "the name is ours"},
		"a proxy for config.sh": {func(_ *agentjob.Settings, p *corev1.PodSpec) {
			p.Containers[0].Env = []corev1.EnvVar{{Name: "vsts_agent_input_proxyurl", Value: "http://proxy"}}
		}, "AZP_AGENT_PROXY_URL"},
		"an authority for config.sh": {func(_ *agentjob.Settings, p *corev1.PodSpec) {
			p.Containers[0].Env = []corev1.EnvVar{{Name: "VSTS_AGENT_INPUT_SSLCACERT", Value: "/ca"}}
		}, "AZP_AGENT_CA_CONFIGMAP"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, template := behindProxy(), richTemplate()
			test.change(&s, &template.Spec.Template.Spec)
			_, err := agentjob.Build(s, jit(), template, request(), 0, 0)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
