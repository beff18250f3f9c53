package scaler_test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// world is a model in which things happen by themselves, and in which nothing is known
// at once: every call takes its time on the way there and back, and each Job is seen
// late by a time of its own.
type world struct {
	*model
	history
	begun  time.Time
	loop   *scaler.Scaler // The one that hears of what is seen.
	queues bool           // Builds are still being queued.
	calm   atomic.Bool    // All builds have ended.

	lives     map[string]*life // By UID.
	ended     map[string]bool  // The Jobs that the loop knows it has ended, by UID.
	polled    int              // How many builds were queued at the last poll.
	cancelled map[int64]chan struct{}
	lastID    int64
	writes    int
	seen      map[string]int // How often something has happened.
	wrong     []string       // What must not have happened.
	notes     []string

	diceMu sync.Mutex
	thrown map[string]int
}

// life is what is true of a Job beyond what the cluster shows of it.
type life struct {
	hurry    chan struct{} // Closed when it is to start at once.
	hurried  bool
	begun    bool      // The agent's container runs.
	told     bool      // The API server knows that.
	dying    bool      // The pod is being deleted.
	over     bool      // The pod is gone, or has ended.
	exiting  bool      // Its build has ended, and the agent is about to.
	unknown  time.Time // Until when the loop can't know of it, as the answer of its creation was lost.
	claimed  time.Time // From when the cache shows that it has claimed a build.
	ended    bool      // The cache shows that its agent has ended, or will.
	versions []version // What the cache shows, and what it will show, in order.
}

// version is what the cache shows of a Job from some moment on.
type version struct {
	job  agentpool.AgentJob
	gone bool
	at   time.Time
}

func newWorld(h history) *world {
	w := &world{
		model: newModel(), history: h, begun: time.Now(), queues: true,
		lives: map[string]*life{}, ended: map[string]bool{}, cancelled: map[int64]chan struct{}{}, seen: map[string]int{}, thrown: map[string]int{},
	}
	w.classes.Usable = h.kinds
	return w
}

// dice are for one thing that happens: the n-th of its kind to its subject. What is
// thrown for it does not depend on what else happens at the time, so that a seed gives
// the same history again.
func (w *world) dice(kind, subject string) dice {
	w.diceMu.Lock()
	defer w.diceMu.Unlock()
	key := kind + " " + subject
	w.thrown[key]++
	hash := fnv.New64a()
	_, _ = fmt.Fprint(hash, key, w.thrown[key])
	return dice{rand.New(rand.NewPCG(w.seed, hash.Sum64()))}
}

type dice struct{ *rand.Rand }

// oneIn is true once in n times.
func (d dice) oneIn(n int) bool { return d.IntN(n) == 0 }

// upTo gives a duration below most.
func (d dice) upTo(most time.Duration) time.Duration { return time.Duration(d.Int64N(int64(most))) }

// mostly gives a short duration, and now and then one up to most.
func (d dice) mostly(most time.Duration) time.Duration {
	if d.oneIn(6) {
		return d.upTo(most)
	}
	return d.upTo(most/10 + 1)
}

func (w *world) note(format string, args ...any) {
	w.notes = append(w.notes, fmt.Sprintf("%9.3f  ", time.Since(w.begun).Seconds())+fmt.Sprintf(format, args...))
}

func (w *world) accuse(format string, args ...any) {
	w.wrong = append(w.wrong, fmt.Sprintf(format, args...))
	w.note("WRONG: "+format, args...)
}

func (w *world) saw(what string) {
	w.seen[what]++
	w.note("%s", what)
}

var (
	errAway = refusal{agentpool.ReasonAPIUnavailable}
	errLost = errors.New("the connection broke before the answer came")
)

// call is one call of the loop. It counts at a moment between its beginning and its
// end, under the lock. Where calls fail, it does not get there, or its answer is lost.
func (w *world) call(ctx context.Context, kind, subject string, act func() error) error {
	d := w.dice(kind, subject)
	time.Sleep(d.mostly(w.latency))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if w.fails() && d.oneIn(15) {
		return errAway
	}
	w.mu.Lock()
	err := act()
	w.mu.Unlock()
	time.Sleep(d.mostly(w.latency))
	if err == nil && w.fails() && d.oneIn(15) {
		return errLost
	}
	return err
}

