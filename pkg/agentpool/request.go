package agentpool

import "time"

// RequestState is how far a job request has come.
type RequestState int

// The states of a job request, in order.
const (
	// RequestQueued waits for an agent.
	RequestQueued RequestState = iota
	// RequestAssigned has been given to an agent that has not acknowledged it.
	RequestAssigned
	// RequestRunning is held by an agent under a lock that it renews.
	RequestRunning
	// RequestFinished has a result.
	RequestFinished
)

// String names the state.
func (s RequestState) String() string {
	switch s {
	case RequestQueued:
		return "queued"
	case RequestAssigned:
		return "assigned"
	case RequestRunning:
		return "running"
	case RequestFinished:
		return "finished"
	default:
		return "unknown"
	}
}

// Link is a named thing of the service that a person may want to open.
type Link struct {
	ID   int
	Name string
	URL  string
}

// AgentRef names an agent that a job request mentions.
type AgentRef struct {
	ID   int
	Name string
}

// JobRequest is one build job in a pool's queue. Times are zero where the
// service has not set them.
type JobRequest struct {
	ID          int64
	PoolID      int
	QueueTime   time.Time
	AssignTime  time.Time
	ReceiveTime time.Time
	FinishTime  time.Time
	LockedUntil time.Time
	Result      string
	Demands     []Demand
	// UnknownDemands are those that do not parse, as the service wrote them. No
	// class satisfies them, and the request is shown as unmatched.
	UnknownDemands []string
	Reserved       AgentRef // The agent it was given to; zero while queued.
	Matched        []AgentRef
	// Foreign is an agent of somebody else that satisfies the demands; zero where
	// there is none.
	Foreign      AgentRef
	MatchesAll   bool
	Priority     int
	Definition   Link
	Run          Link
	Project      string // Its id.
	PlanType     string
	ParallelJobs string // The kind of parallel job it takes: Private or Public.
}

// State derives the request's state from what the service has set.
func (r JobRequest) State() RequestState {
	switch {
	case r.Result != "" || !r.FinishTime.IsZero():
		return RequestFinished
	case !r.ReceiveTime.IsZero():
		return RequestRunning
	case !r.AssignTime.IsZero() || r.Reserved != (AgentRef{}):
		return RequestAssigned
	default:
		return RequestQueued
	}
}

// UnderWay reports whether the request runs on an agent, or has been given to one.
func (r JobRequest) UnderWay() bool {
	state := r.State()
	return state == RequestAssigned || state == RequestRunning
}

// Pool is an agent pool of the organisation.
type Pool struct {
	ID   int
	Name string
}

// Agent is a registration in a pool.
type Agent struct {
	ID              int
	Name            string
	Version         string
	Online          bool
	Enabled         bool
	AssignedRequest int64 // The request it is occupied by, 0 when there is none.
	Capabilities    Capabilities
	CreatedOn       time.Time // Zero where the service does not say.
}
