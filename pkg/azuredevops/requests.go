package azuredevops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// RequestStats counts the rows of an answer.
type RequestStats struct {
	Rows      int // Those that were visited.
	Malformed int // Those that were skipped because they make no sense.
}

// JobRequests visits every unfinished job request of a pool, in no particular
// order and in memory that does not grow with their number. A request may have
// finished between the query and the answer, so look at its state.
//
// Requests are visited while the answer is still coming: if an error follows,
// what was visited is a part of the queue and must be thrown away. A row without
// sense is skipped, counted and logged; a demand that does not parse goes into
// UnknownDemands. An error of visit ends the reading and is given as it is.
//
// The route is undocumented, but used by every scaler; completedRequestCount=0
// keeps the finished requests out.
func (c *Client) JobRequests(ctx context.Context, poolID int, visit func(agentpool.JobRequest) error) (RequestStats, error) {
	return c.visitRequests(ctx, poolID, 0, visit)
}

// FinishedRequests visits the requests of a pool that have finished last, so many at most,
// in no particular order, as JobRequests does the unfinished ones. Those are in the answer
// too, and are left out.
func (c *Client) FinishedRequests(ctx context.Context, poolID, count int, visit func(agentpool.JobRequest) error) error {
	_, err := c.visitRequests(ctx, poolID, count, func(r agentpool.JobRequest) error {
		if r.State() != agentpool.RequestFinished {
			return nil
		}
		return visit(r)
	})
	return err
}

// JobRequest gives one request of a pool, finished or not. ErrNotFound is the service's word
// that there is none of that number.
func (c *Client) JobRequest(ctx context.Context, poolID int, id int64) (agentpool.JobRequest, error) {
	row, err := one[json.RawMessage](ctx, c, request{
		call:     call{op: OpJobRequest},
		method:   http.MethodGet,
		location: locationJobRequests,
		route:    map[string]string{"poolId": strconv.Itoa(poolID), "requestId": strconv.FormatInt(id, 10)},
		query:    url.Values{"includeStatus": {"true"}},
	})
	if err != nil {
		return agentpool.JobRequest{}, err
	}
	r, err := newRequestDecoder(poolID).decode(row)
	if err == nil && r.ID != id {
		err = fmt.Errorf("the answer is about request %d", r.ID)
	}
	if err != nil {
		return agentpool.JobRequest{}, &Error{Op: OpJobRequest, Kind: ErrUnexpectedAnswer, Message: fmt.Sprintf("request %d in pool %d", id, poolID), Err: err}
	}
	return r, nil
}

// visitRequests visits the unfinished requests and so many finished ones.
func (c *Client) visitRequests(ctx context.Context, poolID, finished int, visit func(agentpool.JobRequest) error) (RequestStats, error) {
	decoder := newRequestDecoder(poolID)
	rows, malformed, err := list(ctx, c, request{
		call:     call{op: OpJobRequests},
		method:   http.MethodGet,
		location: locationJobRequests,
		route:    map[string]string{"poolId": strconv.Itoa(poolID)},
		query:    url.Values{"completedRequestCount": {strconv.Itoa(finished)}},
	}, func(row []byte) error {
		r, err := decoder.decode(row)
		if err != nil {
			return err
		}
		if err := visit(r); err != nil {
			return &visitError{err}
		}
		return nil
	})
	return RequestStats{Rows: rows, Malformed: malformed}, err
}

// wireRequest is a job request as it comes. What the plan rests on must have its
// type; what is only shown is lenient.
type wireRequest struct {
	RequestID              int64             `json:"requestId"`
	PoolID                 int               `json:"poolId"`
	QueueTime              stamp             `json:"queueTime"`
	AssignTime             stamp             `json:"assignTime"`
	ReceiveTime            stamp             `json:"receiveTime"`
	FinishTime             stamp             `json:"finishTime"`
	LockedUntil            stamp             `json:"lockedUntil"`
	Result                 enum              `json:"result"`
	Demands                []json.RawMessage `json:"demands"`
	ReservedAgent          *wireRef          `json:"reservedAgent"`
	MatchedAgents          []wireRef         `json:"matchedAgents"`
	MatchesAllAgentsInPool bool              `json:"matchesAllAgentsInPool"`
	Priority               lenient[int]      `json:"priority"`
	Definition             lenient[wireLink] `json:"definition"`
	Owner                  lenient[wireLink] `json:"owner"`
	ScopeID                lenient[string]   `json:"scopeId"`
	PlanType               lenient[string]   `json:"planType"`
	Data                   lenient[wireData] `json:"data"`
}

