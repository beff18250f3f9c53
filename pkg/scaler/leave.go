package scaler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// LeavingCluster is what Leave needs of Kubernetes.
type LeavingCluster interface {
	Cluster
	// DeleteLeavingRights deletes the Job although what its build was given could not be
	// taken back. The Job is the record of that, so it is the last resort.
	DeleteLeavingRights(ctx context.Context, job agentpool.AgentJob) error
	// Remains names everything of this installation that is there.
	Remains(ctx context.Context) ([]string, error)
}

// LeaveConfig is what Leave is set to. The zero value of a field is not a default.
type LeaveConfig struct {
	Config
	Wait     time.Duration // For builds that run.
	Patience time.Duration // For what fails and does not get any better.
	// Unreachable is how long the service may fail to answer until what the pods show has to do.
	Unreachable time.Duration
	Every       time.Duration // Between looks.
	// Tell is called with each thing that was done, from several goroutines.
	Tell func(done, what string)
}

// RemainderKind is what kind of thing is left: a closed set.
type RemainderKind string

// The kinds of what can be left.
const (
	RemainderBuild       RemainderKind = "build"       // A build that runs, with all that it needs.
	RemainderJob         RemainderKind = "job"         // An agent's Job without a build.
	RemainderPool        RemainderKind = "pool"        // An agent or a placeholder in the pool.
	RemainderObject      RemainderKind = "object"      // Something else in the cluster.
	RemainderInterrupted RemainderKind = "interrupted" // What was not come to.
)

// Remainder is one thing that Leave has left, and why.
type Remainder struct {
	Kind RemainderKind
	What string
	Why  string
}

// Leave ends all that is of this installation in the pool and in the cluster, and gives
// what is left. An agent without a build is ended as the loop ends surplus, one with a
// build gets no second one and is waited for. Nothing is made meanwhile: the caller sees
// to it that no loop runs. It returns when nothing is left, when only builds are left and
// the wait is over, when what is left has not got any less for the patience, or when ctx ends.
func Leave(ctx context.Context, config LeaveConfig, service Service, cluster LeavingCluster, log *slog.Logger, now func() time.Time) []Remainder {
	l := &leaving{
		Scaler: New(config.Config, service, cluster, NewMetrics(prometheus.NewRegistry()), log, now),
		config: config, cluster: cluster, began: now(), done: map[string]bool{},
	}
	var left []Remainder
	state, since := "", now()
	for {
		whole := l.look(ctx)
		if whole || left == nil {
			left = l.sorted()
		}
		if ctx.Err() != nil {
			return append(left, Remainder{
				Kind: RemainderInterrupted, What: "what else there is of pool " + config.Pool.Name, Why: "there was no time left, or the cleanup was told to end",
			})
		}
		if is := fmt.Sprint(left); is != state || l.acted {
			state, since = is, now()
		}
		stuck := now().Sub(since) >= config.Patience
		if over := l.over(left, stuck); over {
			return left
		}
		select {
		case <-ctx.Done():
		case <-time.After(config.Every):
		}
	}
}

// leaving is one Leave. Its Scaler is one whose loop does not run.
type leaving struct {
	*Scaler
	config  LeaveConfig
	cluster LeavingCluster
	began   time.Time
	// refused is since when the service has not answered; zero when it does.
	refused time.Time
	agents  []agentpool.Agent
	unasked error // Why it does not answer.

	mu    sync.Mutex
	left  []Remainder
	acted bool            // This look has ended or removed something.
	done  map[string]bool // What was told.
}

// over reports whether to stop looking.
func (l *leaving) over(left []Remainder, stuck bool) bool {
	if len(left) == 0 {
		return !l.acted
	}
	builds := slices.ContainsFunc(left, func(r Remainder) bool { return r.Kind == RemainderBuild })
	if builds && l.now().Sub(l.began) < l.config.Wait {
		return false
	}
	others := slices.ContainsFunc(left, func(r Remainder) bool {
		return r.Kind != RemainderBuild && (r.Kind != RemainderPool || !l.isUnreachable())
	})
	// A look that has just begun to count without the builds may find more to do.
	return !l.acted && (stuck || !others)
}

// isUnreachable reports whether the service has not answered for too long.
func (l *leaving) isUnreachable() bool {
	return l.unasked != nil && l.now().Sub(l.refused) >= l.config.Unreachable
}

