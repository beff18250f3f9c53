package env

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// annotationPrefix begins the annotations and the label of a class.
const annotationPrefix = "azp-scaler.github.io/"

// DefaultClass is the class that the scaler's environment makes.
const DefaultClass = "default"

// What every agent asks for: little, as they only pretend to build.
const (
	agentCPU    = "10m"
	agentMemory = "32Mi"
)

// Class is a class of agent to apply. All have the same image; what one offers
// beyond it comes from variables, which agents publish with their values.
type Class struct {
	Name      string
	Variables map[string]string // Of the agent's container.
	Claims    []string          // What it says it offers besides, as name or name=value.
	Demands   []string          // Of the builds that a workload has for it.
	Priority  int
	MaxAgents int
	MinIdle   int
	// Annotations are added as they are, and take the place of what the class has of its
	// own; their names are without the prefix.
	Annotations map[string]string
	PodLabels   map[string]string
	MemoryLimit string // Of the agent's container; none if it is empty.
	// Broken says that the class is wrong on purpose, so that nobody waits for it.
	Broken bool
}

// offeredBy tells whether capabilities hold everything that the class says.
func (c Class) offeredBy(capabilities map[string]string) bool {
	said := maps.Clone(c.Variables)
	if said == nil {
		said = map[string]string{}
	}
	for _, claim := range c.Claims {
		name, value, _ := strings.Cut(claim, "=")
		said[name] = value
	}
	for name, value := range said {
		if got, found := capabilities[name]; !found || got != value {
			return false
		}
	}
	return true
}

// cronJob writes the class as users do.
func (c Class) cronJob(in *Installation) *batchv1.CronJob {
	annotations := map[string]string{annotationPrefix + "role-bindings": in.TargetNamespace + " ClusterRole/" + targetRole}
	set := func(name, value string, wanted bool) {
		if wanted {
			annotations[annotationPrefix+name] = value
		}
	}
	set("capabilities", strings.Join(c.Claims, "\n"), len(c.Claims) > 0)
	set("priority", strconv.Itoa(c.Priority), c.Priority != 0)
	set("max-agents", strconv.Itoa(c.MaxAgents), c.MaxAgents != 0)
	set("min-idle", strconv.Itoa(c.MinIdle), c.MinIdle != 0)
	for name, value := range c.Annotations {
		set(name, value, true)
	}
	agent := corev1.Container{
		Name: "agent", Image: AgentImage, ImagePullPolicy: corev1.PullNever,
		Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse(agentCPU), corev1.ResourceMemory: resource.MustParse(agentMemory),
		}},
	}
	if c.MemoryLimit != "" {
		agent.Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(c.MemoryLimit)}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Variables)) {
		agent.Env = append(agent.Env, corev1.EnvVar{Name: name, Value: c.Variables[name]})
	}
	suspended := true
	made := &batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{Name: c.Name, Labels: map[string]string{annotationPrefix + "agent-class": ""}, Annotations: annotations},
		Spec:       batchv1.CronJobSpec{Schedule: "0 0 1 1 *", Suspend: &suspended},
	}
	made.Spec.JobTemplate.Spec.Template.Labels = c.PodLabels
	pod := &made.Spec.JobTemplate.Spec.Template.Spec
	pod.RestartPolicy = corev1.RestartPolicyNever
	pod.Containers = []corev1.Container{agent}
	return made
}
