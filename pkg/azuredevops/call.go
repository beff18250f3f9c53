package azuredevops

import (
	"context"
	"net/http"
)

// The operations of a client, a closed set that can label a metric.
const (
	OpDiscover     = "discover-routes"
	OpPools        = "list-pools"
	OpJobRequests  = "list-job-requests"
	OpJobRequest   = "get-job-request"
	OpAgents       = "list-agents"
	OpAgent        = "get-agent"
	OpDeleteAgent  = "delete-agent"
	OpDisableAgent = "disable-agent"
	OpAddAgent     = "add-agent"
	OpParallelJobs = "parallel-jobs"
	OpPackage      = "find-package"
	OpDownload     = "download-package"
)

// Operations lists every operation that a [Recorder] or an [Error] may name.
func Operations() []string {
	return []string{
		OpDiscover, OpPools, OpJobRequests, OpJobRequest, OpAgents, OpAgent, OpDeleteAgent, OpDisableAgent, OpAddAgent,
		OpParallelJobs, OpPackage, OpDownload,
	}
}

// call tells the transport what a request is for. It travels in the context,
// since the SDK stands between the two.
type call struct {
	op     string
	stream bool // The body is handed on as it comes, not read whole.
	repeat bool // Safe to send again although the method does not say so.
	files  bool // The answer is a file, not JSON.
}

// callKey is the context key of a call.
type callKey struct{}

func withCall(ctx context.Context, c call) context.Context {
	return context.WithValue(ctx, callKey{}, c)
}

// callOf gives the call that a request belongs to. The SDK discovers routes on
// the way of the first call to need them: those are told by their method.
func callOf(req *http.Request) call {
	if req.Method == http.MethodOptions {
		return call{op: OpDiscover}
	}
	c, _ := req.Context().Value(callKey{}).(call)
	return c
}

// repeatable reports whether the request may reach the service twice.
func (c call) repeatable(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodDelete, http.MethodPut:
		return true
	default:
		return c.repeat
	}
}
