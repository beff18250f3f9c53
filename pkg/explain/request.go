package explain

import (
	"fmt"
	"io"
	"strings"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// WriteRequest writes why a request waits, and which class serves it or comes
// closest. Request 0 is every queued one. It reports whether the request was found.
func WriteRequest(w io.Writer, pools []Pool, request int64) (found bool, err error) {
	t := &text{w: w}
	for _, p := range pools {
		for _, r := range p.Snapshot.Requests {
			if r.ID != request && (request != 0 || r.State() != agentpool.RequestQueued) {
				continue
			}
			if found {
				t.line("")
			}
			found = true
			p.request(t, r)
		}
	}
	if !found && request == 0 {
		t.line("No build is queued.")
	}
	return found, t.err
}

func (p Pool) request(t *text, r agentpool.JobRequest) {
	t.line("Request %d of pool %s: %s", r.ID, p.Snapshot.Pool.Name, r.State())
	fact := func(name, value string) {
		if value != "" {
			t.line("  %-9s %s", name, oneLine(value))
		}
	}
	fact("pipeline", strings.TrimSpace(r.Definition.Name+" "+r.Run.Name))
	fact("run", r.Run.URL)
	if !r.QueueTime.IsZero() {
		fact("queued", fmt.Sprintf("%s, %s ago", stamp(r.QueueTime), since(p.Snapshot.Now, r.QueueTime)))
	}
	fact("demands", strings.Join(demands(r), "; "))
	fact("agent", r.Reserved.Name)
	p.decision(fact, r)
	p.fits(t, r)
	p.jobs(t, r)
}

// decision says what the next cycle would do about the request.
func (p Pool) decision(fact func(name, value string), r agentpool.JobRequest) {
	for _, creation := range p.Plan.Create {
		if creation.Request.ID == r.ID {
			fact("next", "an agent of class "+creation.Class+" is made for it")
		}
	}
	for _, skip := range p.Plan.Skipped {
		if skip.Request.ID != r.ID {
			continue
		}
		why := string(skip.Reason)
		switch {
		case skip.Detail != "":
			why += ": " + skip.Detail
		case skip.Reason == plan.SkipServed:
			why += ": an agent that is starting or idle will take it"
		}
		fact("waits", why)
	}
}

// fits says of each class whether it satisfies what a queued request demands.
func (p Pool) fits(t *text, r agentpool.JobRequest) {
	if r.State() != agentpool.RequestQueued {
		return
	}
	t.columns("CLASS", "SATISFIES", "LACKS")
	closest := ""
	for _, skip := range p.Plan.Skipped {
		if skip.Request.ID == r.ID {
			closest = skip.Closest
		}
	}
	for _, c := range p.classes() {
		if c.Broken != "" {
			t.row(c.Name, "broken", "-")
			continue
		}
		of, usable := p.usable(c.Name)
		if !usable {
			continue
		}
		lacks := lacking(p.offers(of), r)
		switch {
		case len(lacks) == 0:
			t.row(c.Name, "yes", "-")
		case c.Name == closest:
			t.row(c.Name, "no (closest)", strings.Join(lacks, "; "))
		default:
			t.row(c.Name, "no", strings.Join(lacks, "; "))
		}
	}
	t.end()
}

func (p Pool) usable(name string) (agentpool.AgentClass, bool) {
	for _, class := range p.Snapshot.Classes {
		if class.Name == name {
			return class, true
		}
	}
	return agentpool.AgentClass{}, false
}

// offers is what agents of a class were found to offer, or else what it claims.
func (p Pool) offers(class agentpool.AgentClass) agentpool.Capabilities {
	if found, known := p.Snapshot.Offers[plan.ClassVersion{Class: class.Name, Version: class.Version}]; known {
		return found
	}
	return class.Capabilities
}

func lacking(offered agentpool.Capabilities, r agentpool.JobRequest) []string {
	var lacks []string
	for _, demand := range r.Demands {
		if !offered.Satisfies(demand) {
			lacks = append(lacks, demand.String())
		}
	}
	for _, unknown := range r.UnknownDemands {
		lacks = append(lacks, unknown+" (not understood)")
	}
	return lacks
}

// jobs shows the Jobs that were made for the request, and the one that runs it.
func (p Pool) jobs(t *text, r agentpool.JobRequest) {
	reserved := map[string]bool{}
	for _, other := range p.Snapshot.Requests {
		reserved[other.Reserved.Name] = true
	}
	begun := false
	for _, job := range p.Snapshot.Jobs {
		if job.RequestID != r.ID && job.Name != r.Reserved.Name {
			continue
		}
		if !begun {
			t.columns("JOB", "CLASS", "PHASE", "POD", "REASON", "MESSAGE")
			begun = true
		}
		phase := plan.PhaseOf(job, reserved[job.Name], p.Snapshot.Disabled[job.Name])
		t.row(job.Name, job.Class, phase, or(job.PodName), or(string(job.Reason)), or(job.Message))
	}
	if begun {
		t.end()
	}
}
