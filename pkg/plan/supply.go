package plan

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// supplyGroup is capacity that is alike: agents of one class and version that offer
// the same.
type supplyGroup struct {
	class  string
	offers agentpool.Capabilities
	// fresh agents are of the version that their class has now and not too old, so
	// that they may be kept waiting.
	fresh bool
}

// supply is the agents that can still take a build, and the order in which to count on
// them: first those that will be ready first, so that what is left over is what costs
// least to end.
type supply struct {
	groups []supplyGroup
	agents []*agentpool.AgentJob
	group  []int // Of each agent.
	used   []bool
}

func newSupply(s Snapshot, classes []agentpool.AgentClass, agents []*agentpool.AgentJob) supply {
	slices.SortFunc(agents, compareReadiness)
	byName := make(map[string]agentpool.AgentClass, len(classes))
	for _, class := range classes {
		byName[class.Name] = class
	}
	u := supply{agents: agents, group: make([]int, len(agents)), used: make([]bool, len(agents))}
	type kind struct {
		ClassVersion
		fresh bool
	}
	alike := map[kind][]int{}
	for i, agent := range agents {
		class, current := byName[agent.Class]
		k := kind{
			ClassVersion: ClassVersion{Class: agent.Class, Version: agent.ClassVersion},
			fresh:        current && class.Version == agent.ClassVersion && !aged(s, *agent),
		}
		offered := offeredBy(s, class, *agent)
		found := slices.IndexFunc(alike[k], func(group int) bool { return maps.Equal(u.groups[group].offers, offered) })
		if found >= 0 {
			u.group[i] = alike[k][found]
			continue
		}
		u.group[i] = len(u.groups)
		alike[k] = append(alike[k], len(u.groups))
		u.groups = append(u.groups, supplyGroup{class: agent.Class, offers: offered, fresh: k.fresh})
	}
	return u
}

// offeredBy is what one agent offers: what it was found to have registered with; else
// what others of its version were found to; else what its class claimed when its Job
// was made. A Job that does not record that is taken to be of the class as it is now.
func offeredBy(s Snapshot, class agentpool.AgentClass, agent agentpool.AgentJob) agentpool.Capabilities {
	if registered, known := s.Registered[agent.Name]; known {
		return registered
	}
	if found, known := s.Offers[ClassVersion{Class: agent.Class, Version: agent.ClassVersion}]; known {
		return found
	}
	if agent.Capabilities == nil && (agent.ClassVersion == "" || agent.ClassVersion == class.Version) {
		return class.Capabilities
	}
	return agent.Capabilities
}

// compareReadiness puts the agents that can take a build soonest first.
func compareReadiness(a, b *agentpool.AgentJob) int {
	return cmp.Or(cmp.Compare(readiness(*a), readiness(*b)), a.CreatedAt.Compare(b.CreatedAt), compareJobs(a, b))
}

func readiness(job agentpool.AgentJob) int {
	switch {
	case job.Ready:
		return 0
	case job.Started:
		return 1
	case job.PodName != "":
		return 2
	default:
		return 3
	}
}

// aged tells whether an agent has waited so long that a new one is to wait in its
// place.
func aged(s Snapshot, job agentpool.AgentJob) bool {
	return job.Ready && s.Limits.MaxIdleAge > 0 && s.Now.Sub(waitingSince(job)) >= s.Limits.MaxIdleAge
}

// waitingSince is the moment from which an agent without a build counts as
// waiting: since it is ready, or, before that, since its Job was made.
func waitingSince(job agentpool.AgentJob) time.Time {
	if job.Ready && !job.ReadySince.IsZero() {
		return job.ReadySince
	}
	return job.CreatedAt
}

// overdue tells whether a starting Job has used up its time. One that no node
// has taken is never overdue: a cluster autoscaler may be at work.
func overdue(s Snapshot, job agentpool.AgentJob) (EndReason, bool) {
	switch {
	case job.Suspended && s.Limits.HalfMadeLimit > 0 && s.Now.Sub(job.CreatedAt) >= s.Limits.HalfMadeLimit:
		return EndHalfMade, true
	case !job.Started && !job.Scheduled.IsZero() && s.Limits.StartupLimit > 0 &&
		s.Now.Sub(job.Scheduled) >= s.Limits.StartupLimit:
		return EndStartupLimit, true
	default:
		return "", false
	}
}

// balance is how need and supply go together.
type balance struct {
	served []bool // Of the requests, and then of the agents to keep waiting.
	warm   []int  // Of each group of supply, how many serve to be kept waiting.
}

// settle counts need against supply. It serves as much need as can be served, the most
// urgent first, from the agents that come first in the order of supply. Both hold at
// once: what can be served best, and what serves it best, can be chosen on each side
// alone (the theorem of Mendelsohn and Dulmage).
func settle(n need, u supply) balance {
	kinds := kindsOf(n, u)
	agents := newMatching(kinds.fits, kinds.sizes)
	counted := make([]int, len(u.groups))
	for i, group := range u.group {
		if agents.place(group) {
			u.used[i] = true
			counted[group]++
		}
	}
	b := balance{served: make([]bool, len(n.group)), warm: make([]int, len(u.groups))}
	requests := newMatching(kinds.wants, counted)
	for _, i := range n.order {
		b.served[i] = requests.place(kinds.of[n.group[i]])
	}
	for i := range n.groups {
		if n.groups[i].warm {
			for g, units := range requests.flow[kinds.of[i]] {
				b.warm[g] += units
			}
		}
	}
	return b
}

// kinds are the groups of need, put together where the same agents serve them. What is
// demanded differs in many more ways than agents do.
type kinds struct {
	of    []int    // The kind of each group of need.
	sizes []int    // The need of each kind.
	wants []bitset // The groups of supply that serve each kind.
	fits  []bitset // The kinds that each group of supply serves.
}

func kindsOf(n need, u supply) kinds {
	k := kinds{of: make([]int, len(n.groups)), fits: make([]bitset, len(u.groups))}
	index := map[string]int{}
	for i := range n.groups {
		served := newBitset(len(u.groups))
		for g, group := range u.groups {
			if group.serves(n.groups[i]) {
				served.add(g)
			}
		}
		key := served.key(n.groups[i].warm)
		kind, known := index[key]
		if !known {
			kind = len(k.sizes)
			index[key] = kind
			k.sizes = append(k.sizes, 0)
			k.wants = append(k.wants, served)
		}
		k.of[i] = kind
		k.sizes[kind] += n.groups[i].size
	}
	for g := range k.fits {
		k.fits[g] = newBitset(len(k.sizes))
		for kind, wants := range k.wants {
			if wants.has(g) {
				k.fits[g].add(kind)
			}
		}
	}
	return k
}

// serves tells whether agents of the group can take what the need is for.
func (g supplyGroup) serves(n needGroup) bool {
	if n.warm {
		return g.fresh && g.class == n.class.Name
	}
	if len(n.unknown) > 0 {
		return false
	}
	_, lacks := g.offers.Missing(n.demands)
	return !lacks
}
