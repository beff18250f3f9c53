package scaler

import (
	"slices"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// Status is what the last cycle came to.
type Status struct {
	Pool string
	// Standby says that Run is not running: another replica may be serving the pool.
	Standby  bool
	LastPoll time.Time // Of the last whole answer; zero before the first.
	Waiting  string    // Why there is no plan; empty when there is one.
	Stale    bool      // The cache has not shown an own write for too long.
	Classes  []string  // The usable ones, by name.
	Blocked  map[string]string
	View     plan.View
	Skipped  map[plan.SkipReason]int
	// Mismatch is 1 for each class whose agents lack what it claims, and 0 for the
	// others.
	Mismatch map[string]int
	// NotGettingOn counts unfinished agents by class and the reason that holds
	// them up.
	NotGettingOn map[string]map[agentpool.Reason]int
	Invariants   Invariants
	// Rival tells of another installation with the same id; while there is one nothing is done.
	Rival string
}

// Status gives what the last cycle came to.
func (s *Scaler) Status() Status { return *s.status.Load() }

// Running is how many builds of the pool ran, or were about to, at the last poll.
func (s *Scaler) Running() int {
	view := s.Status().View
	return view.Assigned + view.Running
}

// updateStatus changes a copy of the status and makes it the current one. Only
// the loop calls it.
func (s *Scaler) updateStatus(change func(*Status)) {
	status := *s.status.Load()
	change(&status)
	s.status.Store(&status)
}

// NotReady says why the loop is not doing its work at the time, or nothing.
// A poll is taken as current for three idle intervals, and for two minutes at least.
// A loop that does not run is ready to as soon as its cache is filled.
func (s *Scaler) NotReady(now time.Time) string {
	status := s.Status()
	limit := max(3*s.config.PollIdle, minPollAge)
	switch {
	case status.Standby && s.cluster.Synced():
		return ""
	case status.Standby:
		return "the cache of Jobs and pods is not filled yet"
	case status.Rival != "":
		return status.Rival
	case status.LastPoll.IsZero():
		return "pool " + status.Pool + " has not been read yet: " + status.Waiting
	case now.Sub(status.LastPoll) > limit:
		return "pool " + status.Pool + " was last read " + now.Sub(status.LastPoll).Round(time.Second).String() + " ago: " + status.Waiting
	case status.Stale:
		return "the cache of Jobs and pods is out of date"
	}
	// One class that can't be served stops nothing but itself: its requests say so.
	for _, class := range status.Classes {
		if status.Blocked[class] == "" {
			return ""
		}
	}
	if len(status.Classes) > 0 {
		return "no class of pool " + status.Pool + " can be served; class " + status.Classes[0] + ": " + status.Blocked[status.Classes[0]]
	}
	return ""
}

const minPollAge = 2 * time.Minute

// Stuck says that the loop has not turned for longer than all its limits allow
// together, or nothing. It is a last resort: every wait in it has a limit.
func (s *Scaler) Stuck(now time.Time) string {
	turned := s.turned.Load()
	if turned == nil || now.Sub(*turned) <= turnLimit {
		return ""
	}
	return "the loop of pool " + s.config.Pool.Name + " has not turned for " + now.Sub(*turned).Round(time.Second).String()
}

// turnLimit is far above a poll and a full plan's operations at their limits.
const turnLimit = 30 * time.Minute

func statusOf(snapshot plan.Snapshot, p plan.Plan, stale bool) Status {
	status := Status{
		Pool: snapshot.Pool.Name, Stale: stale, Blocked: snapshot.Blocked, View: p.View,
		Skipped:      map[plan.SkipReason]int{},
		Mismatch:     map[string]int{},
		NotGettingOn: map[string]map[agentpool.Reason]int{},
	}
	for _, skip := range p.Skipped {
		status.Skipped[skip.Reason]++
	}
	for _, class := range snapshot.Classes {
		status.Classes = append(status.Classes, class.Name)
		status.Mismatch[class.Name] = 0
	}
	slices.Sort(status.Classes)
	for _, mismatch := range p.Mismatches {
		status.Mismatch[mismatch.Class] = 1
	}
	for _, job := range snapshot.Jobs {
		if job.Finished() || job.Reason == agentpool.ReasonNone {
			continue
		}
		if status.NotGettingOn[job.Class] == nil {
			status.NotGettingOn[job.Class] = map[agentpool.Reason]int{}
		}
		status.NotGettingOn[job.Class][job.Reason]++
	}
	return status
}
