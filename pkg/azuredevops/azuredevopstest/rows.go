package azuredevopstest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// pastAgents is how many agents the made-up past had; living ones have higher ids.
const pastAgents = 1000

// maxTop is the most rows that a query with $top is answered with.
const maxTop = 200

// rowJSON is a job request as the service writes it; defaults are omitted.
type rowJSON struct {
	RequestID       int64             `json:"requestId"`
	QueueTime       string            `json:"queueTime,omitempty"`
	AssignTime      string            `json:"assignTime,omitempty"`
	ReceiveTime     string            `json:"receiveTime,omitempty"`
	FinishTime      string            `json:"finishTime,omitempty"`
	LockedUntil     string            `json:"lockedUntil,omitempty"`
	Result          any               `json:"result,omitempty"`
	ServiceOwner    string            `json:"serviceOwner"`
	HostID          string            `json:"hostId"`
	ScopeID         string            `json:"scopeId"`
	PlanType        string            `json:"planType"`
	PlanID          string            `json:"planId"`
	PlanGroup       string            `json:"planGroup,omitempty"`
	JobID           string            `json:"jobId"`
	JobName         string            `json:"jobName,omitempty"`
	Demands         []string          `json:"demands,omitempty"`
	ReservedAgent   *agentJSON        `json:"reservedAgent,omitempty"`
	MatchedAgents   json.RawMessage   `json:"matchedAgents,omitempty"`
	MatchesAll      bool              `json:"matchesAllAgentsInPool,omitempty"`
	Definition      *ownerJSON        `json:"definition,omitempty"`
	Owner           *ownerJSON        `json:"owner,omitempty"`
	Data            map[string]string `json:"data,omitempty"`
	PoolID          int               `json:"poolId"`
	OrchestrationID string            `json:"orchestrationId,omitempty"`
	Priority        int               `json:"priority,omitempty"`
	StatusMessage   string            `json:"statusMessage,omitempty"`
}

type ownerJSON struct {
	Links map[string]link `json:"_links,omitempty"`
	ID    int             `json:"id"`
	Name  string          `json:"name"`
}

// matchSet is which agents of a pool satisfy a set of demands. They are held as
// text, as thousands of rows may share them.
type matchSet struct {
	agents json.RawMessage
	all    bool
}

// row renders a request. The caller holds the mutex: the row names an agent
// with its present state.
func (c *call) row(r *request, p progress, matched *matchSet) rowJSON {
	base := c.base
	row := rowJSON{
		RequestID:    r.id,
		QueueTime:    c.srv.stamp(p.queued),
		AssignTime:   c.srv.stamp(p.assignedAt),
		ReceiveTime:  c.srv.stamp(p.received),
		FinishTime:   c.srv.stamp(p.finishedAt),
		ServiceOwner: serviceOwner,
		HostID:       c.srv.hostID.String(),
		ScopeID:      r.scopeID.String(),
		PlanType:     planType,
		PlanID:       r.planID.String(),
		PlanGroup:    "Build:" + r.scopeID.String() + ":" + strconv.Itoa(r.runID),
		JobID:        r.jobID.String(),
		JobName:      r.name,
		Definition: &ownerJSON{ID: r.definitionID, Name: r.name, Links: map[string]link{
			"web":  {fmt.Sprintf("%s/%s/_build/definition?definitionId=%d", base, r.scopeID, r.definitionID)},
			"self": {fmt.Sprintf("%s/%s/_apis/build/Definitions/%d", base, r.scopeID, r.definitionID)},
		}},
		Owner: &ownerJSON{ID: r.runID, Name: strconv.Itoa(r.runID), Links: map[string]link{
			"web":  {fmt.Sprintf("%s/%s/_build/results?buildId=%d", base, r.scopeID, r.runID)},
			"self": {fmt.Sprintf("%s/%s/_apis/build/Builds/%d", base, r.scopeID, r.runID)},
		}},
		Data:            map[string]string{"ParallelismTag": "Private", "IsScheduledKey": "False"},
		PoolID:          r.pool.id,
		OrchestrationID: r.planID.String() + ".job.__default",
		Priority:        r.priority,
	}
	if p.state() == StateRunning {
		row.LockedUntil = c.srv.stamp(p.lockedUntil)
	}
	if p.result != "" {
		row.Result = c.enum(resultValue(p.result))
	}
	for _, d := range r.demands {
		row.Demands = append(row.Demands, d.String())
	}
	if p.agentID != 0 {
		ref := c.reference(p.agentID, p.agentName, p.agentVer)
		row.ReservedAgent = &ref
	}
	if matched != nil {
		row.MatchedAgents = matched.agents
		row.MatchesAll = matched.all
	}
	return row
}

