package azuredevopstest

import (
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// rowSource is one row of an answer, rendered when its turn comes.
type rowSource struct {
	request *request
	// progress is a copy from the moment of the query.
	progress *progress
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
		rows = append(rows, r.source())
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
		rows = append(rows, r.source())
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
		rows = append(rows, r.source())
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
		rows = append(rows, r.source())
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

func (r *request) source() rowSource {
	now := r.progress
	return rowSource{request: r, progress: &now}
}

func (r rowSource) id() int64 {
	if r.request != nil {
		return r.request.id
	}
	return r.history
}
