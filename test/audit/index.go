package audit

import (
	"cmp"
	"fmt"
	"maps"
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
	assigned  time.Time // Last, and to whom.
	assignee  key
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
	addedBy        string
	added          time.Time
	deleted        time.Time
	disabled       time.Time // First.
	online         time.Time // Its first session.
	lastSession    time.Time
	sessionEnded   time.Time // Deleted by the agent itself.
	sessionExpired time.Time
	requests       []key // That it received, in order, each once.
	touches        []touch
}

// touch is a change of a registration that somebody asked for.
type touch struct {
	at    time.Time
	event string
	by    string
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
	name      string
	instance  string // Which the name tells; empty when it tells none.
	requestID int64  // The same.
	warm      bool   // Made for no request, to wait for one.
	class     string // By its label; empty where the log has no bodies.
	created   time.Time
	deleted   time.Time
	renamed   time.Time // When another Job was given its name, which it no longer had.
}

// made tells whether an agent is the Job's.
func (j *job) made(a *agent) bool { return a.name == j.name && j.at(a.added) }

// at tells whether what was made under the Job's name at a time belongs to it.
func (j *job) at(time time.Time) bool {
	return !time.Before(j.created) && (j.renamed.IsZero() || time.Before(j.renamed))
}

// binding is a RoleBinding that the scaler created for a Job.
type binding struct {
	namespace string
	name      string
	job       string
	created   time.Time
	deleted   time.Time
}

// index is both logs, sorted by what they are about.
type index struct {
	requests map[key]*request
	agents   map[key]*agent
	jobs     map[string]*job // The last one of each name.
	earlier  []*job          // Those whose name was given to another one: a scaler that has been restarted counts anew.
	bindings []*binding
	created  map[objectKey][]string // UIDs known of what the scaler created; empty where the log tells none.
	creators map[objectKey]string   // The user who created it last.
	meddling []KubeEvent            // A scaler's writes on what another one created.
	// unanswered holds the scaler's creations whose outcome the log does not tell.
	// The first successful request about the object shows that it was made.
	unanswered map[objectKey]KubeEvent
	uses       []KubeEvent // Successful requests with the accounts of builds.
	// accountWrites are a scaler's successful writes on ServiceAccounts, tokens included.
	accountWrites []KubeEvent
}

type objectKey struct{ group, resource, namespace, name string }

// jobName is the form in which the scaler names Jobs and agents:
// azp-<instance>-<pool>-<request>-<attempt>. Warm ones have request 0.
var jobName = regexp.MustCompile(`^azp-([a-z0-9]{8})-\d+-(\d+)-\d+$`)

// parseName gives the instance that a Job or agent belongs to and the request it
// was made for.
func parseName(name string) (instance string, request int64, ok bool) {
	match := jobName.FindStringSubmatch(name)
	if match == nil {
		return "", 0, false
	}
	id, err := strconv.ParseInt(match[2], 10, 64)
	return match[1], id, err == nil
}

func buildIndex(in Input, rules Rules) *index {
	ix := &index{
		requests: map[key]*request{}, agents: map[key]*agent{}, jobs: map[string]*job{}, created: map[objectKey][]string{},
		creators: map[objectKey]string{}, unanswered: map[objectKey]KubeEvent{},
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
	case eventAgentReplaced, eventAgentUpdated, eventAgentDisabled, eventAgentEnabled, eventDeleteRefused:
		ix.addTouch(event)
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
	case eventAssigned:
		r.assigned, r.assignee = event.Time, ix.agent(event).key
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
		a.added, a.addedBy = event.Time, event.By
	case eventAgentDeleted:
		a.deleted = event.Time
		ix.addTouch(event)
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

func (ix *index) addTouch(event ServiceEvent) {
	a := ix.agent(event)
	a.touches = append(a.touches, touch{at: event.Time, event: event.Event, by: event.By})
	if event.Event == eventAgentDisabled && a.disabled.IsZero() {
		a.disabled = event.Time
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
	if byScaler && event.changed() && ix.createdByOther(k, event.User) {
		ix.meddling = append(ix.meddling, event)
	}
	if byScaler && event.Resource == "serviceaccounts" && event.Succeeded() && !event.DryRun && !slices.Contains([]string{"get", "list", "watch"}, event.Verb) {
		ix.accountWrites = append(ix.accountWrites, event)
	}
	if event.Verb == "delete" && event.changed() {
		ix.addDeletion(event)
	}
	if account, found := strings.CutPrefix(event.User, "system:serviceaccount:"); found && event.Succeeded() && event.Namespace != "" && !isVirtual(event.Group) {
		if _, name, _ := strings.Cut(account, ":"); jobName.MatchString(name) {
			ix.uses = append(ix.uses, event)
		}
	}
}

// createdByOther tells whether an object, or the Job that a pod belongs to, was
// created by another user of the scaler's.
func (ix *index) createdByOther(k objectKey, user string) bool {
	if k.resource == "pods" {
		if cut := strings.LastIndex(k.name, "-"); cut > 0 {
			k = objectKey{"batch", "jobs", k.namespace, k.name[:cut]}
		}
	}
	creator, known := ix.creators[k]
	return known && creator != user
}

func (ix *index) addDeletion(event KubeEvent) {
	switch event.Resource {
	case "rolebindings":
		for _, b := range ix.bindings {
			if b.namespace == event.Namespace && b.name == event.Name && b.deleted.IsZero() {
				b.deleted = event.Done
			}
		}
	case "jobs":
		if made, found := ix.jobs[event.Name]; found && made.deleted.IsZero() {
			made.deleted = event.Done
		}
	}
}

func (ix *index) addCreation(event KubeEvent) {
	k := objectKey{event.Group, event.Resource, event.Namespace, event.Name}
	ix.created[k] = append(ix.created[k], event.UID)
	ix.creators[k] = event.User
	switch {
	case event.Group == "batch" && event.Resource == "jobs":
		made := &job{name: event.Name, created: event.Done, class: event.Labels[classLabel]}
		var named bool
		made.instance, made.requestID, named = parseName(event.Name)
		made.warm = named && made.requestID == 0
		if before, again := ix.jobs[event.Name]; again {
			before.renamed = made.created
			ix.earlier = append(ix.earlier, before)
		}
		ix.jobs[event.Name] = made
	case event.Resource == "rolebindings":
		ix.bindings = append(ix.bindings, &binding{namespace: event.Namespace, name: event.Name, job: jobOfBinding(event.Name), created: event.Done})
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

// allJobs gives every Job, those included whose name another one has now.
func (ix *index) allJobs() []*job {
	return slices.AppendSeq(slices.Clone(ix.earlier), maps.Values(ix.jobs))
}

// jobOf gives the Job that an agent is of, nil where the log has none.
func (ix *index) jobOf(a *agent) *job {
	for _, before := range ix.earlier {
		if before.made(a) {
			return before
		}
	}
	return ix.jobs[a.name]
}

// agentOf gives the agent of the Job of that name to which something made at a time
// belongs: the first, as what is left of it may be found under its name once more.
func (ix *index) agentOf(name string, at time.Time) *agent {
	named := slices.DeleteFunc(append(slices.Clone(ix.earlier), ix.jobs[name]), func(made *job) bool { return made == nil || made.name != name })
	for _, made := range named {
		if len(named) > 1 && !made.at(at) {
			continue
		}
		for _, a := range ix.sortedAgents() {
			if a.name == name && (a.added.IsZero() || ix.jobOf(a) == made) {
				return a
			}
		}
	}
	return nil
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
