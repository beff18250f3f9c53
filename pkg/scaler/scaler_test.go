package scaler_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

func config() scaler.Config {
	return scaler.Config{
		Pool: agentpool.Pool{ID: 7, Name: "k8s"},
		Limits: plan.Limits{
			PoolAgents: 100, CreationsPerCycle: 250, IdleLimit: time.Minute, MaxIdleAge: time.Hour,
			StartupLimit: 10 * time.Minute, HalfMadeLimit: 2 * time.Minute, BackoffMin: 10 * time.Second, BackoffMax: 10 * time.Minute, MismatchLimit: time.Minute,
		},
		Instance: "test", PollBusy: 2 * time.Second, PollIdle: 10 * time.Second, AgentsEvery: time.Minute,
		SweepEvery: time.Minute, SweepGrace: 2 * time.Minute, CheckEvery: 5 * time.Minute, RecheckEvery: 10 * time.Second,
		AssumeLimit: 30 * time.Second, CallTimeout: 30 * time.Second, PollTimeout: time.Minute, Concurrency: 4,
		UseParallel: true, ParallelEvery: time.Minute,
	}
}

// bench is a loop that runs against a model in virtual time.
type bench struct {
	*model
	scaler   *scaler.Scaler
	registry *prometheus.Registry
	log      *safeBuffer
	stop     func()
}

// inLoop runs body beside a loop on the model. It must be the last call of a test.
func inLoop(t *testing.T, m *model, change func(*scaler.Config), body func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, m, change)
		defer b.stop()
		body(t, b)
	})
}

func begin(t *testing.T, m *model, change func(*scaler.Config)) *bench {
	t.Helper()
	c := config()
	if change != nil {
		change(&c)
	}
	m.queue(m.initial...)
	m.initial = nil
	if m.before != nil {
		m.before()
	}
	b := &bench{model: m, registry: prometheus.NewPedanticRegistry(), log: &safeBuffer{}}
	b.scaler = scaler.New(c, m, m, scaler.NewMetrics(b.registry), slog.New(slog.NewTextHandler(b.log, nil)), time.Now)
	b.stop = run(t, b.scaler)
	synctest.Wait()
	return b
}

// run lets the loop run until the returned function is called.
func run(t *testing.T, s *scaler.Scaler) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the loop ended with %v", err)
		}
	}
}

// after lets virtual time go by.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestOneJobForEachBuild(t *testing.T) {
	m := newModel(1, 2, 3)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		want := []string{jobName(1, 0), jobName(2, 0), jobName(3, 0)}
		if diff := cmp.Diff(want, b.names()); diff != "" {
			t.Fatalf("Jobs (-want +got):\n%s", diff)
		}
		for _, name := range want {
			b.start(name)
		}
		// The service swaps them.
		b.claim(1, jobName(3, 0))
		b.claim(2, jobName(1, 0))
		b.claim(3, jobName(2, 0))
		after(3 * time.Second)
		for _, name := range want {
			if b.agent(name).Enabled {
				t.Errorf("the claimed agent %s is still enabled", name)
			}
		}
		for id := range int64(3) {
			b.finish(id + 1)
		}
		after(3 * time.Minute)
		if len(b.made()) != 3 {
			t.Errorf("want 3 Jobs in all, made %v", b.made())
		}
		if n := b.rightsLeft(); n != 0 {
			t.Errorf("rights outlive their builds: %d", n)
		}
	})
}

func TestClaimedAgentIsDisabledWithoutAPoll(t *testing.T) {
	m := newModel(1)
	inLoop(t, m, func(c *scaler.Config) { c.PollBusy, c.PollIdle = time.Hour, time.Hour }, func(t *testing.T, b *bench) {
		b.start(jobName(1, 0))
		b.claim(1, jobName(1, 0))
		polls := b.pollCount()
		b.scaler.Notify()
		synctest.Wait()
		if b.agent(jobName(1, 0)).Enabled {
			t.Error("the agent is still enabled")
		}
		b.finish(1)
		b.scaler.Notify()
		synctest.Wait()
		if b.rightsLeft() != 0 {
			t.Error("the build is over and still has rights")
		}
		if b.pollCount() != polls {
			t.Error("it took a poll")
		}
	})
}