// look goes through everything once and reports whether it could see all of it.
func (l *leaving) look(ctx context.Context) (whole bool) {
	l.left, l.acted = nil, false
	l.askPool(ctx)
	call, cancel := context.WithTimeout(ctx, l.config.CallTimeout)
	defer cancel()
	jobs, err := l.cluster.LiveJobs(call)
	if err != nil {
		jobs = nil
		l.leave(RemainderObject, "the Jobs of agents", fmt.Errorf("they can't be listed: %w", err))
	}
	each(ctx, ctx, l.config.Config, jobs, l.endJob) // What has begun ends with ctx, too.
	waited := l.now().Sub(l.began) >= l.config.Wait
	builds := slices.ContainsFunc(l.left, func(r Remainder) bool { return r.Kind == RemainderBuild })
	l.emptyPool(ctx, jobs, err == nil, waited || !builds)
	l.emptyCluster(ctx, jobs)
	return err == nil && ctx.Err() == nil
}

// askPool reads the pool's agents, and notes since when that fails.
func (l *leaving) askPool(ctx context.Context) {
	asked := l.now()
	call, cancel := context.WithTimeout(ctx, l.config.CallTimeout)
	defer cancel()
	l.agents, l.unasked = l.service.Agents(call, l.Scaler.config.Pool.ID)
	if l.unasked == nil && (!l.identify(ctx) || !l.isAlone(ctx, l.agents)) {
		// What is in the pool may be the other one's.
		l.unasked = errors.New(l.Status().Waiting)
	}
	switch {
	case l.unasked == nil:
		l.refused = time.Time{}
	case l.refused.IsZero():
		l.refused = asked
	}
}

// endJob sees to one Job.
func (l *leaving) endJob(ctx context.Context, job agentpool.AgentJob) {
	switch {
	case job.Finished():
		l.endFinished(ctx, job)
	case job.RanBuild:
		if l.unasked == nil {
			l.disable(ctx, job)
		}
		l.leave(RemainderBuild, "agent "+job.Name, errRuns)
	case job.Deleting:
		l.leave(RemainderJob, "agent "+job.Name, errors.New("it is being ended"))
	case l.unasked != nil:
		l.endUnasked(ctx, job)
	default:
		ended, err := l.takeOut(ctx, job)
		switch {
		case err != nil:
			l.giveUpRights(ctx, job, err)
		case ended:
			l.tell("ended", "agent "+job.Name+", which had no build")
		default:
			l.leave(RemainderBuild, "agent "+job.Name, errRuns)
		}
	}
}

var errRuns = errors.New("its build runs: it is disabled, so that it gets no other, and its pod ends by itself after the build")

// endFinished removes what is left of an agent whose build is over. Its sidecar may be about
// to remove the registration: whoever comes second finds it gone.
func (l *leaving) endFinished(ctx context.Context, job agentpool.AgentJob) {
	if l.unasked == nil && !l.isListedGone(job.Name) {
		l.deregister(ctx, job)
	}
	if err := l.cluster.Delete(ctx, job); err != nil {
		l.giveUpRights(ctx, job, err)
		return
	}
	l.tell("removed", "Job "+job.Name+", which had ended")
}

func (l *leaving) isListedGone(name string) bool {
	return !slices.ContainsFunc(l.agents, func(agent agentpool.Agent) bool { return agent.Name == name })
}

// endUnasked ends an agent while the service can't say whether it has a build. One that has
// not started has none. One whose pod shows it waiting is told to end once the patience is
// over: its entrypoint then asks the service itself, as it does on a node that is drained.
func (l *leaving) endUnasked(ctx context.Context, job agentpool.AgentJob) {
	deleted, err := l.cluster.DeleteUnstarted(ctx, job)
	waits := job.Ready && l.isUnreachable()
	switch {
	case err != nil:
		l.giveUpRights(ctx, job, err)
	case deleted:
		l.tell("ended", "agent "+job.Name+", which had not started")
	case !waits:
		l.leave(RemainderJob, "agent "+job.Name, fmt.Errorf("whether it has a build can't be asked: %w", l.unasked))
	default:
		if err := l.cluster.Delete(ctx, job); err != nil {
			l.giveUpRights(ctx, job, err)
			return
		}
		l.tell("ended", "agent "+job.Name+", whose pod shows it without a build")
	}
}

