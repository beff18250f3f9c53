package agentjob

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// checkPod refuses a class's pod that would bring the pool's credential within
// the build's reach, or that uses names of ours for something else.
func checkPod(s Settings, pod corev1.PodSpec, bad func(format string, args ...any)) {
	agents := 0
	for _, container := range slices.Concat(pod.InitContainers, pod.Containers) {
		switch container.Name {
		case ContainerRemove, ContainerConfigure:
			bad("container %q: the name is ours: choose another one", container.Name)
		case ContainerAgent:
			agents++
		}
		checkEnvironment(s, container, bad)
	}
	if agents != 1 || !slices.ContainsFunc(pod.Containers, isAgent) {
		bad("want exactly one container named %q, and not among the init containers: it runs the build", ContainerAgent)
	} else if pod.Containers[slices.IndexFunc(pod.Containers, isAgent)].Image == "" {
		bad("container %q has no image: name the agent's image", ContainerAgent)
	}
	if pod.ShareProcessNamespace != nil && *pod.ShareProcessNamespace {
		bad("shareProcessNamespace: the build could read the pool's credential from the other containers: leave it out")
	}
	if pod.HostPID {
		bad("hostPID: the build could read the pool's credential from the other containers: leave it out")
	}
	for _, volume := range pod.Volumes {
		if slices.Contains(ourVolumes(), volume.Name) {
			bad("volume %q: the name is ours: choose another one", volume.Name)
		}
		if namesSecret(volume, s.TokenSecret) {
			bad("volume %q holds the Secret %q: the build could read the pool's credential", volume.Name, s.TokenSecret)
		}
	}
}

func isAgent(c corev1.Container) bool { return c.Name == ContainerAgent }

// checkEnvironment refuses the credential in the environment of any container of
// the class.
func checkEnvironment(s Settings, container corev1.Container, bad func(format string, args ...any)) {
	for _, variable := range container.Env {
		if variable.Name == "AZP_TOKEN" || variable.Name == "AZP_TOKEN_FILE" {
			bad("container %q: variable %s: the build could read the pool's credential: leave it out", container.Name, variable.Name)
		}
		if from := variable.ValueFrom; from != nil && from.SecretKeyRef != nil && from.SecretKeyRef.Name == s.TokenSecret {
			bad("container %q: variable %s comes from the Secret %q: the build could read the pool's credential", container.Name, variable.Name, s.TokenSecret)
		}
	}
	for _, from := range container.EnvFrom {
		if from.SecretRef != nil && from.SecretRef.Name == s.TokenSecret {
			bad("container %q: envFrom names the Secret %q: the build could read the pool's credential", container.Name, s.TokenSecret)
		}
	}
}

// namesSecret reports whether a volume would show the Secret.
func namesSecret(volume corev1.Volume, secret string) bool {
	if volume.Secret != nil && volume.Secret.SecretName == secret {
		return true
	}
	if volume.Projected == nil {
		return false
	}
	return slices.ContainsFunc(volume.Projected.Sources, func(source corev1.VolumeProjection) bool {
		return source.Secret != nil && source.Secret.Name == secret
	})
}