// fails tells whether calls, agents and sidecars fail now and then. When all builds have
// ended they no longer do, so that there is a rest to be judged.
func (w *world) fails() bool { return w.failing && !w.calm.Load() }

// write is a call that changes something.
func (w *world) write(ctx context.Context, kind, subject string, act func() error) error {
	return w.call(ctx, kind, subject, func() error {
		w.writes++
		w.note("%s %s", kind, subject)
		return act()
	})
}

// The cluster.

// Jobs gives what the cache shows by now of each Job.
func (w *world) Jobs() []agentpool.AgentJob {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	var jobs []agentpool.AgentJob
	for uid, l := range w.lives {
		for len(l.versions) > 1 && !l.versions[1].at.After(now) {
			l.versions = l.versions[1:]
		}
		switch first := l.versions[0]; {
		case first.at.After(now):
		case first.gone:
			delete(w.lives, uid)
		default:
			jobs = append(jobs, first.job)
		}
	}
	return jobs
}

// show lets the cache see a Job as it is now, after a while, but never before what it
// was before. The caller holds the lock.
func (w *world) show(job agentpool.AgentJob, gone bool) {
	l := w.lives[job.UID]
	at := time.Now().Add(w.dice("watch", job.UID).mostly(w.lag))
	if n := len(l.versions); n > 0 && at.Before(l.versions[n-1].at) {
		at = l.versions[n-1].at
	}
	l.versions = append(l.versions, version{job: job, gone: gone, at: at})
	if job.RanBuild && l.claimed.IsZero() {
		l.claimed = at
	}
	if (job.Finished() || gone) && !l.ended {
		l.ended = true
		w.judgeRegistration(job, at)
	}
	if loop := w.loop; loop != nil {
		time.AfterFunc(time.Until(at), loop.Notify)
	}
}

// fill makes the cache that of a process that has just read everything.
func (w *world) fill() {
	for uid, l := range w.lives {
		last := l.versions[len(l.versions)-1]
		if last.gone {
			delete(w.lives, uid)
			continue
		}
		last.at = time.Now()
		l.versions = []version{last}
	}
}

func (w *world) LiveJobs(ctx context.Context) (jobs []agentpool.AgentJob, err error) {
	err = w.call(ctx, "list Jobs", "", func() error {
		w.saw("Jobs were listed live")
		jobs = w.list()
		return nil
	})
	return jobs, err
}

func (w *world) Create(ctx context.Context, c plan.Creation) (agentpool.AgentJob, error) {
	if w.registersAgentsOf(c.Class) {
		return w.createRegistered(ctx, c)
	}
	name := jobName(c.Request.ID, c.Attempt)
	var job agentpool.AgentJob
	made, half := false, w.fails() && w.dice("half-made", name).oneIn(8)
	err := w.write(ctx, "create", name, func() error {
		var there bool
		if job, there = w.jobs[name]; there {
			if job.Finished() || job.Deleting {
				job = agentpool.AgentJob{}
				return errTaken
			}
			return nil
		}
		made, job = true, w.create(c)
		job.Suspended = half
		w.begin(job, c.Class)
		if half {
			return errAway
		}
		go w.live(job)
		return nil
	})
	if errors.Is(err, errLost) {
		w.unanswered(job, made, err)
		return agentpool.AgentJob{}, err
	}
	return job, err
}

// registersAgentsOf tells whether the scaler registers the agents of a class.
func (w *world) registersAgentsOf(class string) bool {
	return slices.ContainsFunc(w.Classes().Usable, func(c agentpool.AgentClass) bool {
		return c.Name == class && c.Registration == agentpool.RegistrationJIT
	})
}

// begin is a Job that has just been made. The caller holds the lock.
func (w *world) begin(job agentpool.AgentJob, class string) {
	w.jobs[job.Name] = job
	w.lives[job.UID] = &life{hurry: make(chan struct{})}
	w.show(job, false)
	w.judgeCaps(class)
	w.judgeNeed(job.Name)
}

