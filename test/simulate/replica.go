package simulate

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// replica is one life of a process of the scaler: the real loop, and what it sees of the
// world. It implements scaler.Service and scaler.Cluster.
type replica struct {
	world *world
	name  string
	skew  time.Duration
	loop  *scaler.Scaler
	dead  chan struct{}
	stop  context.CancelFunc
	done  chan error

	// The world's lock is held for these.
	view     map[string][]version // By UID.
	listened bool                 // It has listed the Jobs live since it last asked for the queue.
}

// version is what a cache shows of a Job from some moment on.
type version struct {
	job  agentpool.AgentJob
	rank uint64
	gone bool
	at   time.Time
}

// start lets a scaler begin that knows nothing, and whose cache has just been filled.
func (w *world) start() *replica {
	r := &replica{world: w, dead: make(chan struct{}), done: make(chan error, 1), view: map[string][]version{}}
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	w.mu.Lock()
	w.lastReplica++
	r.name = fmt.Sprintf("scaler-%d", w.lastReplica)
	if w.setup.Skew > 0 {
		r.skew = w.dice("skew", r.name).upTo(2*w.setup.Skew) - w.setup.Skew
	}
	log := slog.New(ear{r})
	r.loop = scaler.New(w.setup.Config, r, r, scaler.NewMetrics(prometheus.NewRegistry()), log, r.now)
	w.record(Event{Kind: Starts, By: r.name, Text: r.skew.String()})
	for _, name := range w.names() {
		j := w.jobs[name]
		r.view[j.UID] = []version{{job: j.AgentJob, rank: j.rank, at: time.Now()}}
		w.record(Event{Kind: Shown, By: r.name, Job: j.Name, UID: j.UID, Text: stage(j.AgentJob, false)})
	}
	w.replicas = append(w.replicas, r)
	w.mu.Unlock()
	go func() { r.done <- r.loop.Run(ctx) }()
	return r
}

// now is the time by its own clock.
func (r *replica) now() time.Time { return time.Now().Add(r.skew) }

// end has it finish what it has begun.
func (r *replica) end() error {
	r.stop()
	err := <-r.done
	r.leave(Stops)
	return err
}

// kill ends it at once. What it has on its way may arrive yet.
func (r *replica) kill() error {
	close(r.dead)
	r.stop()
	r.leave(Crashes)
	r.world.with(func() { r.world.killed = append(r.world.killed, r) })
	return nil
}

func (r *replica) leave(how Kind) {
	w := r.world
	w.with(func() {
		w.record(Event{Kind: how, By: r.name})
		w.replicas = slices.DeleteFunc(w.replicas, func(other *replica) bool { return other == r })
	})
}

// show lets all caches see a Job as it is now, after a while, but never before what it was
// before. The caller holds the lock.
func (w *world) show(j *job, gone bool) {
	for _, r := range w.replicas {
		at := time.Now().Add(1 + w.dice("watch "+r.name, j.UID).mostly(w.setup.Lag))
		versions := r.view[j.UID]
		if n := len(versions); n > 0 && !at.After(versions[n-1].at) {
			at = versions[n-1].at.Add(1)
		}
		shown := j.AgentJob
		r.view[j.UID] = append(versions, version{job: shown, rank: j.rank, gone: gone, at: at})
		time.AfterFunc(time.Until(at), func() {
			w.with(func() {
				w.record(Event{Kind: Shown, By: r.name, Job: shown.Name, UID: shown.UID, Text: stage(shown, gone)})
			})
			r.loop.Notify()
		})
	}
}

// stage says in a word how far a Job is, as a cache shows it.
func stage(j agentpool.AgentJob, gone bool) string {
	switch {
	case gone:
		return "gone"
	case j.Finished():
		return "finished"
	case j.Deleting:
		return "deleting"
	case j.RanBuild:
		return "claimed"
	case j.Ready:
		return "ready"
	case j.Suspended:
		return "suspended"
	default:
		return "starting"
	}
}

// Jobs implements scaler.Cluster: what the cache shows by now, in no order that means
// anything.
func (r *replica) Jobs() []agentpool.AgentJob {
	r.world.mu.Lock()
	defer r.world.mu.Unlock()
	now := time.Now()
	shown := make([]version, 0, len(r.view))
	for uid, versions := range r.view {
		for len(versions) > 1 && !versions[1].at.After(now) {
			versions = versions[1:]
		}
		r.view[uid] = versions
		switch first := versions[0]; {
		case first.at.After(now):
		case first.gone:
			delete(r.view, uid)
		default:
			shown = append(shown, first)
		}
	}
	slices.SortFunc(shown, func(a, b version) int {
		if a.rank < b.rank {
			return -1
		}
		return 1
	})
	jobs := make([]agentpool.AgentJob, len(shown))
	for i := range shown {
		jobs[i] = shown[i].job
	}
	return jobs
}

// ear hears why builds wait.
type ear struct{ replica *replica }

// Enabled implements slog.Handler.
func (ear) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

// Handle implements slog.Handler.
func (e ear) Handle(_ context.Context, record slog.Record) error {
	if record.Message != "a queued build has to wait" {
		return nil
	}
	event := Event{Kind: Reasons, By: e.replica.name}
	record.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "request":
			event.Request = a.Value.Int64()
		case "reason":
			event.Text = a.Value.String()
		}
		return true
	})
	e.replica.world.with(func() { e.replica.world.record(event) })
	return nil
}

// WithAttrs implements slog.Handler.
func (e ear) WithAttrs([]slog.Attr) slog.Handler { return e }

// WithGroup implements slog.Handler.
func (e ear) WithGroup(string) slog.Handler { return e }
