package agentclass

import (
	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
)

// The annotations of a class.
const (
	AnnotationPools        = agentjob.Prefix + "pools"
	AnnotationCapabilities = agentjob.Prefix + "capabilities"
	AnnotationMaxAgents    = agentjob.Prefix + "max-agents"
	AnnotationMinIdle      = agentjob.Prefix + "min-idle"
	AnnotationPriority     = agentjob.Prefix + "priority"
	AnnotationRoleBindings = agentjob.Prefix + "role-bindings"
	AnnotationAccount      = agentjob.Prefix + "service-account"
	AnnotationRegistration = agentjob.Prefix + "registration"
	AnnotationGracePeriod  = agentjob.Prefix + "grace-period"
)

// Annotation describes one annotation of a class.
type Annotation struct {
	Name    string // With the prefix.
	Default string // What holds without it, in words.
	Example string // A value that is right.
	Meaning string
}

// Annotations lists those that a class may carry.
func Annotations() []Annotation {
	return []Annotation{
		{AnnotationPools, "every pool of the scaler", "linux, linux-large", "Names of the pools that the class serves, separated by commas or one a line"},
		{AnnotationCapabilities, "what the template tells", "java=17", "What its agents offer beyond that, one `name` or `name=value` a line; the image has to make it true"},
		{AnnotationMaxAgents, "the pool's cap alone", "20", "Agents at most at once, in each pool"},
		{AnnotationMinIdle, "0", "2", "Agents to keep waiting beyond need, in each pool"},
		{AnnotationPriority, "0", "10", "Which class is asked first when several satisfy a build's demands: the one with the higher number"},
		{AnnotationRoleBindings, "none", "shop ClusterRole/edit", "What each build may do, one `namespace Role/name` or `namespace ClusterRole/name` a line"},
		{AnnotationAccount, "one made for each build", "azure-builds", "ServiceAccount in the agents' namespace that all its builds run as, with what rights it has; instead of `role-bindings`"},
		{AnnotationRegistration, "that of the scaler (AZP_REGISTRATION)", "jit", "How its agents come to be known to the pool: `config` registers each from its own pod, with the pool's token in containers that the build can't reach; with `jit` the scaler registers it, and the token is in no pod"},
		{AnnotationGracePeriod, "that of the scaler (AZP_GRACE_PERIOD)", "2h", "What a running build gets when its pod is told to stop; all but a minute of it"},
	}
}
