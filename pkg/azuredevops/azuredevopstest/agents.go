package azuredevopstest

import (
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"maps"
	"math/big"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// agentJSON is an agent as the service writes it.
type agentJSON struct {
	Links              any               `json:"_links,omitempty"`
	ID                 int               `json:"id"`
	Name               string            `json:"name"`
	Version            string            `json:"version,omitempty"`
	OSDescription      string            `json:"osDescription,omitempty"`
	Enabled            bool              `json:"enabled"`
	Status             any               `json:"status"`
	ProvisioningState  string            `json:"provisioningState,omitempty"`
	AccessPoint        string            `json:"accessPoint,omitempty"`
	MaxParallelism     int               `json:"maxParallelism,omitempty"`
	CreatedOn          string            `json:"createdOn,omitempty"`
	StatusChangedOn    string            `json:"statusChangedOn,omitempty"`
	SystemCapabilities map[string]string `json:"systemCapabilities,omitempty"`
	UserCapabilities   map[string]string `json:"userCapabilities,omitempty"`
	Authorization      *authorization    `json:"authorization,omitempty"`
	AssignedRequest    *rowJSON          `json:"assignedRequest,omitempty"`
	LastCompleted      *rowJSON          `json:"lastCompletedRequest,omitempty"`
	PendingUpdate      any               `json:"pendingUpdate,omitempty"`
}

// authorization is an agent's way to sign in.
type authorization struct {
	ClientID         string     `json:"clientId,omitempty"`
	AuthorizationURL string     `json:"authorizationUrl,omitempty"`
	PublicKey        *publicKey `json:"publicKey,omitempty"`
}

// reference is the short form of an agent.
func (c *call) reference(id int, name, version string) agentJSON {
	j := agentJSON{ID: id, Name: name, Version: version, Enabled: true, ProvisioningState: "Provisioned", AccessPoint: "CodexAccessMapping", Status: c.enum(enumValue{"offline", 1})}
	if a := c.srv.agentByID(id); a != nil {
		j = c.agentReference(a)
	}
	return j
}

func (c *call) agentReference(a *agent) agentJSON {
	self := c.base + "/_apis/distributedtask/pools/" + strconv.Itoa(a.pool.id) + "/agents/" + strconv.Itoa(a.id)
	status := enumValue{"offline", 1}
	if c.srv.online(a, time.Now()) {
		status = enumValue{"online", 2}
	}
	return agentJSON{
		Links:             map[string]any{"self": link{self}, "web": link{c.base + "/_settings/agentpools?view=jobs&poolId=" + strconv.Itoa(a.pool.id) + "&agentId=" + strconv.Itoa(a.id)}},
		ID:                a.id,
		Name:              a.name,
		Version:           a.version,
		OSDescription:     a.osDescription,
		Enabled:           a.enabled,
		Status:            c.enum(status),
		ProvisioningState: a.provisioning,
		AccessPoint:       "CodexAccessMapping",
	}
}

type link struct {
	Href string `json:"href"`
}

// agentDetail is what a query for agents may ask for beyond the basics.
type agentDetail struct{ capabilities, assigned, lastCompleted bool }

func (c *call) agentDetail() agentDetail {
	return agentDetail{c.flag("includeCapabilities"), c.flag("includeAssignedRequest"), c.flag("includeLastCompletedRequest")}
}

// agentJSON renders an agent. The caller holds the mutex.
func (c *call) agentJSON(a *agent, detail agentDetail) agentJSON {
	j := c.agentReference(a)
	j.MaxParallelism = a.maxParallelism
	j.CreatedOn = c.srv.stamp(a.created)
	j.StatusChangedOn = c.srv.stamp(a.statusChanged)
	j.Authorization = a.authorization()
	if detail.capabilities {
		j.SystemCapabilities = a.systemCapabilities
		j.UserCapabilities = a.userCapabilities
	}
	if detail.assigned && a.assigned != nil {
		row := c.row(a.assigned, a.assigned.progress, nil)
		j.AssignedRequest = &row
	}
	if detail.lastCompleted && a.lastCompleted != nil {
		row := c.row(a.lastCompleted, a.lastCompleted.progress, nil)
		j.LastCompleted = &row
	}
	if a.updating != "" {
		j.PendingUpdate = map[string]any{"targetVersion": map[string]string{"version": a.updating}, "currentState": "Queued"}
	}
	return j
}

func (a *agent) authorization() *authorization {
	auth := &authorization{ClientID: a.clientID.String(), AuthorizationURL: a.authorizationURL}
	if a.publicKey != nil {
		auth.PublicKey = &publicKey{
			Exponent: base64.StdEncoding.EncodeToString(big.NewInt(int64(a.publicKey.E)).Bytes()),
			Modulus:  base64.StdEncoding.EncodeToString(a.publicKey.N.FillBytes(make([]byte, 256))),
		}
	}
	return auth
}

func (c *call) listAgents() error {
	name, byName := c.param("agentName")
	var wanted []demand
	if text, ok := c.param("demands"); ok && text != "" {
		for one := range strings.SplitSeq(text, ",") {
			d, err := parseDemand(one)
			if err != nil {
				return badRequest("%v", err)
			}
			wanted = append(wanted, d)
		}
	}
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	p, err := c.pool()
	if err != nil {
		return err
	}
	value := []agentJSON{}
	for _, a := range p.sortedAgents() {
		if byName && name != "" && !strings.EqualFold(a.name, name) || !a.satisfies(wanted) {
			continue
		}
		value = append(value, c.agentJSON(a, c.agentDetail()))
	}
	// No order is promised.
	c.srv.random.other.Shuffle(len(value), func(i, j int) { value[i], value[j] = value[j], value[i] })
	return c.reply(http.StatusOK, list{len(value), value})
}

// poolAgent finds the agent of the path. The caller holds the mutex.
func (c *call) poolAgent() (*pool, *agent, error) {
	p, err := c.pool()
	if err != nil {
		return nil, nil, err
	}
	id, err := c.number("agentId")
	if err != nil {
		return nil, nil, err
	}
	a := p.agents[int(id)]
	if a == nil {
		return nil, nil, agentNotFound(p.id, c.vars["agentId"])
	}
	return p, a, nil
}

func (c *call) getAgent() error {
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	_, a, err := c.poolAgent()
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, c.agentJSON(a, c.agentDetail()))
}

