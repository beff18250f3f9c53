package simulate

import (
	"fmt"
	"hash/fnv"
	"io"
	"strings"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// Kind is a kind of event: a closed set.
type Kind string

// What happens to builds, in the service.
const (
	Queued    Kind = "queued"
	Cancelled Kind = "cancelled" // While it was queued: it never gets an agent.
	Stopped   Kind = "stopped"   // Cancelled while it ran.
	Assigned  Kind = "assigned"
	Finished  Kind = "finished" // Text is its result.
)

// What happens to registrations, in the service.
const (
	Registered   Kind = "registered"
	Online       Kind = "online"
	Offline      Kind = "offline"
	Disabled     Kind = "disabled"
	Deregistered Kind = "deregistered"
)

// What happens to Jobs and their pods, in the cluster.
const (
	Made      Kind = "made" // Text is the version of its class.
	Runs      Kind = "runs" // It is no longer suspended.
	Granted   Kind = "granted"
	Revoked   Kind = "revoked"
	Pod       Kind = "pod"
	Scheduled Kind = "scheduled"
	Begun     Kind = "begun" // The agent's container runs.
	Ready     Kind = "ready"
	Claimed   Kind = "claimed" // The pod shows that a build was taken.
	Ended     Kind = "ended"   // The agent's container has, or the pod is gone. Text is the reason.
	PodDies   Kind = "pod dies"
	Cut       Kind = "cut" // The agent's container was killed. Text is why.
	Gone      Kind = "gone"
)

// What scalers do and know.
const (
	Starts  Kind = "starts"
	Stops   Kind = "stops"
	Crashes Kind = "crashes"
	Looks   Kind = "looks"   // It has read its cache, and asks for the queue.
	Polled  Kind = "polled"  // Requests are those it was told are queued.
	Shown   Kind = "shown"   // Its cache has just come to show this of a Job: Text is how far it is.
	Learns  Kind = "learns"  // It has been told that the Job is made.
	Writes  Kind = "writes"  // A call that changes something has arrived.
	Reasons Kind = "reasons" // It has said why a request waits: Text is the reason.
)

// What is done to all of them.
const (
	Fault  Kind = "fault"  // A call failed. Text is how.
	Outage Kind = "outage" // All calls of one kind fail from here on, until At plus For.
	Serves Kind = "serves" // Classes are those that there are from here on.
	Calm   Kind = "calm"   // From here on nothing fails any more.
	Rest   Kind = "rest"   // From here on nothing is to happen.
	End    Kind = "end"
)

// Event is one thing that happened. Which fields have a value depends on its kind.
type Event struct {
	At       time.Duration // Since the beginning.
	Kind     Kind
	By       string // A scaler, or service, cluster, pod, people.
	Job, UID string // The agent's name is the Job's.
	Class    string
	Agent    int
	Request  int64
	Demands  []agentpool.Demand
	Requests []int64
	Classes  []agentpool.AgentClass
	For      time.Duration
	Text     string
}

// String is one line.
func (e Event) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%12.6f  %-12s", e.At.Seconds(), e.Kind)
	add := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, " %s=%s", name, value)
		}
	}
	add("by", e.By)
	add("job", e.Job)
	add("uid", e.UID)
	add("class", e.Class)
	if e.Agent != 0 {
		fmt.Fprintf(&b, " agent=%d", e.Agent)
	}
	if e.Request != 0 {
		fmt.Fprintf(&b, " request=%d", e.Request)
	}
	if len(e.Demands) > 0 {
		fmt.Fprintf(&b, " demands=%v", e.Demands)
	}
	if e.Kind == Polled {
		fmt.Fprintf(&b, " requests=%v", e.Requests)
	}
	for _, class := range e.Classes {
		fmt.Fprintf(&b, " %s@%s(max %d, idle %d, %s)", class.Name, class.Version, class.MaxAgents, class.MinIdle, class.Registration)
	}
	if e.For != 0 {
		fmt.Fprintf(&b, " for=%v", e.For)
	}
	add("text", e.Text)
	return b.String()
}

// History is everything that happened under one seed.
type History struct {
	Setup  Setup
	Events []Event
}

// Hash is the same for the same history.
func (h History) Hash() uint64 {
	sum := fnv.New64a()
	for _, event := range h.Events {
		_, _ = io.WriteString(sum, event.String()+"\n")
	}
	return sum.Sum64()
}

// Replay is the command that gives the same history again.
func (h History) Replay() string {
	return fmt.Sprintf("make simulate SEED=%d BUILDS=%d", h.Setup.Seed, h.Setup.Builds)
}
