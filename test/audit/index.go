package audit

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// key names a request or an agent: numbers are only unique within a pool.
type key struct {
	pool PoolRef
	id   int64
}

// request is the life of one job request as the service logged it.
type request struct {
	key       key
	queued    time.Time
	received  time.Time // By the first agent.
	canceled  time.Time
	finished  time.Time
	abandoned time.Time
	noAgent   time.Time
	result    string
	detail    string
	agents    []key // That received it, in order, each once.
}

// agent is the life of one registration.
type agent struct {
	key            key
	name           string
	added          time.Time
	deleted        time.Time
	online         time.Time // Its first session.
	lastSession    time.Time
	sessionEnded   time.Time // Deleted by the agent itself.
	sessionExpired time.Time
	requests       []key // That it received, in order, each once.
}

// ended is when the agent's program had certainly come to its end: it closed
// its last session, or its registration went. Zero means unknown.
func (a *agent) ended() time.Time {
	if !a.sessionEnded.IsZero() && !a.sessionEnded.Before(a.lastSession) {
		return a.sessionEnded
	}
	if !a.deleted.IsZero() {
		return a.deleted
	}
	return a.sessionExpired
}

// job is a Kubernetes Job that the scaler created.
type job struct {
	created   time.Time
	requestID int64 // 0 when the name tells none.
}

// binding is a RoleBinding that the scaler created for a Job.
type binding struct {
	namespace string
	name      string
	job       string
	deleted   time.Time
}

// index is both logs, sorted by what they are about.
type index struct {
	requests map[key]*request
	agents   map[key]*agent
	jobs     map[string]*job
	bindings []*binding
	created  map[objectKey][]string // UIDs known of what the scaler created; empty where the log tells none.
	// unanswered holds the scaler's creations whose outcome the log does not tell.
	// The first successful request about the object shows that it was made.
	unanswered map[objectKey]KubeEvent
	uses       []KubeEvent // Successful requests with the accounts of builds.
}

type objectKey struct{ group, resource, namespace, name string }

// jobName is the form in which the scaler names Jobs and agents:
// azp-<instance>-<pool>-<request>-<attempt>.
var jobName = regexp.MustCompile(`^azp-[a-z0-9]{8}-\d+-(\d+)-\d+$`)

// requestOf gives the request a Job was made for.
func requestOf(name string) (int64, bool) {
	match := jobName.FindStringSubmatch(name)
	if match == nil {
		return 0, false
	}
	id, err := strconv.ParseInt(match[1], 10, 64)
	return id, err == nil
}

func buildIndex(in Input, rules Rules) *index {
	ix := &index{
		requests: map[key]*request{}, agents: map[key]*agent{}, jobs: map[string]*job{}, created: map[objectKey][]string{},
		unanswered: map[objectKey]KubeEvent{},
	}
	for _, event := range in.Service {
		ix.addService(event)
	}
	for _, event := range in.Kube {
		ix.addKube(event, rules)
	}
	return ix
}

func (ix *index) addService(event ServiceEvent) {
	switch event.Event {
	case eventQueued, eventAssigned, eventReceived, eventFinished, eventCanceled, eventAbandoned, eventNoAgent:
		ix.addRequestEvent(event)
	case eventAgentAdded, eventAgentDeleted, eventSessionCreated, eventSessionDeleted, eventSessionExpired:
		ix.addAgentEvent(event)
	}
}

func (ix *index) request(event ServiceEvent) *request {
	k := key{event.Pool, event.RequestID}
	r, found := ix.requests[k]
	if !found {
		r = &request{key: k}
		ix.requests[k] = r
	}
	return r
}

func (ix *index) agent(event ServiceEvent) *agent {
	k := key{event.Pool, event.AgentID}
	a, found := ix.agents[k]
	if !found {
		a = &agent{key: k}
		ix.agents[k] = a
	}
	if event.AgentName != "" {
		a.name = event.AgentName
	}
	return a
}

func (ix *index) addRequestEvent(event ServiceEvent) {
	r := ix.request(event)
	switch event.Event {
	case eventQueued:
		r.queued = event.Time
	case eventReceived:
		if r.received.IsZero() {
			r.received = event.Time
		}
		a := ix.agent(event)
		if !slices.Contains(r.agents, a.key) {
			r.agents = append(r.agents, a.key)
		}
		if !slices.Contains(a.requests, r.key) {
			a.requests = append(a.requests, r.key)
		}
	case eventFinished:
		r.finished, r.result, r.detail = event.Time, event.Result, event.Detail
	case eventCanceled:
		r.canceled = event.Time
	case eventAbandoned:
		r.abandoned, r.detail = event.Time, event.Detail
	case eventNoAgent:
		r.noAgent, r.detail = event.Time, event.Detail
	}
}

