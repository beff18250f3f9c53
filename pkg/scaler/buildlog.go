package scaler

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// History is what the loop asks of Azure DevOps about requests that have left the queue.
type History interface {
	// JobRequest gives one request, and whether the service knows it.
	JobRequest(ctx context.Context, poolID int, id int64) (request agentpool.JobRequest, found bool, err error)
	// FinishedRequests visits so many requests that have finished last.
	FinishedRequests(ctx context.Context, poolID, count int, visit func(agentpool.JobRequest) error) error
}

const (
	// askedOneByOne is up to how many requests are asked for with a call for each; for more,
	// one call asks for all that have finished lately.
	askedOneByOne = 4
	// finishedRows is how many of these are asked for at most. A Job whose build is not among
	// them, as after a long time without a scaler, gives a line that says less.
	finishedRows = 1000
	// jobEndLimit is how long a line waits for the end of the Job, which comes after that of
	// the build and knows why an agent has failed.
	jobEndLimit = time.Minute
	// askLimit is how long the service is asked for what it said last of a build.
	askLimit = 10 * time.Minute
	// toldAge is how long it is remembered that a build has its line.
	toldAge = 2 * time.Hour
	// resultUnknown stands for what neither the service nor the Job tells any more.
	resultUnknown = "unknown"
)

// buildLog writes one line for each build that has ended. It is the loop's own. A build is
// noticed when its request leaves the queue. One that was never seen there, as it began and
// ended between two polls or before this scaler worked, is noticed by the Job that ran it.
type buildLog struct {
	open map[int64]agentpool.JobRequest // In the queue when it was last read.
	due  map[int64]*endedBuild
	// strays are finished Jobs that have run a build of which nothing is known, by UID.
	strays map[string]*endedBuild
	seen   map[string]agentpool.AgentJob // Those of open and due builds as they were last seen, by name.
	told   map[int64]time.Time
	agents map[string]time.Time // Those whose build has its line.
	old    map[string]bool      // UIDs of Jobs that had ended before this scaler worked.
}

// endedBuild is a build whose line is not written yet.
type endedBuild struct {
	request agentpool.JobRequest // As far as is known.
	job     agentpool.AgentJob   // Zero where there is none.
	since   time.Time
	final   bool // The service has said how it ended.
}

func newBuildLog(jobs []agentpool.AgentJob) *buildLog {
	l := &buildLog{
		open: map[int64]agentpool.JobRequest{}, due: map[int64]*endedBuild{}, strays: map[string]*endedBuild{},
		seen: map[string]agentpool.AgentJob{}, told: map[int64]time.Time{}, agents: map[string]time.Time{}, old: map[string]bool{},
	}
	for _, job := range jobs {
		l.old[job.UID] = job.Finished()
	}
	return l
}

// tellBuilds writes the lines of the builds that have ended since the last cycle.
func (s *Scaler) tellBuilds(ctx context.Context, snapshot plan.Snapshot) {
	if s.config.History == nil {
		return
	}
	l := s.builds
	jobs := l.notice(snapshot, s.config.ours)
	s.askEnded(ctx, snapshot.Now)
	for id, build := range l.due {
		if build.request.Reserved.Name != "" && !s.config.ours(build.request.Reserved.Name) {
			delete(l.due, id) // Somebody else's agent has run it.
			continue
		}
		job, there := jobs[build.request.Reserved.Name]
		if !there { // A finished Job does not stay for long.
			job = l.seen[build.request.Reserved.Name]
		}
		build.job = job
		waits := there && !job.Finished() && snapshot.Now.Sub(build.since) < jobEndLimit
		if build.final && !waits || snapshot.Now.Sub(build.since) >= askLimit {
			delete(l.due, id)
			s.tellBuild(ctx, build)
			l.told[id] = snapshot.Now
		}
	}
	for uid, build := range l.strays {
		if _, known := l.agents[build.job.Name]; known {
			delete(l.strays, uid) // It was found by its request.
		} else if build.final || snapshot.Now.Sub(build.since) >= askLimit {
			delete(l.strays, uid)
			s.tellBuild(ctx, build)
			l.told[build.request.ID] = snapshot.Now
		}
	}
	l.forget(snapshot)
}

// notice finds what has ended, and gives the Jobs by the names of their agents.
func (l *buildLog) notice(snapshot plan.Snapshot, ours func(string) bool) map[string]agentpool.AgentJob {
	now := make(map[int64]agentpool.JobRequest, len(snapshot.Requests))
	busy := map[string]bool{}
	for _, request := range snapshot.Requests {
		request.Demands, request.UnknownDemands = nil, nil
		now[request.ID] = request
		busy[request.Reserved.Name] = true
		delete(l.due, request.ID) // Its row could not be read for a while.
	}
	for id, request := range l.open {
		_, still := now[id]
		_, told := l.told[id]
		if !still && !told && (request.Reserved.Name == "" || ours(request.Reserved.Name)) {
			l.due[id] = &endedBuild{request: request, since: snapshot.Now}
		}
	}
	l.open = now
	for _, build := range l.due {
		busy[build.request.Reserved.Name] = true
	}
	jobs := make(map[string]agentpool.AgentJob, len(snapshot.Jobs))
	for _, job := range snapshot.Jobs {
		jobs[job.Name] = job
		_, told := l.agents[job.Name]
		if _, stray := l.strays[job.UID]; job.Finished() && job.RanBuild && !busy[job.Name] && !told && !stray {
			l.strays[job.UID] = &endedBuild{job: job, since: snapshot.Now}
		}
		if busy[job.Name] {
			l.seen[job.Name] = job
		}
	}
	drop(l.seen, busy)
	return jobs
}

