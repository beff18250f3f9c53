package audit

import "slices"

// placeholders finds placeholders that came online: the service could then have
// given them a build, which nothing would have run.
func (j *judge) placeholders() {
	for _, a := range j.ix.sortedAgents() {
		if j.placeholder(a.name) && !a.online.IsZero() {
			j.report.Placeholders++
			j.find(VerdictPlaceholder, "%s is a placeholder and yet opened a session at %s", a, clock(a.online))
		}
	}
}

// touched finds registrations that were changed or deleted by somebody who had
// not added them, and objects that one scaler had made and another one changed.
func (j *judge) touched() {
	for _, a := range j.ix.sortedAgents() {
		for _, touch := range a.touches {
			if j.mayTouch(a, touch.by) {
				continue
			}
			j.report.Touched++
			j.find(VerdictTouched, "%s was added by %q, and yet there is %s by %q at %s", a, a.addedBy, touch.event, touch.by, clock(touch.at))
		}
	}
	for _, event := range j.ix.meddling {
		j.report.Touched++
		j.find(VerdictTouched, "%s %s/%s belongs to another installation, and yet there is %s by %s at %s",
			event.Resource, event.Namespace, event.Name, event.Verb, event.User, clock(event.Time))
	}
}

// mayTouch tells whether a registration is somebody's to change: the agent's own,
// that of whoever added it, an administrator's, or the service's.
func (j *judge) mayTouch(a *agent, by string) bool {
	return by == a.addedBy || by == "agent:"+a.name || by == "service" || by == "control" || slices.Contains(j.rules.Administrators, by)
}
