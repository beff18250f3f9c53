package simulate

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// lockLasts is the longest that a build whose agent is gone keeps it occupied.
const lockLasts = 5 * time.Minute

func itoa(n int) string { return strconv.Itoa(n) }

// register puts an agent into the pool. The caller holds the lock.
func (w *world) register(name, uid, by string, offered agentpool.Capabilities) *agent {
	w.lastAgent++
	a := &agent{Agent: agentpool.Agent{ID: w.lastAgent, Name: name, Enabled: true, Capabilities: maps.Clone(offered)}, uid: uid}
	w.agents[name] = a
	w.record(a.event(Registered, by))
	return a
}

// event is something that happens to a registration.
func (a *agent) event(kind Kind, by string) Event {
	return Event{Kind: kind, By: by, Job: a.Name, UID: a.uid, Agent: a.ID}
}

// agentOf gives the registration that is there for a Job, and not for an earlier one of its
// name. The caller holds the lock.
func (w *world) agentOf(j *job) *agent {
	if a := w.agents[j.Name]; a != nil && a.uid == j.UID {
		return a
	}
	return nil
}

// configure is what a pod does that registers its agent by itself. It removes one of the same
// name that is not online, unless the service refuses that. The caller holds the lock.
func (w *world) configure(j *job) (done bool) {
	if a := w.agents[j.Name]; a != nil {
		if build := w.requests[a.AssignedRequest]; a.Online || build != nil && build.State() == agentpool.RequestRunning {
			return false
		}
		w.deregister(a, "pod")
	}
	w.register(j.Name, j.UID, "pod", j.Capabilities)
	return true
}

func (w *world) agentNames() []string { return slices.Sorted(maps.Keys(w.agents)) }

func (w *world) requestIDs() []int64 { return slices.Sorted(maps.Keys(w.requests)) }

// The caller of each of these holds the lock.

func (w *world) disable(name string, id int, by string) {
	if a := w.agents[name]; a != nil && a.ID == id && a.Enabled {
		a.Enabled = false
		w.record(a.event(Disabled, by))
	}
}

func (w *world) setOnline(a *agent, online bool) {
	if a.Online == online || w.agents[a.Name] != a {
		return
	}
	a.Online = online
	kind := Offline
	if online {
		kind = Online
	}
	w.record(a.event(kind, "service"))
}

// deregister removes an agent from the pool. One that is online hears of it after a while.
func (w *world) deregister(a *agent, by string) {
	if w.agents[a.Name] != a {
		return
	}
	delete(w.agents, a.Name)
	w.record(a.event(Deregistered, by))
	if j := a.job; j != nil && !j.over && by != "pod" {
		w.fail(j, agentpool.ReasonCrashed, 1+w.dice("notice", j.UID).mostly(time.Minute))
	}
}

// free tells whether the service would give the agent a build.
func (a *agent) free() bool { return a.Enabled && a.Online && a.AssignedRequest == 0 }

// enqueue queues a build, which the service gives to an agent sooner or later, and which
// somebody may cancel.
func (w *world) enqueue(demands []agentpool.Demand, priority int) *request {
	w.lastRequest++
	id := w.lastRequest
	build := &request{stop: make(chan struct{}), JobRequest: agentpool.JobRequest{
		ID: id, PoolID: poolID, QueueTime: time.Now(), Demands: demands, Priority: priority,
	}}
	w.requests[id] = build
	w.record(Event{Kind: Queued, By: "people", Request: id, Demands: demands})
	if isForeign(demands) {
		build.Matched = []agentpool.AgentRef{{ID: 1 << 20, Name: foreign}}
		return build
	}
	go w.assignSoon(build)
	if d := w.dice("cancel", strconv.FormatInt(id, 10)); d.oneIn(4) {
		w.later(1+d.mostly(5*time.Minute), func() { w.cancel(build) })
	}
	return build
}

func (w *world) cancel(build *request) {
	switch {
	case w.requests[build.ID] != build:
	case build.State() == agentpool.RequestQueued:
		delete(w.requests, build.ID)
		w.record(Event{Kind: Cancelled, By: "people", Request: build.ID})
	default:
		w.record(Event{Kind: Stopped, By: "people", Request: build.ID})
		close(build.stop)
	}
}