// fill takes a whole description over into an agent.
func (a *agent) fill(b *agentBody, key *rsa.PublicKey) {
	a.name = b.Name
	a.version = b.Version
	a.osDescription = b.OSDescription
	a.provisioning = b.ProvisioningState
	if a.provisioning == "" {
		a.provisioning = "Provisioned"
	}
	a.maxParallelism = max(b.MaxParallelism, 1)
	a.systemCapabilities = maps.Clone(b.SystemCapabilities)
	if b.UserCapabilities != nil {
		a.userCapabilities = maps.Clone(b.UserCapabilities)
	}
	if b.Enabled != nil {
		a.enabled = *b.Enabled
	}
	if key != nil {
		a.publicKey = key
	}
	a.fold()
}

func (c *call) addAgent() error {
	var body agentBody
	if err := c.decode(&body); err != nil {
		return err
	}
	key, err := body.check()
	if err != nil {
		return err
	}
	s := c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := c.pool()
	if err != nil {
		return err
	}
	if p.agentByName(body.Name) != nil {
		return fail(http.StatusConflict, "TaskAgentExistsException",
			"Pool %d already contains an agent with name %s.", p.id, body.Name)
	}
	now := time.Now()
	a := &agent{
		id: s.nextAgent, pool: p, enabled: true, created: now, statusChanged: now,
		clientID: s.newID(), baseURL: c.base, authorizationURL: c.base + "/" + oauthPath,
		usedJTI: make(map[string]time.Time),
	}
	s.nextAgent += 1 + s.random.agents.IntN(3)
	a.fill(&body, key)
	p.agents[a.id] = a
	s.clients[a.clientID] = a
	s.agentEvent("agent-added", a, c.who.name, "")
	return c.reply(http.StatusOK, c.agentJSON(a, agentDetail{capabilities: true}))
}

