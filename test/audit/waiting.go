package audit

import "time"

// keptWaiting finds more agents waiting than there may be. Only a creation makes them
// more, so it is enough to count at each: the agents that have no build yet, less
// the requests that want one. As many again may be there as are just being
// replaced.
func (j *judge) keptWaiting() {
	jobs := j.sortedJobs()
	for _, made := range jobs {
		if j.rules.Warm == 0 && made.warm {
			j.report.Duplicates++
			j.find(VerdictDuplicate, "Job %s was created at %s for no request, and no agent was to be kept waiting", made.name, clock(made.created))
		}
	}
	if j.rules.Warm == 0 {
		return
	}
	for _, made := range jobs {
		waiting, leaving := 0, 0
		for _, other := range jobs {
			end := j.waitedUntil(other)
			switch {
			case other.instance != made.instance || other.created.After(made.created) || !end.IsZero() && !end.After(made.created):
			case !end.IsZero() && end.Before(made.created.Add(j.rules.Slack)):
				leaving++
			default:
				waiting++
			}
		}
		// What is on its way out may be there once more, and no more than that.
		waiting += max(leaving-j.rules.Warm, 0)
		if wanted := j.wantedAt(made.created); waiting > j.rules.Warm+wanted {
			j.report.Duplicates++
			j.find(VerdictDuplicate, "when Job %s was created at %s, %d agents had no build, for %d requests and %d to be kept waiting",
				made.name, clock(made.created), waiting, wanted, j.rules.Warm)
		}
	}
}

// waitedUntil tells when a Job's agent stopped waiting for a build, if it did: it
// received one, or somebody began to end it.
func (j *judge) waitedUntil(made *job) time.Time {
	end := made.deleted
	for _, a := range j.ix.agents {
		if j.ix.jobOf(a) != made {
			continue
		}
		for _, at := range []time.Time{a.disabled, a.deleted, j.receivedBy(a)} {
			if !at.IsZero() && (end.IsZero() || at.Before(end)) {
				end = at
			}
		}
	}
	return end
}

func (j *judge) receivedBy(a *agent) time.Time {
	if len(a.requests) == 0 {
		return time.Time{}
	}
	return j.ix.requests[a.requests[0]].received
}

// wantedAt counts the requests that wanted an agent shortly before a moment.
func (j *judge) wantedAt(at time.Time) int {
	n := 0
	for _, r := range j.ix.requests {
		end := r.received
		for _, gone := range []time.Time{r.canceled, r.noAgent, r.finished} {
			if !gone.IsZero() && (end.IsZero() || gone.Before(end)) {
				end = gone
			}
		}
		if !r.queued.After(at) && (end.IsZero() || !end.Before(at.Add(-j.rules.Slack))) {
			n++
		}
	}
	return n
}

// warm tells whether an agent was made to wait, and for no request.
func warm(a *agent) bool {
	_, request, named := parseName(a.name)
	return named && request == 0
}
