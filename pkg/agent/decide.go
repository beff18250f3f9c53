package agent

import "fmt"

// The exit codes of Agent.Listener that call for more than ending.
const (
	listenerDone           = 0
	listenerRetryable      = 2
	listenerUpdating       = 3
	listenerUpdatingOncely = 4
)

// ending is everything that decides what follows the listener's end.
type ending struct {
	code int // The listener's exit code.
	// listened says that it has been ready for a build at any time.
	listened bool
	// claimed says that a build was handed to it, finished that it told the result.
	claimed, finished bool
	// hung says that it was killed after the result.
	hung bool
	// cut says that it was interrupted while the build ran.
	cut bool
	// stopping says that it was interrupted, or would have been, because nothing more
	// is wanted of it.
	stopping bool
	// withdrawn says that its registration was deleted while it was idle.
	withdrawn bool
	// updates and retries count what was granted before; limit bounds each.
	updates, retries, limit int
}

// action is what follows the listener's end.
type action int

const (
	actEnd action = iota
	// actUpdate waits for the updated program and starts it.
	actUpdate
	// actRetry starts the same program again after a pause.
	actRetry
)

// decide says what follows the listener's end:
//
//	a build was claimed | told result or exit 0      | end: done
//	                    | cut by the grace period    | end: build lost
//	                    | else                       | end: build lost
//	no build            | withdrawn                  | end: no build
//	                    | stopping, has listened     | end: no build
//	                    | stopping, never listened   | end: crashed
//	                    | exit 3 or 4                | update, bounded
//	                    | exit 2                     | retry, bounded
//	                    | else                       | end: crashed
//
// "Stopping, never listened" is a crash because the kubelet stops a container in
// this way whose startup probe never succeeded: called idle, it would be replaced
// at once and for ever.
func decide(e ending) (action, Outcome) {
	end := func(code ExitCode, format string, args ...any) (action, Outcome) {
		return actEnd, Outcome{Code: code, Message: fmt.Sprintf(format, args...)}
	}
	if e.claimed {
		switch {
		case e.cut:
			return end(ExitBuildLost, "the build was cancelled because its share of the grace period was over (listener's exit code %d)", e.code)
		case e.finished && e.hung:
			return end(ExitDone, "the build ended; the agent program hung after it and was killed")
		case e.finished:
			return end(ExitDone, "the build ended")
		case e.code == listenerDone:
			return end(ExitDone, "the build ended; its result was not seen")
		default:
			return end(ExitBuildLost, "the agent program ended with exit code %d while the build ran", e.code)
		}
	}
	switch {
	case e.withdrawn:
		return end(ExitNoBuild, "the idle agent was withdrawn")
	case e.stopping && e.listened:
		return end(ExitNoBuild, "asked to stop while idle")
	case e.stopping:
		return end(ExitCrashed, "asked to stop before the agent was listening: see its output above for what kept it")
	case e.code == listenerUpdating || e.code == listenerUpdatingOncely:
		if e.updates >= e.limit {
			return end(ExitCrashed, "the agent program wanted to update itself more than %d times (AZP_UPDATE_RESTARTS): put a newer agent into the image", e.limit)
		}
		return actUpdate, Outcome{}
	case e.code == listenerRetryable:
		if e.retries >= e.limit {
			return end(ExitCrashed, "the agent program failed more than %d times in a way that it calls retryable", e.limit)
		}
		return actRetry, Outcome{}
	case e.code == listenerDone:
		return end(ExitCrashed, "the agent program ended by itself without a build")
	default:
		return end(ExitCrashed, "the agent program ended with exit code %d before a build came (1 is also what it ends with when its registration is gone)", e.code)
	}
}
