package plan

import (
	"cmp"
	"encoding/binary"
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

// newSupply groups the agents by what they offer of that which is demanded. Of the rest,
// such as its own name, each has something different.
func newSupply(s Snapshot, classes []agentpool.AgentClass, agents []*agentpool.AgentJob, demanded []string) supply {
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
	type alike struct {
		kind
		offers string
	}
	type recorded struct {
		offers agentpool.Capabilities
		group  int
	}
	index, known := map[alike]int{}, map[kind][]recorded{}
	var key []byte
	for i, agent := range agents {
		class, current := byName[agent.Class]
		k := kind{
			ClassVersion: ClassVersion{Class: agent.Class, Version: agent.ClassVersion},
			fresh:        current && class.Version == agent.ClassVersion && !aged(s, *agent),
		}
		offered := offeredBy(s, class, *agent)
		_, single := s.Registered[agent.Name]
		if !single {
			// What is known of a kind, and not of this agent, is the same for most of it.
			same := slices.IndexFunc(known[k], func(r recorded) bool { return maps.Equal(r.offers, offered) })
			if same >= 0 {
				u.group[i] = known[k][same].group
				continue
			}
		}
		key = offerKey(key[:0], offered, demanded)
		group, met := index[alike{k, string(key)}]
		if !met {
			group = len(u.groups)
			index[alike{k, string(key)}] = group
			u.groups = append(u.groups, supplyGroup{class: agent.Class, offers: offered, fresh: k.fresh})
		}
		u.group[i] = group
		if !single {
			known[k] = append(known[k], recorded{offers: offered, group: group})
		}
	}
	return u
}

// offerKey writes what is offered of that which is demanded.
func offerKey(key []byte, offered agentpool.Capabilities, demanded []string) []byte {
	for i, name := range demanded {
		if value, has := offered[name]; has {
			key = binary.AppendUvarint(key, uint64(i)) //nolint:gosec // An index is not negative.
			key = append(key, value...)
			key = append(key, 0)
		}
	}
	return key
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
	return job.Ready && s.Limits.MaxIdleAge > 0 && s.Now.Sub(job.WaitingSince()) >= s.Limits.MaxIdleAge
}

// overdue tells whether a starting Job has used up its time. One that no node
// has taken is never overdue: a cluster autoscaler may be at work.
func overdue(s Snapshot, job agentpool.AgentJob) (EndReason, bool) {
	switch {
	case job.Suspended && job.Unregistered() && (s.Abandoned[job.UID] ||
		s.Limits.UnregisteredLimit > 0 && s.Now.Sub(job.CreatedAt) >= s.Limits.UnregisteredLimit):
		return EndUnregistered, true
	case (job.Suspended || podless(job)) && s.Limits.HalfMadeLimit > 0 && s.Now.Sub(job.CreatedAt) >= s.Limits.HalfMadeLimit:
		return EndHalfMade, true
	case !job.Ready && !job.Scheduled.IsZero() && s.Limits.StartupLimit > 0 &&
		s.Now.Sub(job.Scheduled) >= s.Limits.StartupLimit:
		return EndStartupLimit, true
	default:
		return "", false
	}
}

// podless tells whether Kubernetes refuses to make the Job's pod for a reason that does not
// pass by itself: so it does when somebody has deleted the build's ServiceAccount, which only
// another Job gets anew. A quota has room again when other pods end.
func podless(job agentpool.AgentJob) bool {
	return !job.Suspended && job.PodName == "" && job.Reason != agentpool.ReasonNone && job.Reason != agentpool.ReasonQuota
}

// lingerLimit is how long the other containers of a pod may go on after its agent has ended.
const lingerLimit = 10 * time.Minute

// lingers tells whether a pod has outlived its agent for too long. Kubernetes ends the Job
// only when every container but the native sidecars has ended, and one that has no image
// never does.
func lingers(s Snapshot, job agentpool.AgentJob) bool {
	return !job.JobDone && !job.Deleting && !job.Ended.IsZero() && s.Now.Sub(job.Ended) >= lingerLimit
}

// balance is how need and supply go together.
type balance struct {
	served []bool // Of the requests, and then of the agents to keep waiting.
	warm   []int  // Of each group of supply, how many serve to be kept waiting.
}

// count counts supply for need, unit by unit.
type count struct {
	need     need
	supply   supply
	kinds    kinds
	requests *matching
	balance  balance
	sizes    []int // How much of each kind of need is served.
}

func newCount(n need, u supply) *count {
	c := &count{need: n, supply: u, kinds: kindsOf(n, u)}
	room := make([]int, len(u.groups))
	for _, group := range u.group {
		room[group]++
	}
	c.requests = newMatching(c.kinds.wants, room)
	c.balance = balance{served: make([]bool, len(n.group)), warm: make([]int, len(u.groups))}
	c.sizes = make([]int, len(c.kinds.wants))
	return c
}

// serve counts an agent for a request, or for an agent to keep waiting, if there is one
// beside those that were counted before. Whoever is served first thus gets an agent rather
// than those after it, and still as many as possible get one.
func (c *count) serve(i int) bool {
	kind := c.kinds.of[c.need.group[i]]
	if !c.requests.place(kind) {
		return false
	}
	c.balance.served[i] = true
	c.sizes[kind]++
	return true
}

// settle chooses the agents that what is served is counted against: those that come first
// in the order of supply. That takes nobody's agent away: what can be served best, and what
// serves it best, can be chosen on each side alone (the theorem of Mendelsohn and Dulmage).
func (c *count) settle() balance {
	agents := newMatching(c.kinds.fits, c.sizes)
	for i, group := range c.supply.group {
		c.supply.used[i] = agents.place(group)
	}
	for i := range c.need.groups {
		if c.need.groups[i].warm {
			for g := range c.supply.groups {
				c.balance.warm[g] += agents.flow[g][c.kinds.of[i]]
			}
		}
	}
	return c.balance
}

// kinds are the groups of need, put together where the same agents serve them. What is
// demanded differs in many more ways than agents do.
type kinds struct {
	of    []int    // The kind of each group of need.
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
			kind = len(k.wants)
			index[key] = kind
			k.wants = append(k.wants, served)
		}
		k.of[i] = kind
	}
	for g := range k.fits {
		k.fits[g] = newBitset(len(k.wants))
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