func TestPollThatIsNotWholeMakesNoPlan(t *testing.T) {
	for name, spoil := range map[string]func(m *model){
		"refused": func(m *model) { m.pollError = errors.New("a sign-in page") },
		"partial": func(m *model) { m.partial = true },
	} {
		t.Run(name, func(t *testing.T) {
			m := newModel(1, 2)
			inLoop(t, m, func(c *scaler.Config) { c.Limits.IdleLimit = time.Second }, func(t *testing.T, b *bench) {
				b.with(func() { spoil(m) })
				b.queue(3)
				after(10 * time.Minute)
				want := []string{jobName(1, 0), jobName(2, 0)}
				if diff := cmp.Diff(want, b.names()); diff != "" {
					t.Errorf("an answer that is not whole was acted on (-want +got):\n%s", diff)
				}
				if why := b.scaler.NotReady(time.Now()); !strings.Contains(why, "can't be read") {
					t.Errorf("not ready should say why, says %q", why)
				}
				if n := strings.Count(b.log.String(), "no plan this cycle"); n != 1 {
					t.Errorf("said %d times that there is no plan, want once:\n%s", n, b.log)
				}
				b.with(func() { m.pollError, m.partial = nil, false })
				after(time.Minute)
				if why := b.scaler.NotReady(time.Now()); why != "" {
					t.Errorf("still not ready: %s", why)
				}
				if len(b.made()) != 3 {
					t.Errorf("want a Job for request 3 too, made %v", b.made())
				}
			})
		})
	}
}

func TestSurplusIsEndedSafely(t *testing.T) {
	m := newModel(1, 2, 3)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.start(jobName(2, 0))
		b.start(jobName(3, 0))
		b.with(func() {
			delete(m.requests, 1)
			delete(m.requests, 2)
			delete(m.requests, 3)
			// The service has just given this one a build that no poll shows yet.
			agent := m.agents[jobName(3, 0)]
			agent.AssignedRequest = 99
			m.agents[jobName(3, 0)] = agent
		})
		after(90 * time.Second)
		if diff := cmp.Diff([]string{jobName(3, 0)}, b.names()); diff != "" {
			t.Errorf("want only the agent with a build to stay (-want +got):\n%s", diff)
		}
		if b.agent(jobName(3, 0)).Enabled {
			t.Error("an agent that was to end must stay disabled")
		}
		if b.agent(jobName(2, 0)).Name != "" {
			t.Error("the ended agent is still registered")
		}
	})
}

func TestUnseenWrites(t *testing.T) {
	m := newModel(1)
	m.freeze()
	inLoop(t, m, func(c *scaler.Config) { c.Limits.IdleLimit = 5 * time.Second }, func(t *testing.T, b *bench) {
		after(20 * time.Second)
		if diff := cmp.Diff([]string{jobName(1, 0)}, b.made()); diff != "" {
			t.Fatalf("a Job that is not seen yet was made again (-want +got):\n%s", diff)
		}
		b.with(func() { delete(m.requests, 1) })
		after(12 * time.Second)
		b.queue(2)
		after(40 * time.Second)
		if why := b.scaler.NotReady(time.Now()); !strings.Contains(why, "out of date") {
			t.Errorf("a cache that shows no own write for over 30 s is out of date; not ready says %q", why)
		}
		if got := len(b.made()); got != 2 {
			t.Errorf("want one Job a request, made %v", b.made())
		}
		b.with(func() { delete(m.requests, 2) })
		after(time.Minute)
		if !slices.Contains(b.names(), jobName(2, 0)) {
			t.Error("something was ended while the cache was out of date")
		}
		b.with(func() { m.frozen = false })
		after(time.Minute)
		if len(b.names()) != 0 {
			t.Errorf("the surplus stays although the cache is current again: %v", b.names())
		}
	})
}

func TestAJobThatIsDeletedBeforeItIsSeen(t *testing.T) {
	m := newModel(1)
	m.freeze()
	inLoop(t, m, func(c *scaler.Config) { c.Limits.IdleLimit = 5 * time.Second }, func(t *testing.T, b *bench) {
		first := b.job(jobName(1, 0))
		b.with(func() { delete(m.requests, 1) })
		after(20 * time.Second)
		if len(b.names()) != 0 {
			t.Fatalf("the surplus stays: %v", b.names())
		}
		b.with(func() { m.cached = []agentpool.AgentJob{first} })
		b.queue(2)
		after(12 * time.Second)
		if diff := cmp.Diff([]string{jobName(1, 0), jobName(2, 0)}, b.made()); diff != "" {
			t.Errorf("what is gone serves no build, however late the cache shows it (-want +got):\n%s", diff)
		}
		if n := strings.Count(b.log.String(), "ended an agent without a build"); n != 1 {
			t.Errorf("ended %d times, want once:\n%s", n, b.log)
		}
	})
}

