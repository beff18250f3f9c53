package e2e_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// keptWaiting is how many agents a class keeps waiting here.
const keptWaiting = 2

// TestCapacity plays what is there before builds are, what is there in vain, and
// what somebody else has there.
func TestCapacity(t *testing.T) { registered(t, bothWays(), capacity) }

func capacity(t *testing.T, way string) {
	s := newStage(t, env.Options{Seed: seedOf(t), Registration: way, Classes: overlapping(), Scaler: quick(nil)})
	s.Warm = keptWaiting
	s.scenario(t, "agents are kept waiting", s.keptWarm)
	s.scenario(t, "a class claims what its image lacks", s.claimsTooMuch)
	s.scenario(t, "builds are shorter than a poll", s.shorterThanPolls)
	s.scenario(t, "two installations have one pool", s.twoInstallations)
	s.judge(t)
}

// keptWarm takes agents that wait, again and again, and sees them replaced while
// the builds that took them still run.
func (s *stage) keptWarm(t *testing.T) {
	class := env.Class{Name: "stock", Variables: map[string]string{"stock": "1"}, MinIdle: keptWaiting}
	s.apply(t, class)
	waiting := s.idle(t, class, keptWaiting)
	s.metric(t, `azp_scaler_warm_agents_wanted{class="stock",pool="kubernetes"} 2`)
	gate := s.gate(t)
	var running []env.Queued
	// More than wait, then as many as do.
	for _, builds := range []int{2 * keptWaiting, keptWaiting} {
		burst := make([]env.Build, builds)
		for i := range burst {
			burst[i] = env.Build{Name: fmt.Sprintf("from-stock-%d-%d", builds, i), Demands: []string{"stock"}, Steps: []string{gate.Step()}}
		}
		queued := s.queue(t, burst...)
		running = append(running, queued...)
		waitArrived(t, gate, len(running))
		taken := 0
		for _, build := range queued {
			if slices.Contains(waiting, s.agentOf(t, build)) {
				taken++
			}
		}
		if taken != keptWaiting {
			t.Errorf("%d of %d builds ran on an agent that was waiting for them, want %d", taken, builds, keptWaiting)
		}
		waiting = s.idle(t, class, keptWaiting)
		s.metric(t, `azp_scaler_warm_agents{class="stock",pool="kubernetes"} 2`)
	}
	gate.Open()
	s.finish(t, running...)
	if after := s.idle(t, class, keptWaiting); !slices.Equal(after, waiting) {
		t.Errorf("the end of the burst changed who waits from %v to %v", waiting, after)
	}
	if made := s.jobs.ofClass(s.Installation, class.Name); len(made) != len(running)+keptWaiting {
		t.Errorf("%d Jobs for %d builds and %d agents to be kept waiting: %+v", len(made), len(running), keptWaiting, made)
	}
	class.MinIdle = 0
	s.apply(t, class)
	s.idle(t, class, 0)
	s.remove(t, class.Name)
}

// idle waits until a class has this many agents that are online and free, and no
// Job besides but of builds that run, and names these agents.
func (s *stage) idle(t *testing.T, class env.Class, want int) []string {
	t.Helper()
	var free []string
	waitUntil(t.Context(), t, fmt.Sprintf("%d agents of class %s wait", want, class.Name), func() (string, bool) {
		free = nil
		var others []string
		for _, job := range s.jobs.ofClass(s.Installation, class.Name) {
			agent, registered := s.Service.Agent(job.name)
			switch {
			case !job.gone.IsZero() || registered && agent.RequestID != 0:
			case registered && agent.Online && agent.Enabled:
				free = append(free, job.name)
			default:
				others = append(others, job.name)
			}
		}
		return fmt.Sprintf("waiting: %v, neither that nor busy: %v", free, others), len(free) == want && len(others) == 0
	})
	return free
}

