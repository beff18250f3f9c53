package azuredevops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// AgentQuery narrows a list of agents.
type AgentQuery struct {
	Name         string // Empty for all.
	Capabilities bool   // Ask for the capabilities too, which makes the answer far larger.
}

// Agents lists the agents registered in a pool, each with the request that
// occupies it. A row without sense is skipped and logged.
func (c *Client) Agents(ctx context.Context, poolID int, query AgentQuery) ([]agentpool.Agent, error) {
	agents, _, err := c.listAgents(ctx, poolID, query)
	return agents, err
}

func (c *Client) listAgents(ctx context.Context, poolID int, query AgentQuery) (agents []agentpool.Agent, malformed int, err error) {
	values := url.Values{"includeAssignedRequest": {"true"}, "includeCapabilities": {strconv.FormatBool(query.Capabilities)}}
	if query.Name != "" {
		values.Set("agentName", query.Name)
	}
	_, malformed, err = list(ctx, c, request{
		call:     call{op: OpAgents},
		method:   http.MethodGet,
		location: locationAgents,
		route:    map[string]string{"poolId": strconv.Itoa(poolID)},
		query:    values,
	}, func(row []byte) error {
		var wire wireAgent
		if err := json.Unmarshal(row, &wire); err != nil {
			return fmt.Errorf("agent %d: %w", wire.ID, err)
		}
		agent, err := wire.agent()
		if err == nil {
			agents = append(agents, agent)
		}
		return err
	})
	if err != nil {
		return nil, malformed, err
	}
	return agents, malformed, nil
}

