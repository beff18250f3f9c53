package audit

import (
	"slices"
	"strings"
	"time"
)

// perBuildLabels mark objects that belong to one build, whoever created them.
func perBuildLabels() []string {
	return []string{"azp-scaler.github.io/request-id", "azp-scaler.github.io/job-uid", "azp-scaler.github.io/attempt"}
}

// classLabel names the class that a Job is of.
const classLabel = "azp-scaler.github.io/class"

// leakedObjects finds what the scaler created, and what that owns, among the
// objects that are live at the end.
func (j *judge) leakedObjects() {
	uids := map[string]bool{}
	for _, known := range j.ix.created {
		for _, uid := range known {
			if uid != "" {
				uids[uid] = true
			}
		}
	}
	why := map[int]string{}
	for i, object := range j.in.Objects {
		if reason := j.leakReason(object, uids); reason != "" {
			why[i] = reason
			uids[object.UID] = true
		}
	}
	// What a leaked or deleted object of the scaler owns is the scaler's as well,
	// however many steps away.
	for grown := true; grown; {
		grown = false
		for i, object := range j.in.Objects {
			if _, known := why[i]; known || j.standing(object) {
				continue
			}
			if slices.ContainsFunc(object.OwnerUIDs, func(uid string) bool { return uids[uid] }) {
				why[i] = "is owned by an object that the scaler created"
				uids[object.UID] = true
				grown = true
			}
		}
	}
	for i, object := range j.in.Objects {
		reason, leaked := why[i]
		if !leaked {
			continue
		}
		j.report.Leaked[object.Resource]++
		state := ""
		if object.Deleting {
			state = ", being deleted"
		}
		j.find(VerdictLeaked, "%s %s/%s (uid %s, created %s%s) is still there: it %s", object.Resource, object.Namespace, object.Name, object.UID, clock(object.Created), state, reason)
	}
}

func (j *judge) leakReason(object LiveObject, uids map[string]bool) string {
	if j.standing(object) {
		return ""
	}
	known, created := j.ix.created[objectKey{object.Group, object.Resource, object.Namespace, object.Name}]
	if uids[object.UID] || created && slices.Contains(known, "") {
		return "was created by the scaler"
	}
	for _, label := range perBuildLabels() {
		if value, found := object.Labels[label]; found {
			return "carries the label " + label + "=" + value
		}
	}
	return ""
}

func (j *judge) standing(object LiveObject) bool {
	return slices.Contains(j.rules.StandingObjects, object.Resource+"/"+object.Namespace+"/"+object.Name)
}

// leakedRegistrations finds agents that were added and not deleted, and checks
// the log against the list of agents where there is one.
func (j *judge) leakedRegistrations() {
	listed := map[int64]bool{}
	for _, live := range j.in.Agents {
		listed[live.ID] = true
	}
	logged := map[int64]bool{}
	for _, a := range j.ix.sortedAgents() {
		alive := !a.added.IsZero() && !a.deleted.After(a.added)
		if alive {
			logged[a.key.id] = true
		}
		if j.in.AgentsListed && alive != listed[a.key.id] {
			j.find(VerdictEvidence, "%s: alive by the service's audit log is %t, by its list of agents %t", a, alive, listed[a.key.id])
		}
		if alive && !j.standingAgent(a.name) {
			j.report.Leaked["registrations"]++
			j.find(VerdictLeaked, "%s, added at %s, is still registered", a, clock(a.added))
		}
	}
	for _, live := range j.in.Agents {
		if !logged[live.ID] && !j.standingAgent(live.Name) {
			j.report.Leaked["registrations"]++
			j.find(VerdictLeaked, "agent %d %s (pool %s) is listed by the service, though its audit log does not show it", live.ID, live.Name, live.Pool)
		}
	}
}

// standingAgent tells whether a registration of that name may be left at the end.
func (j *judge) standingAgent(name string) bool {
	return slices.Contains(j.rules.StandingAgents, name) || j.placeholder(name) && !j.rules.CleanedUp
}

func (j *judge) placeholder(name string) bool {
	return j.rules.Placeholders != "" && strings.HasPrefix(name, j.rules.Placeholders)
}

// rights finds RoleBindings that went before their build ended or stayed too
// long after their agent did, and successful requests with an account of a
// build whose agent had ended.
func (j *judge) rights() {
	for _, b := range j.ix.bindings {
		a := j.ix.agentOf(b.job, b.created)
		if a == nil || b.deleted.IsZero() {
			continue
		}
		if late := j.overdue(a.ended(), b.deleted); late > j.rules.RightsLimit {
			j.report.RightsLate++
			j.find(VerdictRights, "rolebinding %s/%s went at %s, %s after %s had ended", b.namespace, b.name, clock(b.deleted), late.Round(time.Millisecond), a)
		} else if late > j.report.longestRights {
			j.report.longestRights = late
		}
		for _, k := range a.requests {
			r := j.ix.requests[k]
			if r.outcome() != outcomeAbandoned && b.deleted.Before(r.finished) && !j.deadAt(a, b.deleted) {
				j.report.RightsEarly++
				j.find(VerdictRights, "rolebinding %s/%s went at %s, though %s ran until %s on %s", b.namespace, b.name, clock(b.deleted), r, clock(r.finished), a)
			}
		}
	}
	for _, use := range j.ix.uses {
		name := use.User[strings.LastIndex(use.User, ":")+1:]
		a := j.ix.agentOf(name, use.Time)
		if a == nil {
			continue
		}
		if late := j.overdue(a.ended(), use.Time); late > j.rules.RightsLimit {
			j.report.RightsLate++
			j.find(VerdictRights, "%s could still %s %s in %s at %s, %s after %s had ended", use.User, use.Verb, use.Resource, use.Namespace, clock(use.Time), late.Round(time.Millisecond), a)
		}
	}
}

// deadAt tells whether an agent had been ended from outside by then. The service may go on to wait
// for one that has reported its result already, and then take the build as done.
func (j *judge) deadAt(a *agent, at time.Time) bool {
	killed, was := j.rules.Killed[a.name]
	return was && !killed.After(at)
}

// overdue is the time between an agent's end and at, less what the scaler was
// known to be down for. An unknown end is not judged.
func (j *judge) overdue(end, at time.Time) time.Duration {
	if end.IsZero() || !at.After(end) {
		return 0
	}
	late := at.Sub(end)
	for _, outage := range j.rules.Outages {
		from, to := later(outage.From, end), outage.To
		if to.After(at) {
			to = at
		}
		if to.After(from) {
			late -= to.Sub(from)
		}
	}
	return late
}
