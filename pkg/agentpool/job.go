package agentpool

import (
	"fmt"
	"strings"
	"time"
)

// Registration is how an agent comes to be known to its pool.
type Registration string

// The ways of registration.
const (
	// RegistrationConfig lets the pod register itself with the pool's credential,
	// in containers that the build cannot reach.
	RegistrationConfig Registration = "config"
	// RegistrationJIT has the scaler register the agent, just in time, with a key pair
	// that is good for nothing else. The pod gets that and no credential of the pool's.
	RegistrationJIT Registration = "jit"
)

// Registrations lists the ways of registration.
func Registrations() []Registration { return []Registration{RegistrationConfig, RegistrationJIT} }

// RoleBinding is a right that each build of a class is given.
type RoleBinding struct {
	Namespace string
	Kind      string // Role or ClusterRole.
	Name      string
}

// String gives the binding in the form ParseRoleBinding reads.
func (b RoleBinding) String() string { return b.Namespace + " " + b.Kind + "/" + b.Name }

// ParseRoleBinding reads "namespace Role/name" or "namespace ClusterRole/name".
func ParseRoleBinding(text string) (RoleBinding, error) {
	fail := func(why string) (RoleBinding, error) {
		return RoleBinding{}, fmt.Errorf("role binding %q: %s: want \"namespace Role/name\" or \"namespace ClusterRole/name\", such as \"shop ClusterRole/edit\"", text, why)
	}
	fields := strings.Fields(text)
	if len(fields) != 2 {
		return fail(fmt.Sprintf("has %d words, not 2", len(fields)))
	}
	kind, name, found := strings.Cut(fields[1], "/")
	if !found || name == "" {
		return fail("names no role")
	}
	if kind != "Role" && kind != "ClusterRole" {
		return fail(fmt.Sprintf("kind %q is unknown", kind))
	}
	return RoleBinding{Namespace: fields[0], Kind: kind, Name: name}, nil
}

// AgentClass is a kind of agent: what it offers, and how many there may be. The
// pod that realises it is kept by the package that builds Jobs.
type AgentClass struct {
	Name string
	// Version changes with everything that Jobs of the class are made from.
	Version string
	// Claims are what its agents are said to offer, as it is written. Capabilities
	// are the same with folded names.
	Claims       map[string]string
	Capabilities Capabilities
	Priority     int // The higher one is asked first.
	MaxAgents    int // 0 is no limit beyond the pool's.
	MinIdle      int // Agents kept waiting beyond need.
	RoleBindings []RoleBinding
	// ServiceAccount names an account with rights of its own that all builds of the class
	// run as. Empty gives each build an account made for it, with RoleBindings.
	ServiceAccount string
	Registration   Registration
	GracePeriod    time.Duration
}

// WarmRequest stands for the request of a Job that was made for none, to keep an
// agent waiting. The service counts its requests from 1.
const WarmRequest int64 = 0

// Phase is what a Job of ours is to the plan.
type Phase int

// The phases of an agent's Job. Only starting and idle ones are capacity.
const (
	// PhaseStarting has an agent container that has not started; a suspended,
	// half-made Job is one too.
	PhaseStarting Phase = iota
	// PhaseIdle is registered, listening and enabled.
	PhaseIdle
	// PhaseBusy has claimed a build.
	PhaseBusy
	// PhaseLeaving is being ended: its agent is disabled or it is being deleted.
	PhaseLeaving
	// PhaseFinished has no running agent container any more.
	PhaseFinished
)

// Phases lists every phase, in order.
func Phases() []Phase {
	return []Phase{PhaseStarting, PhaseIdle, PhaseBusy, PhaseLeaving, PhaseFinished}
}

// String names the phase as metrics and tables show it.
func (p Phase) String() string {
	switch p {
	case PhaseStarting:
		return "starting"
	case PhaseIdle:
		return "idle"
	case PhaseBusy:
		return "busy"
	case PhaseLeaving:
		return "leaving"
	case PhaseFinished:
		return "finished"
	default:
		return "unknown"
	}
}

// Reason is why an agent failed or is not getting on: a closed set, so that it
// can label a metric.
type Reason string

// The reasons an agent's Job can carry.
const (
	ReasonNone              Reason = ""
	ReasonImagePull         Reason = "image-pull"
	ReasonUnschedulable     Reason = "unschedulable"
	ReasonQuota             Reason = "quota-exceeded"
	ReasonForbidden         Reason = "forbidden"
	ReasonMissingObject     Reason = "missing-object"
	ReasonInvalid           Reason = "invalid"
	ReasonHalfMade          Reason = "half-made"
	ReasonStartupLimit      Reason = "startup-limit"
	ReasonConfiguration     Reason = "bad-configuration"
	ReasonCredential        Reason = "credential-refused"
	ReasonUnreachable       Reason = "service-unreachable"
	ReasonConfigureFailed   Reason = "configure-failed"
	ReasonCrashed           Reason = "agent-crashed"
	ReasonOutOfMemory       Reason = "out-of-memory"
	ReasonEvicted           Reason = "evicted"
	ReasonNodeLost          Reason = "node-lost"
	ReasonNoBuild           Reason = "no-build"
	ReasonContainerCreation Reason = "container-creation"
	ReasonContainerFailed   Reason = "container-failed" // One of the class's own: a sidecar or an init container.
	ReasonAPIUnavailable    Reason = "api-unavailable"
	ReasonUnknown           Reason = "unknown"
)