// claimsTooMuch has a class say that it offers a tool which its image has not.
func (s *stage) claimsTooMuch(t *testing.T) {
	// With one agent at most, the one that was made in vain has to take another build.
	class := env.Class{Name: "boaster", Variables: map[string]string{"sliderule": "1"}, Claims: []string{"abacus=2"}, MaxAgents: 1}
	s.apply(t, class)
	gate := s.gate(t)
	demanding := s.queue(t, env.Build{Name: "demanding", Demands: []string{"abacus"}})[0]
	s.waitJobs(t, demanding)
	modest := s.queue(t, env.Build{Name: "modest", Demands: []string{"sliderule"}, Steps: []string{gate.Step()}})[0]
	waitArrived(t, gate, 1)
	if agent := s.agentOf(t, modest); requestOf(agent) != demanding.RequestID {
		t.Errorf("the modest build ran on %s, so that the agent for the demanding one was not seen", agent)
	}

	s.metric(t, `azp_scaler_class_mismatch{class="boaster",pool="kubernetes"} 1`)
	s.metric(t, `azp_scaler_requests_skipped{pool="kubernetes",reason="mismatch"} 1`)
	waitForEvent(t.Context(), t, s.Env, "Mismatch", "abacus=2")
	says(t, "scaler explain", s.command(t, "explain", fmt.Sprint(demanding.RequestID)), "mismatch", "boaster", "abacus", "no (closest)")
	// That and no more: what is derived for every class, real agents do register with.
	says(t, "scaler plan", s.command(t, "plan"), "its agents lack abacus=2")
	gate.Open()
	s.finish(t, modest)

	// Builds that demand less go on, and what is known of the class outlives the
	// agent that it was found by.
	again := s.queue(t, env.Build{Name: "modest-again", Demands: []string{"sliderule"}})[0]
	s.finish(t, again)
	if jobs := s.jobs.of(again.RequestID); len(jobs) != 1 {
		t.Errorf("the build beside the one that waits got %d Jobs, want 1: %+v", len(jobs), jobs)
	}
	if jobs := s.jobs.of(demanding.RequestID); len(jobs) != 1 {
		t.Errorf("the demanding build got %d Jobs that can't run it, want 1: %+v", len(jobs), jobs)
	}

	class.Variables["abacus"] = "2"
	s.apply(t, class)
	s.finish(t, demanding)
	s.metric(t, `azp_scaler_class_mismatch{class="boaster",pool="kubernetes"} 0`)
	if jobs := s.jobs.of(demanding.RequestID); len(jobs) != 2 {
		t.Errorf("the demanding build got %d Jobs, want one in vain and one that ran it: %+v", len(jobs), jobs)
	}
	s.remove(t, class.Name)
}

// shorterThanPolls has builds come and go between two looks of the scaler.
func (s *stage) shorterThanPolls(t *testing.T) {
	const builds, busy = 6, 8 * time.Second
	s.restart(t, func() {
		s.Scaler.Set("AZP_POLL_BUSY", busy.String())
		s.Scaler.Set("AZP_POLL_IDLE", (2 * busy).String())
	})
	wave := func(name string, priority int) []env.Queued {
		workload := make([]env.Build, builds)
		for i := range workload {
			workload[i] = env.Build{Name: fmt.Sprintf("%s-%d", name, i), Demands: demandsJava(), Priority: priority}
		}
		return s.queue(t, workload...)
	}
	alone := wave("alone", 0)
	s.finish(t, alone...)
	for _, build := range alone {
		if jobs := s.jobs.of(build.RequestID); len(jobs) != 1 {
			t.Errorf("%s got %d Jobs, want 1: %+v", build.Name, len(jobs), jobs)
		}
	}

	// Those that come right after a look take the agents that were made for others,
	// and are gone before the next one.
	first := wave("overtaken", 0)
	// Not one in the name of each: an agent of the wave before whose end the plan does not know
	// yet may count for one of these, and then a second is made in another's name.
	waitUntil(t.Context(), t, "there are as many Jobs as builds", func() (string, bool) {
		made := s.madeFor(first)
		return fmt.Sprint(made), made >= len(first)
	})
	overtaking := wave("overtaking", 10)
	both := slices.Concat(first, overtaking)
	s.finish(t, both...)
	if made := s.madeFor(both); made != len(both) {
		t.Errorf("%d Jobs for %d builds", made, len(both))
	}
	unseen := 0
	for _, build := range overtaking {
		if len(s.jobs.of(build.RequestID)) == 0 {
			unseen++
		}
	}
	t.Logf("%d of %d builds came and went without a Job made in their name", unseen, len(overtaking))
	all, shorter := slices.Concat(alone, both), 0
	for _, build := range all {
		status, err := s.Service.Build(build.RequestID)
		if err != nil {
			t.Fatal(err)
		}
		if status.Finished.Sub(status.Assigned) < busy {
			shorter++
		}
	}
	// On a busy machine not all are.
	if 2*shorter < len(all) {
		t.Errorf("%d of %d builds were shorter than a poll, so that this shows little", shorter, len(all))
	}
	s.restart(t, func() {
		s.Scaler.Set("AZP_POLL_BUSY", env.PollBusy.String())
		s.Scaler.Set("AZP_POLL_IDLE", env.PollIdle.String())
	})
}

