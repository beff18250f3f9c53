package scaler_test

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// remove deletes a Job, and with it its pod. The caller holds the lock.
func (w *world) remove(job agentpool.AgentJob) {
	job, there := w.find(job)
	if !there {
		return
	}
	w.judge(job)
	if !job.Finished() && w.wanted(job) {
		w.saw("an agent was ended that was still wanted")
	}
	w.note("gone: %s", job.Name)
	delete(w.jobs, job.Name)
	delete(w.rights, job.Name)
	w.show(job, true)
	l := w.lives[job.UID]
	if !l.over && l.begun {
		go w.terminate(job, l)
	}
	l.over = l.over || !l.begun
	w.unregister(job)
}

// wanted tells whether somebody waits for an agent that is being ended: the request that it
// was made for, or, where agents are given up for being slow, any that it was counted for.
// The caller holds the lock.
func (w *world) wanted(job agentpool.AgentJob) bool {
	if job.Warm() {
		return true
	}
	slow := !job.Started && w.config.Limits.StartupLimit < 10*time.Minute
	for id, request := range w.requests {
		if _, lacks := job.Capabilities.Missing(request.Demands); request.State() == agentpool.RequestQueued && (id == job.RequestID || slow && !lacks) {
			return true
		}
	}
	return false
}

// deletePod lets the kubelet hear of it after a moment. The caller holds the lock.
func (w *world) deletePod(job agentpool.AgentJob, l *life) {
	if l.dying {
		return
	}
	l.dying = true
	w.change(job, func(job *agentpool.AgentJob) { job.Deleting = true })
	go w.terminate(job, l)
}

// terminate is the end of a pod: an agent that has begun and has no build withdraws
// itself, one with a build runs it to its end, and one that has not begun never does.
func (w *world) terminate(job agentpool.AgentJob, l *life) {
	time.Sleep(w.dice("terminate", job.UID).upTo(1500 * time.Millisecond))
	registered := job.Registration == agentpool.RegistrationJIT
	if registered && read(w.model, func() bool { return l.begun && !l.over }) {
		w.awaitWord(job)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if l.over || w.agents[job.Name].AssignedRequest != 0 || l.exiting {
		return
	}
	l.over = true
	if registered {
		w.offline(job.Name)
	} else {
		delete(w.agents, job.Name)
	}
	// Should nobody delete the Job now, it fails, as its pod is gone.
	w.end(job, agentpool.ReasonNoBuild, 20*time.Second)
}

// end is the end of a Job that is not ended by the loop within the time. The caller
// holds the lock.
func (w *world) end(job agentpool.AgentJob, reason agentpool.Reason, after time.Duration) {
	time.AfterFunc(after, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if live, there := w.find(job); !there || live.Finished() {
			return
		}
		w.saw("an agent ended without a build: " + string(reason))
		w.lives[job.UID].over = true
		w.change(job, func(job *agentpool.AgentJob) {
			job.Ended, job.JobDone, job.Ready, job.Reason = time.Now(), true, false, reason
		})
		w.unregister(job)
		w.expire(job)
	})
}

// unregister is what the sidecar does after the agent's end, unless that fails or there is
// none. The caller holds the lock.
func (w *world) unregister(job agentpool.AgentJob) {
	if job.Registration == agentpool.RegistrationJIT {
		w.offline(job.Name)
		return
	}
	d := w.dice("unregister", job.UID)
	if w.fails() && d.oneIn(5) {
		w.offline(job.Name)
		return
	}
	time.AfterFunc(d.upTo(3*time.Second), func() {
		w.with(func() {
			if w.agents[job.Name].AssignedRequest == 0 {
				delete(w.agents, job.Name)
			}
		})
	})
}

func (w *world) offline(name string) {
	if agent, there := w.agents[name]; there {
		agent.Online = false
		w.agents[name] = agent
	}
}

// expire removes a Job that has ended for long.
func (w *world) expire(job agentpool.AgentJob) {
	time.AfterFunc(time.Minute+w.dice("expire", job.UID).upTo(2*time.Minute), func() { w.with(func() { w.remove(job) }) })
}

// notice is an agent that hears that its registration is gone.
func (w *world) notice(job agentpool.AgentJob) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end(job, agentpool.ReasonCrashed, w.dice("notice", job.UID).mostly(time.Minute))
}

