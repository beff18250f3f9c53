package simulate

import (
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// job is a Job, as the API server shows it, and what is true of its pod beyond that.
type job struct {
	agentpool.AgentJob
	rank    uint64 // Where it comes in lists, which have no order that means anything.
	node    int
	hurry   chan struct{} // Closed when it is to start at once.
	hurried bool
	cut     chan struct{}    // Closed when its container is killed.
	why     agentpool.Reason // For which its pod is being deleted.
	gone    bool             // The Job is.
	begun   bool             // The agent's container runs, or has.
	told    bool             // The API server knows that.
	dying   bool             // The pod is being deleted.
	over    bool             // The pod is gone, or has ended.
	killed  bool             // Its container was: the pod ends when the kubelet tells, or somebody gives the node up.
	exiting bool             // Its build has ended, and the agent is about to.
	exited  bool             // It would have by now, had its container not been killed.
}

// nodes is how many the cluster has.
const nodes = 3

// Times of the cluster.
const (
	// withdrawLimit is how long an agent that waits and is told to end waits for the word
	// of the scaler, where that has registered it.
	withdrawLimit = 30 * time.Second
	// unattended is how long a Job whose pod is gone lasts before it counts as failed.
	unattended = 20 * time.Second
)

// make makes a suspended Job. The caller holds the lock.
func (w *world) make(by string, c plan.Creation, class agentpool.AgentClass) *job {
	w.lastJob++
	name := jobName(c.Request.ID, c.Attempt)
	j := &job{hurry: make(chan struct{}), cut: make(chan struct{}), AgentJob: agentpool.AgentJob{
		Name: name, UID: "uid-" + name + "-" + itoa(w.lastJob), Class: c.Class, ClassVersion: class.Version, Capabilities: class.Capabilities,
		Registration: class.Registration, PoolID: poolID, RequestID: c.Request.ID, Attempt: c.Attempt, Failures: c.Failures,
		CreatedAt: time.Now(), QueuedAt: c.Request.QueueTime, Suspended: true,
	}}
	d := w.fixed("job", j.UID)
	j.rank, j.node = d.Uint64(), d.IntN(nodes)
	w.jobs[name] = j
	w.record(Event{Kind: Made, By: by, Job: name, UID: j.UID, Class: c.Class, Request: c.Request.ID, Text: class.Version})
	w.show(j, false)
	return j
}

// run lets a Job make its pod. The caller holds the lock.
func (w *world) run(j *job, agentID int, by string) {
	w.record(Event{Kind: Runs, By: by, Job: j.Name, UID: j.UID, Agent: agentID})
	w.change(j, func(shown *agentpool.AgentJob) { shown.Suspended, shown.AgentID = false, agentID })
	go w.live(j)
}

// change changes what the API server shows of a Job. The caller holds the lock.
func (w *world) change(j *job, how func(*agentpool.AgentJob)) {
	if j.gone {
		return
	}
	how(&j.AgentJob)
	w.show(j, false)
}

// remove deletes a Job, and with it its pod. The caller holds the lock.
func (w *world) remove(j *job, by string) {
	if j.gone {
		return
	}
	j.gone = true
	delete(w.jobs, j.Name)
	w.record(Event{Kind: Gone, By: by, Job: j.Name, UID: j.UID})
	w.show(j, true)
	switch {
	case j.over:
	case j.begun:
		go w.terminate(j)
	default:
		j.over = true
		w.sidecar(j)
	}
}

// deletePod lets the kubelet hear of it after a moment. The caller holds the lock.
func (w *world) deletePod(j *job, by string, why agentpool.Reason) {
	if j.dying || j.over {
		return
	}
	j.dying, j.why = true, why
	w.record(Event{Kind: PodDies, By: by, Job: j.Name, UID: j.UID, Text: string(why)})
	w.change(j, func(shown *agentpool.AgentJob) { shown.Deleting = true })
	go w.terminate(j)
}

// terminate is the end of a pod: an agent that has begun and has no build withdraws
// itself, one with a build runs it to its end, and one that has not begun never does.
func (w *world) terminate(j *job) {
	time.Sleep(1 + w.dice("terminate", j.UID).upTo(1500*time.Millisecond))
	registered := j.Registration == agentpool.RegistrationJIT
	if registered && read(w, func() bool { return j.begun && !j.over }) {
		w.awaitWord(j)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	a := w.agentOf(j)
	if j.over || a != nil && a.AssignedRequest != 0 || j.exiting {
		return
	}
	j.over = true
	switch {
	case a == nil:
	case registered:
		w.setOnline(a, false)
	default:
		w.deregister(a, "pod")
	}
	// Should nobody delete the Job now, it fails, as its pod is gone.
	w.fail(j, j.why, unattended)
}

// awaitWord is what an agent does that waits and is told to end: it waits until the scaler
// has taken it out of the pool, or long enough, and ends unless it has been given a build.
func (w *world) awaitWord(j *job) {
	for deadline := time.Now().Add(withdrawLimit); time.Now().Before(deadline); time.Sleep(500 * time.Millisecond) {
		if read(w, func() bool { return w.agentOf(j) == nil }) {
			return
		}
	}
}

// fail is the end of a Job without a build, unless somebody ends it within the time. The
// caller holds the lock.
func (w *world) fail(j *job, reason agentpool.Reason, after time.Duration) {
	w.later(after, func() {
		if j.gone || j.Finished() {
			return
		}
		j.over = true
		w.record(Event{Kind: Ended, By: "cluster", Job: j.Name, UID: j.UID, Text: string(reason)})
		w.change(j, func(shown *agentpool.AgentJob) {
			shown.Ended, shown.JobDone, shown.Ready, shown.Reason = time.Now(), true, false, reason
		})
		w.sidecar(j)
		w.expire(j)
	})
}

// sidecar removes the registration after the agent's end, unless that fails or there is
// none. The caller holds the lock.
func (w *world) sidecar(j *job) {
	a := w.agentOf(j)
	if a == nil {
		return
	}
	d := w.dice("sidecar", j.UID)
	if j.Registration == agentpool.RegistrationJIT || w.fails(w.setup.Faults.Forget) && d.oneIn(4) {
		w.setOnline(a, false)
		return
	}
	w.later(1+d.upTo(3*time.Second), func() {
		if a.AssignedRequest == 0 {
			w.deregister(a, "pod")
		}
	})
}

// expire removes a Job that has ended for long.
func (w *world) expire(j *job) {
	w.later(time.Minute+w.dice("expire", j.UID).upTo(2*time.Minute), func() { w.remove(j, "cluster") })
}

// live is the life of an agent until it waits for a build.
func (w *world) live(j *job) {
	d := w.dice("life", j.UID)
	step := func(within time.Duration, do func()) bool {
		j.pause(1 + d.upTo(within))
		w.mu.Lock()
		defer w.mu.Unlock()
		if j.gone || j.over || j.Finished() {
			return false
		}
		do()
		return true
	}
	f := w.setup.Faults
	making, placing, starting := 2*time.Second, 5*time.Second, 10*time.Second
	if f.Slow && d.oneIn(4) {
		making = 90 * time.Second
	}
	if f.Slow && d.oneIn(4) {
		placing = 3 * time.Minute
	}
	if f.Slow && d.oneIn(4) {
		starting = 2 * time.Minute
	}
	crashes := d.oneIn(5)
	_ = step(making, func() {
		w.record(Event{Kind: Pod, By: "cluster", Job: j.Name, UID: j.UID})
		w.change(j, func(shown *agentpool.AgentJob) {
			shown.PodName = shown.Name + "-pod"
			if placing > time.Minute {
				shown.Reason = agentpool.ReasonUnschedulable
			}
		})
	}) && step(placing, func() {
		w.record(Event{Kind: Scheduled, By: "cluster", Job: j.Name, UID: j.UID})
		w.change(j, func(shown *agentpool.AgentJob) { shown.Scheduled, shown.Reason = time.Now(), agentpool.ReasonNone })
	}) && step(starting, func() {
		if crashes && w.fails(f.Crashes) || j.Registration != agentpool.RegistrationJIT && !w.configure(j) {
			j.over = true
			w.fail(j, agentpool.ReasonCrashed, 1)
		}
	}) && step(time.Second, func() { w.begin(j, d) }) && step(time.Second, func() {
		w.listen(j)
		if w.fails(f.Flicker) && d.oneIn(5) {
			w.flicker(j, d)
		}
	}) && step(1500*time.Millisecond, func() {
		if a := w.agentOf(j); a != nil && !j.RanBuild {
			w.record(Event{Kind: Ready, By: "cluster", Job: j.Name, UID: j.UID})
		}
		w.change(j, func(shown *agentpool.AgentJob) {
			shown.Started = true
			if !shown.RanBuild {
				shown.Ready, shown.ReadySince = true, time.Now()
			}
		})
	})
}

// begin is the start of the agent's container. The caller holds the lock.
func (w *world) begin(j *job, d dice) {
	j.begun = true
	w.record(Event{Kind: Begun, By: "pod", Job: j.Name, UID: j.UID})
	w.later(1+d.upTo(time.Second), func() { j.told = true })
}

// listen is an agent coming online. One that the scaler has registered can't without its
// registration, and ends. The caller holds the lock.
func (w *world) listen(j *job) {
	a := w.agentOf(j)
	if a == nil || j.Registration == agentpool.RegistrationJIT && a.ID != j.AgentID {
		j.over = true
		w.fail(j, agentpool.ReasonCrashed, 1)
		return
	}
	a.job = j
	w.setOnline(a, true)
}

// flicker lets an agent that waits lose the service for a while. The caller holds the lock.
func (w *world) flicker(j *job, d dice) {
	outage := d.upTo(5 * time.Minute)
	w.later(1+d.upTo(time.Minute), func() {
		a := w.agentOf(j)
		if a == nil || j.over || j.exiting || !a.free() || w.calm {
			return
		}
		w.setOnline(a, false)
		w.later(outage, func() {
			if a := w.agentOf(j); a != nil && !j.over {
				w.setOnline(a, true)
			}
		})
	})
}

// pause takes its time unless there is a hurry.
func (j *job) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-j.hurry:
		time.Sleep(1 + d/50)
	}
}

