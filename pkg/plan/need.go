package plan

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// needGroup is need that is alike: requests with the same demands, or the agents
// that a class is to keep waiting.
type needGroup struct {
	demands []agentpool.Demand
	unknown []string
	// class is the one to make an agent from: it serves the requests, or keeps the
	// agents waiting. Without one, refusal says why no class does.
	class   *agentpool.AgentClass
	refusal Skip
	warm    bool
}

// need is everything that wants an agent: the queued requests, the most urgent first,
// and then the agents to keep waiting.
type need struct {
	groups   []needGroup
	requests []*agentpool.JobRequest
	group    []int // Of each request, and then of each agent to keep waiting.
	// order is that in which to count them against capacity. Requests that have to wait
	// for a back-off come after all others: capacity counts for those that would get a
	// new agent without it, so that no failing agent is replaced in another's name.
	order []int
}

// newNeed groups the queued requests by what they demand.
func newNeed(s Snapshot, classes []agentpool.AgentClass, h *history) need {
	n := need{requests: queued(s)}
	n.group = make([]int, len(n.requests))
	n.order = make([]int, 0, len(n.requests))
	index := map[string]int{}
	var key []byte
	var held []int
	for i, request := range n.requests {
		key = demandKey(key[:0], *request)
		group, known := index[string(key)]
		if !known {
			group = len(n.groups)
			index[string(key)] = group
			n.groups = append(n.groups, newNeedGroup(s, classes, *request))
		}
		n.group[i] = group
		if class := n.groups[group].class; class != nil && h.notBefore(request.ID, class.Name, s.Limits).After(s.Now) {
			held = append(held, i)
			continue
		}
		n.order = append(n.order, i)
	}
	n.order = append(n.order, held...)
	for i := range classes {
		if classes[i].MinIdle == 0 {
			continue
		}
		for range classes[i].MinIdle {
			n.order = append(n.order, len(n.group))
			n.group = append(n.group, len(n.groups))
		}
		n.groups = append(n.groups, needGroup{class: &classes[i], warm: true})
	}
	return n
}

// demanded gives the names of all capabilities that are demanded, each once, as
// capabilities hold them.
func (n need) demanded() []string {
	var names []string
	for _, group := range n.groups {
		for _, demand := range group.demands {
			names = append(names, strings.ToLower(demand.Name))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// demandKey writes what a request demands so that the same demands, in whatever order,
// give the same key.
func demandKey(key []byte, request agentpool.JobRequest) []byte {
	var few [8]agentpool.Demand
	demands := append(few[:0], request.Demands...)
	slices.SortFunc(demands, func(a, b agentpool.Demand) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Op, b.Op), cmp.Compare(a.Value, b.Value))
	})
	for _, demand := range demands {
		key = append(key, demand.Name...)
		key = append(key, 0)
		key = append(key, demand.Op...)
		key = append(key, 0)
		key = append(key, demand.Value...)
		key = append(key, 1)
	}
	for _, unknown := range request.UnknownDemands {
		key = append(key, 2)
		key = append(key, unknown...)
	}
	return key
}

// queued gives the requests that wait for an agent, the most urgent first. A row that
// is there twice counts once, as far as it has come in any of them.
func queued(s Snapshot) []*agentpool.JobRequest {
	further := map[int64]bool{}
	var waiting []*agentpool.JobRequest
	for i := range s.Requests {
		if s.Requests[i].State() == agentpool.RequestQueued {
			waiting = append(waiting, &s.Requests[i])
		} else {
			further[s.Requests[i].ID] = true
		}
	}
	slices.SortFunc(waiting, func(a, b *agentpool.JobRequest) int { return compareRequests(a, b) })
	seen := make(map[int64]bool, len(waiting))
	return slices.DeleteFunc(waiting, func(request *agentpool.JobRequest) bool {
		again := seen[request.ID] || further[request.ID]
		seen[request.ID] = true
		return again
	})
}

// compareRequests puts the highest priority first, then the longest wait.
func compareRequests(a, b *agentpool.JobRequest) int {
	return cmp.Or(
		cmp.Compare(b.Priority, a.Priority),
		a.QueueTime.Compare(b.QueueTime),
		cmp.Compare(a.ID, b.ID),
	)
}

