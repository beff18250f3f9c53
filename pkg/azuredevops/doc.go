// Package azuredevops speaks with Azure DevOps: agent pools, the job requests in
// their queues, the agents registered in them, the organisation's parallel jobs
// and the packages of the agent program.
//
// It stands on the official Go SDK, of which it uses the routing (locations
// discovered by OPTIONS, api-versions negotiated) and nothing above it: every
// call goes through the SDK's Client.Send and is decoded here. The SDK by itself
// takes a sign-in page for success, never retries, reads every answer whole and
// fails it whole when one row has an unexpected type. The [net/http.Client] given
// to the SDK therefore has a transport of this package that signs in, classifies
// answers, retries what is safe to repeat, and obeys the service's rate limits;
// lists are decoded row by row in bounded memory.
//
// What the service really does is undocumented in part. The facts relied on here:
//
//   - A bad or expired token mostly answers 203 or 302 with a sign-in page, and
//     only sometimes 401. An answer that is not JSON is therefore a failed
//     sign-in or a broken answer, and never an empty list.
//   - Retry-After may come with any status, 200 included, and binds the next
//     request of the same identity.
//   - GET jobrequests with completedRequestCount=0 gives the unfinished requests
//     alone; without it, a pool with history answers every request it ever had.
//   - DELETE of an agent is refused while it runs a job. Whether it is refused
//     between assignment and receipt is not known, so assignedRequest is read first.
//   - Enumerations arrive as names or as numbers, fields with their default value
//     are left out, timestamps have 0 to 7 fraction digits, and a byte order mark
//     may lead an answer.
//
// Every error of a [Client] is an [*Error] that wraps one of the Err… values or a
// [*ThrottledError], except what a caller's own callback returned.
package azuredevops