// matches computes matchedAgents once for each set of demands.
type matches struct {
	c    *call
	pool *pool
	sets map[string]*matchSet
}

// of returns the agents that satisfy a request's demands. The caller holds the
// mutex.
func (m *matches) of(r *request) *matchSet {
	if set, ok := m.sets[r.demandKey]; ok {
		return set
	}
	set := &matchSet{all: true}
	var fitting []agentJSON
	for _, a := range m.pool.sortedAgents() {
		if a.satisfies(r.demands) {
			fitting = append(fitting, m.c.agentReference(a))
		} else {
			set.all = false
		}
	}
	if fitting != nil {
		set.agents = json.RawMessage(mustJSON(fitting))
	}
	m.sets[r.demandKey] = set
	return set
}

// streamRows writes rows one by one, so that an answer of any length costs the
// memory of a row.
func (c *call) streamRows(p *pool, rows []rowSource, withMatches bool) func(io.Writer) error {
	return func(w io.Writer) error {
		out := bufio.NewWriterSize(w, 16<<10)
		if _, err := fmt.Fprintf(out, `%s{"count":%d,"value":[`, c.srv.mark(), len(rows)); err != nil {
			return err
		}
		enc := json.NewEncoder(out)
		enc.SetEscapeHTML(false)
		known := &matches{c: c, pool: p, sets: make(map[string]*matchSet)}
		for i, source := range rows {
			if i > 0 {
				if err := out.WriteByte(','); err != nil {
					return err
				}
			}
			if err := enc.Encode(c.rowOf(source, known, withMatches)); err != nil {
				return err
			}
		}
		if _, err := out.WriteString("]}"); err != nil {
			return err
		}
		return out.Flush()
	}
}

// rowOf renders one row of an answer.
func (c *call) rowOf(source rowSource, known *matches, withMatches bool) rowJSON {
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	if source.request == nil {
		return c.historicRow(known.pool, source.history)
	}
	var set *matchSet
	if withMatches && source.progress.result == "" {
		set = known.of(source.request)
	}
	return c.row(source.request, *source.progress, set)
}

// getRequest answers one request.
func (c *call) getRequest() error {
	id, err := c.number("requestId")
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
	r := s.requests[id]
	if r == nil || r.pool != p {
		for _, h := range p.history {
			if id >= h.first && id < h.first+int64(h.rows) {
				return c.reply(http.StatusOK, c.historicRow(p, id))
			}
		}
		return requestNotFound(id)
	}
	var set *matchSet
	if r.result == "" {
		set = (&matches{c: c, pool: p, sets: make(map[string]*matchSet)}).of(r)
	}
	row := c.row(r, r.progress, set)
	if c.flag("includeStatus") {
		row.StatusMessage = s.statusOf(r)
	}
	return c.reply(http.StatusOK, row)
}

// statusOf is what the service tells people about a request.
func (s *Server) statusOf(r *request) string {
	switch {
	case r.status != "":
		return r.status
	case r.state() != StateQueued:
		return ""
	case s.settings.parallelJobs > 0 && s.used() >= s.settings.parallelJobs:
		return "This agent request is not running because you have reached the maximum number of requests that can run for parallelism type 'Self-Hosted Private'."
	}
	for _, a := range r.pool.sortedAgents() {
		if a.satisfies(r.demands) && a.enabled && s.online(a, time.Now()) {
			return "All potential agents are in use."
		}
	}
	return "All eligible agents are disabled or offline."
}