// twoInstallations has a second scaler on the pool, with a class of the same name.
func (s *stage) twoInstallations(t *testing.T) {
	ctx := t.Context()
	here := s.Installation
	// If it counted the agents of the other one, it could not make as many.
	const limit = 2
	there, err := s.Install(ctx, "north", quick(map[string]string{"AZP_MAX_AGENTS": fmt.Sprint(limit)}))
	if err != nil {
		t.Fatal(err)
	}
	class := func(site string, waiting int) env.Class {
		return env.Class{Name: "site", Variables: map[string]string{"site": site}, MinIdle: waiting}
	}
	applyIn(t, here, class("south", keptWaiting))
	if err := there.Apply(ctx, class("north", 0)); err != nil {
		t.Fatal(err)
	}
	if err := there.StartScaler(ctx); err != nil {
		t.Fatal(err)
	}
	s.idle(t, class("south", keptWaiting), keptWaiting)

	gate := s.gate(t)
	builds := func(site string, n int) []env.Queued {
		workload := make([]env.Build, n)
		for i := range workload {
			workload[i] = env.Build{Name: fmt.Sprintf("%s-%d", site, i), Demands: []string{"site -equals " + site}, Steps: []string{gate.Step()}}
		}
		return s.queue(t, workload...)
	}
	north, south := builds("north", limit), builds("south", 2*limit)
	waitArrived(t, gate, 3*limit)
	s.ranIn(t, there, north...)
	s.ranIn(t, here, south...)
	gate.Open()
	s.finish(t, slices.Concat(north, south)...)
	waiting := s.idle(t, class("south", keptWaiting), keptWaiting)

	// Nobody looks after the agents that wait, nor after what a crash has left of
	// either installation. The other one sees both for as long as it takes to sweep
	// what is its own, and to end an agent of its own for being idle.
	if err := here.Scaler.Kill(); err != nil {
		t.Fatal(err)
	}
	ours, theirs := s.agentOf(t, south[0]), s.agentOf(t, north[0])
	for in, name := range map[*env.Installation]string{here: ours, there: theirs} {
		waitUntil(ctx, t, name+" has gone by itself", func() (string, bool) {
			_, still := s.Service.Agent(name)
			return "", !still && !s.jobs.job(t, name).gone.IsZero()
		})
		if err := in.LeaveRegistration(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	given := builds("north", 1)[0]
	s.waitJobs(t, given)
	if err := s.Service.Cancel(given.RequestID); err != nil {
		t.Fatal(err)
	}
	s.gone(t, given)
	waitUntil(ctx, t, "what a crash left of the other installation is swept", func() (string, bool) {
		_, still := s.Service.Agent(theirs)
		return "", !still
	})
	s.finish(t, builds("north", limit)...)
	for _, name := range append([]string{ours}, waiting...) {
		if agent, still := s.Service.Agent(name); !still || !agent.Enabled {
			t.Errorf("without its scaler the agent %s was touched: it is there: %t, %+v", name, still, agent)
		}
	}

	if err := s.StartScaler(ctx); err != nil {
		t.Fatal(err)
	}
	waitUntil(ctx, t, "what a crash left is swept by whom it belongs to", func() (string, bool) {
		_, still := s.Service.Agent(ours)
		return "", !still
	})
	if after := s.idle(t, class("south", keptWaiting), keptWaiting); !slices.Equal(after, waiting) {
		t.Errorf("the restart changed who waits from %v to %v", waiting, after)
	}
	applyIn(t, here, class("south", 0))
	s.kept(t, here, there)
}

// ranIn checks that an installation made one Job for each of the builds, that no
// other made any, and that its agents ran them.
func (s *stage) ranIn(t *testing.T, in *env.Installation, queued ...env.Queued) {
	t.Helper()
	for _, build := range queued {
		if job := s.jobs.job(t, s.agentOf(t, build)); job.namespace != in.AgentsNamespace {
			t.Errorf("%s ran in %s, want %s", build.Name, job.namespace, in.AgentsNamespace)
		}
		for _, job := range s.jobs.of(build.RequestID) {
			if job.namespace != in.AgentsNamespace {
				t.Errorf("the Job %s of %s was made for %s", job.name, job.namespace, build.Name)
			}
		}
	}
}

// kept checks that there is a placeholder for each class of each installation.
func (s *stage) kept(t *testing.T, installations ...*env.Installation) {
	t.Helper()
	for _, in := range installations {
		if err := in.WaitPlaceholders(t.Context()); err != nil {
			t.Error(err)
		}
	}
	var names []string
	for _, agent := range s.Service.Agents(s.Service.PoolID) {
		if strings.Contains(agent.Name, "-site-") {
			names = append(names, agent.Name)
		}
	}
	if len(names) != len(installations) {
		t.Errorf("the placeholders of %d classes of one name are %v", len(installations), names)
	}
}
