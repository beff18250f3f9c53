package scaler

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// memory is what the loop knows beyond its caches: its own writes that they do
// not show yet, and what need not be done or counted a second time.
type memory struct {
	mu sync.Mutex
	// assumed holds Jobs that were made and have not been seen, by UID.
	assumed map[string]assumption
	// ending holds Jobs that were deleted and may still be seen, by UID.
	ending map[string]time.Time
	// disabled holds the names of agents that get no further build, and givenUp those
	// that are to end and may get one yet.
	disabled map[string]bool
	givenUp  map[string]bool
	// reserved holds the names of agents that a request has named. One that gets its build
	// before its first readiness probe shows in no other way that it has one.
	reserved map[string]bool
	// withdrawn holds the names of agents that we took out of the pool while they waited.
	withdrawn map[string]bool
	// lost is since when an agent that should wait for a build, or whose pod is being
	// deleted, has been seen neither registered nor online, by name. gone holds the names
	// of those of deleted pods for which that has been so for too long.
	lost map[string]time.Time
	gone map[string]bool
	// rightless holds the UIDs of Jobs whose rights have been ended.
	rightless map[string]bool
	// deregistered holds the UIDs of Jobs whose agents the scaler has registered and has
	// taken out of the pool again.
	deregistered map[string]bool
	// abandoned holds the UIDs of Jobs that an earlier life of this scaler left without the
	// agent that it was to register.
	abandoned map[string]bool
	// unsuspended holds the numbers that the agents of the Jobs have which were let run, by UID.
	unsuspended map[string]int
	// attempts and failures outlive the Jobs that they come from.
	attempts map[int64]int
	failures map[cause]plan.Failure
	// registered is what agents were found to have registered with, by name; offers is
	// the same of the last one looked at of each version of a class.
	registered map[string]agentpool.Capabilities
	offers     map[plan.ClassVersion]offer
	// spareSince is since when agents have been beyond need, by UID of their Jobs.
	spareSince map[string]time.Time
	// seen is what has been counted of a Job, by UID.
	seen map[string]sighting
	// verdicts tells of agents without a build whether each was one too many, by UID.
	verdicts map[string]bool
	// orphans is when a registration without a Job was first met, by name.
	orphans map[string]time.Time
	// foreign is an agent of somebody else in the pool.
	foreign agentpool.AgentRef
}

// cause is what failures are counted for: one request in one class.
type cause struct {
	request int64
	class   string
}

type assumption struct {
	job   agentpool.AgentJob
	since time.Time
}

// offer is what agents of a kind were found to offer, and when.
type offer struct {
	capabilities agentpool.Capabilities
	at           time.Time
}

// offerAge is how long a kind of which no Job is left is taken to offer what it did.
// After that it is taken at its word again, as its image may have been mended.
const offerAge = time.Hour

// endingAge is how long a Job that was deleted is remembered. One that was never seen
// may still come up in a cache that is late, and count as there until it goes again.
const endingAge = 10 * time.Minute

type sighting struct{ started, finished bool }

func newMemory() *memory {
	return &memory{
		assumed: map[string]assumption{}, ending: map[string]time.Time{}, disabled: map[string]bool{},
		givenUp: map[string]bool{}, reserved: map[string]bool{}, withdrawn: map[string]bool{}, lost: map[string]time.Time{}, gone: map[string]bool{}, rightless: map[string]bool{}, attempts: map[int64]int{}, failures: map[cause]plan.Failure{},
		registered: map[string]agentpool.Capabilities{}, offers: map[plan.ClassVersion]offer{},
		spareSince: map[string]time.Time{}, deregistered: map[string]bool{}, abandoned: map[string]bool{},
		unsuspended: map[string]int{}, seen: map[string]sighting{}, orphans: map[string]time.Time{},
	}
}

// seed takes what is there at the start as counted already. Registrations of Jobs that have
// ended were taken back by an earlier life, unless the list of agents shows otherwise.
func (m *memory) seed(jobs []agentpool.AgentJob) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, job := range jobs {
		m.seen[job.UID] = sighting{started: hasStarted(job), finished: job.Finished()}
		if job.Finished() {
			m.deregistered[job.UID] = true
		}
		if job.Suspended && job.Unregistered() {
			m.abandoned[job.UID] = true
		}
	}
}

// assume records a Job that was just made.
func (m *memory) assume(job agentpool.AgentJob, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.assumed[job.UID] = assumption{job: job, since: now}
	if !job.Suspended {
		m.unsuspended[job.UID] = job.AgentID
	}
	m.attempts[job.RequestID] = max(m.attempts[job.RequestID], job.Attempt)
}

