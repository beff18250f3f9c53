package agentjob

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Where the pods find what they need to reach the service.
const (
	caDir    = exchangeDir + "/ca"
	caKey    = "ca.crt"
	proxyDir = exchangeDir + "/proxy"
	// The keys of the Secret with the proxy's credential.
	proxyUsernameKey = "username"
	proxyPasswordKey = "password"
)

// networkEnvironment tells every container of ours the way to the service. The proxy's
// credential is in files: what a Job's specification says, too many can read.
func (b *builder) networkEnvironment() map[string]string {
	env := map[string]string{"AZP_PROXY_URL": b.settings.ProxyURL}
	if b.settings.CAConfigMap != "" {
		env["AZP_CA_FILE"] = caDir + "/" + caKey
	}
	if b.settings.ProxyURL != "" {
		env["AZP_NO_PROXY"] = b.settings.NoProxy
	}
	if b.settings.ProxySecret != "" {
		env["AZP_PROXY_USERNAME_FILE"] = proxyDir + "/" + proxyUsernameKey
		env["AZP_PROXY_PASSWORD_FILE"] = proxyDir + "/" + proxyPasswordKey
	}
	return env
}

func (b *builder) networkMounts() []corev1.VolumeMount {
	var mounts []corev1.VolumeMount
	if b.settings.CAConfigMap != "" {
		mounts = append(mounts, corev1.VolumeMount{Name: volumeCA, MountPath: caDir, ReadOnly: true})
	}
	if b.settings.ProxySecret != "" {
		mounts = append(mounts, corev1.VolumeMount{Name: volumeProxy, MountPath: proxyDir, ReadOnly: true})
	}
	return mounts
}

func (b *builder) networkVolumes() []corev1.Volume {
	var volumes []corev1.Volume
	if b.settings.CAConfigMap != "" {
		volumes = append(volumes, corev1.Volume{Name: volumeCA, VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: b.settings.CAConfigMap},
			DefaultMode:          new(int32(0o444)),
			Items:                []corev1.KeyToPath{{Key: caKey, Path: caKey}},
		}}})
	}
	if b.settings.ProxySecret != "" {
		volumes = append(volumes, secretVolume(volumeProxy, b.settings.ProxySecret, proxyUsernameKey, proxyPasswordKey))
	}
	return volumes
}

// isProxy reports whether a variable of the class says how to reach the service.
func isProxy(name string) bool {
	switch strings.ToUpper(name) {
	case "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "VSTS_HTTP_PROXY", "VSTS_HTTP_PROXY_USERNAME", "VSTS_HTTP_PROXY_PASSWORD",
		"AZP_PROXY_URL", "AZP_NO_PROXY":
		return true
	default:
		return false
	}
}

// checkInputs refuses what a class says to config.sh about the network where nobody runs
// that: the agent would go another way than the class says.
func checkInputs(pod corev1.PodSpec, bad func(format string, args ...any)) {
	for _, container := range pod.Containers {
		for _, variable := range container.Env {
			input, isInput := strings.CutPrefix(strings.ToUpper(variable.Name), "VSTS_AGENT_INPUT_")
			if isInput && (strings.HasPrefix(input, "PROXY") || strings.HasPrefix(input, "SSL")) {
				bad("container %q: variable %s: is for the agent's configuration in the pod, which there is none of with registration jit: use the scaler's AZP_AGENT_PROXY_URL, AZP_AGENT_PROXY_SECRET or AZP_AGENT_CA_CONFIGMAP", container.Name, variable.Name)
			}
		}
	}
}
