package plan_test

import (
	"fmt"
	"math/bits"
	"strconv"
	"time"

	"pgregory.net/rapid"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// draw makes snapshots that are consistent in themselves, small, and full of overlaps:
// few capabilities, caps that are reached, times on both sides of every limit.
type draw struct {
	*rapid.T
	classes []agentpool.AgentClass
	calm    bool // No agent is old, and none ends or has ended.
}

// upTo draws a number from 0 to most, each about as likely as the others. Rapid's own
// ranges keep to the small ones, so that most pools would have hardly anything in them.
func (d draw) upTo(most int, what string) int {
	n, width := 0, bits.Len(uint(most))+1 //nolint:gosec // No range ends below 0.
	for range width {
		n <<= 1
		if rapid.Bool().Draw(d.T, what) {
			n++
		}
	}
	return n * (most + 1) >> width
}

// one says yes in one case of n. It shrinks to no.
func (d draw) one(n int, what string) bool { return d.upTo(n-1, what) == n-1 }

// capabilities are a set of three and, more often than not, a version of a fourth.
func (d draw) capabilities(what string) agentpool.Capabilities {
	set := d.upTo(31, what)
	pairs := map[string]string{}
	for i, name := range []string{"docker", "gpu", "node"} {
		if set&(1<<i) != 0 {
			pairs[name] = ""
		}
	}
	if set>>3 > 0 {
		pairs["java"] = strconv.Itoa(set >> 3)
	}
	return agentpool.NewCapabilities(pairs)
}

func (d draw) demands() []agentpool.Demand {
	set := d.upTo(31, "demands") & d.upTo(31, "of which")
	var list []agentpool.Demand
	for i, name := range []string{"Docker", "GPU", "node"} {
		if set&(1<<i) != 0 {
			list = append(list, agentpool.Demand{Name: name})
		}
	}
	switch set >> 3 {
	case 1:
		list = append(list, agentpool.Demand{Name: "java"})
	case 2:
		list = append(list, agentpool.Demand{Name: "java", Op: agentpool.AtLeast, Value: "2"})
	case 3:
		list = append(list, agentpool.Demand{Name: "java", Op: agentpool.Equals, Value: "1"},
			agentpool.Demand{Name: agentpool.AgentVersion, Op: agentpool.AtLeast, Value: "99.1"})
	}
	return list
}

func (d draw) age() time.Duration {
	oldest := 7
	if d.calm {
		oldest = 1
	}
	return [...]time.Duration{
		5 * time.Second, 59 * time.Second, time.Minute, 2 * time.Minute, 9 * time.Minute,
		10 * time.Minute, time.Hour, 2 * time.Hour,
	}[d.upTo(oldest, "age")]
}

func (d draw) class(i int, warm bool) agentpool.AgentClass {
	c := agentpool.AgentClass{
		Name: fmt.Sprintf("class-%d", i), Version: "v2", Capabilities: d.capabilities("claims"),
		Priority: d.upTo(1, "priority"), MaxAgents: max(0, d.upTo(8, "max agents")-3),
	}
	if warm {
		c.MinIdle = max(0, d.upTo(5, "min idle")-2)
	}
	c.Claims = c.Capabilities
	return c
}

// job is one of a class, of an earlier version of it, or of a class that is gone.
func (d draw) job(i int) agentpool.AgentJob {
	requestID := int64(d.upTo(12, "made for"))
	j := agentpool.AgentJob{
		Name: fmt.Sprintf("azp-test-7-%d-%d", requestID, i), UID: fmt.Sprintf("uid-%d", i), PoolID: 7,
		RequestID: requestID, Attempt: i, CreatedAt: ago(d.age()), PodName: "pod",
		Class: "gone", ClassVersion: "v1",
	}
	if of := d.upTo(len(d.classes), "class"); of < len(d.classes) {
		j.Class, j.ClassVersion, j.Capabilities = d.classes[of].Name, "v2", d.classes[of].Capabilities
		if d.one(6, "unrecorded") {
			j.Capabilities = nil
		}
	}
	if j.Class == "gone" || d.one(4, "outdated") {
		j.ClassVersion, j.Capabilities = "v1", d.capabilities("recorded")
	}
	d.shape(&j)
	return j
}

func (d draw) shape(j *agentpool.AgentJob) {
	last := 10
	if d.calm {
		last = 7
	}
	shape := d.upTo(last, "shape")
	switch shape {
	case 0:
		j.Suspended, j.PodName = true, ""
		if d.one(3, "registered by the scaler") {
			j.Registration, j.AgentID = agentpool.RegistrationJIT, d.upTo(1, "agent")
		}
		return
	case 1:
		if d.one(3, "without a pod") {
			j.PodName = ""
			j.Reason = [...]agentpool.Reason{agentpool.ReasonNone, agentpool.ReasonQuota, agentpool.ReasonMissingObject}[d.upTo(2, "refused for")]
		}
		return
	}
	j.Scheduled = j.CreatedAt
	if shape >= 3 && shape != 8 {
		j.Started = true
	}
	switch shape {
	case 4, 5, 6:
		j.Ready, j.ReadySince = true, j.CreatedAt
	case 7:
		j.RanBuild = true
	case 8:
		j.Ended, j.JobDone, j.Reason, j.Failures = ago(d.age()), true, agentpool.ReasonCrashed, d.upTo(2, "failures")
		if d.one(3, "evicted") {
			j.Reason = agentpool.ReasonEvicted
		}
	case 9:
		j.RanBuild, j.Ended, j.JobDone = true, ago(d.age()), !d.one(3, "pod goes on")
	case 10:
		j.Ready, j.ReadySince, j.Deleting = true, j.CreatedAt, true
	}
}

func (d draw) request(id int64) agentpool.JobRequest {
	r := agentpool.JobRequest{
		ID: id, PoolID: 7, QueueTime: ago(d.age()), Priority: max(0, d.upTo(3, "priority")-2), Demands: d.demands(),
	}
	if d.one(16, "unknown demand") {
		r.UnknownDemands = []string{"java -newest"}
	}
	if d.one(8, "foreign") {
		r.Foreign = agentpool.AgentRef{ID: 99, Name: "static-vm"}
	}
	return r
}

// give lets the service give the request to one of our agents that is registered, or to
// somebody else's.
func (d draw) give(r *agentpool.JobRequest, jobs []agentpool.AgentJob) {
	state := d.upTo(11, "state")
	if state < 8 {
		return
	}
	r.AssignTime, r.Reserved = now(), agentpool.AgentRef{ID: 99, Name: "static-vm"}
	if i := d.upTo(len(jobs), "reserved"); i < len(jobs) && jobs[i].Started {
		r.Reserved = agentpool.AgentRef{ID: 1000 + i, Name: jobs[i].Name}
	}
	if state >= 10 {
		r.ReceiveTime = now()
	}
	if state == 11 {
		r.FinishTime, r.Result = now(), "succeeded"
	}
}

// snapshot draws a whole pool.
func (d draw) snapshot() plan.Snapshot {
	warm := d.one(2, "warm")
	d.calm = d.one(3, "calm")
	for i := range 1 + d.upTo(5, "classes") {
		d.classes = append(d.classes, d.class(i, warm))
	}
	s := snapshot(nil)
	s.Classes = d.classes
	s.Limits.MismatchLimit = time.Minute
	s.Limits.PoolAgents = 5 * d.upTo(6, "pool cap")
	s.Limits.ParallelJobs = 4 * d.upTo(4, "parallel jobs")
	s.OtherPools = max(0, d.upTo(5, "other pools")-3)
	s.Limits.CreationsPerCycle = 3 * d.upTo(5, "creations")
	s.NoDeletions = d.one(8, "no deletions")
	s.Offers = map[plan.ClassVersion]agentpool.Capabilities{}
	s.Registered = map[string]agentpool.Capabilities{}
	s.Disabled = map[string]bool{}
	s.Attempts = map[int64]int{}
	s.Abandoned = map[string]bool{}
	s.Lost = map[string]bool{}
	s.Limits.UnregisteredLimit = time.Minute
	s.Blocked = map[string]string{}
	for i := range d.upTo(20, "jobs") {
		s.Jobs = append(s.Jobs, d.job(i))
	}
	for i := range d.upTo(20, "requests") {
		r := d.request(int64(i + 1))
		d.give(&r, s.Jobs)
		s.Requests = append(s.Requests, r)
	}
	for _, c := range s.Classes {
		switch d.upTo(9, "offers") {
		case 8:
			s.Offers[plan.ClassVersion{Class: c.Name, Version: c.Version}] = d.capabilities("offered")
		case 9:
			s.Offers[plan.ClassVersion{Class: c.Name, Version: "v1"}] = d.capabilities("offered")
		}
		if d.one(10, "blocked") {
			s.Blocked[c.Name] = "role absent"
		}
	}
	s.SpareSince = spareSince(s.Jobs)
	for _, j := range s.Jobs {
		switch d.upTo(5, "spare") {
		case 4:
			s.SpareSince[j.UID] = ago(d.age())
		case 5:
			delete(s.SpareSince, j.UID)
		}
		if !j.Started || j.Finished() {
			continue
		}
		switch d.upTo(9, "known") {
		case 8:
			s.Registered[j.Name] = d.capabilities("registered")
		case 9:
			s.Disabled[j.Name] = true
		}
	}
	for _, j := range s.Jobs {
		if j.Suspended && d.one(4, "abandoned") {
			s.Abandoned[j.UID] = true
		}
		if j.Deleting && d.one(2, "lost") {
			s.Lost[j.Name] = true
		}
	}
	for range d.upTo(6, "remembered") {
		s.Failures = append(s.Failures, plan.Failure{
			RequestID: int64(d.upTo(12, "failed")), Class: fmt.Sprintf("class-%d", d.upTo(5, "failed in")),
			Count: 1 + d.upTo(3, "in a row"), At: ago(d.age()),
		})
		s.Attempts[int64(d.upTo(12, "attempted"))] = d.upTo(40, "attempts")
	}
	return s
}
