package scaler_test

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// newJITModel has a class whose agents the scaler registers.
func newJITModel(queued ...int64) *model {
	m := newModel(queued...)
	c := class("default")
	c.Registration = agentpool.RegistrationJIT
	m.serve(c)
	return m
}

// end lets the container of a Job's agent end after its build, without a sidecar that
// would remove the registration.
func (m *model) end(id int64) {
	m.with(func() {
		name := m.requests[id].Reserved.Name
		delete(m.requests, id)
		agent := m.agents[name]
		agent.AssignedRequest, agent.Online = 0, false
		m.agents[name] = agent
		job := m.jobs[name]
		job.Ended, job.JobDone = time.Now(), true
		m.jobs[name] = job
	})
}

func TestRegistrationsOfTheScalerGoWithTheirBuilds(t *testing.T) {
	m := newJITModel(1)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		if b.agent(jobName(1, 0)).ID == 0 {
			t.Fatal("the agent is not registered with its Job")
		}
		b.start(jobName(1, 0))
		b.claim(1, jobName(1, 0))
		after(3 * time.Second)
		if agent := b.agent(jobName(1, 0)); agent.Enabled || agent.ID == 0 {
			t.Fatalf("while its build runs it is disabled and there: %+v", agent)
		}
		b.end(1)
		after(3 * time.Second)
		if n := b.registered(); n != 0 {
			t.Errorf("%d registrations outlive their builds", n)
		}
	})
}

// TestRegistrationsThatAnEarlierLifeLeftGoAtOnce: the build ended while there was no scaler,
// which had not disabled its agent either. Its key must not be good for another build, even if
// somebody has carried it off and keeps the agent online.
func TestRegistrationsThatAnEarlierLifeLeftGoAtOnce(t *testing.T) {
	m := newJITModel(1)
	synctest.Test(t, func(t *testing.T) {
		first := begin(t, m, nil)
		m.start(jobName(1, 0))
		first.stop()
		m.claim(1, jobName(1, 0))
		m.end(1)
		m.with(func() {
			agent := m.agents[jobName(1, 0)]
			agent.Online = true
			m.agents[agent.Name] = agent
		})
		second := begin(t, m, nil)
		defer second.stop()
		after(3 * time.Second)
		if n := second.registered(); n != 0 {
			t.Errorf("%d registrations outlive their builds", n)
		}
	})
}

func TestAnAgentWhosePodIsToldToEndIsWithdrawn(t *testing.T) {
	for name, set := range map[string]func(b *bench){
		"while it waits":  func(b *bench) { b.start(jobName(1, 0)) },
		"while it starts": func(*bench) {},
	} {
		t.Run(name, func(t *testing.T) {
			m := newJITModel(1)
			inLoop(t, m, nil, func(t *testing.T, b *bench) {
				set(b)
				b.with(func() {
					job := m.jobs[jobName(1, 0)]
					job.Deleting = true
					m.jobs[job.Name] = job
				})
				after(2 * time.Second)
				if agent := b.agent(jobName(1, 0)); agent.ID != 0 {
					t.Errorf("a build may still come to it: %+v", agent)
				}
				after(10 * time.Second)
				if !slices.Contains(b.made(), jobName(1, 1)) {
					t.Errorf("another takes its place, made %v", b.made())
				}
			})
		})
	}
}

// TestARegistrationThatCanNotBeRemovedIsTriedAgain says that this is not left to the next list
// of agents.
func TestARegistrationThatCanNotBeRemovedIsTriedAgain(t *testing.T) {
	m := newJITModel(1)
	rarely := func(c *scaler.Config) { c.AgentsEvery = time.Hour }
	inLoop(t, m, rarely, func(t *testing.T, b *bench) {
		b.start(jobName(1, 0))
		b.claim(1, jobName(1, 0))
		after(3 * time.Second)
		b.with(func() { m.withdrawError = errors.New("the service is away") })
		b.end(1)
		after(5 * time.Second)
		if b.withdrawals() == 0 || b.agent(jobName(1, 0)).ID == 0 {
			t.Fatalf("its removal was asked for %d times, want it asked for and refused", b.withdrawals())
		}
		b.with(func() { m.withdrawError = nil })
		after(15 * time.Second)
		if n := b.registered(); n != 0 {
			t.Errorf("%d registrations are left", n)
		}
	})
}

