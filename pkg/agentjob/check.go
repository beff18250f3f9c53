package agentjob

import (
	"encoding/json"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

// checkPod refuses a class's pod that would bring the pool's credential within
// the build's reach, or that uses names of ours for something else.
func checkPod(s Settings, pod corev1.PodSpec, bad func(format string, args ...any)) {
	agents := 0
	for _, container := range slices.Concat(pod.InitContainers, pod.Containers) {
		switch container.Name {
		case ContainerRemove, ContainerConfigure, ContainerDownload:
			bad("container %q: the name is ours: choose another one", container.Name)
		case ContainerAgent:
			agents++
		}
		checkEnvironment(s, container, bad)
		checkMounts(container, bad)
	}
	if len(pod.EphemeralContainers) > 0 {
		bad("ephemeralContainers: a class has none: leave them out")
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

// checkApart refuses a class's pod in which nothing would keep the build from the
// containers beside it, of which two hold the pool's credential: one that reaches its
// node, where every file of the pod lies, and one that runs as the user of the sidecar.
func checkApart(s Settings, pod corev1.PodSpec, bad func(format string, args ...any)) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		bad("the pod can't be held against a Pod Security level: %v", err)
		return
	}
	judged := pod
	judged.HostPID = false // Refused already, in every class.
	level := api.LevelVersion{Level: api.LevelBaseline, Version: api.LatestVersion()}
	for _, result := range evaluator.EvaluatePod(level, &metav1.ObjectMeta{}, &judged) {
		if !result.Allowed {
			bad("%s: %s: a build could reach the pool's credential through its node, so this pod has to meet the Pod Security level baseline: leave it out, or have the scaler register the agents (registration jit)",
				result.ForbiddenReason, result.ForbiddenDetail)
		}
	}
	for _, container := range slices.Concat(pod.InitContainers, pod.Containers) {
		if userOf(s, pod, container) == removeUID {
			bad("container %q: user %d is that of the container %q, which holds the pool's credential: choose another one", container.Name, removeUID, ContainerRemove)
		}
	}
}

// userOf is the user that a container of the class will run as.
func userOf(s Settings, pod corev1.PodSpec, container corev1.Container) int64 {
	if c := container.SecurityContext; c != nil && c.RunAsUser != nil {
		return *c.RunAsUser
	}
	if p := pod.SecurityContext; p != nil && p.RunAsUser != nil {
		return *p.RunAsUser
	}
	return s.UID
}

// checkMounts keeps the volumes of ours, and their places, out of a class's hands.
func checkMounts(container corev1.Container, bad func(format string, args ...any)) {
	for _, mount := range container.VolumeMounts {
		if slices.Contains(ourVolumes(), mount.Name) {
			bad("container %q mounts the volume %q, which is ours: leave it out", container.Name, mount.Name)
		}
		if place := path.Clean(mount.MountPath); place == exchangeDir || strings.HasPrefix(place, exchangeDir+"/") {
			bad("container %q: mount path %q: what is below %s is ours: choose another one", container.Name, mount.MountPath, exchangeDir)
		}
	}
}

// checkEnvironment refuses the credential in the environment of any container of
// the class.
func checkEnvironment(s Settings, container corev1.Container, bad func(format string, args ...any)) {
	for _, variable := range container.Env {
		switch strings.ToUpper(variable.Name) {
		case "AZP_TOKEN", "AZP_TOKEN_FILE", "VSTS_AGENT_INPUT_TOKEN":
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

// namesSecret reports whether a volume would show the Secret, or hand it to a driver
// that might: every kind of volume that takes a Secret says so in the field's name.
func namesSecret(volume corev1.Volume, secret string) bool {
	text, err := json.Marshal(volume)
	if err != nil {
		return true // It is not known what is in there.
	}
	var fields map[string]any
	if err := json.Unmarshal(text, &fields); err != nil {
		return true
	}
	return refersTo(fields, secret)
}

// refersTo looks for the name in a field about Secrets, or in the reference that it holds.
func refersTo(value any, secret string) bool {
	switch v := value.(type) {
	case []any:
		return slices.ContainsFunc(v, func(element any) bool { return refersTo(element, secret) })
	case map[string]any:
		for field, inner := range v {
			reference, isReference := inner.(map[string]any)
			about := strings.Contains(strings.ToLower(field), "secret")
			if about && (inner == secret || isReference && reference["name"] == secret) || refersTo(inner, secret) {
				return true
			}
		}
	}
	return false
}