// used records the name of a Job that was made and is gone: the next one has another.
func (m *memory) used(job agentpool.AgentJob) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.attempts[job.RequestID] = max(m.attempts[job.RequestID], job.Attempt)
}

// merge adds to the seen Jobs those that were made and are not seen yet, and
// marks those that were deleted and are still seen. It returns how long the
// oldest unseen write has been unseen.
func (m *memory) merge(seen []agentpool.AgentJob, now time.Time) (jobs []agentpool.AgentJob, unseen time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	present := map[string]bool{}
	for _, job := range seen {
		job = m.recall(job)
		present[job.UID] = true
		if _, ended := m.ending[job.UID]; ended {
			job.Deleting = true
		}
		jobs = append(jobs, job)
		delete(m.assumed, job.UID)
	}
	for uid, at := range m.ending {
		if !present[uid] && now.Sub(at) >= endingAge {
			delete(m.ending, uid)
		}
	}
	for _, assumed := range m.assumed {
		jobs = append(jobs, assumed.job)
		unseen = max(unseen, now.Sub(assumed.since))
	}
	return jobs, unseen
}

// settle checks the assumptions against a live list that was asked for at the
// given time: a Job made before then that is not in it is gone. One that is in it
// stays assumed, as the cache still does not show it. It returns the list with
// the deleted ones marked.
func (m *memory) settle(live []agentpool.AgentJob, asked time.Time) []agentpool.AgentJob {
	m.mu.Lock()
	defer m.mu.Unlock()
	present := map[string]bool{}
	jobs := make([]agentpool.AgentJob, 0, len(live))
	for _, job := range live {
		job = m.recall(job)
		present[job.UID] = true
		if _, ended := m.ending[job.UID]; ended {
			job.Deleting = true
		}
		jobs = append(jobs, job)
	}
	for uid, assumed := range m.assumed {
		if !present[uid] && assumed.since.Before(asked) {
			delete(m.assumed, uid)
		}
	}
	return jobs
}

// end records that a Job was deleted.
func (m *memory) end(job agentpool.AgentJob, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ending[job.UID] = now
	delete(m.assumed, job.UID)
	delete(m.lost, job.Name)
	delete(m.gone, job.Name)
}

// fail records a failure that no Job will show.
func (m *memory) fail(requestID int64, class string, before int, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	why := cause{request: requestID, class: class}
	count := max(before, m.failures[why].Count) + 1
	m.failures[why] = plan.Failure{RequestID: requestID, Class: class, Count: count, At: now}
}

func (m *memory) setDisabled(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.disabled[name] = true
}

func (m *memory) isDisabled(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.disabled[name]
}

// giveUp has plans no longer count on an agent.
func (m *memory) giveUp(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.givenUp[name] = true
}

// uncounted gives the names of the agents that no plan is to count on.
func (m *memory) uncounted() map[string]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := maps.Clone(m.disabled)
	maps.Copy(names, m.givenUp)
	return names
}

func (m *memory) setRightless(uid string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rightless[uid] = true
}

func (m *memory) isRightless(uid string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rightless[uid]
}

// spare records which agents are beyond need now; of those that were before it keeps since
// when.
func (m *memory) spare(uids []string, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	since := make(map[string]time.Time, len(uids))
	for _, uid := range uids {
		since[uid] = now
		if before, was := m.spareSince[uid]; was {
			since[uid] = before
		}
	}
	m.spareSince = since
}

