// Package hostile is a build that wants the pool's credential, and what it reports to.
//
// The program, cmd/hostile-build, runs as a step of a build. It gets its plan from a
// Listener in the test, and what to look for with it, so that nothing of that is in its
// environment, its arguments or a file. It looks for it in everything a build can read:
// its environment, other processes, files, ports of the pod, and the API server with the
// build's own account. Then it spoils the agent program, plants traps where others might
// step, and leads whoever runs or follows any of it to the Listener. At last it hands
// over what the agent signs in with.
//
// A search that finds nothing shows nothing as long as it could overlook something. So
// the test hides a decoy in each kind of place, and the search has to find all of them.
package hostile
