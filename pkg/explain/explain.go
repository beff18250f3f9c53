// Package explain shows people what a plan would do and why. It is pure: it turns
// a snapshot and its plan into text or JSON.
package explain

import (
	"cmp"
	"slices"
	"strings"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// Pool is one pool's snapshot with the plan that was made from it.
type Pool struct {
	Snapshot plan.Snapshot
	Plan     plan.Plan
}

// action is one thing that the plan would do.
type action struct {
	Verb    string `json:"verb"` // create, complete, disable or end.
	Job     string `json:"job,omitempty"`
	Request int64  `json:"request,omitempty"`
	Class   string `json:"class"`
	Why     string `json:"why"`
}

// actions lists what the plan would do, in the order in which it is done.
func (p Pool) actions() []action {
	list := []action{}
	for _, job := range p.Plan.Disable {
		list = append(list, action{Verb: "disable", Job: job.Name, Class: job.Class, Why: "it has a build and must be given no second one"})
	}
	for _, creation := range p.Plan.Create {
		why := "no agent is left for it"
		switch {
		case creation.Request.ID == agentpool.WarmRequest:
			why = "to keep an agent waiting"
		case creation.Failures > 0:
			why = "the one before it failed"
		case creation.Attempt > 0:
			why = "the one made for it before is not left for it"
		}
		list = append(list, action{Verb: "create", Request: creation.Request.ID, Class: creation.Class, Why: join(creation.Request.Definition.Name, why)})
	}
	for _, job := range p.Plan.Complete {
		list = append(list, action{Verb: "complete", Job: job.Name, Request: job.RequestID, Class: job.Class, Why: "it is half-made"})
	}
	for _, ending := range p.Plan.End {
		list = append(list, action{Verb: "end", Job: ending.Job.Name, Class: ending.Job.Class, Why: string(ending.Reason)})
	}
	return list
}

func join(pipeline, why string) string {
	if pipeline == "" {
		return why
	}
	return pipeline + ": " + why
}

// class is one class of agent of a pool.
type class struct {
	Name         string            `json:"name"`
	Version      string            `json:"version,omitempty"`
	Priority     int               `json:"priority"`
	MaxAgents    int               `json:"maxAgents,omitempty"`
	Agents       map[string]int    `json:"agents"`
	Warm         *warm             `json:"warm,omitempty"`
	Broken       string            `json:"broken,omitempty"`
	Blocked      string            `json:"blocked,omitempty"`
	Lacking      []string          `json:"lacking,omitempty"`
	Capabilities map[string]string `json:"capabilities,omitempty"`
}

type warm struct {
	Want   int    `json:"want"`
	Have   int    `json:"have"`
	Held   string `json:"held,omitempty"`
	Detail string `json:"detail,omitempty"`
}

// classes lists the usable classes in the order in which they are asked, then the
// broken ones, and last those that have agents and are gone.
func (p Pool) classes() []class {
	usable := slices.Clone(p.Snapshot.Classes)
	slices.SortFunc(usable, func(a, b agentpool.AgentClass) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(len(a.Capabilities), len(b.Capabilities)), cmp.Compare(a.Name, b.Name))
	})
	list := []class{}
	named := map[string]bool{}
	for _, of := range usable {
		c := class{
			Name: of.Name, Version: of.Version, Priority: of.Priority, MaxAgents: of.MaxAgents,
			Agents: p.agents(of.Name), Blocked: p.Snapshot.Blocked[of.Name], Capabilities: of.Claims,
		}
		if w, keeps := p.Plan.View.Warm[of.Name]; keeps {
			c.Warm = &warm{Want: w.Want, Have: w.Have, Held: string(w.Held), Detail: w.Detail}
		}
		for _, mismatch := range p.Plan.Mismatches {
			if mismatch.Class == of.Name {
				c.Lacking = mismatch.Lacking
			}
		}
		list, named[of.Name] = append(list, c), true
	}
	var others []class
	for name, problem := range p.Snapshot.Broken {
		others, named[name] = append(others, class{Name: name, Agents: p.agents(name), Broken: problem}), true
	}
	for name := range p.Plan.View.Agents {
		if !named[name] {
			others = append(others, class{Name: name, Agents: p.agents(name)})
		}
	}
	slices.SortFunc(others, func(a, b class) int {
		return cmp.Or(cmp.Compare(len(b.Broken), len(a.Broken)), cmp.Compare(a.Name, b.Name))
	})
	return append(list, others...)
}

// agents counts the agents of a class by phase.
func (p Pool) agents(class string) map[string]int {
	counts := map[string]int{}
	for _, phase := range agentpool.Phases() {
		if n := p.Plan.View.Agents[class][phase]; n > 0 {
			counts[phase.String()] = n
		}
	}
	return counts
}

// state says in one line what is the matter with a class.
func (c class) state() string {
	switch {
	case c.Broken != "":
		return "broken: " + c.Broken
	case c.Blocked != "":
		return "can't be served: " + c.Blocked
	case len(c.Lacking) > 0:
		return "its agents lack " + strings.Join(c.Lacking, ", ")
	case c.Version == "" && c.Capabilities == nil:
		return "gone: its agents end when they have run their build"
	case c.Warm != nil && c.Warm.Held != "":
		return "not all that are to wait do: " + c.Warm.Held
	default:
		return "ok"
	}
}