// wireRef is the mention of an agent.
type wireRef struct {
	ID   int    `json:"id"`
	Name string `json:"name"`
}

// wireLink is the mention of a definition or a run.
type wireLink struct {
	ID    int    `json:"id"`
	Name  string `json:"name"`
	Links struct {
		Web struct {
			Href string `json:"href"`
		} `json:"web"`
	} `json:"_links"`
}

// wireData is the part of a request's data that is of use.
type wireData struct {
	ParallelismTag lenient[string] `json:"ParallelismTag"`
}

// requestDecoder turns the rows of one answer into job requests.
type requestDecoder struct {
	poolID  int
	strings *interner
	demands map[string]agentpool.Demand
}

func newRequestDecoder(poolID int) *requestDecoder {
	return &requestDecoder{poolID: poolID, strings: newInterner(), demands: map[string]agentpool.Demand{}}
}

// decode reads one row. Its error says which request and what is wrong with it.
func (d *requestDecoder) decode(row []byte) (agentpool.JobRequest, error) {
	var wire wireRequest
	if err := json.Unmarshal(row, &wire); err != nil {
		return agentpool.JobRequest{}, fmt.Errorf("job request %d: %w", wire.RequestID, err)
	}
	if wire.RequestID <= 0 {
		return agentpool.JobRequest{}, errors.New("job request without a requestId")
	}
	if wire.PoolID != 0 && wire.PoolID != d.poolID {
		return agentpool.JobRequest{}, fmt.Errorf("job request %d: of pool %d, in the answer for pool %d", wire.RequestID, wire.PoolID, d.poolID)
	}
	r := agentpool.JobRequest{
		ID:           wire.RequestID,
		PoolID:       d.poolID,
		QueueTime:    wire.QueueTime.Time,
		AssignTime:   wire.AssignTime.Time,
		ReceiveTime:  wire.ReceiveTime.Time,
		FinishTime:   wire.FinishTime.Time,
		LockedUntil:  wire.LockedUntil.Time,
		Result:       d.strings.share(wire.Result.named("succeeded", "succeededWithIssues", "failed", "canceled", "skipped", "abandoned")),
		MatchesAll:   wire.MatchesAllAgentsInPool,
		Priority:     wire.Priority.value,
		Definition:   d.link(wire.Definition.value),
		Run:          d.link(wire.Owner.value),
		Project:      d.strings.share(wire.ScopeID.value),
		PlanType:     d.strings.share(wire.PlanType.value),
		ParallelJobs: d.strings.share(wire.Data.value.ParallelismTag.value),
	}
	if wire.ReservedAgent != nil {
		r.Reserved = d.ref(*wire.ReservedAgent)
		if r.Reserved == (agentpool.AgentRef{}) {
			return agentpool.JobRequest{}, fmt.Errorf("job request %d: reservedAgent names no agent", wire.RequestID)
		}
	}
	if len(wire.MatchedAgents) > 0 {
		r.Matched = make([]agentpool.AgentRef, len(wire.MatchedAgents))
		for i, agent := range wire.MatchedAgents {
			r.Matched[i] = d.ref(agent)
		}
	}
	for _, raw := range wire.Demands {
		d.addDemand(&r, raw)
	}
	return r, nil
}

// addDemand keeps every demand of a request: one that is not understood must not
// turn the request into one that asks for less.
func (d *requestDecoder) addDemand(r *agentpool.JobRequest, raw json.RawMessage) {
	var text string
	if json.Unmarshal(raw, &text) != nil || string(raw) == "null" {
		r.UnknownDemands = append(r.UnknownDemands, string(raw))
		return
	}
	demand, ok := d.demands[text]
	if !ok {
		var err error
		if demand, err = agentpool.ParseDemand(text); err != nil {
			r.UnknownDemands = append(r.UnknownDemands, text)
			return
		}
		if len(d.demands) < maxInterned {
			d.demands[text] = demand
		}
	}
	r.Demands = append(r.Demands, demand)
}

func (d *requestDecoder) ref(w wireRef) agentpool.AgentRef {
	return agentpool.AgentRef{ID: w.ID, Name: d.strings.share(w.Name)}
}

func (d *requestDecoder) link(w wireLink) agentpool.Link {
	return agentpool.Link{ID: w.ID, Name: d.strings.share(w.Name), URL: d.strings.share(w.Links.Web.Href)}
}
