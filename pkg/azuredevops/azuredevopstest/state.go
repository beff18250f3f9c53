package azuredevopstest

import (
	"crypto/rsa"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// pool is an agent pool with all that is in it. The server's mutex guards it.
type pool struct {
	id      int
	name    string
	created time.Time
	agents  map[int]*agent
	// unfinished holds the requests that no result ends, by id.
	unfinished map[int64]*request
	// finished holds the ones that ended here, oldest first.
	finished []*request
	history  []historyBlock
}

// historyBlock is a run of finished rows that exist only once they are asked for.
type historyBlock struct {
	first int64
	rows  int
}

func (p *pool) agentByName(name string) *agent {
	for _, a := range p.agents {
		if strings.EqualFold(a.name, name) {
			return a
		}
	}
	return nil
}

func (p *pool) sortedAgents() []*agent {
	return slices.SortedFunc(maps.Values(p.agents), func(a, b *agent) int { return a.id - b.id })
}

func (p *pool) sortedUnfinished() []*request {
	return slices.SortedFunc(maps.Values(p.unfinished), func(a, b *request) int { return int(a.id - b.id) })
}

// agent is a registration.
type agent struct {
	id             int
	pool           *pool
	name           string
	version        string
	osDescription  string
	provisioning   string
	maxParallelism int
	enabled        bool
	created        time.Time
	statusChanged  time.Time

	systemCapabilities map[string]string
	userCapabilities   map[string]string
	// folded are all capabilities by lower-case name, kept for matching.
	folded map[string]string

	clientID         uuid.UUID
	authorizationURL string
	baseURL          string
	publicKey        *rsa.PublicKey
	usedJTI          map[string]time.Time

	session       *session
	assigned      *request
	lastCompleted *request
	// updating is the version of a pending self-update.
	updating string
}

// fold recomputes what demands are matched against. The name and the version
// count as capabilities even where the agent did not publish them.
func (a *agent) fold() {
	folded := map[string]string{
		strings.ToLower(capAgentName):    a.name,
		strings.ToLower(capAgentVersion): a.version,
	}
	for _, capabilities := range []map[string]string{a.userCapabilities, a.systemCapabilities} {
		for _, name := range slices.Sorted(maps.Keys(capabilities)) {
			folded[strings.ToLower(name)] = capabilities[name]
		}
	}
	a.folded = folded
}

func (a *agent) satisfies(demands []demand) bool {
	for _, d := range demands {
		if !d.satisfiedBy(a.folded) {
			return false
		}
	}
	return true
}

// satisfiesButVersion tells whether nothing but the service's own demand for a
// version, which a self-update can meet, keeps the agent from a request.
func (a *agent) satisfiesButVersion(demands []demand) bool {
	for _, d := range demands {
		if !strings.EqualFold(d.name, capAgentVersion) && !d.satisfiedBy(a.folded) {
			return false
		}
	}
	return true
}

// carriesID tells whether the request's id is one of the numbers in the name.
func (a *agent) carriesID(requestID int64) bool {
	want := strconv.FormatInt(requestID, 10)
	numbers := strings.FieldsFunc(a.name, func(r rune) bool { return r < '0' || r > '9' })
	return slices.Contains(numbers, want)
}

func (a *agent) identity() string { return "agent:" + a.name }

// session is a listener's connection. At most one exists per agent.
type session struct {
	id       uuid.UUID
	agent    *agent
	owner    string
	lastPoll time.Time
	polls    int
	messages []*message
	lastID   int64
	// changed is closed and replaced whenever a poll should look again.
	changed chan struct{}
	ended   bool
}

func newSession(a *agent, id uuid.UUID, owner string, now time.Time) *session {
	return &session{id: id, agent: a, owner: owner, lastPoll: now, changed: make(chan struct{})}
}

func (s *session) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *session) send(m *message) {
	s.lastID++
	m.id = s.lastID
	s.messages = append(s.messages, m)
	s.wake()
}

// message waits in a session until it is deleted.
type message struct {
	id        int64
	kind      string
	body      string
	request   *request
	delivered bool
}

// request is a job request with its build.
type request struct {
	id       int64
	pool     *pool
	name     string
	priority int
	demands  []demand
	// demandKey is the demands as one string, to compute matches once a set.
	demandKey string
	steps     []step
	variables map[string]variable
	env       map[string]string

	scopeID, planID, timelineID, jobID uuid.UUID
	jobToken                           string
	runID, definitionID                int
	// baseURL is the address by which its creator knew the service.
	baseURL string

	progress
	message  *message
	cancelBy time.Time
	// reported is the result that the worker's JobCompleted event gave.
	reported string
	records  []*record
	logs     []*buildLog
	feed     []string
	// done is closed when the request has its result.
	done chan struct{}
}

// progress is the part of a request that changes; it is copied to render rows
// without holding the server's mutex.
type progress struct {
	queued, assignedAt, received, finishedAt, lockedUntil time.Time
	// receiveBy is when an assigned request is given up.
	receiveBy time.Time
	result    string
	status    string
	agentID   int
	agentName string
	agentVer  string
}

func (p progress) state() string {
	switch {
	case p.result != "":
		return StateFinished
	case !p.received.IsZero():
		return StateRunning
	case !p.assignedAt.IsZero():
		return StateAssigned
	default:
		return StateQueued
	}
}

// The states of a build.
const (
	StateQueued   = "queued"
	StateAssigned = "assigned"
	StateRunning  = "running"
	StateFinished = "finished"
)

// The results of a build.
const (
	ResultSucceeded           = "succeeded"
	ResultSucceededWithIssues = "succeededWithIssues"
	ResultFailed              = "failed"
	ResultCanceled            = "canceled"
	ResultSkipped             = "skipped"
	ResultAbandoned           = "abandoned"
)

// step is one shell command of a build.
type step struct {
	id     uuid.UUID
	name   string
	script string
}

type variable struct {
	Value    string `json:"value,omitempty"`
	IsSecret bool   `json:"isSecret,omitempty"`
}

// record is what a worker reports of the job or of one step. Its members are
// kept as they came, as later agents send ones this package does not know.
type record struct {
	id      string
	members map[string]json.RawMessage
}

// text returns a member that is a string, or "".
func (r *record) text(member string) string {
	var s string
	if err := json.Unmarshal(r.members[member], &s); err != nil {
		return ""
	}
	return s
}

type buildLog struct {
	id    int
	path  string
	lines int
	text  strings.Builder
}
