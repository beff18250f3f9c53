package azuredevops

import (
	"context"
	"net/http"
)

// ParallelJobs gives how many builds the organisation may run at once on agents
// of its own. It is not known where the service says nothing, as it does for an
// organisation without a limit. The figure of those in use is not given: it lags.
func (c *Client) ParallelJobs(ctx context.Context) (total int, known bool, err error) {
	// Sent by its path: the route's location id is documented nowhere.
	const path = "/_apis/distributedtask/resourceusage?parallelismTag=Private&poolIsHosted=false&includeRunningRequests=true"
	r := request{call: call{op: OpParallelJobs}, method: http.MethodGet}
	req, err := c.sdk.CreateRequestMessage(withCall(ctx, r.call), r.method, c.url+path, apiVersion, nil, "", "application/json", nil)
	if err != nil {
		return 0, false, c.failure(r.call.op, err)
	}
	resp, err := c.sdk.SendRequest(req)
	if err != nil {
		return 0, false, c.failure(r.call.op, err)
	}
	defer drop(resp.Body)
	var usage struct {
		ResourceLimit *struct {
			TotalCount *int `json:"totalCount"`
		} `json:"resourceLimit"`
	}
	if err := c.decode(r, resp, &usage); err != nil {
		return 0, false, err
	}
	if usage.ResourceLimit == nil || usage.ResourceLimit.TotalCount == nil || *usage.ResourceLimit.TotalCount < 0 {
		return 0, false, nil
	}
	return *usage.ResourceLimit.TotalCount, true, nil
}
