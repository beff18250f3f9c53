package scaler_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// TestAgentsThatGetNoBuild says that no request waits for an agent to which the service
// gives nothing, whatever its pod shows.
func TestAgentsThatGetNoBuild(t *testing.T) {
	for name, change := range map[string]func(m *model, name string){
		"its registration was removed": func(m *model, name string) { delete(m.agents, name) },
		"its session is gone": func(m *model, name string) {
			agent := m.agents[name]
			agent.Online = false
			m.agents[name] = agent
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newModel(1)
			inLoop(t, m, nil, func(t *testing.T, b *bench) {
				b.start(jobName(1, 0))
				b.with(func() { change(m, jobName(1, 0)) })
				after(90 * time.Second)
				if made := b.made(); len(made) != 1 {
					t.Fatalf("it may come back within the grace, made %v", made)
				}
				after(3 * time.Minute)
				if diff := slices.Compare([]string{jobName(1, 1)}, b.names()); diff != 0 {
					t.Fatalf("another takes its place, there are %v", b.names())
				}
				if n := b.registered(); n != 0 {
					t.Errorf("%d registrations are left, and no agent of them", n)
				}
			})
		})
	}
}

func TestAnAgentThatComesBackIsKept(t *testing.T) {
	m := newModel(1)
	online := func(name string, online bool) {
		m.with(func() {
			agent := m.agents[name]
			agent.Online = online
			m.agents[name] = agent
		})
	}
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.start(jobName(1, 0))
		for range 5 {
			online(jobName(1, 0), false)
			after(70 * time.Second)
			online(jobName(1, 0), true)
			after(70 * time.Second)
		}
		if made := b.made(); len(made) != 1 || !b.agent(jobName(1, 0)).Enabled {
			t.Errorf("an agent that is offline now and then stays, made %v", made)
		}
	})
}

// TestAnAgentThatIsToEndIsNotCountedOn says that a request gets an agent of its own when
// the one that is there was being ended as it came.
func TestAnAgentThatIsToEndIsNotCountedOn(t *testing.T) {
	m := newModel(1)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.start(jobName(1, 0))
		b.with(func() {
			delete(m.requests, 1)
			m.deleteError = errors.New("the API server is away")
		})
		after(80 * time.Second)
		if b.agent(jobName(1, 0)).Enabled {
			t.Fatal("the agent that nobody needs is still enabled")
		}
		b.queue(2)
		after(11 * time.Second)
		if !slices.Contains(b.made(), jobName(2, 0)) {
			t.Errorf("the request waits for an agent that has been withdrawn, made %v", b.made())
		}
		b.with(func() { m.deleteError = nil })
		after(11 * time.Second)
		if slices.Contains(b.names(), jobName(1, 0)) {
			t.Errorf("what was begun is not gone on with: %v", b.names())
		}
	})
}

// TestAnEndThatFailsKeepsNoSecondBuildOut says that an agent which was to end, and could
// not be disabled, is disabled when it gets a build after all.
func TestAnEndThatFailsKeepsNoSecondBuildOut(t *testing.T) {
	m := newModel(1)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.start(jobName(1, 0))
		b.with(func() {
			delete(m.requests, 1)
			m.withdrawError = errors.New("the service is away")
		})
		after(80 * time.Second)
		if !b.agent(jobName(1, 0)).Enabled {
			t.Fatal("the service was away, and the agent is disabled")
		}
		b.queue(2)
		b.claim(2, jobName(1, 0))
		after(2 * time.Second)
		if b.agent(jobName(1, 0)).Enabled {
			t.Error("a claimed agent is still enabled")
		}
	})
}

