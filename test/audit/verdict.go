package audit

import (
	"cmp"
	"fmt"
	"strings"
	"time"
)

// Input is the evidence of one run.
type Input struct {
	Service []ServiceEvent
	Kube    []KubeEvent
	Objects []LiveObject // Everything live at the end.
	Agents  []LiveAgent  // Registrations listed at the end, to cross-check the log.
	// AgentsListed says that Agents was read, so that an empty list counts.
	AgentsListed bool
}

// Interval is a stretch of time in which the scaler was known to be down.
type Interval struct{ From, To time.Time }

// Rules says whom to judge and how strictly.
type Rules struct {
	// ScalerUsers are the user names the scaler acts under, such as
	// system:serviceaccount:agents:azp-scaler.
	ScalerUsers []string
	// StandingAgents are names of registrations that are no part of the run,
	// such as that of somebody's own machine.
	StandingAgents []string
	// Placeholders begins the names of registrations that are the installation's,
	// are never online and stay as long as it does. Empty means that there are none.
	Placeholders string
	// CleanedUp says that the installation was taken away before the end, so that
	// no placeholder may be left either.
	CleanedUp bool
	// Warm is how many agents of an installation may wait for builds that nobody has
	// queued. 0 means that every one is a duplicate.
	Warm int
	// Administrators are identities that may change or delete every registration.
	Administrators []string
	// StandingObjects are objects, as resource/namespace/name, that belong to
	// the installation and not to a build, such as a leader's lease.
	StandingObjects []string
	// StandingAccounts are the administrator's ServiceAccounts, as namespace/name, by the
	// class whose builds run as them. The scaler must leave them alone, and make no account
	// and no right for such a build.
	StandingAccounts map[string]string
	// Killed are agents, by name, whose container somebody ended from outside, and when. A build
	// that one had goes with it, which its result must say: such a build is counted, and is not
	// lost; its rights may go from then on. One without a build is no duplicate if a request wanted it at the time.
	Killed map[string]time.Time
	// Slack is how old the scaler's picture of the queue may be. 0 means 10 s.
	Slack time.Duration
	// RightsLimit is how long after its agent's end a build may keep its rights.
	// 0 means 15 s.
	RightsLimit time.Duration
	// Outages do not count against RightsLimit.
	Outages []Interval
}

const (
	defaultSlack       = 10 * time.Second
	defaultRightsLimit = 15 * time.Second
)

// Judge gives the verdicts on a run. It is a function of its input.
func Judge(in Input, rules Rules) Report {
	rules.Slack = cmp.Or(rules.Slack, defaultSlack)
	rules.RightsLimit = cmp.Or(rules.RightsLimit, defaultRightsLimit)
	j := &judge{in: in, rules: rules, ix: buildIndex(in, rules)}
	j.report.Leaked = map[string]int{"jobs": 0, "pods": 0, "serviceaccounts": 0, "rolebindings": 0, "secrets": 0, "registrations": 0}
	j.evidence()
	j.counts()
	j.lost()
	j.duplicates()
	j.keptWaiting()
	j.exclusive()
	j.placeholders()
	j.touched()
	j.standingAccounts()
	j.rights()
	j.leakedObjects()
	j.leakedRegistrations()
	j.times()
	return j.report
}

type judge struct {
	in     Input
	rules  Rules
	ix     *index
	report Report
}

func (j *judge) find(verdict Verdict, format string, args ...any) {
	j.report.Findings = append(j.report.Findings, Finding{Verdict: verdict, Text: fmt.Sprintf(format, args...)})
}

// evidence looks for signs that the logs are not the whole truth.
func (j *judge) evidence() {
	if len(j.in.Service) == 0 {
		j.find(VerdictEvidence, "the service's audit log is empty: nothing can be said about this run")
	}
	last := int64(0)
	for i, event := range j.in.Service {
		if i > 0 && event.Seq != last+1 {
			j.find(VerdictEvidence, "the service's audit log jumps from seq %d to %d: lines are missing or out of order", last, event.Seq)
		}
		last = event.Seq
	}
	if len(j.rules.ScalerUsers) == 0 {
		j.find(VerdictEvidence, "no user of the scaler is named: nothing it created could be found")
	}
	for _, a := range j.ix.sortedAgents() {
		if _, made := j.ix.jobs[a.name]; !made && jobName.MatchString(a.name) {
			j.find(VerdictEvidence, "%s is named like one of the scaler's, but no Job of that name was created by %s", a, strings.Join(j.rules.ScalerUsers, " or "))
		}
	}
	for _, r := range j.ix.sortedRequests() {
		if r.queued.IsZero() {
			j.find(VerdictEvidence, "%s has events but was never queued", r)
		}
	}
}

func (j *judge) counts() {
	j.report.JobsCreated = len(j.ix.allJobs())
	for _, r := range j.ix.requests {
		j.report.Builds++
		switch r.outcome() {
		case outcomeSucceeded:
			j.report.Succeeded++
		case outcomeFailed, outcomeNoAgent, outcomeAbandoned:
			j.report.Failed++
		case outcomeCanceled:
			j.report.Canceled++
		case outcomeNone:
		}
	}
}