// giveUpRights deletes a Job in whose way nothing is but rights that may not be taken back,
// such as those in a namespace that is gone with the scaler's role in it.
func (l *leaving) giveUpRights(ctx context.Context, job agentpool.AgentJob, cause error) {
	if reasonOf(cause) != agentpool.ReasonForbidden {
		l.leave(RemainderJob, "agent "+job.Name, cause)
		return
	}
	if err := l.cluster.DeleteLeavingRights(ctx, job); err != nil {
		l.leave(RemainderJob, "agent "+job.Name, cause)
		return
	}
	l.tell("removed", "Job "+job.Name+", though not what its build was given, as that may not be touched: "+cause.Error())
}

// emptyPool removes the registrations of agents without a Job, and at the end the
// placeholders: before, they keep builds queued that an agent which still runs may take.
func (l *leaving) emptyPool(ctx context.Context, jobs []agentpool.AgentJob, known, last bool) {
	instance := l.Scaler.config.Instance
	if l.unasked != nil {
		l.leave(RemainderPool, fmt.Sprintf("agents %s… and %s… of pool %s, as far as there are any", agentjob.NamePrefix(instance), agentjob.PlaceholderPrefix(instance), l.Scaler.config.Pool.Name), l.unasked)
		return
	}
	alive := liveNames(jobs)
	for _, agent := range l.agents {
		placeholder := strings.HasPrefix(agent.Name, agentjob.PlaceholderPrefix(instance))
		switch {
		case placeholder && !last, !l.Scaler.config.ours(agent.Name), alive[agent.Name]:
			continue
		case !placeholder && !known && agent.Online:
			l.leave(RemainderPool, "agent "+agent.Name, errors.New("whether its pod is there can't be asked"))
			continue
		}
		call, cancel := context.WithTimeout(ctx, l.config.CallTimeout)
		gone, err := l.service.WithdrawAgent(call, l.Scaler.config.Pool.ID, agentpool.AgentRef{ID: agent.ID, Name: agent.Name})
		cancel()
		switch {
		case err != nil:
			l.leave(RemainderPool, "agent "+agent.Name, err)
		case !gone && placeholder:
			l.leave(RemainderPool, "agent "+agent.Name, errors.New("the service says that it has a build, which a placeholder never takes"))
		case !gone:
			l.leave(RemainderPool, "agent "+agent.Name, errors.New("the service says that it has a build, though its pod is gone: it lets go of it when the build's lock ends, after some minutes"))
		case placeholder:
			l.tell("removed", "placeholder "+agent.Name+" from pool "+l.Scaler.config.Pool.Name)
		default:
			l.tell("removed", "registration "+agent.Name+" from pool "+l.Scaler.config.Pool.Name)
		}
	}
}

// emptyCluster removes rights without a Job, and notes what is there beside the Jobs.
func (l *leaving) emptyCluster(ctx context.Context, jobs []agentpool.AgentJob) {
	call, cancel := context.WithTimeout(ctx, l.config.CallTimeout)
	defer cancel()
	removed, err := l.cluster.Sweep(call, 0)
	for kind, n := range removed {
		if n > 0 {
			l.tell("removed", fmt.Sprintf("%d of kind %s without a Job", n, kind))
		}
	}
	if err != nil {
		l.leave(RemainderObject, "what builds were given", err)
	}
	remains, err := l.cluster.Remains(call)
	if err != nil {
		l.leave(RemainderObject, "what is in the cluster", err)
	}
	// What belongs to a Job that is left is told of with it, and goes with it.
	for _, what := range remains {
		if !slices.ContainsFunc(l.leftJobs(jobs), func(name string) bool { return strings.Contains(what, name) }) {
			l.leave(RemainderObject, what, errors.New("it has not gone yet"))
		}
	}
}

// leftJobs names the Jobs that were left in this look.
func (l *leaving) leftJobs(jobs []agentpool.AgentJob) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for _, job := range jobs {
		if slices.ContainsFunc(l.left, func(r Remainder) bool { return r.What == "agent "+job.Name }) {
			names = append(names, job.Name)
		}
	}
	return names
}

func (l *leaving) leave(kind RemainderKind, what string, why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left = append(l.left, Remainder{Kind: kind, What: what, Why: why.Error()})
}

// tell says once what was done.
func (l *leaving) tell(done, what string) {
	l.mu.Lock()
	l.acted = true
	first := !l.done[done+" "+what]
	l.done[done+" "+what] = true
	l.mu.Unlock()
	if first {
		l.config.Tell(done, what)
	}
}

func (l *leaving) sorted() []Remainder {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.SortedFunc(slices.Values(l.left), func(a, b Remainder) int { return strings.Compare(a.What, b.What) })
}
