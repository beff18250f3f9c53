package simulate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// takeBackLimit is the time for taking back what a creation that failed has left.
const takeBackLimit = 15 * time.Second

// The steps by which a Job is created and ended are those of packages app and cluster:
// each is a call of its own, after which a process may be killed.

// Synced implements scaler.Cluster.
func (r *replica) Synced() bool { return true }

// Classes implements scaler.Cluster.
func (r *replica) Classes() scaler.Classes {
	return read(r.world, func() scaler.Classes { return scaler.Classes{Usable: r.world.classes} })
}

// LiveJobs implements scaler.Cluster.
func (r *replica) LiveJobs(ctx context.Context) (jobs []agentpool.AgentJob, err error) {
	r.world.with(func() { r.listened = true })
	err = r.call(ctx, toCluster, "list jobs", "", func() error {
		for _, name := range r.world.names() {
			jobs = append(jobs, r.world.jobs[name].AgentJob)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return jobs, nil
}

// names gives those of all Jobs, in order. The caller holds the lock.
func (w *world) names() []string { return slices.Sorted(maps.Keys(w.jobs)) }

// find gives the Job that is meant, if it is there. The caller holds the lock.
func (w *world) find(meant agentpool.AgentJob) (*job, bool) {
	j, there := w.jobs[meant.Name]
	return j, there && j.UID == meant.UID
}

// Create implements scaler.Cluster.
func (r *replica) Create(ctx context.Context, c plan.Creation) (agentpool.AgentJob, error) {
	w := r.world
	class, known := read2(w, func() (agentpool.AgentClass, bool) { return w.class(c.Class) })
	if !known {
		return agentpool.AgentJob{}, fmt.Errorf("there is no class %q any more", c.Class)
	}
	shown, made, err := r.create(ctx, c, class)
	if err != nil {
		return agentpool.AgentJob{}, err
	}
	registers := class.Registration == agentpool.RegistrationJIT
	if !made && (!registers || !shown.Suspended) {
		// It goes on with what is there.
		if shown.Suspended {
			err = r.goOn(ctx, shown)
		}
		shown.Suspended = shown.Suspended && err != nil
		r.learn(shown)
		return shown, err
	}
	id := 0
	if registers {
		id, err = r.bringUp(ctx, shown)
	} else {
		err = r.goOn(ctx, shown)
	}
	if err != nil && registers {
		return r.takeBack(ctx, shown, err)
	}
	if err == nil {
		shown.Suspended, shown.AgentID = false, id
	}
	r.learn(shown)
	return shown, err
}

// learn notes that the loop now knows of a Job without having seen it.
func (r *replica) learn(shown agentpool.AgentJob) {
	if r.stopped(context.Background()) != nil {
		return
	}
	r.world.with(func() { r.world.record(Event{Kind: Learns, By: r.name, Job: shown.Name, UID: shown.UID}) })
}

// create makes the suspended Job, or finds the one that is there.
func (r *replica) create(ctx context.Context, c plan.Creation, class agentpool.AgentClass) (shown agentpool.AgentJob, made bool, err error) {
	w, name := r.world, jobName(c.Request.ID, c.Attempt)
	exists := false
	err = r.write(ctx, toCluster, "create", agentpool.AgentJob{Name: name}, func() error {
		if _, exists = w.jobs[name]; !exists {
			made, shown = true, w.make(r.name, c, class).AgentJob
		}
		return nil
	})
	if err != nil || !exists {
		return shown, made, err
	}
	// Only a live read tells an answer that was lost from a Job that has ended.
	err = r.call(ctx, toCluster, "get", name, func() error {
		live, there := w.jobs[name]
		if !there || live.Finished() || live.Deleting || live.Unregistered() {
			return &cluster.Error{Op: "create", Object: "job " + name, Kind: cluster.ErrNameTaken}
		}
		shown = live.AgentJob
		return nil
	})
	return shown, false, err
}

// goOn gives a Job its rights and lets it run.
func (r *replica) goOn(ctx context.Context, meant agentpool.AgentJob) error {
	if err := r.grant(ctx, meant); err != nil {
		return err
	}
	return r.letRun(ctx, meant, 0)
}

func (r *replica) grant(ctx context.Context, meant agentpool.AgentJob) error {
	w := r.world
	return r.write(ctx, toCluster, "grant", meant, func() error {
		if _, has := w.rights[meant.UID]; !has {
			w.rights[meant.UID] = right{job: meant.Name, granted: time.Now()}
			w.record(Event{Kind: Granted, By: r.name, Job: meant.Name, UID: meant.UID})
		}
		return nil
	})
}

func (r *replica) letRun(ctx context.Context, meant agentpool.AgentJob, id int) error {
	w := r.world
	return r.write(ctx, toCluster, "let run", meant, func() error {
		live, there := w.find(meant)
		if !there {
			return &cluster.Error{Op: "unsuspend", Object: "job " + meant.Name, Kind: cluster.ErrNotFound}
		}
		if live.Suspended && !live.Finished() {
			w.run(live, id, r.name)
		}
		return nil
	})
}

// bringUp is what is done for an agent that the scaler registers.
func (r *replica) bringUp(ctx context.Context, meant agentpool.AgentJob) (id int, err error) {
	w := r.world
	if err := r.grant(ctx, meant); err != nil {
		return 0, err
	}
	err = r.write(ctx, toService, "register", meant, func() error {
		if _, taken := w.agents[meant.Name]; taken {
			return &azuredevops.Error{Op: "register agent", Kind: azuredevops.ErrConflict}
		}
		id = w.register(meant.Name, meant.UID, r.name, meant.Capabilities).ID
		return nil
	})
	if err != nil {
		return 0, reasoned{err, agentpool.ReasonUnreachable}
	}
	if err := r.write(ctx, toCluster, "hand over key", meant, func() error { return nil }); err != nil {
		return 0, err
	}
	return id, r.letRun(ctx, meant, id)
}

// takeBack removes a Job that can't be gone on with, and the registration of its agent. A
// Job that runs after all is a success whose answer was lost.
func (r *replica) takeBack(ctx context.Context, made agentpool.AgentJob, cause error) (agentpool.AgentJob, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeBackLimit)
	defer cancel()
	made.Suspended, made.AgentID = true, 0
	deleted, err := r.deleteUnstarted(ctx, made)
	switch {
	case err != nil:
		r.learn(made)
		return made, errors.Join(cause, err)
	case !deleted:
		made.Suspended = false
		r.learn(made)
		return made, nil
	}
	_, err = r.withdraw(ctx, agentpool.AgentRef{Name: made.Name})
	return agentpool.AgentJob{Name: made.Name, RequestID: made.RequestID, Attempt: made.Attempt}, errors.Join(cause, err)
}

// Complete implements scaler.Cluster.
func (r *replica) Complete(ctx context.Context, meant agentpool.AgentJob) error {
	usable := false
	err := r.call(ctx, toCluster, "get", meant.Name, func() error {
		live, there := r.world.find(meant)
		usable = there && live.Suspended && !live.Finished() && !live.Deleting
		return nil
	})
	if err != nil || !usable {
		return err
	}
	if meant.Unregistered() {
		return &cluster.Error{Op: "complete", Object: "job " + meant.Name, Kind: cluster.ErrInvalid, Remedy: "its agent was never registered: it has to be replaced"}
	}
	return r.goOn(ctx, meant)
}

// DeleteUnstarted implements scaler.Cluster.
func (r *replica) DeleteUnstarted(ctx context.Context, meant agentpool.AgentJob) (bool, error) {
	r.tempt(ctx, meant.Name)
	return r.deleteUnstarted(ctx, meant)
}

// deleteUnstarted deletes a Job without a pod at once. Where there is a pod that has not
// started its agent, the pod goes, and the Job only when it is gone.
func (r *replica) deleteUnstarted(ctx context.Context, meant agentpool.AgentJob) (deleted bool, err error) {
	w := r.world
	var pod *job
	removed := false
	err = r.write(ctx, toCluster, "delete unstarted", meant, func() error {
		live, there := w.find(meant)
		switch {
		case !there:
			deleted = true
		case live.told:
		case live.PodName == "":
			w.remove(live, r.name)
			deleted, removed = true, true
		default:
			pod = live
			w.deletePod(live, r.name, agentpool.ReasonNoBuild)
		}
		return nil
	})
	switch {
	case err != nil:
		return false, err
	case removed:
		// The Job went first: should this fail, the rights are left to the sweep.
		_ = r.revoke(ctx, meant)
		return true, nil
	case deleted:
		return true, nil
	case pod == nil:
		return false, nil
	}
	return r.awaitPodsEnd(ctx, pod)
}

func (r *replica) awaitPodsEnd(ctx context.Context, pod *job) (deleted bool, err error) {
	for range 40 {
		if err := r.pause(ctx, 250*time.Millisecond); err != nil {
			return false, err
		}
		told, over := read2(r.world, func() (bool, bool) { return pod.told, pod.over && !pod.killed })
		switch {
		case told:
			return false, nil
		case over:
			err := r.delete(ctx, pod.UID, pod.Name)
			return err == nil, err
		}
	}
	return false, nil
}

// Delete implements scaler.Cluster.
func (r *replica) Delete(ctx context.Context, meant agentpool.AgentJob) error {
	r.tempt(ctx, meant.Name)
	return r.delete(ctx, meant.UID, meant.Name)
}

// delete takes the rights first, as the Job is the record of where they are.
func (r *replica) delete(ctx context.Context, uid, name string) error {
	w, meant := r.world, agentpool.AgentJob{UID: uid, Name: name}
	if !read(w, func() bool { _, there := w.find(meant); return there }) {
		return nil
	}
	if err := r.revoke(ctx, meant); err != nil {
		return err
	}
	return r.write(ctx, toCluster, "delete", meant, func() error {
		if live, there := w.find(meant); there {
			w.remove(live, r.name)
		}
		return nil
	})
}

// EndRights implements scaler.Cluster.
func (r *replica) EndRights(ctx context.Context, meant agentpool.AgentJob) error {
	return r.revoke(ctx, meant)
}

func (r *replica) revoke(ctx context.Context, meant agentpool.AgentJob) error {
	w := r.world
	return r.write(ctx, toCluster, "revoke", meant, func() error {
		w.revoke(meant.UID, r.name)
		return nil
	})
}

// revoke takes from a build what it could do. The caller holds the lock.
func (w *world) revoke(uid, by string) {
	if had, has := w.rights[uid]; has {
		delete(w.rights, uid)
		w.record(Event{Kind: Revoked, By: by, Job: had.job, UID: uid})
	}
}

// Sweep implements scaler.Cluster.
func (r *replica) Sweep(ctx context.Context, grace time.Duration) (map[string]int, error) {
	w := r.world
	var left []agentpool.AgentJob
	err := r.call(ctx, toCluster, "list rights", "", func() error {
		for _, uid := range slices.Sorted(maps.Keys(w.rights)) {
			has := w.rights[uid]
			meant := agentpool.AgentJob{Name: has.job, UID: uid}
			live, there := w.find(meant)
			if (!there || live.JobDone) && r.now().Sub(has.granted) >= grace {
				left = append(left, meant)
			}
		}
		return nil
	})
	swept := map[string]int{"rolebinding": 0}
	for _, meant := range left {
		if one := r.revoke(ctx, meant); one != nil {
			err = one
			continue
		}
		swept["rolebinding"]++
	}
	return swept, err
}

// Check implements scaler.Cluster.
func (r *replica) Check(ctx context.Context) map[string]string {
	w, blocked := r.world, map[string]string{}
	_ = r.call(ctx, toCluster, "check", "", func() error {
		for _, class := range w.classes {
			if !w.calm && w.out(toRights) {
				blocked[class.Name] = "the right to create Jobs is missing"
			}
		}
		return nil
	})
	return blocked
}

// Report implements scaler.Cluster.
func (r *replica) Report(agentpool.AgentJob, bool, string, string) {}

// ReportClass implements scaler.Cluster.
func (r *replica) ReportClass(string, bool, string, string) {}

// read2 is read for what comes in twos.
func read2[A, B any](w *world, look func() (A, B)) (A, B) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return look()
}
