package wire

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// lockToken has no meaning any more, but the service insists on it.
const lockToken = "00000000-0000-0000-0000-000000000000"

type list[T any] struct {
	Count int `json:"count"`
	Value []T `json:"value"`
}

func wrap[T any](values ...T) list[T] { return list[T]{Count: len(values), Value: values} }

func number(n int64) string { return strconv.FormatInt(n, 10) }

// Connect says hello, signing in where the service wants that.
func (c *Client) Connect(ctx context.Context) (ConnectionData, error) {
	var data ConnectionData
	err := c.do(ctx, call{
		method: http.MethodGet, path: "/_apis/connectionData", out: &data,
		query: url.Values{"connectOptions": {"1"}, "lastChangeId": {"-1"}, "lastChangeId64": {"-1"}},
	})
	return data, err
}

// Pools finds the pools of that name.
func (c *Client) Pools(ctx context.Context, name string) ([]Pool, error) {
	var pools list[Pool]
	err := c.do(ctx, call{
		method: http.MethodGet, path: c.route(locPools, tmplPools), out: &pools,
		query: url.Values{"poolName": {name}, "poolType": {"automation"}},
	})
	return pools.Value, err
}

// Agents finds the agents of that name.
func (c *Client) Agents(ctx context.Context, pool int64, name string) ([]Agent, error) {
	var agents list[Agent]
	err := c.do(ctx, call{
		method: http.MethodGet, path: c.route(locAgents, tmplAgents, "poolId", number(pool)), out: &agents,
		query: url.Values{"agentName": {name}, "includeCapabilities": {"false"}, "includeAssignedRequest": {"false"}},
	})
	return agents.Value, err
}

// AddAgent registers an agent.
func (c *Client) AddAgent(ctx context.Context, pool int64, agent Agent) (Agent, error) {
	var added Agent
	err := c.do(ctx, call{
		method: http.MethodPost, path: c.route(locAgents, tmplAgents, "poolId", number(pool)),
		in: agent, out: &added,
	})
	return added, err
}

// ReplaceAgent registers an agent in the place of the one with its id.
func (c *Client) ReplaceAgent(ctx context.Context, pool int64, agent Agent) (Agent, error) {
	var replaced Agent
	err := c.do(ctx, call{
		method: http.MethodPut, path: c.route(locAgents, tmplAgents, "poolId", number(pool), "agentId", number(agent.ID)),
		in: agent, out: &replaced,
	})
	return replaced, err
}

// DeleteAgent takes an agent out of its pool.
func (c *Client) DeleteAgent(ctx context.Context, pool, agent int64) error {
	return c.do(ctx, call{
		method: http.MethodDelete, path: c.route(locAgents, tmplAgents, "poolId", number(pool), "agentId", number(agent)),
	})
}

// CreateSession opens the agent's session.
func (c *Client) CreateSession(ctx context.Context, pool int64, session Session) (Session, error) {
	var created Session
	err := c.do(ctx, call{
		method: http.MethodPost, path: c.route(locSessions, tmplSessions, "poolId", number(pool)),
		in: session, out: &created,
	})
	if err == nil && created.ID == "" {
		err = fmt.Errorf("the service opened a session without an id in pool %d", pool)
	}
	return created, err
}

// DeleteSession ends a session.
func (c *Client) DeleteSession(ctx context.Context, pool int64, session string) error {
	return c.do(ctx, call{
		method: http.MethodDelete, path: c.route(locSessions, tmplSessions, "poolId", number(pool), "sessionId", session),
	})
}

// NextMessage polls for the message after the last one; last 0 asks for the first
// that is there. Without a message it comes back with nil after about 50 seconds.
func (c *Client) NextMessage(ctx context.Context, pool int64, session string, last int64) (*Message, error) {
	query := url.Values{"sessionId": {session}}
	if last > 0 {
		query.Set("lastMessageId", number(last))
	}
	var message Message
	err := c.do(ctx, call{
		method: http.MethodGet, path: c.route(locMessages, tmplMessages, "poolId", number(pool)),
		query: query, out: &message,
	})
	if err != nil || message.Type == "" {
		return nil, err
	}
	return &message, nil
}

