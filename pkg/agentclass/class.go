// Package agentclass reads classes of agent. A class is a suspended CronJob in the
// agents' namespace that carries Label: its name is the class's name, its
// annotations say what the class offers and how many agents of it there may be,
// and its jobTemplate is the pod that runs a build. The package is pure: it calls
// nothing and changes nothing it is given.
package agentclass

import (
	"cmp"
	"slices"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// Label marks a CronJob as a class of agent, whatever its value.
const Label = agentjob.Prefix + "agent-class"

// Class is a class of agent with the pod that realises it.
type Class struct {
	agentpool.AgentClass
	// Pools are the names of the pools that it serves; none is every pool.
	Pools []string
	// AccountTemplate names the ServiceAccount whose labels, annotations and pull secrets
	// each build's own account gets; empty is none.
	AccountTemplate string
	Template        batchv1.JobTemplateSpec
}

// Serves reports whether the class is for a pool. The service does not tell
// apart names by case.
func (c Class) Serves(pool string) bool {
	return len(c.Pools) == 0 || slices.ContainsFunc(c.Pools, func(name string) bool { return strings.EqualFold(name, pool) })
}

// Defaults are what holds where a class says nothing.
type Defaults struct {
	Architecture     string // X64 or ARM64, where no node selector tells.
	AgentRoot        string
	IgnoredVariables []string // Not published by agents as capabilities.
	GracePeriod      time.Duration
	Registration     agentpool.Registration
}

// FromTemplate makes the class of the simplest install, which is described by no
// CronJob: its claims are what the template tells, and those given.
func FromTemplate(name string, template batchv1.JobTemplateSpec, claims map[string]string, bindings []agentpool.RoleBinding, minIdle int, defaults Defaults) Class {
	class := Class{
		AgentClass: agentpool.AgentClass{
			Name: name, MinIdle: minIdle, RoleBindings: bindings,
			Registration: cmp.Or(defaults.Registration, agentpool.RegistrationConfig), GracePeriod: defaults.GracePeriod,
		},
		Template: template,
	}
	class.complete(claims, defaults)
	return class
}

// complete derives the rest from what has been read.
func (c *Class) complete(claims map[string]string, defaults Defaults) {
	if c.ServiceAccount == "" {
		c.AccountTemplate = c.Template.Spec.Template.Spec.ServiceAccountName
	}
	c.Claims = derive(c.Template.Spec.Template.Spec, defaults)
	for name, value := range claims {
		// What is written counts over what is derived, in whatever case.
		for derived := range c.Claims {
			if strings.EqualFold(derived, name) {
				delete(c.Claims, derived)
			}
		}
		c.Claims[name] = value
	}
	c.Capabilities = agentpool.NewCapabilities(c.Claims)
	c.Version = version(*c)
}
