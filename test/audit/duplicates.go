package audit

import (
	"cmp"
	"slices"
	"time"
)

// explanation is why one agent of an installation came online and yet had nothing
// to do, without anybody's fault.
type explanation struct {
	instance string
	at       time.Time // An agent made much later was not made for the need that went away.
	// otherThan, where it is set, is the class whose agents are not explained: one
	// of them could have had the build that the explanation tells of.
	otherThan string
}

// duplicates finds the agents that came online for nothing and that nothing
// explains; see the package's documentation for the rule.
func (j *judge) duplicates() {
	var idle []*agent
	for _, a := range j.ix.sortedAgents() {
		if !a.online.IsZero() && len(a.requests) == 0 && j.ix.ours(a) && !warm(a) && !j.killedWanted(a) {
			idle = append(idle, a)
		}
	}
	slices.SortStableFunc(idle, func(a, b *agent) int { return j.madeAt(a).Compare(j.madeAt(b)) })
	explanations := slices.Concat(j.wentAway(), j.madeAnew())
	for i, explained := range j.pair(idle, explanations) {
		if explained {
			continue
		}
		a := idle[i]
		j.report.Duplicates++
		j.find(VerdictDuplicate, "%s came online at %s and never received a build; its Job was created at %s, and no request that went away explains it (%d explanations, %d such agents)",
			a, clock(a.online), clock(j.madeAt(a)), len(explanations), len(idle))
	}
}

// killedWanted tells whether an agent was ended from outside while a request wanted one.
func (j *judge) killedWanted(a *agent) bool {
	at, killed := j.rules.Killed[a.name]
	return killed && j.wantedAt(at) > 0
}

// pair gives each explanation to at most one agent, so that as many as possible
// are explained, and tells which are: a maximum matching by augmenting paths.
func (j *judge) pair(idle []*agent, explanations []explanation) []bool {
	holder := make([]int, len(explanations))
	for e := range holder {
		holder[e] = -1
	}
	var place func(a int, tried []bool) bool
	place = func(a int, tried []bool) bool {
		for e, explanation := range explanations {
			if tried[e] || !j.explains(explanation, idle[a]) {
				continue
			}
			tried[e] = true
			if holder[e] < 0 || place(holder[e], tried) {
				holder[e] = a
				return true
			}
		}
		return false
	}
	explained := make([]bool, len(idle))
	for a := range idle {
		explained[a] = place(a, make([]bool, len(explanations)))
	}
	return explained
}

func (j *judge) explains(e explanation, a *agent) bool {
	instance, _, _ := parseName(a.name)
	if instance != e.instance || e.at.Add(j.rules.Slack).Before(j.madeAt(a)) {
		return false
	}
	made := j.ix.jobOf(a)
	return e.otherThan == "" || made != nil && made.class != "" && made.class != e.otherThan
}

// wentAway gives an explanation for each request that had a Job of an installation
// made for it and that none of the agents which that made for requests received.
func (j *judge) wentAway() []explanation {
	var gone []explanation
	first := j.firstJobs()
	for _, r := range j.ix.sortedRequests() {
		for _, instance := range j.instances() {
			at, left := j.leftAt(r, instance)
			created, found := first[purpose{instance, r.key.id}]
			if left && found && !created.After(at.Add(j.rules.Slack)) {
				gone = append(gone, explanation{instance: instance, at: at})
			}
		}
	}
	return gone
}

// madeAnew gives an explanation for each request whose agent the service gave to
// another request, which had an agent of its own coming that could not do in its
// place: a further Job of another class had to be made. Whose further Job that is
// does not follow from whose agent was taken, as the agents of one class may
// have swapped their builds before: it is of the taken agent's class, or for the
// request that the taken agent was made for. It explains one agent at the most.
func (j *judge) madeAnew() []explanation {
	var out []explanation
	first := j.firstJobs()
	counted := map[string]bool{}
	for _, a := range j.ix.sortedAgents() {
		instance, own, ok := parseName(a.name)
		if !ok || own == 0 || len(a.requests) == 0 || a.requests[0].id == own {
			continue
		}
		taken := j.ix.requests[a.requests[0]]
		created, found := first[purpose{instance, taken.key.id}]
		if !found || created.After(taken.received.Add(j.rules.Slack)) {
			continue // Nothing was made for the other request, so nothing is left over of it.
		}
		made := j.ix.jobOf(a)
		for _, again := range j.sortedJobs() {
			if again.instance != instance || again.warm || again.class == "" || again.name == a.name || counted[again.name] {
				continue
			}
			inItsPlace := again.requestID == own || made != nil && again.class == made.class
			further := again.created.After(first[purpose{instance, again.requestID}])
			if inItsPlace && further && again.created.After(taken.received.Add(-j.rules.Slack)) && again.created.After(j.madeAt(a)) {
				counted[again.name] = true
				out = append(out, explanation{instance: instance, at: again.created, otherThan: again.class})
				break
			}
		}
	}
	return out
}

// purpose names what a Job was made for, and by which installation.
type purpose struct {
	instance string
	request  int64
}

// firstJobs tells when the first Job for each request was created.
func (j *judge) firstJobs() map[purpose]time.Time {
	first := map[purpose]time.Time{}
	for _, job := range j.ix.allJobs() {
		k := purpose{job.instance, job.requestID}
		if at, found := first[k]; !job.warm && (!found || job.created.Before(at)) {
			first[k] = job.created
		}
	}
	return first
}

// instances lists the installations that made Jobs.
func (j *judge) instances() []string {
	var out []string
	for _, job := range j.ix.allJobs() {
		out = append(out, job.instance)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (j *judge) sortedJobs() []*job {
	out := j.ix.allJobs()
	slices.SortFunc(out, func(a, b *job) int { return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.name, b.name)) })
	return out
}

// leftAt tells when the need for an agent made for this request went away by
// itself, for an installation.
func (j *judge) leftAt(r *request, instance string) (time.Time, bool) {
	for _, k := range r.agents {
		a := j.ix.agents[k]
		if of, _, _ := parseName(a.name); of == instance && j.ix.ours(a) && !warm(a) {
			return time.Time{}, false
		}
	}
	switch {
	case len(r.agents) > 0:
		return r.received, true
	case r.outcome() == outcomeCanceled:
		return later(r.canceled, r.finished), true
	case r.outcome() == outcomeNoAgent:
		return r.noAgent, true
	default:
		return time.Time{}, false
	}
}

// madeAt is when an agent's Job was created, or the agent where the Job is not
// in the log.
func (j *judge) madeAt(a *agent) time.Time {
	if made := j.ix.jobOf(a); made != nil {
		return made.created
	}
	return a.added
}
