package azuredevopstest

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
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
	MatchedAgents   []agentJSON       `json:"matchedAgents,omitempty"`
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

// matchSet is which agents of a pool satisfy a set of demands.
type matchSet struct {
	agents []agentJSON
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
	for _, a := range m.pool.sortedAgents() {
		if a.satisfies(r.demands) {
			set.agents = append(set.agents, m.c.agentReference(a))
		} else {
			set.all = false
		}
	}
	m.sets[r.demandKey] = set
	return set
}

// rowSource is one row of an answer, rendered when its turn comes.
type rowSource struct {
	request  *request
	progress progress
	history  int64
}

// listRequests answers the queries for job requests, each in its own shape:
//
//   - $top: at most 200 rows, newest first by page, finished ones among them,
//     with a continuation token and without matchedAgents;
//   - agentIds: the requests of these agents;
//   - completedRequestCount: the unfinished ones and so many finished ones;
//   - none of them: everything the pool ever saw.
//
// Within an answer there is no order.
func (c *call) listRequests() error {
	top, paged, err := c.count("$top")
	if err != nil {
		return err
	}
	completed, limited, err := c.count("completedRequestCount")
	if err != nil {
		return err
	}
	ids, byAgent := c.param("agentIds")
	agents, err := parseIDs(ids)
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
	var rows []rowSource
	var next string
	withMatches := false
	switch {
	case paged:
		rows, next, err = c.page(p, top)
		if err != nil {
			return err
		}
	case byAgent:
		rows = p.ofAgents(agents, completed, limited)
	default:
		withMatches = true
		rows = p.open()
		if !limited {
			completed = p.finishedRows()
		}
		rows = append(rows, p.lastFinished(completed)...)
	}
	s.random.other.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
	if next != "" {
		c.w.Header().Set("X-MS-ContinuationToken", next)
	}
	c.jsonHeader()
	c.answer = answer{status: http.StatusOK, stream: c.streamRows(p, rows, withMatches)}
	return nil
}