// TestALateCacheEndsNoAgentOfOurs says that a Job which the scaler has let run is never one
// that was left half-made, though its cache shows it suspended for long.
func TestALateCacheEndsNoAgentOfOurs(t *testing.T) {
	m := newJITModel(1)
	limit := func(c *scaler.Config) { c.Limits.UnregisteredLimit = 45 * time.Second }
	inLoop(t, m, limit, func(t *testing.T, b *bench) {
		b.with(func() {
			shown := m.jobs[jobName(1, 0)]
			shown.Suspended, shown.AgentID = true, 0
			m.cached, m.frozen = []agentpool.AgentJob{shown}, true
		})
		after(5 * time.Minute)
		if diff := cmp.Diff([]string{jobName(1, 0)}, b.made()); diff != "" || b.withdrawals() != 0 {
			t.Errorf("%d agents were withdrawn, and made (-want +got):\n%s", b.withdrawals(), diff)
		}
	})
}

func TestABuildThatWasCutOffKeepsItsRegistrationUntilItsLockLapses(t *testing.T) {
	m := newJITModel(1)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.start(jobName(1, 0))
		b.claim(1, jobName(1, 0))
		b.with(func() {
			job := m.jobs[jobName(1, 0)]
			job.Ended, job.JobDone, job.ExitCode = time.Now(), true, 137
			m.jobs[job.Name] = job
		})
		after(5 * time.Minute)
		if b.agent(jobName(1, 0)).ID == 0 {
			t.Fatal("a registration with a build was removed")
		}
		if asked := b.withdrawals(); asked > 5*6+2 {
			t.Errorf("the service was asked %d times in 5 minutes", asked)
		}
		b.with(func() {
			delete(m.requests, 1)
			agent := m.agents[jobName(1, 0)]
			agent.AssignedRequest = 0
			m.agents[jobName(1, 0)] = agent
		})
		after(15 * time.Second)
		if n := b.registered(); n != 0 {
			t.Errorf("%d registrations are left", n)
		}
	})
}

func TestAnAgentThatNobodyNeedsBeforeItStartsIsDeregistered(t *testing.T) {
	m := newJITModel(1)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.with(func() { delete(m.requests, 1) })
		after(80 * time.Second)
		if len(b.names()) != 0 || b.registered() != 0 {
			t.Errorf("left are the Jobs %v and %d registrations", b.names(), b.registered())
		}
	})
}

// TestHalfMadeJobsAreReplaced says that a Job whose maker was to register its agent is
// replaced at once when the maker is known to be gone, and later when it may be at work.
func TestHalfMadeJobsAreReplaced(t *testing.T) {
	left := func(m *model) {
		job, err := m.Create(t.Context(), plan.Creation{Request: m.requests[1], Class: "default"})
		if err != nil {
			t.Fatal(err)
		}
		m.with(func() {
			job.Suspended, job.AgentID = true, 0
			m.jobs[job.Name] = job
		})
	}
	t.Run("its maker is gone", func(t *testing.T) {
		m := newJITModel()
		m.before = func() {
			m.queue(1)
			left(m)
		}
		inLoop(t, m, nil, func(t *testing.T, b *bench) {
			if diff := cmp.Diff([]string{jobName(1, 1)}, b.names()); diff != "" {
				t.Errorf("Jobs (-want +got):\n%s", diff)
			}
			if n := b.registered(); n != 1 {
				t.Errorf("%d registrations, want the new one's alone", n)
			}
		})
	})
	t.Run("its maker may be at work", func(t *testing.T) {
		m := newJITModel()
		inLoop(t, m, func(c *scaler.Config) { c.Limits.UnregisteredLimit = 45 * time.Second }, func(t *testing.T, b *bench) {
			b.queue(1)
			left(m)
			after(40 * time.Second)
			if diff := cmp.Diff([]string{jobName(1, 0)}, b.names()); diff != "" {
				t.Fatalf("Jobs within the limit (-want +got):\n%s", diff)
			}
			after(10 * time.Second)
			if diff := cmp.Diff([]string{jobName(1, 1)}, b.names()); diff != "" {
				t.Errorf("Jobs after it (-want +got):\n%s", diff)
			}
		})
	})
}