func TestAnAgentClaimedDuringAPollIsNotLeaving(t *testing.T) {
	m := newModel(1)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.start(jobName(1, 0))
		b.with(func() { m.pollTakes = 5 * time.Second })
		for polls := b.pollCount(); b.pollCount() == polls; {
			after(100 * time.Millisecond)
		}
		b.claim(1, jobName(1, 0))
		b.scaler.Notify()
		after(10 * time.Second)
		if b.agent(jobName(1, 0)).Enabled {
			t.Error("the agent is still enabled")
		}
		if diff := cmp.Diff([]string{jobName(1, 0)}, b.made()); diff != "" {
			t.Errorf("the build has its agent (-want +got):\n%s", diff)
		}
		if strings.Contains(b.log.String(), "was to end") {
			t.Errorf("it was to end:\n%s", b.log)
		}
	})
}

// refusal is an error of the cluster that knows its reason.
type refusal struct{ reason agentpool.Reason }

func (r refusal) Error() string            { return "refused: " + string(r.reason) }
func (r refusal) Reason() agentpool.Reason { return r.reason }

func TestJobThatCannotBeMade(t *testing.T) {
	m := newModel(1)
	m.createError = refusal{agentpool.ReasonQuota}
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		after(65 * time.Second)
		const failed = `
# HELP azp_scaler_jobs_failed_total Jobs that could not be made, or whose agent failed before it ran a build, by reason.
# TYPE azp_scaler_jobs_failed_total counter
azp_scaler_jobs_failed_total{class="default",pool="k8s",reason="quota-exceeded"} 3
`
		// At 0 s, 10 s and 30 s: the wait doubles.
		if err := testutil.GatherAndCompare(b.registry, strings.NewReader(failed), "azp_scaler_jobs_failed_total"); err != nil {
			t.Error(err)
		}
		b.with(func() { m.createError = nil })
		after(time.Minute)
		if len(b.names()) != 1 {
			t.Error("the build still has no Job although it could be made")
		}
	})
}

func TestAgentThatFails(t *testing.T) {
	m := newModel(1)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		fail := func(name string) {
			b.with(func() {
				job := m.jobs[name]
				job.Ended, job.JobDone, job.Reason, job.Message = time.Now(), true, agentpool.ReasonCrashed, "exit 14"
				m.jobs[name] = job
			})
		}
		fail(jobName(1, 0))
		after(5 * time.Second)
		if len(b.made()) != 1 {
			t.Fatal("no back-off after a failure")
		}
		after(10 * time.Second)
		fail(jobName(1, 1))
		after(15 * time.Second)
		if len(b.made()) != 2 {
			t.Fatalf("the second back-off is no longer than the first: %v", b.made())
		}
		after(10 * time.Second)
		if diff := cmp.Diff([]string{jobName(1, 0), jobName(1, 1), jobName(1, 2)}, b.made()); diff != "" {
			t.Errorf("Jobs made (-want +got):\n%s", diff)
		}
		if !slices.Contains(b.reported(), jobName(1, 0)+" agent-crashed") {
			t.Errorf("the failure was not reported: %v", b.reported())
		}
	})
}

func TestRestartAdoptsWhatIsThere(t *testing.T) {
	m := newModel(1, 2)
	synctest.Test(t, func(t *testing.T) {
		first := begin(t, m, nil)
		m.start(jobName(1, 0))
		first.stop()
		m.claim(1, jobName(1, 0))
		m.with(func() {
			// It died between making the Job and letting it go.
			job := m.jobs[jobName(2, 0)]
			job.Suspended = true
			m.jobs[jobName(2, 0)] = job
		})
		m.queue(3)
		second := begin(t, m, nil)
		defer second.stop()
		after(5 * time.Second)
		if diff := cmp.Diff([]string{jobName(1, 0), jobName(2, 0), jobName(3, 0)}, m.names()); diff != "" {
			t.Errorf("Jobs (-want +got):\n%s", diff)
		}
		if m.job(jobName(2, 0)).Suspended {
			t.Error("the half-made Job was not completed")
		}
		if m.agent(jobName(1, 0)).Enabled {
			t.Error("the agent that was claimed meanwhile is still enabled")
		}
	})
}

