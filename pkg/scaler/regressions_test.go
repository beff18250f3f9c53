package scaler_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// These are mistakes that other autoscalers for build agents are known to have made. Each has a
// name, so that whoever changes the loop finds out which one is back.

// TestFinishedJobsDoNotStarveTheQueueAfterARestart: Jobs that had ended counted as running for a
// process that had just started, and took all the room there was.
func TestFinishedJobsDoNotStarveTheQueueAfterARestart(t *testing.T) {
	m := newModel(1, 2, 3)
	capped := func(c *scaler.Config) { c.Limits.PoolAgents = 3 }
	synctest.Test(t, func(t *testing.T) {
		first := begin(t, m, capped)
		for id := range int64(3) {
			m.start(jobName(id+1, 0))
			m.claim(id+1, jobName(id+1, 0))
			m.finish(id + 1)
		}
		first.stop()
		m.queue(4, 5, 6)
		second := begin(t, m, capped)
		defer second.stop()
		after(3 * time.Second)
		if made := second.made(); len(made) != 6 {
			t.Errorf("want a Job for each of the three that wait, made %v", made)
		}
	})
}

// TestBuildsThatAnAgentHasPickedUpAreNotQueued: a build that had been given to an agent counted
// as waiting for as long as it ran.
func TestBuildsThatAnAgentHasPickedUpAreNotQueued(t *testing.T) {
	m := newModel(1)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.start(jobName(1, 0))
		b.with(func() {
			// It is given to the agent, which has not said yet that it has it.
			request := m.requests[1]
			request.AssignTime, request.Reserved = time.Now(), agentpool.AgentRef{ID: m.agents[jobName(1, 0)].ID, Name: jobName(1, 0)}
			m.requests[1] = request
		})
		after(10 * time.Second)
		b.claim(1, jobName(1, 0))
		after(time.Hour)
		if made := b.made(); len(made) != 1 {
			t.Errorf("want one Job for one build, made %v", made)
		}
	})
}

// TestRunningBuildsDoNotStandForQueuedOnes: the Jobs that ran were taken off those that were
// needed for the queue, so that with as many running as waiting none was made.
func TestRunningBuildsDoNotStandForQueuedOnes(t *testing.T) {
	m := newModel(1, 2, 3)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		for id := range int64(3) {
			b.start(jobName(id+1, 0))
			b.claim(id+1, jobName(id+1, 0))
		}
		b.queue(4, 5, 6)
		after(11 * time.Second)
		if made := b.made(); len(made) != 6 {
			t.Errorf("want a Job for each of the three that wait beside three that run, made %v", made)
		}
	})
}

// TestCancelledBuildsLeaveNoAgents: the agent of a build that was cancelled before it was given to
// one waited for another for ever.
func TestCancelledBuildsLeaveNoAgents(t *testing.T) {
	m := newModel(1, 2, 3, 4)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.start(jobName(1, 0)) // Two wait, two have not started.
		b.start(jobName(2, 0))
		b.with(func() { clear(m.requests) })
		after(90 * time.Second)
		if names, n := b.names(), b.registered(); len(names) != 0 || n != 0 {
			t.Errorf("left are the Jobs %v and %d registrations", names, n)
		}
	})
}

// TestOfflineAgentsDoNotPileUp: each agent whose pod was killed left its registration, until the
// pool was full of them.
func TestOfflineAgentsDoNotPileUp(t *testing.T) {
	m := newModel()
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		for id := range int64(20) {
			b.queue(id + 1)
			after(11 * time.Second)
			b.start(jobName(id+1, 0))
			b.claim(id+1, jobName(id+1, 0))
			b.end(id + 1) // Without a sidecar that would remove it.
		}
		after(4 * time.Minute)
		if n := b.registered(); n != 0 {
			t.Errorf("%d registrations of agents that have ended are left", n)
		}
	})
}

// TestAnEditOfAClassKillsNoBuild: a change of the specification replaced all Jobs, those with a
// build as well.
func TestAnEditOfAClassKillsNoBuild(t *testing.T) {
	class := agentpool.AgentClass{Name: "default", Version: "1"}
	for name, edit := range map[string]scaler.Classes{
		"another image":   {Usable: []agentpool.AgentClass{{Name: "default", Version: "2"}}},
		"fewer agents":    {Usable: []agentpool.AgentClass{{Name: "default", Version: "2", MaxAgents: 1}}},
		"another name":    {Usable: []agentpool.AgentClass{{Name: "renamed", Version: "1"}}},
		"badly written":   {Broken: map[string]string{"default": "max-agents"}},
		"no class at all": {},
	} {
		t.Run(name, func(t *testing.T) {
			m := newModel(1, 2)
			m.serve(class)
			inLoop(t, m, nil, func(t *testing.T, b *bench) {
				for id := range int64(2) {
					b.start(jobName(id+1, 0))
					b.claim(id+1, jobName(id+1, 0))
				}
				b.with(func() { m.classes = edit })
				after(time.Hour)
				if names := b.names(); len(names) != 2 {
					t.Errorf("two builds run, and of their Jobs are left %v", names)
				}
			})
		})
	}
}

