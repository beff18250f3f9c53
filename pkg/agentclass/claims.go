package agentclass

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
)

// maxVariable is the length from which on the agent does not publish an environment
// variable as a capability.
const maxVariable = 1024

// derive gives what agents of a pod register with by themselves, as far as the pod
// tells: what every agent has, and the environment variables of its container.
// What the image adds to that is for the class to claim.
func derive(pod corev1.PodSpec, defaults Defaults) map[string]string {
	architecture, _ := architectureOf(pod)
	if architecture == "" {
		architecture = defaults.Architecture
	}
	claims := map[string]string{
		"Agent.OS": "Linux", "Agent.OSArchitecture": architecture, "Agent.ComputerName": "",
		"Agent.HomeDirectory": defaults.AgentRoot, "InteractiveSession": "True",
	}
	for _, container := range pod.Containers {
		if container.Name != agentjob.ContainerAgent {
			continue
		}
		for _, variable := range container.Env {
			if published(variable, defaults.IgnoredVariables) {
				claims[variable.Name] = variable.Value
			}
		}
	}
	return claims
}

// published tells whether an agent makes a capability of an environment variable and
// whether its value is known. One that refers to others or to an object is not.
func published(variable corev1.EnvVar, ignored []string) bool {
	for _, prefix := range []string{"AZP_", "VSO_", "VSTS_"} {
		if strings.HasPrefix(variable.Name, prefix) {
			return false
		}
	}
	return variable.ValueFrom == nil && !strings.Contains(variable.Value, "$(") &&
		len(variable.Value) < maxVariable && !slices.Contains(ignored, variable.Name)
}

// architectures are the processors that the agent exists for, by what Kubernetes
// calls them.
func architectures() map[string]string {
	return map[string]string{"amd64": "X64", "arm64": "ARM64", "arm": "ARM"}
}

// architectureOf gives the processor that the pod asks for, as agents call it, or
// nothing where it asks for none or leaves a choice. The error says of one that no
// agent runs on.
func architectureOf(pod corev1.PodSpec) (string, error) {
	wanted, place := pod.NodeSelector[corev1.LabelArchStable], "nodeSelector"
	if wanted == "" {
		wanted, place = affine(pod, corev1.LabelArchStable), "required node affinity"
	}
	if wanted == "" {
		return "", nil
	}
	name, known := architectures()[wanted]
	if !known {
		return "", fmt.Errorf("%s %s %q: there is no agent for it: want amd64, arm64 or arm", place, corev1.LabelArchStable, wanted)
	}
	return name, nil
}

// systemOf gives the operating system that the pod asks for, or nothing.
func systemOf(pod corev1.PodSpec) string {
	if pod.OS != nil {
		return string(pod.OS.Name)
	}
	if wanted := pod.NodeSelector[corev1.LabelOSStable]; wanted != "" {
		return wanted
	}
	return affine(pod, corev1.LabelOSStable)
}

// affine gives the one value of a node label that the required affinity allows, or
// nothing. Its terms are alternatives, so each has to say the same.
func affine(pod corev1.PodSpec, label string) string {
	if pod.Affinity == nil || pod.Affinity.NodeAffinity == nil {
		return ""
	}
	required := pod.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	if required == nil {
		return ""
	}
	only := ""
	for _, term := range required.NodeSelectorTerms {
		value := ""
		for _, expression := range term.MatchExpressions {
			if expression.Key == label && expression.Operator == corev1.NodeSelectorOpIn && len(expression.Values) == 1 {
				value = expression.Values[0]
			}
		}
		if value == "" || (only != "" && only != value) {
			return ""
		}
		only = value
	}
	return only
}

const versionLength = 12

// version tells apart what Jobs are made from. What only says how many there are to be
// and whom they serve is not in it: a change of that replaces no agent.
func version(c Class) string {
	bindings := make([]string, 0, len(c.RoleBindings))
	for _, binding := range c.RoleBindings {
		bindings = append(bindings, binding.String())
	}
	text, err := json.Marshal(struct {
		Labels, Annotations map[string]string
		Spec                any
		Claims              map[string]string
		Bindings            []string
		Account             string `json:",omitempty"` // So that other classes keep the versions they have.
		Registration        string
		Grace               string
	}{c.Template.Labels, c.Template.Annotations, c.Template.Spec, c.Claims, bindings, c.ServiceAccount, string(c.Registration), c.GracePeriod.String()})
	if err != nil {
		// A template came as JSON; there is nothing in it that can't be written so.
		text = fmt.Appendf(nil, "%v", err)
	}
	sum := sha256.Sum256(text)
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:versionLength]
}
