package scaler_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// change changes a Job, as Kubernetes does.
func (m *model) change(name string, change func(*agentpool.AgentJob)) {
	m.with(func() {
		job := m.jobs[name]
		change(&job)
		m.jobs[name] = job
	})
}

// online has an agent come or go.
func (m *model) online(name string, online bool) {
	m.with(func() {
		if agent, registered := m.agents[name]; registered {
			agent.Online = online
			m.agents[name] = agent
		}
	})
}

// lapse has the service abandon the first build, whose agent is not heard of any more.
func (m *model) lapse() {
	m.with(func() {
		agent := m.agents[m.requests[1].Reserved.Name]
		agent.AssignedRequest = 0
		m.agents[agent.Name] = agent
		delete(m.requests, 1)
	})
}

func deleting(job *agentpool.AgentJob) { job.Deleting = true }

// bothWays plays a test with agents that their pods register, and with those that the
// scaler does.
func bothWays(t *testing.T, play func(t *testing.T, m *model)) {
	t.Helper()
	t.Run("config", func(t *testing.T) { play(t, newModel(1)) })
	t.Run("jit", func(t *testing.T) { play(t, newJITModel(1)) })
}

// TestALostNodesAgentIsRemoved says what becomes of an idle agent whose node is gone: its pod
// is marked for deletion and never ends, so no sidecar takes the registration back.
func TestALostNodesAgentIsRemoved(t *testing.T) {
	bothWays(t, func(t *testing.T, m *model) {
		inLoop(t, m, nil, func(t *testing.T, b *bench) {
			b.start(jobName(1, 0))
			b.online(jobName(1, 0), false)
			b.change(jobName(1, 0), deleting)
			after(3 * time.Second)
			if diff := cmp.Diff([]string{jobName(1, 0), jobName(1, 1)}, b.made()); diff != "" {
				t.Errorf("another agent is made at once (-want +got):\n%s", diff)
			}
			b.start(jobName(1, 1))
			after(4 * time.Minute)
			if diff := cmp.Diff([]string{jobName(1, 1)}, b.names()); diff != "" {
				t.Errorf("Jobs (-want +got):\n%s", diff)
			}
			if b.registered() != 1 || b.agent(jobName(1, 0)).Name != "" {
				t.Errorf("%d agents are registered, want the new one alone", b.registered())
			}
			if !slices.Contains(b.reported(), jobName(1, 0)+" node-lost") {
				t.Errorf("nobody is told: %v", b.reported())
			}
		})
	})
}

// TestALostNodesAgentIsEndedOnce says that it is not ended again for as long as a cache that is
// late shows it.
func TestALostNodesAgentIsEndedOnce(t *testing.T) {
	m := newModel(1)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.start(jobName(1, 0))
		b.online(jobName(1, 0), false)
		b.with(func() { delete(m.requests, 1) })
		b.change(jobName(1, 0), deleting)
		b.freeze()
		after(8 * time.Minute)
		if n := strings.Count(b.log.String(), "ended an agent without a build"); n != 1 || len(b.names()) != 0 {
			t.Errorf("it was ended %d times, and the Jobs left are %v", n, b.names())
		}
	})
}

// TestABuildOnALostNodeIsNotRunAgain says that as long as the service takes the build for
// running nothing is ended, and that then all is removed, and no other agent made.
func TestABuildOnALostNodeIsNotRunAgain(t *testing.T) {
	bothWays(t, func(t *testing.T, m *model) {
		inLoop(t, m, nil, func(t *testing.T, b *bench) {
			b.start(jobName(1, 0))
			b.claim(1, jobName(1, 0))
			b.online(jobName(1, 0), false)
			b.change(jobName(1, 0), deleting)
			after(10 * time.Minute)
			if len(b.names()) != 1 || b.rightsLeft() != 1 || b.agent(jobName(1, 0)).Name == "" {
				t.Fatalf("a build that the service takes for running was ended: %v", b.names())
			}
			b.lapse()
			after(4 * time.Minute)
			if len(b.names()) != 0 || b.rightsLeft() != 0 || b.registered() != 0 {
				t.Errorf("left are the Jobs %v, %d rights and %d registrations", b.names(), b.rightsLeft(), b.registered())
			}
			if made := b.made(); len(made) != 1 {
				t.Errorf("the build had begun, made %v", made)
			}
		})
	})
}