// sortedClasses puts the classes in the order in which they are asked.
func sortedClasses(classes []agentpool.AgentClass) []agentpool.AgentClass {
	sorted := slices.Clone(classes)
	slices.SortFunc(sorted, func(a, b agentpool.AgentClass) int {
		return cmp.Or(
			cmp.Compare(b.Priority, a.Priority),
			cmp.Compare(len(a.Capabilities), len(b.Capabilities)),
			cmp.Compare(a.Name, b.Name),
		)
	})
	return sorted
}

// newNeedGroup finds the class for a request: the first that satisfies all that it
// demands.
func newNeedGroup(s Snapshot, classes []agentpool.AgentClass, request agentpool.JobRequest) needGroup {
	group := needGroup{demands: request.Demands, unknown: request.UnknownDemands}
	if len(group.unknown) > 0 {
		group.refusal = notUnderstood(s, classes, request)
		return group
	}
	for i := range classes {
		if _, lacks := offers(s, classes[i]).Missing(request.Demands); !lacks {
			group.class = &classes[i]
			return group
		}
	}
	group.refusal = refuse(s, classes, request.Demands)
	return group
}

// notUnderstood says of a request with a demand that does not parse which class would come
// closest.
func notUnderstood(s Snapshot, classes []agentpool.AgentClass, request agentpool.JobRequest) Skip {
	skip := Skip{Reason: SkipUnmatched, Detail: "demand not understood: " + strings.Join(request.UnknownDemands, ", ")}
	skip.Closest, skip.Missing = closest(s, classes, request.Demands)
	if skip.Closest == "" {
		return skip
	}
	skip.Missing = append(skip.Missing, request.UnknownDemands...)
	skip.Detail += "; no class can satisfy that; the closest is " + skip.Closest
	return skip
}

// closest is the class that lacks least of what is demanded, and what that is.
func closest(s Snapshot, classes []agentpool.AgentClass, demands []agentpool.Demand) (name string, missing []string) {
	for _, class := range classes {
		lacks := lacking(offers(s, class), demands)
		if name == "" || len(lacks) < len(missing) {
			name, missing = class.Name, lacks
		}
	}
	return name, missing
}

// offers is what agents of a class offer: what they were found to have registered
// with, or else what the class claims.
func offers(s Snapshot, class agentpool.AgentClass) agentpool.Capabilities {
	if found, known := s.Offers[ClassVersion{Class: class.Name, Version: class.Version}]; known {
		return found
	}
	return class.Capabilities
}

// refuse says why no class serves the demands, and which comes closest.
func refuse(s Snapshot, classes []agentpool.AgentClass, demands []agentpool.Demand) Skip {
	for _, class := range classes {
		if _, lacks := class.Capabilities.Missing(demands); !lacks {
			missing := lacking(offers(s, class), demands)
			return Skip{
				Class: class.Name, Reason: SkipMismatch, Closest: class.Name, Missing: missing,
				Detail: fmt.Sprintf("class %s claims %s, but its agents register without: its image has to have it, or the claim has to go",
					class.Name, strings.Join(missing, ", ")),
			}
		}
	}
	skip := Skip{Reason: SkipUnmatched, Detail: "there is no class of agent"}
	skip.Closest, skip.Missing = closest(s, classes, demands)
	if skip.Closest != "" {
		skip.Detail = fmt.Sprintf("no class satisfies all demands; the closest is %s, which lacks %s", skip.Closest, strings.Join(skip.Missing, ", "))
	}
	if broken := slices.Sorted(maps.Keys(s.Broken)); len(broken) > 0 {
		skip.Detail += "; not usable as they are written: " + strings.Join(broken, ", ")
	}
	return skip
}

// lacking gives the demands that the capabilities do not satisfy.
func lacking(capabilities agentpool.Capabilities, demands []agentpool.Demand) []string {
	var missing []string
	for _, demand := range demands {
		if !capabilities.Satisfies(demand) {
			missing = append(missing, demand.String())
		}
	}
	return missing
}

// className is empty where no class serves the group.
func (g needGroup) className() string {
	if g.class == nil {
		return ""
	}
	return g.class.Name
}

// skip says of a request of the group that no class serves why it has to wait.
func (g needGroup) skip(request agentpool.JobRequest) Skip {
	skip := g.refusal
	if request.Foreign != (agentpool.AgentRef{}) {
		skip = Skip{Reason: SkipForeign, Detail: "agent " + request.Foreign.Name + " of the pool satisfies it, and no class of agent does"}
	}
	skip.Request = request
	return skip
}