// TestAgentsThatHaveNotRegisteredYetAreNotMissing: agents counted from when they were in the pool,
// so that each poll of their start made as many again: 916 Jobs for 100 builds.
func TestAgentsThatHaveNotRegisteredYetAreNotMissing(t *testing.T) {
	const builds = 100
	ids := make([]int64, builds)
	for i := range ids {
		ids[i] = int64(i + 1)
	}
	m := newModel(ids...)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		before := b.pollCount()
		after(time.Minute)
		b.with(func() {
			for name, job := range m.jobs {
				job.PodName, job.Scheduled = name+"-pod", time.Now()
				m.jobs[name] = job
			}
		})
		after(4 * time.Minute)
		b.with(func() {
			for name, job := range m.jobs {
				job.Started = true // It runs, and is neither ready nor registered.
				m.jobs[name] = job
			}
		})
		after(4 * time.Minute)
		if polls := b.pollCount() - before; polls < 100 {
			t.Fatalf("polled %d times, too few to tell", polls)
		}
		if made := b.made(); len(made) != builds {
			t.Errorf("made %d Jobs for %d builds", len(made), builds)
		}
	})
}

// TestAQueueOfAnyLengthIsServed: of a queue only the first 200 rows were looked at, finished ones
// among them, and builds beyond were not there.
func TestAQueueOfAnyLengthIsServed(t *testing.T) {
	const builds = 700
	ids := make([]int64, builds)
	for i := range ids {
		ids[i] = int64(i + 1)
	}
	m := newModel(ids...)
	wide := func(c *scaler.Config) { c.Limits.PoolAgents = 2 * builds }
	inLoop(t, m, wide, func(t *testing.T, b *bench) {
		after(10 * time.Second)
		if made := b.made(); len(made) != builds {
			t.Errorf("made %d Jobs for %d builds", len(made), builds)
		}
	})
}

// slow is a service whose answers take longer than the caller waits, as they do to a caller that
// asks for a pool's whole history.
type slow struct {
	*model
	takes time.Duration
}

func (s *slow) JobRequests(ctx context.Context, poolID int, visit func(agentpool.JobRequest) error) (int, error) {
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(read(s.model, func() time.Duration { return s.takes })):
		return s.model.JobRequests(ctx, poolID, visit)
	}
}

// TestAnAnswerLongerThanTheTimeoutIsNoEmptyQueue: a poll that ran into its time-out counted as an
// empty queue, so agents that were about to get a build were ended, or nothing was said at all.
func TestAnAnswerLongerThanTheTimeoutIsNoEmptyQueue(t *testing.T) {
	m := &slow{model: newModel(1)}
	synctest.Test(t, func(t *testing.T) {
		m.queue(m.initial...)
		log := &safeBuffer{}
		loop := scaler.New(config(), m, m, scaler.NewMetrics(prometheus.NewRegistry()), slog.New(slog.NewTextHandler(log, nil)), time.Now)
		defer run(t, loop)()
		synctest.Wait()
		m.start(jobName(1, 0))
		after(3 * time.Second)
		m.with(func() {
			m.takes = config().PollTimeout + time.Second
			delete(m.requests, 1) // Nobody learns of it: the idle limit does not begin.
		})
		m.queue(2)
		after(10 * time.Minute)
		if names := m.names(); len(names) != 1 || len(m.made()) != 1 || m.agent(jobName(1, 0)).Name == "" {
			t.Errorf("while no queue is known the Jobs are %v, made %v, want the first alone", names, m.made())
		}
		if waiting := loop.Status().Waiting; !strings.Contains(waiting, "the queue can't be read") || !strings.Contains(log.String(), waiting) {
			t.Errorf("it is said that %q", waiting)
		}
		m.with(func() { m.takes = 0 })
		m.claim(2, jobName(1, 0))
		m.queue(3)
		after(time.Minute)
		if len(m.made()) != 2 {
			t.Errorf("when the service answers again there is one Job for each build, made %v", m.made())
		}
	})
}
