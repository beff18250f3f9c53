// Package audit judges a run of the system from the outside: it shares no code
// with what it judges and reads only what two servers wrote down by themselves,
// the audit log of the fake Azure DevOps and the audit log of the Kubernetes
// API server, and what is live at the end.
//
// # Verdicts
//
// Duplicates are agents that came online (opened a session) and never received
// a build, beyond those that requests which went away explain. A request
// explains at most one such agent, and only if all of this holds:
//
//   - none of our agents ever received it: it was cancelled while queued, the
//     service failed it for want of an agent, or a foreign agent ran it;
//   - a Job was created for it, at the latest Rules.Slack after it went away
//     (the scaler's poll may have been older than the cancellation);
//   - the agent's own Job was created at the latest Rules.Slack after the
//     request went away: an agent made later was not made for need that existed.
//
// Two more things explain an agent. A warm one, which was made for no request, may
// have taken the build that it was made for. And the service may have given its
// build to another agent of ours, in whose place a further Job was then made: that
// explains it as long as it is of another class than that Job, as it could have
// taken the build itself otherwise.
//
// The largest possible number of agents is explained (the pairing is a maximum
// matching), the rest are duplicates. So are warm agents beyond Rules.Warm: the
// agents of an installation that wait may at no creation be more than those and the
// requests that want one.
//
// Lost are requests without a result or a stated reason: still unfinished at
// the end, abandoned, or failed because the service stopped hearing from the
// agent. Where a test kills agents (Rules.Killed), a build that one of them had goes
// with it: abandoned is its result, and it is counted apart. An agent that was killed
// before it had one is no duplicate if a request wanted it at the time.
//
// Leaked is every object ever created by one of the scaler's users that is
// still there, everything those objects own (directly or not), every live
// object that carries a per-build label, and every registration in a pool. The
// standing exceptions are named one by one in Rules.
//
// Three more verdicts concern the promise of exactly one agent per build and of
// rights that end with it: a build received by two agents, an agent that
// received two builds, and rights that ended too early or too late. Two concern
// what belongs to whom: a placeholder that came online, and a registration or an
// object that was changed by another installation than the one that made it. The
// ServiceAccounts in Rules.StandingAccounts are the administrator's: a write of the
// scaler's on one is such a change, and anything made for the rights of a build that
// runs as one is a right too many.
//
// A log that cannot be the whole truth (a gap in the sequence, builds but no
// Job of the scaler) is a problem of the evidence, and a report with one is
// never clean.
package audit
