package audit

import (
	"maps"
	"slices"
	"strings"
)

// ownsNone tells whether a Job's builds run as a standing account, so that nothing is made for
// their rights.
func (j *judge) ownsNone(made *job) bool {
	_, standing := j.rules.StandingAccounts[made.class]
	return made.class != "" && standing
}

// standingAccounts finds ServiceAccounts of the administrator's that the scaler wrote to or
// that are gone, and accounts and rights that it made for builds which run as one of them.
func (j *judge) standingAccounts() {
	for _, event := range j.ix.accountWrites {
		if !slices.Contains(slices.Collect(maps.Values(j.rules.StandingAccounts)), event.Namespace+"/"+event.Name) {
			continue
		}
		j.report.Touched++
		j.find(VerdictTouched, "serviceaccount %s/%s is the administrator's, and yet there is %s %s by %s at %s", event.Namespace, event.Name,
			event.Verb, strings.TrimSuffix(event.Resource+"/"+event.Subresource, "/"), event.User, clock(event.Time))
	}
	for _, class := range slices.Sorted(maps.Keys(j.rules.StandingAccounts)) {
		account := j.rules.StandingAccounts[class]
		if !slices.ContainsFunc(j.in.Objects, func(o LiveObject) bool {
			return o.Resource == "serviceaccounts" && o.Namespace+"/"+o.Name == account
		}) {
			j.report.Touched++
			j.find(VerdictTouched, "serviceaccount %s, as which the builds of class %s run, is not there at the end", account, class)
		}
	}
	var made []string
	for k := range j.ix.created {
		if k.resource != "serviceaccounts" && k.resource != "rolebindings" {
			continue
		}
		if of, known := j.ix.jobs[jobOfBinding(k.name)]; known && j.ownsNone(of) {
			made = append(made, k.resource+" "+k.namespace+"/"+k.name)
		}
	}
	slices.Sort(made)
	for _, what := range made {
		j.find(VerdictRights, "%s was made for a build that runs as a standing account", what)
	}
}