// askEnded asks the service how builds have ended. A stray is asked for from the cycle after
// the one that met it, as its request may just be on the way out of the queue.
func (s *Scaler) askEnded(ctx context.Context, now time.Time) {
	l := s.builds
	var asked []*endedBuild
	for _, build := range l.due {
		if !build.final {
			asked = append(asked, build)
		}
	}
	strays := 0
	for _, build := range l.strays {
		if build.since.Before(now) {
			strays++
		}
	}
	if strays > 0 || len(asked) > askedOneByOne {
		s.askLately(ctx, min(finishedRows, 2*(strays+len(asked))+20), now)
		return
	}
	var mu sync.Mutex
	run(ctx, s, asked, func(ctx context.Context, build *endedBuild) {
		request, found, err := s.config.History.JobRequest(ctx, s.config.Pool.ID, build.request.ID)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err != nil:
			s.missEnded(err)
		case !found:
			build.final = true // There is nothing more to be had.
		default:
			build.learn(request)
		}
	})
}

// askLately finds builds among those that have finished last.
func (s *Scaler) askLately(ctx context.Context, count int, now time.Time) {
	l := s.builds
	byAgent := map[string]*endedBuild{}
	for _, build := range l.strays {
		byAgent[build.job.Name] = build
	}
	call, cancel := context.WithTimeout(ctx, s.config.PollTimeout)
	defer cancel()
	err := s.config.History.FinishedRequests(call, s.config.Pool.ID, count, func(request agentpool.JobRequest) error {
		if build := l.due[request.ID]; build != nil {
			build.learn(request)
		} else if build := byAgent[request.Reserved.Name]; build != nil {
			if _, told := l.told[request.ID]; !told {
				build.learn(request)
			}
		}
		return nil
	})
	if err != nil {
		s.missEnded(err)
		return
	}
	// What is not among so many has ended long ago, or the service has forgotten it.
	for _, build := range l.strays {
		build.final = build.final || build.since.Before(now)
	}
}

func (s *Scaler) missEnded(err error) {
	if s.complain.isNew("builds", err.Error()) {
		s.log.Warn("how builds have ended can't be asked, trying again", "error", err)
	}
}

// learn takes over what the service says of a build that has ended.
func (b *endedBuild) learn(request agentpool.JobRequest) {
	if request.State() == agentpool.RequestFinished {
		b.request, b.final = request, true
	}
}

// tellBuild writes the line.
func (s *Scaler) tellBuild(ctx context.Context, build *endedBuild) {
	s.complain.isNew("builds", "")
	request, job := build.request, build.job
	if name := cmp.Or(job.Name, request.Reserved.Name); name != "" {
		s.builds.agents[name] = s.now()
	}
	finished := request.FinishTime
	if finished.IsZero() {
		finished = job.Ended
	}
	result := request.Result
	if result == "" {
		result = resultUnknown
	}
	attributes := []slog.Attr{
		slog.Int64("request", request.ID), slog.String("pipeline", request.Definition.Name), slog.String("run", request.Run.Name),
		slog.String("project", request.Project), slog.String("class", job.Class), slog.String("job", job.Name), slog.String("pod", job.PodName),
		slog.String("agent", request.Reserved.Name), slog.String("result", result), slog.String("reason", string(job.Reason)),
	}
	for _, at := range []struct {
		name string
		when time.Time
	}{
		{"queued_at", request.QueueTime}, {"assigned_at", request.AssignTime}, {"started_at", request.ReceiveTime}, {"finished_at", finished},
	} {
		if !at.when.IsZero() {
			attributes = append(attributes, slog.Time(at.name, at.when))
		}
	}
	if begun := request.ReceiveTime; !begun.IsZero() && !request.QueueTime.IsZero() {
		attributes = append(attributes, slog.Float64("wait_seconds", begun.Sub(request.QueueTime).Seconds()))
	}
	if s.builds.old[job.UID] {
		attributes = append(attributes, slog.Bool("after_restart", true))
	}
	s.log.LogAttrs(ctx, slog.LevelInfo, "build ended", attributes...)
}

// forget drops what no present Job needs, and what is old.
func (l *buildLog) forget(snapshot plan.Snapshot) {
	there := map[string]bool{}
	for _, job := range snapshot.Jobs {
		there[job.Name], there[job.UID] = true, true
	}
	for id, at := range l.told {
		if snapshot.Now.Sub(at) >= toldAge {
			delete(l.told, id)
		}
	}
	for name, at := range l.agents {
		if !there[name] && snapshot.Now.Sub(at) >= toldAge {
			delete(l.agents, name)
		}
	}
	for uid := range l.old {
		if !there[uid] {
			delete(l.old, uid)
		}
	}
}