// TestABuildThatIsDrainedGoesOn says that a node that is drained keeps its builds for their
// grace period: the agent is at work, whatever is to become of its pod.
func TestABuildThatIsDrainedGoesOn(t *testing.T) {
	bothWays(t, func(t *testing.T, m *model) {
		inLoop(t, m, nil, func(t *testing.T, b *bench) {
			b.start(jobName(1, 0))
			b.claim(1, jobName(1, 0))
			b.change(jobName(1, 0), deleting)
			after(50 * time.Minute)
			if len(b.made()) != 1 || len(b.names()) != 1 || b.rightsLeft() != 1 || b.agent(jobName(1, 0)).Name == "" {
				t.Fatalf("the build was ended: Jobs %v, made %v, %d rights", b.names(), b.made(), b.rightsLeft())
			}
			if b.agent(jobName(1, 0)).Enabled {
				t.Error("an agent with a build is disabled, on whatever node")
			}
			b.finish(1)
			after(time.Minute)
			if b.rightsLeft() != 0 || b.registered() != 0 {
				t.Errorf("left are %d rights and %d registrations", b.rightsLeft(), b.registered())
			}
		})
	})
}

// TestRegistrationsWithoutAJobAreSwept says that they go whether they are online or not, and
// that one with a build stays until that has ended.
func TestRegistrationsWithoutAJobAreSwept(t *testing.T) {
	m := newModel(1)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.start(jobName(1, 0))
		b.with(func() {
			m.agents["azp-test-7-90-0"] = agentpool.Agent{ID: 90, Name: "azp-test-7-90-0", Enabled: true}
			m.agents["azp-test-7-91-0"] = agentpool.Agent{ID: 91, Name: "azp-test-7-91-0", Enabled: true, Online: true}
			m.agents["azp-test-7-92-0"] = agentpool.Agent{ID: 92, Name: "azp-test-7-92-0", AssignedRequest: 5}
			m.agents["somebody-else"] = agentpool.Agent{ID: 93, Name: "somebody-else"}
			m.liveError = errors.New("the API server is away")
		})
		after(5 * time.Minute)
		if n := b.registered(); n != 5 {
			t.Fatalf("without a live look nothing may go, %d of 5 are left", n)
		}
		b.with(func() { m.liveError = nil })
		after(2 * time.Minute)
		if n := b.registered(); b.agent("azp-test-7-90-0").Name != "" || b.agent("azp-test-7-91-0").Name != "" || n != 3 {
			t.Errorf("want the orphans without a build to go, and those alone, %d of 5 are left", n)
		}
		b.with(func() {
			agent := m.agents["azp-test-7-92-0"]
			agent.AssignedRequest = 0
			m.agents[agent.Name] = agent
		})
		after(2 * time.Minute)
		if b.agent("azp-test-7-92-0").Name != "" {
			t.Error("the build has ended, and its orphan is still there")
		}
	})
}

// TestASweepTrustsNoCache says that the registration of a Job stays which an earlier life made,
// and which the cache does not show yet.
func TestASweepTrustsNoCache(t *testing.T) {
	m := newModel(1)
	synctest.Test(t, func(t *testing.T) {
		first := begin(t, m, nil)
		first.start(jobName(1, 0))
		first.stop()
		m.with(func() {
			delete(m.requests, 1) // So that no Job is made that has the name.
			m.cached, m.frozen = nil, true
		})
		second := begin(t, m, nil)
		defer second.stop()
		after(10 * time.Minute)
		if second.agent(jobName(1, 0)).Name == "" {
			t.Error("it is gone")
		}
	})
}

// TestTheNameOfADisabledAgentIsNotUsedAgain says that an agent whose Job is gone, and which keeps
// its registration for a while, takes nothing from the one that is made when its maker has
// forgotten it.
func TestTheNameOfADisabledAgentIsNotUsedAgain(t *testing.T) {
	m := newModel(1)
	m.with(func() {
		m.agents[jobName(1, 0)] = agentpool.Agent{ID: 90, Name: jobName(1, 0), AssignedRequest: 5}
		m.agents["azp-test-8-1-3"] = agentpool.Agent{ID: 91, Name: "azp-test-8-1-3"} // Of another pool's Jobs.
	})
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		after(time.Minute)
		if diff := cmp.Diff([]string{jobName(1, 1)}, b.made()); diff != "" {
			t.Errorf("made (-want +got):\n%s", diff)
		}
	})
}