// AgentByName finds an agent of a pool by its name, without regard to case.
// ErrNotFound is the service's word that there is none; an answer that only might
// say so is ErrUnexpectedAnswer.
func (c *Client) AgentByName(ctx context.Context, poolID int, name string) (agentpool.Agent, error) {
	fail := func(kind error, message string) (agentpool.Agent, error) {
		return agentpool.Agent{}, &Error{Op: OpAgents, Kind: kind, Message: fmt.Sprintf("agent %q in pool %d: %s", name, poolID, message)}
	}
	if name == "" {
		return fail(ErrNotFound, "the name is empty")
	}
	agents, malformed, err := c.listAgents(ctx, poolID, AgentQuery{Name: name})
	if err != nil {
		return agentpool.Agent{}, err
	}
	var found []agentpool.Agent
	for _, agent := range agents {
		if strings.EqualFold(agent.Name, name) {
			found = append(found, agent)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return fail(ErrAmbiguous, fmt.Sprintf("%d agents have it", len(found)))
	case malformed > 0:
		return fail(ErrUnexpectedAnswer, "the answer has a row that cannot be read, which may be this agent")
	default:
		return fail(ErrNotFound, "no agent has it")
	}
}

// Agent gives one agent with its capabilities and the request that occupies it.
func (c *Client) Agent(ctx context.Context, poolID, id int) (agentpool.Agent, error) {
	r := agentRequest(call{op: OpAgent}, http.MethodGet, poolID, id)
	r.query = url.Values{"includeAssignedRequest": {"true"}, "includeCapabilities": {"true"}}
	wire, err := one[wireAgent](ctx, c, r)
	if err != nil {
		return agentpool.Agent{}, err
	}
	agent, err := wire.agent()
	if err == nil && agent.ID != id {
		err = fmt.Errorf("the answer is about agent %d", agent.ID)
	}
	if err != nil {
		return agentpool.Agent{}, &Error{Op: OpAgent, Kind: ErrUnexpectedAnswer, Message: fmt.Sprintf("agent %d in pool %d", id, poolID), Err: err}
	}
	return agent, nil
}

// DeleteAgent takes an agent out of its pool. The service refuses that while the
// agent runs a job: ErrAgentBusy. ErrNotFound means that it is gone already, be it
// by an earlier attempt whose answer was lost.
func (c *Client) DeleteAgent(ctx context.Context, poolID, id int) error {
	return c.act(ctx, agentRequest(call{op: OpDeleteAgent}, http.MethodDelete, poolID, id))
}

// DisableAgent keeps the service from assigning anything more to an agent. What it
// runs or has been assigned goes on.
func (c *Client) DisableAgent(ctx context.Context, poolID, id int) error {
	// Disabling twice is disabling, so it may be repeated.
	r := agentRequest(call{op: OpDisableAgent, repeat: true}, http.MethodPatch, poolID, id)
	r.body = fmt.Sprintf(`{"id":%d,"enabled":false}`, id)
	return c.act(ctx, r)
}

// placeholderVersion is above every version that a job can demand, as a demand on
// Agent.Version is the service's own affair.
const placeholderVersion = "99.999.9"

// AddPlaceholder registers an agent without a key, so that it can never come
// online. It exists so that the service queues requests that demand what it
// claims: it fails at once those that no registered agent satisfies, and counts
// offline agents as registered. An agent of that name that is there already is
// left as it is and is no error.
func (c *Client) AddPlaceholder(ctx context.Context, poolID int, name string, claims map[string]string) error {
	body, err := json.Marshal(newAgent(name, placeholderVersion, "never online: stands for agents that are made when they are needed", claims, nil))
	if err != nil {
		return &Error{Op: OpAddAgent, Kind: ErrUnexpectedAnswer, Message: fmt.Sprintf("agent %q in pool %d", name, poolID), Err: err}
	}
	// A second one of the same name is refused, so it may be repeated.
	err = c.act(ctx, addAgent(call{op: OpAddAgent, repeat: true}, poolID, string(body)))
	if errors.Is(err, ErrConflict) {
		return nil
	}
	return err
}

// Withdraw takes an agent out of its pool only if it has nothing to do: it
// disables it, looks whether a request has been assigned to it, and deletes it.
// It reports whether the agent is gone; one that is occupied stays registered and
// disabled, and ends after its build. It must not be enabled again: a second job
// could slip in while it ends, and a crash before that would leave it disabled
// for ever anyway.
//
// The order matters. Nothing can be assigned after the first step, so what the
// second does not see is not there; the service's refusal to delete a running
// agent is a second line, unproven between assignment and receipt.
func (c *Client) Withdraw(ctx context.Context, poolID, id int) (withdrawn bool, err error) {
	gone := func(err error) (bool, error) {
		if errors.Is(err, ErrNotFound) {
			return true, nil
		}
		return false, err
	}
	if err := c.DisableAgent(ctx, poolID, id); err != nil {
		return gone(err)
	}
	agent, err := c.Agent(ctx, poolID, id)
	if err != nil {
		return gone(err)
	}
	if agent.AssignedRequest != 0 {
		return false, nil
	}
	switch err := c.DeleteAgent(ctx, poolID, id); {
	case err == nil:
		return true, nil
	case errors.Is(err, ErrAgentBusy):
		return false, nil
	default:
		return gone(err)
	}
}

// agentRequest is a call about one agent.
func agentRequest(c call, method string, poolID, id int) request {
	return request{
		call:     c,
		method:   method,
		location: locationAgents,
		route:    map[string]string{"poolId": strconv.Itoa(poolID), "agentId": strconv.Itoa(id)},
	}
}

// wireAgent is an agent as it comes.
type wireAgent struct {
	ID                 int                        `json:"id"`
	Name               string                     `json:"name"`
	Version            string                     `json:"version"`
	Status             enum                       `json:"status"`
	Enabled            *bool                      `json:"enabled"`
	AssignedRequest    *struct{ RequestID int64 } `json:"assignedRequest"`
	SystemCapabilities map[string]lenient[string] `json:"systemCapabilities"`
	UserCapabilities   map[string]lenient[string] `json:"userCapabilities"`
	CreatedOn          lenient[stamp]             `json:"createdOn"`
}

// agent checks and converts the row.
func (w wireAgent) agent() (agentpool.Agent, error) {
	if w.ID <= 0 || w.Name == "" {
		return agentpool.Agent{}, fmt.Errorf("agent %d: no id or no name", w.ID)
	}
	agent := agentpool.Agent{
		ID:      w.ID,
		Name:    w.Name,
		Version: w.Version,
		Online:  w.Status.named("", "offline", "online") == "online",
		// A nullable field of the service's: false is always said, and what is not
		// said is the agent's state from the start.
		Enabled:   w.Enabled == nil || *w.Enabled,
		CreatedOn: w.CreatedOn.value.Time,
	}
	if w.AssignedRequest != nil {
		if w.AssignedRequest.RequestID <= 0 {
			return agentpool.Agent{}, fmt.Errorf("agent %d: occupied by a request without a requestId", w.ID)
		}
		agent.AssignedRequest = w.AssignedRequest.RequestID
	}
	if w.SystemCapabilities != nil || w.UserCapabilities != nil {
		all := make(map[string]string, len(w.SystemCapabilities)+len(w.UserCapabilities))
		for _, from := range []map[string]lenient[string]{w.SystemCapabilities, w.UserCapabilities} {
			for name, value := range maps.All(from) {
				all[name] = value.value
			}
		}
		agent.Capabilities = agentpool.NewCapabilities(all)
	}
	return agent, nil
}