func TestAgentDisabledBeforeACrashIsEnded(t *testing.T) {
	m := newModel(1)
	synctest.Test(t, func(t *testing.T) {
		first := begin(t, m, nil)
		m.start(jobName(1, 0))
		first.stop()
		m.with(func() { m.disable(jobName(1, 0)) })
		second := begin(t, m, nil)
		defer second.stop()
		after(5 * time.Second)
		if diff := cmp.Diff([]string{jobName(1, 1)}, m.names()); diff != "" {
			t.Errorf("an idle agent that gets no build must make way for one that does (-want +got):\n%s", diff)
		}
	})
}

func TestTroubleWithAJobIsToldOnce(t *testing.T) {
	m := newModel(1)
	m.rightsError = errors.New("the target namespace is forbidden")
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.start(jobName(1, 0))
		b.claim(1, jobName(1, 0))
		b.finish(1)
		after(2 * time.Minute)
		if n := strings.Count(b.log.String(), "rights of a build that has ended"); n != 1 {
			t.Errorf("told %d times, want once:\n%s", n, b.log)
		}
		b.with(func() { m.rightsError = nil })
		after(5 * time.Second)
		if b.rightsLeft() != 0 {
			t.Error("the rights are still there although they could be ended")
		}
	})
}

func TestBlockedClass(t *testing.T) {
	m := newModel(1)
	m.blocked = map[string]string{"default": "the role is absent"}
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		after(time.Minute)
		if len(b.made()) != 0 {
			t.Error("a Job was made for a class that can't be served")
		}
		if why := b.scaler.NotReady(time.Now()); !strings.Contains(why, "the role is absent") {
			t.Errorf("not ready says %q", why)
		}
		b.serve(class("default"), class("other"))
		after(10 * time.Second)
		if why := b.scaler.NotReady(time.Now()); why != "" || len(b.made()) != 0 {
			t.Errorf("one class that can be served makes the loop ready, and serves nothing of the other's: %q, %v", why, b.made())
		}
		b.with(func() { m.blocked = nil })
		after(15 * time.Second)
		if len(b.made()) != 1 {
			t.Error("the class is no longer blocked, and its build has no Job")
		}
	})
}

func TestStuckLoop(t *testing.T) {
	m := newModel()
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		if why := b.scaler.Stuck(time.Now().Add(time.Minute)); why != "" {
			t.Errorf("not stuck: %s", why)
		}
		if b.scaler.Stuck(time.Now().Add(time.Hour)) == "" {
			t.Error("an hour without a turn is not noticed")
		}
	})
}

func TestStateMetrics(t *testing.T) {
	m := newModel(1, 2)
	inLoop(t, m, func(c *scaler.Config) { c.Limits.PoolAgents = 1 }, func(t *testing.T, b *bench) {
		b.start(jobName(1, 0))
		after(4 * time.Second)
		const want = `
# HELP azp_scaler_agents Agents of ours by phase (starting, idle, busy, leaving, finished).
# TYPE azp_scaler_agents gauge
azp_scaler_agents{class="default",phase="busy",pool="k8s"} 0
azp_scaler_agents{class="default",phase="finished",pool="k8s"} 0
azp_scaler_agents{class="default",phase="idle",pool="k8s"} 1
azp_scaler_agents{class="default",phase="leaving",pool="k8s"} 0
azp_scaler_agents{class="default",phase="starting",pool="k8s"} 0
# HELP azp_scaler_queue_depth Requests that wait for an agent.
# TYPE azp_scaler_queue_depth gauge
azp_scaler_queue_depth{pool="k8s"} 2
# HELP azp_scaler_queue_oldest_wait_seconds Seconds that the oldest waiting request has waited; 0 when none waits.
# TYPE azp_scaler_queue_oldest_wait_seconds gauge
azp_scaler_queue_oldest_wait_seconds{pool="k8s"} 4
`
		if err := testutil.GatherAndCompare(b.registry, strings.NewReader(want),
			"azp_scaler_agents", "azp_scaler_queue_depth", "azp_scaler_queue_oldest_wait_seconds"); err != nil {
			t.Error(err)
		}
	})
}