// live is the life of an agent until it waits for a build.
func (w *world) live(job agentpool.AgentJob) {
	d := w.dice("life", job.UID)
	l := read(w.model, func() *life { return w.lives[job.UID] })
	step := func(within time.Duration, do func()) bool {
		l.pause(d.upTo(within))
		w.mu.Lock()
		defer w.mu.Unlock()
		if _, there := w.find(job); !there || l.over {
			return false
		}
		do()
		return true
	}
	making, starting := 2*time.Second, 10*time.Second
	if d.oneIn(8) {
		making = 90 * time.Second
	}
	if d.oneIn(8) {
		starting = 2 * time.Minute
	}
	crashes := w.fails() && d.oneIn(6)
	_ = step(making, func() {
		w.change(job, func(job *agentpool.AgentJob) { job.PodName = job.Name + "-pod" })
	}) && step(5*time.Second, func() {
		w.change(job, func(job *agentpool.AgentJob) { job.Scheduled = time.Now() })
	}) && step(starting, func() {
		if crashes {
			w.end(job, agentpool.ReasonCrashed, 0)
			l.over = true
			return
		}
		if job.Registration != agentpool.RegistrationJIT {
			w.nextAgent++
			w.agents[job.Name] = agentpool.Agent{ID: w.nextAgent, Name: job.Name, Enabled: true, Capabilities: w.offered(job)}
		}
	}) && step(time.Second, func() {
		l.begun = true
		w.note("begun: %s", job.Name)
		time.AfterFunc(d.upTo(time.Second), func() { w.with(func() { l.told = true }) })
	}) && step(time.Second, func() {
		agent, there := w.agents[job.Name]
		switch {
		case job.Registration == agentpool.RegistrationJIT:
			w.listen(job, l)
		case there:
			agent.Online = true
			w.agents[job.Name] = agent
		}
		if w.fails() && d.oneIn(5) {
			w.flicker(job, l, d)
		}
	}) && step(1500*time.Millisecond, func() {
		w.change(job, func(job *agentpool.AgentJob) {
			job.Started = true
			if !job.RanBuild {
				job.Ready, job.ReadySince = true, time.Now()
			}
		})
	})
}

// flicker lets an agent that waits lose the service for a while.
func (w *world) flicker(job agentpool.AgentJob, l *life, d dice) {
	outage := d.upTo(5 * time.Minute)
	time.AfterFunc(d.upTo(time.Minute), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if l.over || l.exiting || !free(w.agents[job.Name]) {
			return
		}
		w.saw("an agent was offline for a while")
		w.offline(job.Name)
		time.AfterFunc(outage, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			if agent, there := w.agents[job.Name]; there && !l.over {
				agent.Online = true
				w.agents[job.Name] = agent
			}
		})
	})
}

// pause takes its time unless there is a hurry.
func (l *life) pause(d time.Duration) {
	select {
	case <-time.After(d):
	case <-l.hurry:
		time.Sleep(d / 50)
	}
}

// build is the build of a request on the agent of a Job, and the end of both.
func (w *world) build(id int64, job agentpool.AgentJob) {
	d := w.dice("build", fmt.Sprint(id))
	time.Sleep(d.upTo(1500 * time.Millisecond))
	w.with(func() {
		request := w.requests[id]
		request.ReceiveTime = time.Now()
		w.requests[id] = request
	})
	time.AfterFunc(d.upTo(time.Second), func() {
		w.with(func() {
			w.change(job, func(job *agentpool.AgentJob) { job.Ready, job.RanBuild = false, true })
		})
	})
	long := []time.Duration{200 * time.Millisecond, 5 * time.Second, time.Minute, 4 * time.Minute}
	select {
	case <-time.After(100*time.Millisecond + d.upTo(long[d.IntN(len(long))])):
	case <-read(w.model, func() chan struct{} { return w.cancelled[id] }):
	}
	w.with(func() { w.finishBuild(id, job, d) })
	time.Sleep(d.upTo(time.Second))
	w.with(func() { w.exit(job) })
}

// finishBuild ends a request. From now on until its end the agent may be given another,
// unless it is disabled. The caller holds the lock.
func (w *world) finishBuild(id int64, job agentpool.AgentJob, d dice) {
	w.note("finished: %d on %s", id, job.Name)
	delete(w.requests, id)
	agent := w.agents[job.Name]
	agent.AssignedRequest = 0
	agent.Online = w.second
	w.agents[job.Name] = agent
	l := w.lives[job.UID]
	if l == nil {
		return
	}
	l.exiting = true
	if agent.Enabled && !l.claimed.IsZero() && time.Since(l.claimed) > reaction {
		w.accuse("%s is still enabled, though the cache shows since %v that it has claimed a build", job.Name, time.Since(l.claimed))
	}
	if !w.second || !free(agent) {
		return
	}
	for _, id := range slices.Sorted(maps.Keys(w.requests)) {
		_, lacks := agent.Capabilities.Missing(w.requests[id].Demands)
		if w.requests[id].State() == agentpool.RequestQueued && !lacks && d.oneIn(2) {
			w.assign(id, job.Name)
			return
		}
	}
}

// exit is the end of an agent after its build. What it was given since is lost with it.
func (w *world) exit(job agentpool.AgentJob) {
	if second := w.agents[job.Name].AssignedRequest; second != 0 {
		delete(w.requests, second)
		agent := w.agents[job.Name]
		agent.AssignedRequest = 0
		w.agents[job.Name] = agent
	}
	w.offline(job.Name)
	if l := w.lives[job.UID]; l != nil {
		l.over = true
	}
	if w.change(job, func(job *agentpool.AgentJob) {
		job.Started, job.Ready, job.RanBuild, job.Ended = true, false, true, time.Now()
	}) {
		w.unregister(job)
		time.AfterFunc(w.dice("done", job.UID).upTo(3*time.Second), func() {
			w.with(func() { w.change(job, func(job *agentpool.AgentJob) { job.JobDone = true }) })
		})
		w.expire(job)
	}
}
