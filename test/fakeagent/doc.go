// Package fakeagent builds a stand-in for the Azure Pipelines agent: a package with
// the files, programs, flags, environment, messages, exit codes and signal behaviour
// of the real one, which speaks the real session protocol and runs the shell steps
// of its jobs. It takes the part of the real agent in tests and demonstrations.
//
// # The package
//
// Build makes the tarball: bin/Agent.Listener and bin/Agent.Worker (static), bin/release.json
// (the version), externals/faults, config.sh, run.sh, env.sh and license.html, without
// a folder around them. An agent is configured by
//
//	config.sh --unattended --acceptTeeEula --url U --auth PAT --token T --pool P --agent N --work W [--replace] [--sslcacert F]
//
// where each flag may come as VSTS_AGENT_INPUT_<NAME> instead; those variables are
// taken out of what the agent passes on. The token belongs there, not among the
// arguments. It runs by bin/Agent.Listener run [--once], or by run.sh, a shell around
// it, and is removed by config.sh remove --unattended --auth PAT.
//
// Like the real one it refuses to configure or to run.sh as root unless
// AGENT_ALLOW_RUNASROOT is set, and to send a token over plain HTTP unless
// VSS_ALLOW_UNSAFE_BASICAUTH is true. It trusts the system's certificates, which
// SSL_CERT_FILE and SSL_CERT_DIR replace, and the file in .certificates.
//
// Exit codes: 0 done, 1 ended by an error, 2 ended by an error worth another try,
// 3 updating, 4 updating with --once.
//
// SIGINT ends an idle listener, and cancels the job of a busy one; either way the
// session is ended and the exit code is 0. SIGTERM kills at once, or with a version
// before 5 is an interrupt with 30 seconds' time.
//
// # Faults
//
// Faults are switched on by lines in externals/faults, by the comma list in the
// variable FAKEAGENT_FAULTS, or for one job by its variable fakeagent.faults (those
// marked with a star work that way). The value after = is optional.
//
// Of configure:
//
//	configure-fails[=message]    exit 1 before anything is registered
//	configure-fails-registered   exit 1 after the agent was added to the pool
//	configure-hangs              never ends, before registering; deaf to INT and TERM
//	configure-hangs-registered   the same after registering
//	slow-configure[=5s]          waits before it connects
//	replace-loop                 with --replace, meets an error again and again
//
// Of run:
//
//	never-registers              opens no session; deaf to INT and TERM
//	slow-listen[=5s]             waits before it opens the session
//	crash-before-job[=0s]        SIGKILL that long after it listens
//	crash-during-job[=1s]     *  SIGKILL that long after the job's start
//	worker-crash              *  the worker is killed before the first step
//	hang-after-job            *  never ends after its one job; deaf to INT and TERM
//	exit-4-update[=1]            so many runs update themselves and exit 4 (3 without --once)
//	update-gap[=2s]              bin/ is missing that long during an update
//	update-loses-bin             bin/ never comes back from an update
//	listener-exit-2[=1]          so many runs exit 2 at once
//	ignore-int                *  deaf to INT
//	ignore-cancel             *  deaf to a cancellation from the service
//	no-renew                  *  the lock is renewed only once
//	linger[=2s]               *  time between the job's finish and the session's end
//
// Tunables, whose defaults are those of the real agent:
//
//	no-worker-delay           *  "Initialize job" and "Finalize job" take no time
//	worker-delay[=500ms]      *  how long each of them takes
//	renew-interval[=60s]      *  between two renewals of the lock
//	keep-alive-interval[=30s]    between two keep-alive polls
//	retry-interval[=30s]         after an attempt to connect or to poll that failed
//	poll-pause[=5s]              after a poll without a message (none by default)
package fakeagent