// assignSoon gives a request to an agent as soon as the service comes to it.
func (w *world) assignSoon(build *request) {
	d := w.dice("assign", strconv.FormatInt(build.ID, 10))
	time.Sleep(1 + d.mostly(20*time.Second))
	for !w.assignNow(build, d) {
		time.Sleep(1 + d.upTo(2*time.Second))
	}
}

func (w *world) assignNow(build *request, d dice) (over bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.requests[build.ID] != build || build.State() != agentpool.RequestQueued {
		return true
	}
	if w.setup.Parallel > 0 && w.underWay() >= w.setup.Parallel {
		return false
	}
	if a := w.leastConvenient(build, d); a != nil {
		w.assign(build, a)
		return true
	}
	return false
}

func (w *world) underWay() (n int) {
	for _, build := range w.requests {
		if build.UnderWay() {
			n++
		}
	}
	return n
}

// leastConvenient picks an agent as the stand-in for the service does: not the one that
// was made for the request, and the one with the most capabilities.
func (w *world) leastConvenient(build *request, d dice) *agent {
	var able []*agent
	for _, name := range w.agentNames() {
		a := w.agents[name]
		if _, lacks := a.Capabilities.Missing(build.Demands); !lacks && a.free() {
			able = append(able, a)
		}
	}
	if len(able) == 0 {
		return nil
	}
	d.Shuffle(len(able), func(i, j int) { able[i], able[j] = able[j], able[i] })
	rank := func(a *agent) (int, int) {
		if a.job != nil && a.job.RequestID == build.ID {
			return 0, 0
		}
		return 1, len(a.Capabilities)
	}
	return slices.MaxFunc(able, func(a, b *agent) int {
		ownA, offersA := rank(a)
		ownB, offersB := rank(b)
		return cmp.Or(cmp.Compare(ownA, ownB), cmp.Compare(offersA, offersB))
	})
}

// assign gives a request to an agent.
func (w *world) assign(build *request, a *agent) {
	build.AssignTime, build.Reserved = time.Now(), agentpool.AgentRef{ID: a.ID, Name: a.Name}
	a.AssignedRequest = build.ID
	event := a.event(Assigned, "service")
	event.Request = build.ID
	w.record(event)
	if j := a.job; j.exiting {
		// It never takes it up. Its end shows that, unless that was before.
		if j.exited {
			w.lapse(build, a, w.dice("second", j.UID))
		}
		return
	}
	go w.build(build, a)
}

// build is the build of a request on an agent, and the end of both.
func (w *world) build(build *request, a *agent) {
	j := a.job
	d := w.dice("build", strconv.FormatInt(build.ID, 10))
	if !j.works(1+d.upTo(1500*time.Millisecond), nil) {
		w.lapse(build, a, d)
		return
	}
	w.with(func() { build.ReceiveTime = time.Now() })
	w.later(1+d.upTo(time.Second), func() {
		if j.over {
			return
		}
		w.record(Event{Kind: Claimed, By: "cluster", Job: j.Name, UID: j.UID})
		w.change(j, func(shown *agentpool.AgentJob) { shown.Ready, shown.RanBuild = false, true })
	})
	long := pick(d, 200*time.Millisecond, 5*time.Second, time.Minute, 4*time.Minute)
	lasts := 100*time.Millisecond + d.upTo(long)
	if d.oneIn(8) && read(w, func() bool { return w.fails(w.setup.Faults.Crashes) }) {
		noticed := 1 + d.upTo(5*time.Second)
		w.later(1+d.upTo(lasts), func() {
			if !j.over && !j.exiting {
				w.kill(j, agentpool.ReasonOutOfMemory)
				w.give(j, agentpool.ReasonOutOfMemory, noticed)
			}
		})
	}
	if !j.works(lasts, build.stop) {
		w.lapse(build, a, d)
		return
	}
	w.with(func() { w.finish(build, a, d) })
	time.Sleep(1 + d.upTo(time.Second))
	w.with(func() { w.exit(j) })
}

