// Package plan decides what to do about a pool: it turns a snapshot of the
// pool's queue and of our Jobs into a plan. It is a function and nothing else:
// it acts on nothing, logs nothing, knows no clock, and gives the same plan for
// the same snapshot, whatever the order of the snapshot's slices.
//
// The service, not we, gives a request to an agent, so pairing is nominal: a Job
// is made because of a request but may run another. The need is therefore
// counted against free capacity and never looked up by name:
//
//	a live Job of ours is | when                                          | capacity
//	----------------------|-----------------------------------------------|---------
//	finished              | agent container terminated, or the Job ended  | no
//	leaving               | being deleted, or idle with a disabled agent  | no
//	busy                  | named by a request, or it dropped its ready   | no
//	starting              | not known to wait for a build yet             | yes
//	idle                  | started, ready, agent enabled                 | yes
package plan

import (
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// Snapshot is everything a plan is made from. Make changes none of it.
type Snapshot struct {
	Now      time.Time
	Pool     agentpool.Pool
	Requests []agentpool.JobRequest // Unfinished ones; finished ones are ignored.
	Jobs     []agentpool.AgentJob   // Every Job of ours for this pool, finished ones included.
	Classes  []agentpool.AgentClass
	// Broken says, for each class that can't be used because of how it is written,
	// what is wrong. Such a class is not among Classes.
	Broken map[string]string
	// Offers holds what agents made from a version of a class were found to have
	// registered with. It counts over what the class claims.
	Offers map[ClassVersion]agentpool.Capabilities
	// Registered holds what single agents were found to have registered with, by
	// name. It counts over Offers.
	Registered map[string]agentpool.Capabilities
	// Disabled names the agents that the service is known to assign nothing to.
	Disabled map[string]bool
	// Attempts holds the highest attempt ever made for a request, for Jobs that
	// are no longer there.
	Attempts map[int64]int
	// Failures are those that no Job of the snapshot shows any more, or that kept
	// a Job from being made at all.
	Failures []Failure
	// Blocked says, for each class that can't be served now, why.
	Blocked map[string]string
	Limits  Limits
	// OtherPools is how many builds run, or are about to, in the other pools of this
	// scaler: the organisation's parallel jobs are for all of them.
	OtherPools int
	// SpareSince says of agents that the last plan could do without since when that has
	// been so, by UID of their Jobs.
	SpareSince map[string]time.Time
	// Lost names the agents that the service has not seen for a while, and whose pods are
	// being deleted and do not end: their nodes do not report any more.
	Lost map[string]bool
	// Abandoned are the UIDs of half-made Jobs whose maker is known to be gone.
	Abandoned map[string]bool
	// NoDeletions forbids ending anything: what we see may be out of date.
	NoDeletions bool
}

// ClassVersion names a class as it was when Jobs were made from it.
type ClassVersion struct{ Class, Version string }

// Failure is a Job that failed before it ran a build.
type Failure struct {
	RequestID int64
	Class     string
	Count     int // How many in a row for this request, this one included.
	At        time.Time
	// Disrupted says that the cluster took its pod away. It counts against the request
	// alone, and not against the class.
	Disrupted bool
}

// Limits bound what one plan may do. Zero means no limit unless stated.
type Limits struct {
	PoolAgents        int
	CreationsPerCycle int
	ParallelJobs      int           // The organisation's purchase: its total; 0 is unknown.
	IdleLimit         time.Duration // For agents beyond need.
	MaxIdleAge        time.Duration // An idle agent older than this is replaced.
	StartupLimit      time.Duration // From scheduled to waiting for a build.
	HalfMadeLimit     time.Duration // For a Job that stays suspended, or of which Kubernetes can make no pod.
	// UnregisteredLimit is for a suspended Job without the agent that its maker was to
	// register: longer than that has no maker at work.
	UnregisteredLimit time.Duration
	BackoffMin        time.Duration
	BackoffMax        time.Duration
	// MismatchLimit is how long a request may wait beside an idle agent that is
	// thought to serve it before that agent is looked at.
	MismatchLimit time.Duration
}

// Plan is what to do now, in order, and why the rest waits.
type Plan struct {
	Create   []Creation
	Complete []agentpool.AgentJob // Suspended Jobs whose making has to go on.
	End      []Ending
	Disable  []agentpool.AgentJob // Claimed agents that must get no second build.
	Skipped  []Skip
	// Spare are the UIDs of the Jobs whose agents are beyond need. They end when that has
	// been so for the idle limit.
	Spare []string
	// Inspect are agents whose registered capabilities the next plan should know.
	Inspect []agentpool.AgentJob
	// Mismatches are the classes whose agents lack what they claim.
	Mismatches []Mismatch
	View       View
}

// Mismatch is a class that claims what its agents were found not to offer.
type Mismatch struct {
	Class   string
	Version string
	Lacking []string // Capabilities, as name or name=value, in order.
}

// Creation is one Job to make. A warm one has no request: its id is
// agentpool.WarmRequest.
type Creation struct {
	Request  agentpool.JobRequest
	Class    string
	Attempt  int
	Failures int
}

// EndReason is why an agent is ended: a closed set.
type EndReason string

// The reasons for ending an agent that has claimed no build.
const (
	EndSurplus      EndReason = "surplus"
	EndMaxIdleAge   EndReason = "max-idle-age"
	EndStartupLimit EndReason = "startup-limit"
	EndHalfMade     EndReason = "half-made"
	// EndUnregistered replaces a Job whose agent was to be registered by a scaler that is
	// gone: only that one had what the agent signs in with.
	EndUnregistered EndReason = "unregistered"
	// EndWithdrawn goes on with an agent that was disabled to be ended when
	// somebody crashed; it can get no build any more.
	EndWithdrawn EndReason = "withdrawn"
	// EndLost removes what is left of an agent whose node is gone.
	EndLost EndReason = "lost"
	// EndLingering removes a Job whose pod outlives its agent, as with a sidecar that
	// never ends.
	EndLingering EndReason = "lingering"
	// EndMakeRoom gives up a warm agent for a request that a cap holds back.
	EndMakeRoom EndReason = "make-room"
	// EndClassChanged replaces a warm agent that was made from an earlier version of
	// its class.
	EndClassChanged EndReason = "class-changed"
)

// EndReasons lists every EndReason.
func EndReasons() []EndReason {
	return []EndReason{
		EndSurplus, EndMaxIdleAge, EndStartupLimit, EndHalfMade, EndWithdrawn, EndMakeRoom, EndClassChanged, EndUnregistered,
		EndLost, EndLingering,
	}
}

// Ending is one agent to end, if a live look still finds it without a build.
type Ending struct {
	Job    agentpool.AgentJob
	Reason EndReason
}

// SkipReason is why a queued request gets no Job of its own now: a closed set.
type SkipReason string

// The reasons for leaving a request alone for now.
const (
	SkipServed       SkipReason = "capacity-coming" // An agent that is starting or idle will take it.
	SkipUnmatched    SkipReason = "unmatched"       // No class satisfies its demands.
	SkipBlocked      SkipReason = "class-blocked"   // Its class can't be served now.
	SkipClassCap     SkipReason = "class-cap"
	SkipPoolCap      SkipReason = "pool-cap"
	SkipParallelJobs SkipReason = "parallel-jobs"
	SkipPerCycle     SkipReason = "creations-per-cycle"
	SkipBackoff      SkipReason = "back-off"
	// SkipForeign leaves a request that no class serves to an agent of somebody else
	// in the pool that satisfies it.
	SkipForeign SkipReason = "foreign-agent"
	// SkipMismatch is a request that a class claims to serve whose agents were found
	// not to.
	SkipMismatch SkipReason = "mismatch"
	// SkipHeld is a request beside which an agent that satisfies it waits idle for
	// longer than the mismatch limit: it is the service that holds it back.
	SkipHeld SkipReason = "held-by-service"
)

// SkipReasons lists every SkipReason.
func SkipReasons() []SkipReason {
	return []SkipReason{
		SkipServed, SkipUnmatched, SkipBlocked, SkipClassCap, SkipPoolCap, SkipParallelJobs, SkipPerCycle, SkipBackoff,
		SkipForeign, SkipMismatch, SkipHeld,
	}
}

// Skip is a queued request that gets no Job now, and why.
type Skip struct {
	Request agentpool.JobRequest
	Class   string // Empty when no class serves it.
	Reason  SkipReason
	Detail  string
	// Closest is the class that lacks least, and Missing what it lacks, where no
	// class serves the request.
	Closest string
	Missing []string
}

// View is what the snapshot amounts to, for people and metrics.
type View struct {
	Queued      int
	Assigned    int
	Running     int
	OldestQueue time.Time // Zero when nothing is queued.
	Agents      map[string]map[agentpool.Phase]int
	// Warm tells for each class that keeps agents waiting how many are, beyond need.
	Warm map[string]Warm
	// Unsettled says that something waits or starts, so that the next look should
	// come soon.
	Unsettled bool
}

// Warm is how many agents of a class are to wait beyond need, and how many do or
// will. Held is what keeps this plan from making the rest, if anything does.
type Warm struct {
	Want, Have int
	Held       SkipReason
	Detail     string
}