// outcome is how a request ended.
type outcome string

const (
	outcomeNone      outcome = ""
	outcomeSucceeded outcome = "succeeded"
	outcomeFailed    outcome = "failed"
	outcomeCanceled  outcome = "canceled"
	outcomeAbandoned outcome = "abandoned"
	outcomeNoAgent   outcome = "no agent"
)

// outcome reads the end of a request from its events. Cancelling a request that
// an agent has is an order only: the end is what the agent then reports.
func (r *request) outcome() outcome {
	switch {
	case !r.abandoned.IsZero():
		return outcomeAbandoned
	case !r.noAgent.IsZero():
		return outcomeNoAgent
	case !r.finished.IsZero():
		switch r.result {
		case "succeeded", "succeededWithIssues":
			return outcomeSucceeded
		case "failed", "skipped":
			return outcomeFailed
		case "canceled":
			return outcomeCanceled
		case "abandoned":
			return outcomeAbandoned
		default:
			return outcomeNone
		}
	case !r.canceled.IsZero() && (r.received.IsZero() || r.canceled.Before(r.received)):
		return outcomeCanceled
	default:
		return outcomeNone
	}
}

// lost finds requests that ended without a result or a stated reason.
func (j *judge) lost() {
	for _, r := range j.ix.sortedRequests() {
		switch r.outcome() {
		case outcomeNone:
			j.report.Lost++
			j.find(VerdictLost, "%s, queued at %s, has no result: %s", r, clock(r.queued), r.standing(j.ix))
		case outcomeAbandoned:
			if j.wentWithItsAgent(r) {
				j.report.Killed++
				continue
			}
			j.report.Lost++
			j.find(VerdictLost, "%s was abandoned at %s: %s", r, clock(later(r.abandoned, r.finished)), r.standing(j.ix))
		case outcomeFailed:
			if strings.Contains(strings.ToLower(r.detail), "stopped hearing") {
				j.report.Lost++
				j.find(VerdictLost, "%s failed at %s through the loss of its agent (%s): %s", r, clock(r.finished), r.detail, r.standing(j.ix))
			}
		case outcomeSucceeded, outcomeCanceled, outcomeNoAgent:
		}
	}
}

// wentWithItsAgent tells whether a request was abandoned because its agent was ended from
// outside. The service may assign one to an agent of whose end it has not heard yet.
func (j *judge) wentWithItsAgent(r *request) bool {
	a, assigned := j.ix.agents[r.assignee]
	if !assigned || len(r.agents) > 1 {
		return false
	}
	killed, was := j.rules.Killed[a.name]
	return was && !r.assigned.After(killed.Add(j.rules.Slack)) && later(r.abandoned, r.finished).After(killed)
}

// standing tells how far a request came.
func (r *request) standing(ix *index) string {
	if len(r.agents) == 0 {
		return "no agent ever received it"
	}
	names := make([]string, 0, len(r.agents))
	for _, k := range r.agents {
		names = append(names, ix.agents[k].String())
	}
	return fmt.Sprintf("received at %s by %s", clock(r.received), strings.Join(names, ", "))
}

// exclusive finds builds with two agents and agents with two builds.
func (j *judge) exclusive() {
	for _, r := range j.ix.sortedRequests() {
		if len(r.agents) > 1 {
			j.report.BuildsRunTwice++
			j.find(VerdictRunTwice, "%s was run by %d agents: %s", r, len(r.agents), r.standing(j.ix))
		}
	}
	for _, a := range j.ix.sortedAgents() {
		if len(a.requests) > 1 && j.ix.ours(a) {
			j.report.AgentsReused++
			ids := make([]string, 0, len(a.requests))
			for _, k := range a.requests {
				ids = append(ids, fmt.Sprint(k.id))
			}
			j.find(VerdictAgentReused, "%s received %d builds: requests %s", a, len(a.requests), strings.Join(ids, ", "))
		}
	}
}

// times measures how long builds waited, by the logs alone.
func (j *judge) times() {
	first := map[int64]time.Time{}
	for _, made := range j.ix.allJobs() {
		if at, found := first[made.requestID]; !made.warm && (!found || made.created.Before(at)) {
			first[made.requestID] = made.created
		}
	}
	var toJob, toAgent []time.Duration
	for _, r := range j.ix.requests {
		if at, found := first[r.key.id]; found && !r.queued.IsZero() {
			toJob = append(toJob, at.Sub(r.queued))
		}
		if !r.received.IsZero() && !r.queued.IsZero() {
			toAgent = append(toAgent, r.received.Sub(r.queued))
		}
	}
	j.report.QueueToJob, j.report.QueueToAgent = quantiles(toJob), quantiles(toAgent)
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func clock(at time.Time) string {
	if at.IsZero() {
		return "an unknown time"
	}
	return at.UTC().Format("15:04:05.000")
}