// TestANodeThatIsDrainedHoldsBackNoClass says that agents whose node goes are replaced at
// once, however many they are.
func TestANodeThatIsDrainedHoldsBackNoClass(t *testing.T) {
	m := newModel(1, 2, 3, 4, 5)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		for id := range int64(5) {
			b.change(jobName(id+1, 0), func(job *agentpool.AgentJob) {
				job.Ended, job.JobDone, job.Reason = time.Now(), true, agentpool.ReasonEvicted
			})
		}
		b.queue(6)
		after(3 * time.Second)
		if !slices.Contains(b.made(), jobName(6, 0)) {
			t.Errorf("a new request waits because of a node, made %v", b.made())
		}
		after(10 * time.Second)
		if made := b.made(); len(made) != 11 {
			t.Errorf("want another agent for each, made %v", made)
		}
	})
}

// TestAnOOMKilledAgentIsNoSuccess says that a build that ran out of memory is told with its
// reason, be its agent killed or not, and that no other agent is made.
func TestAnOOMKilledAgentIsNoSuccess(t *testing.T) {
	for name, code := range map[string]int{"the agent was killed": 137, "a step was killed": 0} {
		t.Run(name, func(t *testing.T) {
			m := newModel(1)
			inLoop(t, m, nil, func(t *testing.T, b *bench) {
				b.start(jobName(1, 0))
				b.claim(1, jobName(1, 0))
				b.change(jobName(1, 0), func(job *agentpool.AgentJob) {
					job.Ended, job.JobDone, job.ExitCode, job.Reason = time.Now(), true, code, agentpool.ReasonOutOfMemory
				})
				b.lapse()
				after(20 * time.Second)
				want := `# HELP azp_scaler_builds_lost_total Builds whose agent failed, was taken away or ran out of memory while it ran them, by reason.
# TYPE azp_scaler_builds_lost_total counter
azp_scaler_builds_lost_total{class="default",pool="k8s",reason="out-of-memory"} 1
`
				if err := testutil.GatherAndCompare(b.registry, strings.NewReader(want), "azp_scaler_builds_lost_total"); err != nil {
					t.Error(err)
				}
				if !slices.Contains(b.reported(), jobName(1, 0)+" out-of-memory") {
					t.Errorf("no Event tells of it: %v", b.reported())
				}
				if strings.Contains(b.log.String(), "an agent has ended") || len(b.made()) != 1 {
					t.Errorf("it is taken for a success, or run again, made %v:\n%s", b.made(), b.log)
				}
			})
		})
	}
}

// TestAPodThatOutlivesItsAgentIsRemoved says that a class's sidecar that never ends keeps no
// Job for ever.
func TestAPodThatOutlivesItsAgentIsRemoved(t *testing.T) {
	m := newModel(1)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.start(jobName(1, 0))
		b.claim(1, jobName(1, 0))
		b.finish(1)
		b.change(jobName(1, 0), func(job *agentpool.AgentJob) { job.JobDone = false })
		after(9 * time.Minute)
		if len(b.names()) != 1 {
			t.Fatal("what a sidecar does after the build was cut short")
		}
		after(2 * time.Minute)
		if len(b.names()) != 0 || !slices.Contains(b.reported(), jobName(1, 0)+" "+string(plan.EndLingering)) {
			t.Errorf("left are the Jobs %v, told is %v", b.names(), b.reported())
		}
	})
}

// TestAServiceThatIsAwayForHalfAnHour says that nothing is lost, doubled or left behind when
// the service can't be reached for half an hour: a build ends and another goes on meanwhile,
// idle agents wait for their session, and one is evicted.
func TestAServiceThatIsAwayForHalfAnHour(t *testing.T) {
	bothWays(t, func(t *testing.T, m *model) {
		inLoop(t, m, nil, func(t *testing.T, b *bench) {
			b.queue(2, 3, 4)
			after(3 * time.Second)
			for id := range int64(4) {
				b.start(jobName(id+1, 0))
			}
			b.claim(1, jobName(1, 0))
			b.claim(2, jobName(2, 0))
			after(3 * time.Second)
			b.with(func() {
				m.away = errors.New("no route to host")
			})
			for id := range int64(4) {
				b.online(jobName(id+1, 0), false)
			}
			// The service keeps what it knows: it has assigned nothing, and takes the builds
			// for running until their locks lapse.
			after(5 * time.Minute)
			b.change(jobName(1, 0), func(job *agentpool.AgentJob) { job.Ended, job.JobDone = time.Now(), true })
			b.with(func() { delete(m.jobs, jobName(3, 0)); delete(m.rights, jobName(3, 0)) })
			b.queue(5)
			after(25 * time.Minute)
			if made := b.made(); len(made) != 4 || b.rightsLeft() != 2 {
				t.Fatalf("without an answer nothing is made, and rights end with their build: made %v, %d rights", made, b.rightsLeft())
			}
			b.lapse()
			b.with(func() { m.away = nil })
			for _, name := range []string{jobName(2, 0), jobName(4, 0)} {
				b.online(name, true)
			}
			after(15 * time.Second)
			made := b.made()
			if len(made) != 6 {
				t.Fatalf("three builds wait beside one idle agent, made %v", made)
			}
			for _, name := range made[4:] {
				b.start(name)
			}
			after(5 * time.Minute)
			want := append([]string{jobName(1, 0), jobName(2, 0), jobName(4, 0)}, made[4:]...)
			slices.Sort(want)
			if diff := cmp.Diff(want, b.names()); diff != "" {
				t.Errorf("Jobs (-want +got):\n%s", diff)
			}
			if b.registered() != 4 || b.rightsLeft() != 4 {
				t.Errorf("%d agents are registered and %d builds have rights, want 4", b.registered(), b.rightsLeft())
			}
		})
	})
}