func (ix *index) addAgentEvent(event ServiceEvent) {
	a := ix.agent(event)
	switch event.Event {
	case eventAgentAdded:
		a.added = event.Time
	case eventAgentDeleted:
		a.deleted = event.Time
	case eventSessionCreated:
		if a.online.IsZero() {
			a.online = event.Time
		}
		a.lastSession = event.Time
	case eventSessionDeleted:
		a.sessionEnded = event.Time
	case eventSessionExpired:
		a.sessionExpired = event.Time
	}
}

func (ix *index) addKube(event KubeEvent, rules Rules) {
	k := objectKey{event.Group, event.Resource, event.Namespace, event.Name}
	byScaler := slices.Contains(rules.ScalerUsers, event.User) && !isVirtual(event.Group) && !isEvents(event.Group, event.Resource)
	switch {
	case byScaler && event.created():
		// Had an earlier one without an answer been carried out, the name were taken.
		delete(ix.unanswered, k)
		ix.addCreation(event)
	case byScaler && event.mayHaveCreated():
		ix.unanswered[k] = event
	case event.Succeeded() && event.Name != "":
		if creation, open := ix.unanswered[k]; open {
			delete(ix.unanswered, k)
			ix.addCreation(creation)
		}
	}
	if event.Verb == "delete" && event.Succeeded() && event.Subresource == "" && !event.DryRun && event.Resource == "rolebindings" {
		for _, b := range ix.bindings {
			if b.namespace == event.Namespace && b.name == event.Name && b.deleted.IsZero() {
				b.deleted = event.Done
			}
		}
	}
	if account, found := strings.CutPrefix(event.User, "system:serviceaccount:"); found && event.Succeeded() && event.Namespace != "" && !isVirtual(event.Group) {
		if _, name, _ := strings.Cut(account, ":"); jobName.MatchString(name) {
			ix.uses = append(ix.uses, event)
		}
	}
}

func (ix *index) addCreation(event KubeEvent) {
	k := objectKey{event.Group, event.Resource, event.Namespace, event.Name}
	ix.created[k] = append(ix.created[k], event.UID)
	switch {
	case event.Group == "batch" && event.Resource == "jobs":
		made := &job{created: event.Done}
		made.requestID, _ = requestOf(event.Name)
		ix.jobs[event.Name] = made
	case event.Resource == "rolebindings":
		ix.bindings = append(ix.bindings, &binding{namespace: event.Namespace, name: event.Name, job: jobOfBinding(event.Name)})
	}
}

// jobOfBinding gives the Job that a RoleBinding belongs to: the first one in a
// namespace is named like the Job, further ones carry a number behind it.
func jobOfBinding(name string) string {
	if cut := strings.LastIndex(name, "-"); cut > 0 && !jobName.MatchString(name) && jobName.MatchString(name[:cut]) {
		return name[:cut]
	}
	return name
}

// isVirtual tells the groups whose objects are questions and are never stored.
func isVirtual(group string) bool {
	return group == "authorization.k8s.io" || group == "authentication.k8s.io"
}

// ours tells whether an agent is one that the scaler's Jobs brought up.
func (ix *index) ours(a *agent) bool {
	_, made := ix.jobs[a.name]
	return made || jobName.MatchString(a.name)
}

func (ix *index) sortedRequests() []*request {
	out := make([]*request, 0, len(ix.requests))
	for _, r := range ix.requests {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *request) int { return compareKeys(a.key, b.key) })
	return out
}

func (ix *index) sortedAgents() []*agent {
	out := make([]*agent, 0, len(ix.agents))
	for _, a := range ix.agents {
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b *agent) int { return compareKeys(a.key, b.key) })
	return out
}

func compareKeys(a, b key) int {
	return cmp.Or(cmp.Compare(a.pool, b.pool), cmp.Compare(a.id, b.id))
}

func (a *agent) String() string {
	return fmt.Sprintf("agent %d %s (pool %s)", a.key.id, a.name, a.key.pool)
}

func (r *request) String() string { return fmt.Sprintf("request %d (pool %s)", r.key.id, r.key.pool) }
