package plan

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// inspections is how many agents one plan asks about: each is a call or two, and the
// service counts them.
const inspections = 8

// inspect asks for what agents have really registered with: one of each version of a
// class, and those that wait beside a request for longer than the mismatch limit though
// they are thought to serve it. Where that is known and they do serve it, it is the
// service that holds the request back.
func (p *Plan) inspect(s Snapshot, n need, u supply, b balance, agents []agent) {
	asked := map[string]bool{}
	ask := func(job agentpool.AgentJob) {
		if !asked[job.Name] && len(p.Inspect) < inspections {
			asked[job.Name] = true
			p.Inspect = append(p.Inspect, job)
		}
	}
	p.inspectVersions(s, agents, ask)
	if s.Limits.MismatchLimit <= 0 {
		return
	}
	long := func(since time.Time) bool { return s.Now.Sub(since) >= s.Limits.MismatchLimit }
	waiting := make([]int, len(n.groups))
	for i, request := range n.requests {
		if b.served[i] && long(request.QueueTime) {
			waiting[n.group[i]]++
		}
	}
	beside := make([]string, len(n.groups)) // An agent known to serve the need.
	for i, job := range u.agents {
		if !job.Ready || !long(job.WaitingSince()) {
			continue
		}
		_, known := s.Registered[job.Name]
		for g := range n.groups {
			if waiting[g] == 0 || n.groups[g].warm || !u.groups[u.group[i]].serves(n.groups[g]) {
				continue
			}
			if !known {
				waiting[g]--
				ask(*job)
				break
			}
			if beside[g] == "" {
				beside[g] = job.Name
			}
		}
	}
	p.hold(n, b, beside, long)
}

// inspectVersions asks for one registered agent of each version of a class of which it
// is not known what its agents offer. Where they were found to lack something, it asks
// for the newest that has not been looked at: the image may have been mended.
func (p *Plan) inspectVersions(s Snapshot, agents []agent, ask func(agentpool.AgentJob)) {
	lacking := map[ClassVersion]bool{}
	for _, mismatch := range p.Mismatches {
		lacking[ClassVersion{Class: mismatch.Class, Version: mismatch.Version}] = true
	}
	newest := map[ClassVersion]*agentpool.AgentJob{}
	for _, a := range agents {
		if a.phase == agentpool.PhaseFinished || a.phase == agentpool.PhaseLeaving || !a.job.Started {
			continue
		}
		version := ClassVersion{Class: a.job.Class, Version: a.job.ClassVersion}
		_, known := s.Offers[version]
		_, seen := s.Registered[a.job.Name]
		if (known && !lacking[version]) || seen {
			continue
		}
		if best := newest[version]; best == nil || a.job.CreatedAt.After(best.CreatedAt) {
			newest[version] = a.job
		}
	}
	versions := slices.SortedFunc(maps.Keys(newest), func(a, b ClassVersion) int {
		return cmp.Or(cmp.Compare(a.Class, b.Class), cmp.Compare(a.Version, b.Version))
	})
	for _, version := range versions {
		ask(*newest[version])
	}
}

// hold says of the requests beside which an agent that serves them has waited for long
// that it is the service that holds them back.
func (p *Plan) hold(n need, b balance, beside []string, long func(time.Time) bool) {
	held := map[int64]string{}
	for i, request := range n.requests {
		if name := beside[n.group[i]]; b.served[i] && name != "" && long(request.QueueTime) {
			held[request.ID] = name
		}
	}
	for i := range p.Skipped {
		if name, is := held[p.Skipped[i].Request.ID]; is {
			p.Skipped[i].Reason = SkipHeld
			p.Skipped[i].Detail = fmt.Sprintf("agent %s offers all that it demands and waits for a build: the service does not assign it, as when all parallel jobs are in use", name)
		}
	}
}

// mismatches gives the classes whose agents were found to lack what is claimed.
func mismatches(s Snapshot, classes []agentpool.AgentClass) []Mismatch {
	var found []Mismatch
	for _, class := range classes {
		offered, known := s.Offers[ClassVersion{Class: class.Name, Version: class.Version}]
		if !known {
			continue
		}
		var lacks []string
		for _, name := range slices.Sorted(maps.Keys(class.Claims)) {
			claim := agentpool.Demand{Name: name}
			text := name
			if value := class.Claims[name]; value != "" {
				claim.Op, claim.Value = agentpool.Equals, value
				text += "=" + value
			}
			if !agentpool.VariesByAgent(name) && !offered.Satisfies(claim) {
				lacks = append(lacks, text)
			}
		}
		if len(lacks) > 0 {
			found = append(found, Mismatch{Class: class.Name, Version: class.Version, Lacking: lacks})
		}
	}
	return found
}