func (c *call) replaceAgent() error {
	var body agentBody
	if err := c.decode(&body); err != nil {
		return err
	}
	key, err := body.check()
	if err != nil {
		return err
	}
	s := c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	p, a, err := c.poolAgent()
	if err != nil {
		return err
	}
	if other := p.agentByName(body.Name); other != nil && other != a {
		return fail(http.StatusConflict, "TaskAgentExistsException",
			"Pool %d already contains an agent with name %s.", p.id, body.Name)
	}
	a.fill(&body, key)
	if key != nil {
		// The former owner of this registration has lost it.
		delete(s.clients, a.clientID)
		a.clientID = s.newID()
		s.clients[a.clientID] = a
		a.baseURL, a.authorizationURL = c.base, c.base+"/"+oauthPath
		s.revoke(a)
	}
	s.agentEvent("agent-replaced", a, c.who.name, "")
	return c.reply(http.StatusOK, c.agentJSON(a, agentDetail{capabilities: true}))
}

func (c *call) updateAgent() error {
	raw := map[string]json.RawMessage{}
	if err := c.decode(&raw); err != nil {
		return err
	}
	var body agentBody
	if err := remarshal(raw, &body); err != nil {
		return err
	}
	s := c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	_, a, err := c.poolAgent()
	if err != nil {
		return err
	}
	if body.ID == nil || *body.ID != a.id {
		return badRequest("The id in the body must be the agent's, %d.", a.id)
	}
	if body.Enabled != nil && *body.Enabled != a.enabled {
		a.enabled = *body.Enabled
		event := "agent-disabled"
		if a.enabled {
			event = "agent-enabled"
		}
		s.agentEvent(event, a, c.who.name, "")
	}
	changed := false
	if body.MaxParallelism > 0 {
		a.maxParallelism, changed = body.MaxParallelism, true
	}
	if body.UserCapabilities != nil {
		a.userCapabilities, changed = maps.Clone(body.UserCapabilities), true
	}
	if body.SystemCapabilities != nil {
		a.systemCapabilities, changed = maps.Clone(body.SystemCapabilities), true
	}
	if changed {
		a.fold()
		names := slices.Sorted(maps.Keys(raw))
		s.agentEvent("agent-updated", a, c.who.name, strings.Join(names, " "))
	}
	return c.reply(http.StatusOK, c.agentJSON(a, agentDetail{capabilities: true}))
}

func remarshal(raw map[string]json.RawMessage, into any) error {
	text, err := json.Marshal(raw)
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		return badRequest("The body cannot be read: %v", err)
	}
	return nil
}

// deleteAgent removes a registration. It is refused while the agent runs a
// job, which makes it the one atomic test for idleness.
func (c *call) deleteAgent() error {
	s := c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	p, a, err := c.poolAgent()
	if err != nil {
		return err
	}
	if r := a.assigned; r != nil {
		if !r.received.IsZero() || s.opts.RefuseDeleteAssigned {
			s.audit.record(Event{Event: "agent-delete-refused", Pool: p.id, RequestID: r.id, AgentID: a.id, AgentName: a.name, By: c.who.name})
			return fail(http.StatusBadRequest, "TaskAgentJobStillRunningException",
				"Agent \"%s\" is running a job for pool \"%s\"", a.name, p.name)
		}
		s.abandon(r, "the agent was deleted after the request had been assigned to it")
	}
	s.endSession(a, "session-deleted", c.who.name, "the agent was deleted")
	delete(p.agents, a.id)
	delete(s.clients, a.clientID)
	s.revoke(a)
	s.agentEvent("agent-deleted", a, c.who.name, "")
	return c.replyEmpty(http.StatusOK)
}

// revoke makes an agent's access tokens worthless. The caller holds the mutex.
func (s *Server) revoke(a *agent) {
	for secret, g := range s.grants {
		if g.agent == a {
			delete(s.grants, secret)
		}
	}
}

func (s *Server) agentByID(id int) *agent {
	for _, p := range s.pools {
		if a := p.agents[id]; a != nil {
			return a
		}
	}
	return nil
}

func (s *Server) agentEvent(event string, a *agent, by, detail string) {
	s.audit.record(Event{Event: event, Pool: a.pool.id, AgentID: a.id, AgentName: a.name, By: by, Detail: detail})
}
