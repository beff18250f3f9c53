package scaler_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// errTaken is a name under which there is something that can't be gone on with.
var errTaken = errors.New("there is another Job of that name")

// withdrawLimit is how long an agent that waits and is told to end waits for the word of
// the scaler, where that has registered it.
const withdrawLimit = 30 * time.Second

// createRegistered does what package app does to create a Job whose agent the scaler
// registers: the Job, its agent, the key in a Secret, and then the write that lets the Job
// run and records the agent. What fails on the way is taken back.
func (w *world) createRegistered(ctx context.Context, c plan.Creation) (agentpool.AgentJob, error) {
	name := jobName(c.Request.ID, c.Attempt)
	job, made, err := w.createSuspended(ctx, c)
	if err != nil || !made {
		return job, err
	}
	id := 0
	err = w.write(ctx, "register", name, func() error {
		if _, taken := w.agents[name]; taken {
			return fmt.Errorf("there is an agent %s", name)
		}
		w.nextAgent++
		id = w.nextAgent
		w.agents[name] = agentpool.Agent{ID: id, Name: name, Enabled: true, Capabilities: w.offered(job)}
		return nil
	})
	if err != nil {
		// It may be there, and nobody has its key: should this fail, taking back finds it.
		_, _ = w.withdraw(ctx, agentpool.AgentRef{Name: name})
		return w.takeBack(ctx, job, err)
	}
	if err := w.write(ctx, "hand over the key of", name, func() error { return nil }); err != nil {
		return w.takeBack(ctx, job, err)
	}
	err = w.write(ctx, "let run", name, func() error {
		live, there := w.find(job)
		if !there {
			return fmt.Errorf("the Job %s is gone", name)
		}
		w.change(live, func(job *agentpool.AgentJob) { job.Suspended, job.AgentID = false, id })
		job = w.jobs[name]
		go w.live(job)
		return nil
	})
	if err != nil {
		return w.takeBack(ctx, job, err)
	}
	return job, nil
}

// createSuspended makes the Job, unless there is one that runs already. One whose agent was
// never registered is of no use to anybody.
func (w *world) createSuspended(ctx context.Context, c plan.Creation) (job agentpool.AgentJob, made bool, err error) {
	name := jobName(c.Request.ID, c.Attempt)
	err = w.write(ctx, "create", name, func() error {
		if live, there := w.jobs[name]; there {
			if live.Finished() || live.Deleting || live.Unregistered() {
				return errTaken
			}
			job = live
			return nil
		}
		made, job = true, w.create(c)
		job.Suspended = true
		w.begin(job, c.Class)
		return nil
	})
	if err != nil {
		w.unanswered(job, made, err)
		return agentpool.AgentJob{}, false, err
	}
	return job, made, nil
}

// takeBack removes a Job that can't be gone on with, and the registration of its agent. A
// Job that runs after all is a success whose answer was lost.
func (w *world) takeBack(ctx context.Context, made agentpool.AgentJob, cause error) (agentpool.AgentJob, error) {
	// It has a time of its own, beyond that of the creation.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	made.Suspended, made.AgentID = true, 0
	deleted, err := w.deleteUnstarted(ctx, made)
	switch {
	case err != nil:
		w.with(func() { w.saw("a Job that failed could not be taken back") })
		return made, cause
	case !deleted:
		w.with(func() { w.saw("a Job runs whose answer was lost") })
		made.Suspended = false
		return made, nil
	}
	w.with(func() { w.saw("a Job was taken back") })
	if gone, err := w.withdraw(ctx, agentpool.AgentRef{Name: made.Name}); err != nil || !gone {
		w.with(func() { w.saw("a registration was left to the sweep") })
	}
	return agentpool.AgentJob{Name: made.Name, RequestID: made.RequestID, Attempt: made.Attempt}, cause
}

// listen is an agent coming online that the scaler has registered. Without its registration
// it can't, and ends. The caller holds the lock.
func (w *world) listen(job agentpool.AgentJob, l *life) {
	agent, there := w.agents[job.Name]
	live, _ := w.find(job)
	if !there || agent.ID != live.AgentID {
		w.saw("an agent found its registration gone")
		l.over = true
		w.end(job, agentpool.ReasonCrashed, 0)
		return
	}
	agent.Online = true
	w.agents[job.Name] = agent
}

// awaitWord is what an agent does that waits and is told to end: it waits until the scaler
// has taken it out of the pool, or long enough, and ends unless it has been given a build.
func (w *world) awaitWord(job agentpool.AgentJob) {
	for deadline := time.Now().Add(withdrawLimit); time.Now().Before(deadline); time.Sleep(500 * time.Millisecond) {
		if there := read(w.model, func() bool { _, there := w.agents[job.Name]; return there }); !there {
			return
		}
	}
	w.with(func() { w.saw("an agent was told to end and heard nothing of the scaler") })
}

// judgeRegistration complains of an agent that the scaler has registered and that is still
// in the pool though the cache has shown for long that it has ended. What failed meanwhile is
// for the sweep. The caller holds the lock.
func (w *world) judgeRegistration(job agentpool.AgentJob, shown time.Time) {
	if job.Registration != agentpool.RegistrationJIT || w.failing {
		return
	}
	time.AfterFunc(time.Until(shown.Add(reaction)), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if agent, there := w.agents[job.Name]; there && agent.ID == job.AgentID && agent.AssignedRequest == 0 {
			w.accuse("%s is still registered, though the cache shows for %v that it has ended", job.Name, reaction)
		}
	})
}
