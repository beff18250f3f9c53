package simulate

import (
	"maps"
	"slices"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// judgeCaps counts the agents that a scaler knew of when it planned the one that it is
// making, and those that it has made since. Two that lead at once may not know of each
// other's, and none knows of a Job whose answer was lost before its cache shows it.
func (c *check) judgeCaps(s *scalerSeen, made *jobSeen) {
	inPool, inClass := 1, 1
	for _, j := range c.atHand(s) {
		inPool++
		if j.class == made.class {
			inClass++
		}
	}
	if most := c.setup.Config.Limits.PoolAgents; inPool > most {
		c.accuse(RuleCaps, "with %s there are %d agents, and may be %d", made.name, inPool, most)
	}
	for _, class := range s.classes {
		if class.Name == made.class && class.MaxAgents > 0 && inClass > class.MaxAgents {
			c.accuse(RuleCaps, "with %s there are %d agents of class %s, and may be %d", made.name, inClass, class.Name, class.MaxAgents)
		}
	}
}

// atHand gives the Jobs that a scaler knew of when it looked, or has been told of since, and that
// are not over.
func (c *check) atHand(s *scalerSeen) []*jobSeen {
	uids := maps.Clone(s.told)
	for uid := range s.planned {
		uids[uid] = true
	}
	var jobs []*jobSeen
	for uid := range uids {
		if j := c.jobs[uid]; j != nil && !j.ended && !j.gone {
			jobs = append(jobs, j)
		}
	}
	return jobs
}

// want is something that an agent is needed for: a build, or, where it has a class, a place
// among the agents that wait.
type want struct {
	demands []agentpool.Demand
	class   string
}

// judgeNeed complains of an agent that is made though each build that the scaler was told of,
// and each place among the agents that wait, can have one of those that it knew of. Of these,
// only those count that no plan can have had a reason not to count on.
func (c *check) judgeNeed(s *scalerSeen, made *jobSeen) {
	var wants []want
	for _, id := range s.polled {
		if build := c.builds[id]; build != nil {
			wants = append(wants, want{demands: build.demands})
		}
	}
	for _, class := range s.classes {
		for range class.MinIdle {
			wants = append(wants, want{class: class.Name})
		}
	}
	able := c.able(s)
	if len(able) < len(wants) {
		return
	}
	if !covers(able, wants, func(j *jobSeen, w want) bool { return c.suits(s, j, w) }) {
		return
	}
	c.accuse(RuleNeed, "%s was made with %d agents free, for %d that wait and queued builds", made.name, len(able), len(wants))
}

// able gives the Jobs that a plan of the scaler must count on.
func (c *check) able(s *scalerSeen) []*jobSeen {
	limits := c.setup.Config.Limits
	// Clocks differ by the skew of either.
	margin := 2*c.setup.Skew + c.setup.Config.PollTimeout
	var able []*jobSeen
	for _, j := range c.atHand(s) {
		agent := c.agentOf(j)
		switch {
		case j.doomed:
		case j.runs == 0 && (j.registration == agentpool.RegistrationJIT || c.now-j.made > limits.HalfMadeLimit-margin):
		case s.planned[j.uid] == "suspended" && !s.told[j.uid] && c.now-j.made > unmadeLimit(limits, j)-margin:
		case s.planned[j.uid] != "ready" && j.scheduled > 0 && c.now-j.scheduled > limits.StartupLimit-margin:
		case j.ready > 0 && c.now-j.ready > limits.MaxIdleAge-margin:
		case agent != nil && (agent.request != 0 || !agent.enabled), j.claimed > 0:
		default:
			able = append(able, j)
		}
	}
	slices.SortFunc(able, func(a, b *jobSeen) int { return int(a.made - b.made) })
	return able
}

// unmadeLimit is for how long a Job may stay suspended.
func unmadeLimit(limits plan.Limits, j *jobSeen) time.Duration {
	if j.registration == agentpool.RegistrationJIT {
		return limits.UnregisteredLimit
	}
	return limits.HalfMadeLimit
}

// suits tells whether an agent can serve what is wanted.
func (c *check) suits(s *scalerSeen, j *jobSeen, w want) bool {
	i := slices.IndexFunc(s.classes, func(class agentpool.AgentClass) bool { return class.Name == j.class })
	if i < 0 {
		return false
	}
	if w.class != "" {
		return j.class == w.class && j.version == s.classes[i].Version
	}
	_, lacks := s.classes[i].Capabilities.Missing(w.demands)
	return !lacks
}

// covers tells whether each want can have an agent of its own.
func covers(able []*jobSeen, wants []want, suits func(*jobSeen, want) bool) bool {
	taken := make([]int, len(able)) // The want that has it, from 1.
	var place func(w int, tried []bool) bool
	place = func(w int, tried []bool) bool {
		for i, j := range able {
			if tried[i] || !suits(j, wants[w]) {
				continue
			}
			tried[i] = true
			if taken[i] == 0 || place(taken[i]-1, tried) {
				taken[i] = w + 1
				return true
			}
		}
		return false
	}
	for w := range wants {
		if !place(w, make([]bool, len(able))) {
			return false
		}
	}
	return true
}