// works reports whether the agent's container lasts for the time, or until it is told to
// stop.
func (j *job) works(d time.Duration, stop <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-stop:
		return true
	case <-j.cut:
		return false
	}
}

// lapse is the end of a build whose agent is gone: its lock lapses, and until then it
// keeps the registration occupied.
func (w *world) lapse(build *request, a *agent, d dice) {
	w.later(time.Minute+d.upTo(lockLasts-time.Minute), func() { w.conclude(build, a, "abandoned") })
}

// conclude ends a request.
func (w *world) conclude(build *request, a *agent, result string) {
	delete(w.requests, build.ID)
	if a.AssignedRequest == build.ID {
		a.AssignedRequest = 0
	}
	event := a.event(Finished, "service")
	event.Request, event.Text = build.ID, result
	w.record(event)
}

// finish ends a build. From now on until its end the agent may be given another, unless it
// is disabled.
func (w *world) finish(build *request, a *agent, d dice) {
	if a.job.over {
		w.lapse(build, a, d)
		return
	}
	w.conclude(build, a, "done")
	a.job.exiting = true
	second := w.setup.Faults.Second
	w.setOnline(a, second)
	if !second || !a.free() || w.calm {
		return
	}
	for _, id := range w.requestIDs() {
		next := w.requests[id]
		_, lacks := a.Capabilities.Missing(next.Demands)
		if next.State() == agentpool.RequestQueued && !lacks && d.oneIn(2) {
			w.assign(next, a)
			return
		}
	}
}

// exit is the end of an agent after its build. What it was given since is lost with it.
func (w *world) exit(j *job) {
	j.exited = true
	a := w.agentOf(j)
	var second *request
	if a != nil {
		second = w.requests[a.AssignedRequest]
	}
	if j.over {
		if second != nil {
			w.lapse(second, a, w.dice("second", j.UID))
		}
		return
	}
	j.over = true
	if second != nil {
		w.conclude(second, a, "lost")
	}
	if a != nil {
		w.setOnline(a, false)
	}
	w.record(Event{Kind: Ended, By: "pod", Job: j.Name, UID: j.UID, Text: "built"})
	w.change(j, func(shown *agentpool.AgentJob) {
		shown.Started, shown.Ready, shown.RanBuild, shown.Ended = true, false, true, time.Now()
	})
	w.sidecar(j)
	w.later(1+w.dice("done", j.UID).upTo(3*time.Second), func() {
		w.change(j, func(shown *agentpool.AgentJob) { shown.JobDone = true })
	})
	w.expire(j)
}

// tempt lets an agent be claimed, or start, just while a loop is about something with it;
// without a name, any that is free.
func (r *replica) tempt(ctx context.Context, name string) {
	w := r.world
	if r.stopped(ctx) != nil {
		return
	}
	d := w.dice(r.name+" tempts", name)
	if !d.oneIn(2) {
		return
	}
	w.later(1+d.mostly(3*w.setup.Latency), func() {
		if !w.queues || w.tempted >= w.setup.Tempting {
			return
		}
		a := w.agents[name]
		if name == "" {
			a = w.anyFree(d)
		}
		if j := w.jobs[name]; j != nil && !j.begun && !j.hurried {
			j.hurried = true
			close(j.hurry)
			return
		}
		if a == nil || !a.free() || w.setup.Parallel > 0 && w.underWay() >= w.setup.Parallel {
			return
		}
		w.tempted++
		w.assign(w.enqueue(someDemands(d, a.Capabilities), 0), a)
	})
}

func (w *world) anyFree(d dice) *agent {
	var able []*agent
	for _, name := range w.agentNames() {
		if a := w.agents[name]; a.free() {
			able = append(able, a)
		}
	}
	if len(able) == 0 {
		return nil
	}
	return able[d.IntN(len(able))]
}

// someDemands gives some of what is offered.
func someDemands(d dice, offered agentpool.Capabilities) []agentpool.Demand {
	var demands []agentpool.Demand
	for _, name := range slices.Sorted(maps.Keys(offered)) {
		if d.oneIn(2) {
			demands = append(demands, agentpool.Demand{Name: name})
		}
	}
	return demands
}