// stillRegistered has the agents of Jobs that have ended taken out of the pool which are in its
// list all the same. A list that is older than that costs one call in vain.
func (m *memory) stillRegistered(jobs []agentpool.AgentJob, agents []agentpool.Agent) {
	listed := make(map[string]bool, len(agents))
	for _, agent := range agents {
		listed[agent.Name] = true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, job := range jobs {
		if listed[job.Name] {
			delete(m.deregistered, job.UID)
		}
	}
}

func (m *memory) isDeregistered(uid string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.deregistered[uid]
}

func (m *memory) setDeregistered(uid string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.deregistered[uid] = true
}

// sight records what a Job has come to and tells which of it is news.
func (m *memory) sight(job agentpool.AgentJob) (started, finished bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.seen[job.UID]
	after := sighting{
		started:  before.started || hasStarted(job),
		finished: before.finished || job.Finished(),
	}
	m.seen[job.UID] = after
	return after.started && !before.started, after.finished && !before.finished
}

// hasStarted reports whether the Job's agent has ever waited for a build.
func hasStarted(job agentpool.AgentJob) bool { return job.Started || job.RanBuild }

// remind adds to a snapshot what is remembered, as copies.
func (m *memory) remind(snapshot *plan.Snapshot) {
	m.mu.Lock()
	defer m.mu.Unlock()
	snapshot.Attempts = maps.Clone(m.attempts)
	snapshot.SpareSince = maps.Clone(m.spareSince)
	snapshot.Abandoned = maps.Clone(m.abandoned)
	snapshot.Lost = maps.Clone(m.gone)
	snapshot.Failures = slices.Collect(maps.Values(m.failures))
	snapshot.Registered = maps.Clone(m.registered)
	snapshot.Offers = make(map[plan.ClassVersion]agentpool.Capabilities, len(m.offers))
	for version, offer := range m.offers {
		snapshot.Offers[version] = offer.capabilities
	}
}

// learn takes over from the agents list which agents are disabled, and whether
// somebody else has one in the pool. No new agent is to have the name of a disabled one whose
// Job is gone, as an earlier life of this scaler may have left it: it would count as disabled.
// The names of the others stay free, as two that lead at once make no second Job of one name.
func (m *memory) learn(agents []agentpool.Agent, config Config) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.foreign = agentpool.AgentRef{}
	for _, agent := range agents {
		switch {
		case !config.ours(agent.Name):
			m.foreign = agentpool.AgentRef{ID: agent.ID, Name: agent.Name}
		case !agent.Enabled:
			m.disabled[agent.Name] = true
			if pool, request, attempt, ok := agentjob.ParseJobName(config.Instance, agent.Name); ok && pool == config.Pool.ID {
				m.attempts[request] = max(m.attempts[request], attempt)
			}
		}
	}
}

// somebodyElse is an agent in the pool that is not ours, zero where there is none.
func (m *memory) somebodyElse() agentpool.AgentRef {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.foreign
}

// inspected records what an agent has registered with. It is also what agents of its
// kind are taken to offer from now on.
func (m *memory) inspected(job agentpool.AgentJob, offered agentpool.Capabilities, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.registered[job.Name] = offered
	ofKind := maps.Clone(offered)
	maps.DeleteFunc(ofKind, func(name, _ string) bool { return agentpool.VariesByAgent(name) })
	m.offers[plan.ClassVersion{Class: job.Class, Version: job.ClassVersion}] = offer{capabilities: ofKind, at: now}
}

// orphaned tells how long a registration has been known to have no Job.
func (m *memory) orphaned(name string, now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return met(m.orphans, name, now)
}

// removed forgets a registration that is not there any more.
func (m *memory) removed(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.orphans, name)
}

// met tells how long ago something was first met, and records that.
func met(first map[string]time.Time, name string, now time.Time) time.Duration {
	at, known := first[name]
	if !known {
		first[name] = now
		return 0
	}
	return now.Sub(at)
}

// forget drops what concerns neither a present Job, nor a present request, nor a
// present registration.
func (m *memory) forget(jobs []agentpool.AgentJob, requests []agentpool.JobRequest, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	uids, names := map[string]bool{}, map[string]bool{}
	ids := map[int64]bool{agentpool.WarmRequest: true}
	versions := map[plan.ClassVersion]bool{}
	for _, job := range jobs {
		uids[job.UID], names[job.Name], ids[job.RequestID] = true, true, true
		versions[plan.ClassVersion{Class: job.Class, Version: job.ClassVersion}] = true
		// An agent made for no request that has come up makes good the failures of those
		// before it.
		why := cause{request: agentpool.WarmRequest, class: job.Class}
		if f, failed := m.failures[why]; failed && hasStarted(job) && job.CreatedAt.After(f.At) {
			delete(m.failures, why)
		}
	}
	for _, request := range requests {
		ids[request.ID] = true
	}
	drop(m.rightless, uids)
	drop(m.deregistered, uids)
	drop(m.abandoned, uids)
	maps.DeleteFunc(m.unsuspended, func(uid string, _ int) bool {
		_, unseen := m.assumed[uid]
		return !uids[uid] && !unseen
	})
	drop(m.seen, uids)
	drop(m.disabled, names)
	drop(m.givenUp, names)
	drop(m.reserved, names)
	drop(m.withdrawn, names)
	drop(m.lost, names)
	drop(m.gone, names)
	drop(m.attempts, ids)
	drop(m.registered, names)
	maps.DeleteFunc(m.offers, func(version plan.ClassVersion, offer offer) bool {
		return !versions[version] && now.Sub(offer.at) >= offerAge
	})
	for why := range m.failures {
		if !ids[why.request] {
			delete(m.failures, why)
		}
	}
}

// forgetOrphans drops the first sightings of registrations that are no orphans
// any more.
func (m *memory) forgetOrphans(still func(name string) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.orphans, func(name string, _ time.Time) bool { return !still(name) })
}

func drop[K comparable, V any](from map[K]V, keep map[K]bool) {
	for key := range from {
		if !keep[key] {
			delete(from, key)
		}
	}
}
