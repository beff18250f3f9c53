// Package azuredevopstest is a stand-in for the Azure DevOps service: an
// http.Handler that speaks the part of its protocol which agents, autoscalers
// and Microsoft's own clients use, as strictly and as inconveniently as the
// service does.
//
// It holds no code of the product and imports none, so that the two can prove
// each other wrong. It is an ordinary package: demonstrations and tests of
// other modules may run it too.
//
// # What it does
//
// Sign-in by personal access token (Basic) and by access token (Bearer), each
// with the other's scheme as well and with a token's end (package entratest
// issues those of Microsoft Entra), with
// the failures of the service (203 with an HTML page, 302, 401); OPTIONS
// with route templates; resource areas; connection data; pools; agents with
// capabilities, keys and assigned requests; agent packages with their SHA-256;
// the OAuth exchange with a signed JWT checked against the agent's public key;
// sessions, messages by long poll, lock renewal and lapse; job requests in each
// form of query; timelines, logs and events of a build; the limit of parallel
// jobs.
//
// Assignment happens on a tick and takes the least convenient of the agents
// that fit: not the one whose name carries the request's id while another
// fits, and rather one with many capabilities than one with few. All choices
// come from one seed. In the moment in which a job ends, its agent is given
// another one at once unless it was disabled meanwhile: an agent that was
// started to run a single job never takes it up, and the build is lost, which
// is what the service does to the careless.
//
// # Audit log
//
// Options.AuditLog receives one JSON object a line:
//
//	{"seq":1,"time":"2026-01-02T03:04:05.678901234Z","event":"request-queued",
//	 "pool":1,"requestId":7,"agentId":0,"agentName":"","by":"control",
//	 "result":"","detail":""}
//
// Members that are zero or empty are left out. seq rises by one with every
// line. The events:
//
//	server-started           detail: organisation and seed
//	pool-created             detail: its name
//	request-queued           detail: its name
//	request-assigned         to agentId/agentName; detail "second-job" in the window after a job's end
//	request-received         the agent has taken the job up (first renewal or deletion of its message)
//	request-finished         result: succeeded, succeededWithIssues, failed, canceled, skipped
//	request-cancel-requested a cancellation was sent to the agent that runs it
//	request-canceled         cancelled before an agent took it up
//	request-abandoned        detail: why (lock lapsed, never received, agent deleted, cancellation ignored)
//	request-failed-no-agent  no registered agent satisfies its demands; result: failed
//	agent-added, agent-replaced, agent-updated, agent-disabled, agent-enabled,
//	agent-deleted, agent-delete-refused, agent-refresh-sent
//	session-created, session-refused, session-deleted, session-expired
//	token-issued, token-refused   an agent's OAuth exchange; detail: the reason
//	fault                    an injected fault has struck; detail: operation and kind
//	http                     method and path in detail, status in result, who in by
//
// "by" is the identity of the caller: a token's Identity, "agent:NAME",
// "job:REQUEST", "anonymous", "control" (the control API) or "service" (the
// fake itself, on its tick). Paths are logged without their query.
//
// # Control API
//
// The methods of Server are also served as JSON under /_control/, see
// control_http.go, so that a process of its own can be driven from outside.
package azuredevopstest