// Reasons lists every reason but the empty one.
func Reasons() []Reason {
	return []Reason{
		ReasonImagePull, ReasonUnschedulable, ReasonQuota, ReasonForbidden, ReasonMissingObject, ReasonInvalid,
		ReasonHalfMade, ReasonStartupLimit, ReasonConfiguration, ReasonCredential, ReasonUnreachable,
		ReasonConfigureFailed, ReasonCrashed, ReasonOutOfMemory, ReasonEvicted, ReasonNodeLost, ReasonNoBuild,
		ReasonContainerCreation, ReasonContainerFailed, ReasonAPIUnavailable, ReasonUnknown,
	}
}

// Disruption reports whether it says that the cluster has ended the pod, for which nothing
// is to blame that the pod was made from.
func (r Reason) Disruption() bool { return r == ReasonEvicted || r == ReasonNodeLost }

// AgentJob is a Job of ours as the cluster shows it, joined with its pod.
type AgentJob struct {
	Name  string // Also the agent's name in the pool.
	UID   string
	Class string
	// ClassVersion is the version of the class that it was made from, and
	// Capabilities what that claimed. A Job keeps them, whatever becomes of the class.
	ClassVersion string
	Capabilities Capabilities
	PoolID       int
	RequestID    int64 // The request it was made for, which may not be the one it runs; WarmRequest for none.
	Attempt      int   // n of the Job's name: 0 for the first Job of a request.
	Failures     int   // Failed Jobs before this one in a row, for the back-off.

	Registration Registration // Empty in Jobs of releases that knew of one way alone.
	// AgentID is the agent's number in the pool, where the scaler registered it and the
	// Job records that; 0 otherwise.
	AgentID int

	CreatedAt time.Time
	Suspended bool
	Deleting  bool
	PodName   string // Empty until the pod exists.
	PodUID    string
	NodeName  string
	Scheduled time.Time // When the pod was given a node; zero before.
	Started   bool      // The agent container has passed its startup probe.
	// Ready says that it waits for a build. Before the first readiness probe a
	// started agent is not ready either; only RanBuild tells that from a claim.
	Ready      bool
	ReadySince time.Time
	Ended      time.Time // When the agent container terminated or the Job ended; zero before.
	JobDone    bool      // The Job is Complete or Failed.
	QueuedAt   time.Time // When its request was queued, as the Job records it.
	// RanBuild says that it is known to have claimed a build: it was ready and is
	// no longer (the Ready condition turned false after the container started), or
	// its exit code says so.
	RanBuild bool
	// Untold says that it ended, and that nothing says whether it had a build: it was
	// killed, or is not heard of.
	Untold   bool
	ExitCode int    // Of the agent container; meaningful once Ended.
	Reason   Reason // Why it failed, or why it is not getting on.
	Message  string // The same in words, for people.
}

// Warm reports whether it was made to wait, and for no request.
func (j AgentJob) Warm() bool { return j.RequestID == WarmRequest }

// Unregistered reports whether the Job lacks what only the scaler that made it could have
// given it: it never gets an agent, and can only be replaced.
func (j AgentJob) Unregistered() bool {
	return j.Registration == RegistrationJIT && j.AgentID == 0
}

// Finished reports whether its agent can run nothing any more.
func (j AgentJob) Finished() bool { return j.JobDone || !j.Ended.IsZero() }

// WaitingSince is the moment from which an agent without a build counts as waiting: since
// it is ready, or, before that, since its Job was made.
func (j AgentJob) WaitingSince() time.Time {
	if j.Ready && !j.ReadySince.IsZero() {
		return j.ReadySince
	}
	return j.CreatedAt
}

// Failed reports whether it ended without having run a build, for a reason that
// counts against its class: leaving because no build came does not.
func (j AgentJob) Failed() bool {
	return j.Finished() && !j.RanBuild && j.Reason != ReasonNone && j.Reason != ReasonNoBuild
}

// LostBuild reports whether the agent ended badly, or ran out of memory, while it ran a
// build. There is nothing to make another agent for: the service has failed the build, or
// abandons it.
func (j AgentJob) LostBuild() bool {
	return j.Finished() && j.RanBuild && j.Reason != ReasonNone && j.Reason != ReasonNoBuild
}

// ReasonedError is an error that knows which Reason it stands for.
type ReasonedError interface {
	error
	Reason() Reason
}