// unanswered notes that the loop can't know of a Job that was made.
func (w *world) unanswered(job agentpool.AgentJob, made bool, err error) {
	if !made || !errors.Is(err, errLost) {
		return
	}
	w.with(func() {
		if l := w.lives[job.UID]; l != nil {
			w.saw("the answer of a creation was lost")
			l.unknown = l.versions[0].at.Add(reaction)
		}
	})
}

func (w *world) Complete(ctx context.Context, job agentpool.AgentJob) error {
	return w.write(ctx, "complete", job.Name, func() error {
		if live, there := w.find(job); there && live.Suspended && !live.Finished() {
			if live.Unregistered() {
				w.accuse("Job %s was completed, and its agent was never registered", job.Name)
			}
			w.saw("a half-made Job was completed")
			w.change(live, func(job *agentpool.AgentJob) { job.Suspended = false })
			go w.live(live)
		}
		return nil
	})
}

// find gives the Job as it is. The caller holds the lock.
func (w *world) find(job agentpool.AgentJob) (agentpool.AgentJob, bool) {
	live, there := w.jobs[job.Name]
	return live, there && live.UID == job.UID
}

// change changes a Job and lets that be seen. It reports whether it is there. The
// caller holds the lock.
func (w *world) change(job agentpool.AgentJob, how func(*agentpool.AgentJob)) bool {
	live, there := w.find(job)
	if !there {
		return false
	}
	how(&live)
	w.jobs[job.Name] = live
	w.show(live, false)
	return true
}

// DeleteUnstarted does what that of package cluster does: a Job without a pod goes at
// once; where there is a pod that has not started its agent, the pod goes, and the Job
// only when it is gone.
func (w *world) DeleteUnstarted(ctx context.Context, job agentpool.AgentJob) (deleted bool, err error) {
	w.tempt(job.Name)
	defer func() { w.learn(job, err == nil && deleted) }()
	return w.deleteUnstarted(ctx, job)
}

func (w *world) deleteUnstarted(ctx context.Context, job agentpool.AgentJob) (deleted bool, err error) {
	var pod *life
	err = w.write(ctx, "delete unstarted", job.Name, func() error {
		live, there := w.find(job)
		l := w.lives[job.UID]
		switch {
		case !there || live.Deleting && live.PodName == "":
			deleted = true
		case l.told:
			w.seen["what was to end unstarted has started"]++
		case live.PodName == "":
			w.saw("a Job without a pod was ended")
			w.remove(live)
			deleted = true
		default:
			pod = l
			w.deletePod(live, l)
		}
		return nil
	})
	if err != nil || pod == nil {
		return deleted && err == nil, err
	}
	for range 40 {
		time.Sleep(250 * time.Millisecond)
		told, over := read(w.model, func() bool { return pod.told }), read(w.model, func() bool { return pod.over })
		switch {
		case told:
			w.with(func() { w.saw("an agent started while its pod was being deleted") })
			return false, nil
		case over:
			err := w.write(ctx, "delete without its pod", job.Name, func() error {
				w.saw("a Job with a pod that had not started was ended")
				w.remove(job)
				return nil
			})
			return err == nil, err
		}
	}
	return false, nil
}

func (w *world) Delete(ctx context.Context, job agentpool.AgentJob) error {
	w.tempt(job.Name)
	err := w.write(ctx, "delete", job.Name, func() error {
		w.remove(job)
		return nil
	})
	w.learn(job, err == nil)
	return err
}

// learn notes that the loop knows of the end of a Job, which it need not end again.
func (w *world) learn(job agentpool.AgentJob, ended bool) {
	w.with(func() {
		if ended && w.ended[job.UID] {
			w.accuse("Job %s was ended again", job.Name)
		}
		w.ended[job.UID] = w.ended[job.UID] || ended
	})
}

func (w *world) EndRights(ctx context.Context, job agentpool.AgentJob) error {
	return w.write(ctx, "end rights", job.Name, func() error {
		if _, there := w.find(job); there {
			delete(w.rights, job.Name)
		}
		return nil
	})
}

func (w *world) Check(context.Context) map[string]string { return nil }
