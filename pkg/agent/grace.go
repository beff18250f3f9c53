package agent

import "time"

// Shares is the pod's grace period, divided. It runs from the moment the pod is
// asked to stop:
//
//	|<------------------ Build ------------------>|<- Cancel ->|<- Remove ->|
//	|<- Verdict ->|                               INT          KILL         end
//
// Build, Cancel and Remove add up to the grace period.
type Shares struct {
	// Verdict is how long an idle agent is left running while the service is asked
	// whether it really is idle. It is part of Build.
	Verdict time.Duration
	// Build is how long a running build may go on.
	Build time.Duration
	// Cancel is what the agent gets to cancel the build and report it, after INT.
	Cancel time.Duration
	// Remove is what is left to delete the registration.
	Remove time.Duration
}

// Divide divides the grace period: all of it but removeShare is the build's, and
// half of removeShare goes to the agent for cancelling what then still runs. A
// removeShare that leaves the build nothing is cut to half of the grace period, and
// the wait for the verdict never exceeds the build's share.
func Divide(grace, removeShare, withdrawLimit time.Duration) Shares {
	grace = max(grace, 0)
	removeShare = max(removeShare, 0)
	if removeShare >= grace {
		removeShare = grace / 2
	}
	build := grace - removeShare
	cancel := removeShare / 2
	return Shares{
		Verdict: min(max(withdrawLimit, 0), build),
		Build:   build,
		Cancel:  cancel,
		Remove:  removeShare - cancel,
	}
}