// TestEndingsKeepNoAgentEnabled says that an agent that claims a build is disabled at once
// while the rights of many others are being taken away.
func TestEndingsKeepNoAgentEnabled(t *testing.T) {
	m := newModel(1, 2, 3, 4, 5, 6, 7, 8, 9)
	m.rightsTime = 20 * time.Second
	inLoop(t, m, func(c *scaler.Config) { c.Concurrency = 2 }, func(t *testing.T, b *bench) {
		for id := range int64(9) {
			b.start(jobName(id+1, 0))
		}
		for id := range int64(8) {
			b.claim(id+1, jobName(id+1, 0))
		}
		after(5 * time.Second)
		for id := range int64(8) {
			b.finish(id + 1)
		}
		after(2 * time.Second)
		b.claim(9, jobName(9, 0))
		after(2 * time.Second)
		if b.agent(jobName(9, 0)).Enabled {
			t.Error("the claimed agent is still enabled")
		}
		after(90 * time.Second)
		if n := b.rightsLeft(); n != 1 {
			t.Errorf("%d builds have rights, want the running one alone", n)
		}
	})
}

// TestATurnThatComesFreeIsTaken says that what waits for a turn begins when one comes free, and
// not when somebody happens to look.
func TestATurnThatComesFreeIsTaken(t *testing.T) {
	m := newModel(1, 2, 3)
	m.rightsTime = 100 * time.Millisecond
	one := func(c *scaler.Config) { c.Concurrency = 1 }
	inLoop(t, m, one, func(t *testing.T, b *bench) {
		for id := range int64(3) {
			b.start(jobName(id+1, 0))
			b.claim(id+1, jobName(id+1, 0))
		}
		after(5 * time.Second)
		for id := range int64(3) {
			b.finish(id + 1)
		}
		b.scaler.Notify()
		after(500 * time.Millisecond)
		if n := b.rightsLeft(); n != 0 {
			t.Errorf("%d builds have rights half a second after their end", n)
		}
	})
}

func TestParallelJobsAreRespected(t *testing.T) {
	m := newModel(1, 2, 3)
	m.parallel = 2
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		if len(b.made()) != 2 {
			t.Errorf("want 2 agents for 2 parallel jobs, made %v", b.made())
		}
	})
}

func TestParallelJobsAreSharedBetweenPools(t *testing.T) {
	elsewhere := 1
	m := newModel(1, 2)
	m.parallel = 2
	others := func() int { return read(m, func() int { return elsewhere }) }
	inLoop(t, m, func(c *scaler.Config) { c.OtherPools = others }, func(t *testing.T, b *bench) {
		if made := b.made(); len(made) != 1 {
			t.Fatalf("one of the 2 parallel jobs is taken in another pool, made %v", made)
		}
		b.with(func() { elsewhere = 0 })
		after(3 * time.Second)
		if made := b.made(); len(made) != 2 {
			t.Errorf("both are free for this pool, made %v", made)
		}
	})
}

func TestParallelJobsOutlastAFailedRead(t *testing.T) {
	m := newModel()
	m.parallel = 2
	inLoop(t, m, func(c *scaler.Config) { c.ParallelEvery = 5 * time.Second }, func(t *testing.T, b *bench) {
		after(6 * time.Second)
		b.with(func() { m.parallelError = errors.New("the service is away") })
		after(20 * time.Second)
		b.queue(1, 2, 3)
		after(11 * time.Second)
		if made := b.made(); len(made) != 2 {
			t.Errorf("want 2 agents for the 2 parallel jobs that were bought, made %v", made)
		}
	})
}

// TestWhatOneAgentIsCalledSaysNothingOfTheNext says that a demand on an agent's own name
// is satisfied by no class, whichever agents have been looked at.
func TestWhatOneAgentIsCalledSaysNothingOfTheNext(t *testing.T) {
	m := newModel(1)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.start(jobName(1, 0))
		b.with(func() {
			agent := m.agents[jobName(1, 0)]
			agent.Capabilities = agentpool.NewCapabilities(map[string]string{"Agent.Name": jobName(1, 0), "Agent.OS": "Linux"})
			m.agents[jobName(1, 0)] = agent
		})
		after(10 * time.Second)
		b.claim(1, jobName(1, 0))
		b.demand(2, "Agent.Name")
		after(11 * time.Second)
		if made := b.made(); len(made) != 1 {
			t.Errorf("a class was taken to be called like one of its agents, made %v", made)
		}
	})
}
