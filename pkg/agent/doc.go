// Package agent supervises Microsoft's agent program inside a pod: it registers
// an agent (configure), runs it for one build (run) and takes the registration
// back (remove).
//
// In a Job of the scaler the steps are apart, each in a container of its own, so
// that the container that runs the build never holds the pool's credential:
//
//	configure  init container   token     registers, records the agent's id for
//	                                      remove, hands over three files to run
//	run        agent container  no token  runs Agent.Listener once, shows its state
//	                                      by probes, says when a build was claimed
//	remove     native sidecar   token     disables the agent once it has a build,
//	                                      deletes the registration at the end
//	withdraw   preStop hook of  token     asks the service whether the agent is
//	           remove                     idle, and tells run
//
// [Supervisor.All] does everything in one container, for pods that people write
// themselves; there a build can reach what the entrypoint can.
//
// The containers speak with each other through memory-backed volumes that hold
// nothing but a few files of fixed names. No container with the token reads or
// runs anything that a build could have written: remove only looks whether the
// file "claimed" exists, and its id of the agent comes from a volume that the
// build's container does not mount.
//
// Decisions are pure functions (Divide for the grace period, decide for what
// follows an end of the listener, parseLine for what it says); the rest acts.
package agent