// lose takes a node away: what ran there ends without a word, and the cluster gives the
// pods up after a while. The caller holds the lock.
func (w *world) lose(node int) {
	for _, name := range w.names() {
		j := w.jobs[name]
		if j.node != node || j.over || j.Scheduled.IsZero() {
			continue
		}
		w.kill(j, agentpool.ReasonNodeLost)
		d := w.dice("lost", j.UID)
		w.later(40*time.Second+d.upTo(5*time.Minute), func() {
			j.dying = true
			w.record(Event{Kind: PodDies, By: "cluster", Job: j.Name, UID: j.UID, Text: string(agentpool.ReasonNodeLost)})
			w.change(j, func(shown *agentpool.AgentJob) { shown.Deleting = true })
			w.give(j, agentpool.ReasonNodeLost, 1+d.upTo(2*time.Minute))
		})
	}
}

// kill ends an agent's container, with the build if it has one. The caller holds the lock.
func (w *world) kill(j *job, why agentpool.Reason) {
	if j.over {
		return
	}
	j.over, j.killed = true, true
	w.record(Event{Kind: Cut, By: "cluster", Job: j.Name, UID: j.UID, Text: string(why)})
	close(j.cut)
	if a := w.agentOf(j); a != nil && a.Online {
		w.later(1+w.dice("cut", j.UID).upTo(time.Minute), func() { w.setOnline(a, false) })
	}
}

// give is the end of a Job whose container was killed. The caller holds the lock.
func (w *world) give(j *job, reason agentpool.Reason, after time.Duration) {
	w.later(after, func() {
		if j.gone || j.Finished() {
			return
		}
		w.record(Event{Kind: Ended, By: "cluster", Job: j.Name, UID: j.UID, Text: string(reason)})
		w.change(j, func(shown *agentpool.AgentJob) {
			shown.Ended, shown.JobDone, shown.Ready, shown.Reason, shown.ExitCode = time.Now(), true, false, reason, 137
		})
		if reason != agentpool.ReasonNodeLost {
			w.sidecar(j)
		}
		w.expire(j)
	})
}