// TestAnAgentWithoutAReadyMomentHasABuild says that an agent that gets its build before its
// first readiness probe, as most do that a build waits for, is known to have had one when the
// queue does not show that any more.
func TestAnAgentWithoutAReadyMomentHasABuild(t *testing.T) {
	begin := func(b *bench) {
		b.start(jobName(1, 0))
		b.claim(1, jobName(1, 0))
		b.change(jobName(1, 0), func(job *agentpool.AgentJob) { job.RanBuild = false })
		after(3 * time.Second)
	}
	t.Run("it ends its build", func(t *testing.T) {
		m := newModel(1)
		inLoop(t, m, nil, func(t *testing.T, b *bench) {
			begin(b)
			b.lapse()
			after(time.Minute)
			if len(b.names()) != 1 {
				t.Error("an agent that was about to end by itself, after its build, was ended as one without")
			}
			b.queue(2)
			after(11 * time.Second)
			if !slices.Contains(b.made(), jobName(2, 0)) {
				t.Errorf("a request waits for an agent that has had its build, made %v", b.made())
			}
		})
	})
	t.Run("it is killed", func(t *testing.T) {
		m := newModel(1)
		inLoop(t, m, nil, func(t *testing.T, b *bench) {
			begin(b)
			b.change(jobName(1, 0), func(job *agentpool.AgentJob) {
				job.Ended, job.JobDone, job.ExitCode, job.Reason, job.Untold = time.Now(), true, 137, agentpool.ReasonOutOfMemory, true
			})
			after(3 * time.Second)
			if n := testutil.CollectAndCount(b.registry, "azp_scaler_jobs_failed_total"); n != 0 {
				t.Error("it counts as failed before a build")
			}
			if n := testutil.CollectAndCount(b.registry, "azp_scaler_builds_lost_total"); n != 1 {
				t.Error("its build does not count as lost")
			}
		})
	})
	t.Run("it does not take what was assigned", func(t *testing.T) {
		m := newModel(1)
		inLoop(t, m, nil, func(t *testing.T, b *bench) {
			begin(b)
			b.change(jobName(1, 0), func(job *agentpool.AgentJob) { job.Ready = true })
			b.lapse()
			after(time.Minute)
			if len(b.names()) != 0 {
				t.Errorf("an agent that is disabled and has no build is left: %v", b.names())
			}
		})
	})
}

// TestAnAgentThatIsWithdrawnHasNotFailed says that one whose program ends with an error because
// the scaler has taken it out of the pool counts as no failure.
func TestAnAgentThatIsWithdrawnHasNotFailed(t *testing.T) {
	m := newJITModel(1)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.start(jobName(1, 0))
		b.change(jobName(1, 0), deleting)
		after(2 * time.Second)
		b.change(jobName(1, 0), func(job *agentpool.AgentJob) {
			job.Ended, job.JobDone, job.ExitCode, job.Reason = time.Now(), true, 14, agentpool.ReasonEvicted
		})
		after(3 * time.Second)
		if n := testutil.CollectAndCount(b.registry, "azp_scaler_jobs_failed_total"); n != 0 {
			t.Error("it counts as failed")
		}
		if !slices.Contains(b.made(), jobName(1, 1)) {
			t.Errorf("its request waits, made %v", b.made())
		}
	})
}