func parseIDs(text string) ([]int, error) {
	var ids []int
	for field := range strings.SplitSeq(text, ",") {
		if field = strings.TrimSpace(field); field == "" {
			continue
		}
		id, err := strconv.Atoi(field)
		if err != nil {
			return nil, badRequest("The value '%s' is not valid for agentIds.", text)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// open returns the unfinished requests.
func (p *pool) open() []rowSource {
	rows := make([]rowSource, 0, len(p.unfinished))
	for _, r := range p.sortedUnfinished() {
		rows = append(rows, rowSource{request: r, progress: r.progress})
	}
	return rows
}

func (p *pool) finishedRows() int {
	n := len(p.finished)
	for _, h := range p.history {
		n += h.rows
	}
	return n
}

// lastFinished returns the newest n finished rows.
func (p *pool) lastFinished(n int) []rowSource {
	rows := make([]rowSource, 0, min(n, p.finishedRows()))
	for _, r := range slices.Backward(p.finished) {
		if len(rows) == n {
			return rows
		}
		rows = append(rows, rowSource{request: r, progress: r.progress})
	}
	for _, h := range slices.Backward(p.history) {
		for i := h.rows - 1; i >= 0 && len(rows) < n; i-- {
			rows = append(rows, rowSource{history: h.first + int64(i)})
		}
	}
	return rows
}

// ofAgents returns the requests that some agents have, and for each of them so
// many of the finished ones.
func (p *pool) ofAgents(ids []int, completed int, limited bool) []rowSource {
	var rows []rowSource
	for _, row := range p.open() {
		if row.progress.agentID != 0 && slices.Contains(ids, row.progress.agentID) {
			rows = append(rows, row)
		}
	}
	seen := make(map[int]int)
	for _, r := range slices.Backward(p.finished) {
		id := r.agentID
		if id == 0 || !slices.Contains(ids, id) || limited && seen[id] >= completed {
			continue
		}
		seen[id]++
		rows = append(rows, rowSource{request: r, progress: r.progress})
	}
	return rows
}

// page cuts a page out of all rows, newest first. The token is the id to
// continue below.
func (c *call) page(p *pool, top int) ([]rowSource, string, error) {
	if top == 0 || top > maxTop {
		top = maxTop
	}
	below := int64(1) << 62
	if token, ok := c.param("continuationToken"); ok && token != "" {
		n, err := strconv.ParseInt(token, 10, 64)
		if err != nil || n < 0 {
			return nil, "", badRequest("The value '%s' is not valid for continuationToken.", token)
		}
		below = n
	}
	rows := p.open()
	for _, r := range p.finished {
		rows = append(rows, rowSource{request: r, progress: r.progress})
	}
	rows = slices.DeleteFunc(rows, func(r rowSource) bool { return r.id() >= below })
	for _, h := range p.history {
		end := min(h.first+int64(h.rows), below)
		for id := max(h.first, end-int64(top)-1); id < end; id++ {
			rows = append(rows, rowSource{history: id})
		}
	}
	slices.SortFunc(rows, func(a, b rowSource) int { return cmp.Compare(b.id(), a.id()) })
	if len(rows) <= top {
		return rows, "", nil
	}
	rows = rows[:top]
	return rows, strconv.FormatInt(rows[top-1].id(), 10), nil
}

func (r rowSource) id() int64 {
	if r.request != nil {
		return r.request.id
	}
	return r.history
}

// streamRows writes rows one by one, so that an answer of any length costs the
// memory of a row.
func (c *call) streamRows(p *pool, rows []rowSource, withMatches bool) func(io.Writer) error {
	return func(w io.Writer) error {
		out := bufio.NewWriterSize(w, 16<<10)
		if _, err := fmt.Fprintf(out, `%s{"count":%d,"value":[`, c.srv.mark(), len(rows)); err != nil {
			return err
		}
		known := &matches{c: c, pool: p, sets: make(map[string]*matchSet)}
		for i, source := range rows {
			if i > 0 {
				if err := out.WriteByte(','); err != nil {
					return err
				}
			}
			text, err := c.rowText(source, known, withMatches)
			if err != nil {
				return err
			}
			if _, err := out.Write(text); err != nil {
				return err
			}
		}
		if _, err := out.WriteString("]}"); err != nil {
			return err
		}
		return out.Flush()
	}
}

func (c *call) rowText(source rowSource, known *matches, withMatches bool) ([]byte, error) {
	c.srv.mu.Lock()
	var row rowJSON
	if source.request == nil {
		row = c.historicRow(known.pool, source.history)
	} else {
		var set *matchSet
		if withMatches && source.progress.result == "" {
			set = known.of(source.request)
		}
		row = c.row(source.request, source.progress, set)
	}
	c.srv.mu.Unlock()
	return json.Marshal(row)
}

// historicRow makes up a row of the past from its number. It is the same each
// time.
func (c *call) historicRow(p *pool, id int64) rowJSON {
	s := c.srv
	n := s.noise("history", id)
	guid := func(kind string) uuid.UUID { return uuid.NewSHA1(s.hostID, fmt.Appendf(nil, "%s/%d", kind, id)) }
	ended := []string{
		ResultSucceeded, ResultSucceeded, ResultSucceeded, ResultSucceededWithIssues,
		ResultFailed, ResultCanceled, ResultAbandoned, ResultSkipped,
	}
	result := ended[n%uint64(len(ended))]
	queued := p.created.Add(-time.Duration(n%(90*24*3600))*time.Second - time.Hour)
	made := progress{queued: queued, result: result, finishedAt: queued.Add(time.Duration(60+n%600) * time.Second)}
	if result != ResultCanceled && result != ResultSkipped {
		made.assignedAt = queued.Add(time.Duration(n%40) * time.Second)
		made.received = made.assignedAt.Add(1234567 * time.Microsecond)
		// Registrations long gone: their ids are below every living agent's.
		made.agentID, made.agentName, made.agentVer = int(n%pastAgents)+1, fmt.Sprintf("past-agent-%d", n%1000), "3.220.5"
	}
	// Some of the service's finished rows carry no time of their end.
	if n%5 == 0 {
		made.finishedAt = time.Time{}
	}
	r := &request{
		id: id, pool: p, name: fmt.Sprintf("past-%d", id%97), demands: []demand{{name: capAgentVersion, op: opGTVersion, value: s.opts.MinAgentVersion}},
		scopeID: guid("scope"), planID: guid("plan"), jobID: guid("job"), runID: int(id), definitionID: int(id%97) + 1,
	}
	return c.row(r, made, nil)
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