// DeleteMessage takes a message that was handled out of the queue.
func (c *Client) DeleteMessage(ctx context.Context, pool int64, session string, message int64) error {
	return c.do(ctx, call{
		method: http.MethodDelete, path: c.route(locMessages, tmplMessages, "poolId", number(pool), "messageId", number(message)),
		query: url.Values{"sessionId": {session}},
	})
}

// RenewRequest renews the lock of a request that runs and tells until when it holds.
func (c *Client) RenewRequest(ctx context.Context, pool, request int64) (time.Time, error) {
	var answer JobRequest
	err := c.patchRequest(ctx, pool, JobRequest{RequestID: request}, &answer)
	if err == nil && answer.LockedUntil == nil {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, err
	}
	return *answer.LockedUntil, nil
}

// FinishRequest reports the result of a request.
func (c *Client) FinishRequest(ctx context.Context, pool, request int64, result string) error {
	now := time.Now().UTC()
	return c.patchRequest(ctx, pool, JobRequest{RequestID: request, FinishTime: &now, Result: result}, nil)
}

func (c *Client) patchRequest(ctx context.Context, pool int64, in JobRequest, out *JobRequest) error {
	request := call{
		method: http.MethodPatch, path: c.route(locRequests, tmplRequests, "poolId", number(pool), "requestId", number(in.RequestID)),
		query: url.Values{"lockToken": {lockToken}}, in: in,
	}
	if out != nil {
		request.out = out
	}
	return c.do(ctx, request)
}

// AgentPackage finds the package of a platform in one version.
func (c *Client) AgentPackage(ctx context.Context, platform, version string) (Package, error) {
	var found Package
	err := c.do(ctx, call{
		method: http.MethodGet, out: &found,
		path: c.route(locPackages, tmplPackages, "packageType", "agent", "platform", platform, "version", version),
	})
	return found, err
}

// Download copies what is at address to w.
func (c *Client) Download(ctx context.Context, address string, w io.Writer) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return fmt.Errorf("download the package: %w", err)
	}
	request.Header.Set("User-Agent", c.userAgent)
	response, err := c.hc.Do(request)
	if err != nil {
		return fmt.Errorf("download the package: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("download the package: %s answered %s", request.URL.Redacted(), response.Status)
	}
	if _, err := io.Copy(w, response.Body); err != nil {
		return fmt.Errorf("download the package: %w", err)
	}
	return nil
}

func (p Plan) path(rest string) string {
	filled := strings.NewReplacer(
		"{scopeIdentifier}", url.PathEscape(p.ScopeID),
		"{hubName}", url.PathEscape(strings.ToLower(p.Type)),
		"{planId}", url.PathEscape(p.ID),
	).Replace(tmplPlan)
	return "/" + filled + rest
}

// UpdateRecords brings entries of a timeline up to date.
func (c *Client) UpdateRecords(ctx context.Context, plan Plan, timeline string, records ...Record) error {
	return c.do(ctx, call{
		method: http.MethodPatch, path: plan.path("timelines/" + url.PathEscape(timeline) + "/records"), in: wrap(records...),
	})
}

// CreateLog makes a container for log lines.
func (c *Client) CreateLog(ctx context.Context, plan Plan, path string) (int64, error) {
	var created Log
	err := c.do(ctx, call{method: http.MethodPost, path: plan.path("logs"), in: Log{Path: path}, out: &created})
	return created.ID, err
}

// AppendLog adds lines to a log.
func (c *Client) AppendLog(ctx context.Context, plan Plan, log int64, content []byte) error {
	return c.do(ctx, call{method: http.MethodPost, path: plan.path("logs/" + number(log)), in: content})
}

// RaiseEvent tells the plan of an event.
func (c *Client) RaiseEvent(ctx context.Context, plan Plan, event Event) error {
	return c.do(ctx, call{method: http.MethodPost, path: plan.path("events"), in: event})
}
