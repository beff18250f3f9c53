package e2e_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// overlapping are classes each of which offers more than the one before. No tool
// of a machine is called so, so that nothing else offers any of it.
func overlapping() []env.Class {
	return []env.Class{
		{Name: "general"},
		{Name: "java", Variables: map[string]string{"jdk": "21.0.2"}},
		{Name: "heavy", Variables: map[string]string{"jdk": "21.0.2", "accelerator": "A100"}},
	}
}

// The demands that the classes overlapping serve.
func demandsJava() []string        { return []string{"jdk -gtVersion 17"} }
func demandsAccelerator() []string { return []string{"accelerator -equals a100"} }

// quick makes limits short that are minutes for users, where a test waits for them.
func quick(more map[string]string) map[string]string {
	settings := map[string]string{"AZP_SWEEP_INTERVAL": "2s", "AZP_SWEEP_GRACE": "5s"}
	for name, value := range more {
		settings[name] = value
	}
	return settings
}

// TestClasses plays what the service and people do to a pool with several classes
// of agent.
func TestClasses(t *testing.T) { registered(t, []string{byScaler}, classesOfAgent) }

func classesOfAgent(t *testing.T, way string) {
	s := newStage(t, env.Options{Seed: seedOf(t), Registration: way, Classes: overlapping(), Scaler: quick(nil)})
	s.scenario(t, "each build gets the least class that serves it", s.overlap)
	s.scenario(t, "the service swaps requests between agents", s.swap)
	s.scenario(t, "a rare agent takes a common build", s.rareTakesCommon)
	s.scenario(t, "an agent runs another build while its own request waits", s.otherFirst)
	s.scenario(t, "four running and four queued give four new", s.exactlyFourNew)
	s.scenario(t, "a class changes while a build runs", s.changedWhileRunning)
	s.scenario(t, "a class goes while a build runs", s.goneWhileRunning)
	s.scenario(t, "a broken class is out alone", s.broken)
	s.scenario(t, "a placeholder is removed by hand", s.placeholderRemoved)
	s.judge(t)
}

func (s *stage) overlap(t *testing.T) {
	builds := map[string][]string{"any": nil, "jdk": demandsJava(), "accelerator": demandsAccelerator(), "both": slices.Concat(demandsJava(), demandsAccelerator())}
	want := map[string]string{"any": "general", "jdk": "java", "accelerator": "heavy", "both": "heavy"}
	var workload []env.Build
	for name, demands := range builds {
		workload = append(workload, env.Build{Name: name, Demands: demands})
	}
	queued := s.queue(t, workload...)
	s.finish(t, queued...)
	for _, build := range queued {
		jobs := s.jobs.of(build.RequestID)
		if len(jobs) == 0 || jobs[0].class != want[build.Name] {
			t.Errorf("the Jobs made for %q are %+v, want the first one of class %s", build.Name, jobs, want[build.Name])
		}
	}
}

func (s *stage) swap(t *testing.T) {
	workload := make([]env.Build, 6)
	for i := range workload {
		workload[i] = env.Build{Name: fmt.Sprintf("swapped-%d", i), Demands: demandsJava()}
	}
	queued := s.queue(t, workload...)
	s.finish(t, queued...)
	swapped := 0
	for _, build := range queued {
		if requestOf(s.agentOf(t, build)) != build.RequestID {
			swapped++
		}
		if jobs := s.jobs.of(build.RequestID); len(jobs) != 1 {
			t.Errorf("%s got %d Jobs, want 1: %+v", build.Name, len(jobs), jobs)
		}
	}
	t.Logf("%d of %d builds ran on an agent that was made for another one", swapped, len(queued))
	if swapped == 0 {
		t.Error("the service swapped nothing, so that this shows nothing")
	}
}

// rareTakesCommon has a common build overtake the one that an agent with rare
// capabilities was made for.
func (s *stage) rareTakesCommon(t *testing.T) {
	rare := s.queue(t, env.Build{Name: "rare", Demands: demandsAccelerator()})[0]
	s.waitJobs(t, rare)
	common := s.queue(t, env.Build{Name: "common", Priority: 10})[0]
	s.finish(t, rare, common)
	if agent := s.agentOf(t, common); requestOf(agent) != rare.RequestID {
		t.Errorf("the common build ran on %s, so that this shows nothing", agent)
	}
	if job := s.jobs.job(t, s.agentOf(t, rare)); job.class != "heavy" || job.request != rare.RequestID {
		t.Errorf("the rare build ran on %+v, want a further agent of its class", job)
	}
	if jobs := s.jobs.of(rare.RequestID); len(jobs) != 2 {
		t.Errorf("the rare build got %d Jobs, want 2: %+v", len(jobs), jobs)
	}
	if jobs := s.jobs.of(common.RequestID); len(jobs) > 1 {
		t.Errorf("the common build got %d Jobs, want at most 1: %+v", len(jobs), jobs)
	}
}

// otherFirst lets a class have one agent, and a later build overtake: the first
// one's Job runs the other, and a further Job of its own is made.
func (s *stage) otherFirst(t *testing.T) {
	demands := []string{"single"}
	class := env.Class{Name: "single", Variables: map[string]string{"single": "1"}, MaxAgents: 1}
	s.apply(t, class)
	gate := s.gate(t)
	first := s.queue(t, env.Build{Name: "first", Demands: demands})[0]
	s.waitJobs(t, first)
	overtaking := s.queue(t, env.Build{Name: "overtaking", Demands: demands, Priority: 10, Steps: []string{gate.Step()}})[0]
	waitArrived(t, gate, 1)
	s.metric(t, `azp_scaler_requests_skipped{pool="kubernetes",reason="class-cap"} 1`)
	gate.Open()
	s.finish(t, first, overtaking)
	if agent := s.agentOf(t, overtaking); requestOf(agent) != first.RequestID {
		t.Errorf("the overtaking build ran on %s, so that this shows nothing", agent)
	}
	if jobs := slices.Concat(s.jobs.of(first.RequestID), s.jobs.of(overtaking.RequestID)); len(jobs) != 2 {
		t.Errorf("two builds got %d Jobs: %+v", len(jobs), jobs)
	}

	// The cap holds for many as well.
	class.MaxAgents = 2
	s.apply(t, class)
	gate = s.gate(t)
	many := make([]env.Build, 5)
	for i := range many {
		many[i] = env.Build{Name: fmt.Sprintf("capped-%d", i), Demands: demands, Steps: []string{gate.Step()}}
	}
	queued := s.queue(t, many...)
	waitArrived(t, gate, 2)
	s.metric(t, `azp_scaler_requests_skipped{pool="kubernetes",reason="class-cap"} 3`)
	if made := s.madeFor(queued); made != 2 {
		t.Errorf("%d Jobs under a cap of 2", made)
	}
	gate.Open()
	s.finish(t, queued...)
	s.remove(t, class.Name)
}

func (s *stage) exactlyFourNew(t *testing.T) {
	gate := s.gate(t)
	four := func(name string) []env.Queued {
		builds := make([]env.Build, 4)
		for i := range builds {
			builds[i] = env.Build{Name: fmt.Sprintf("%s-%d", name, i), Demands: demandsJava(), Steps: []string{gate.Step()}}
		}
		return s.queue(t, builds...)
	}
	running := four("running")
	waitArrived(t, gate, 4)
	queued := four("queued")
	waitArrived(t, gate, 8)
	gate.Open()
	s.finish(t, slices.Concat(running, queued)...)
	for name, builds := range map[string][]env.Queued{"running": running, "queued": queued} {
		if made := s.madeFor(builds); made != 4 {
			t.Errorf("%d Jobs for the four %s builds", made, name)
		}
	}
}

func (s *stage) changedWhileRunning(t *testing.T) {
	gate := s.gate(t)
	class := env.Class{Name: "toolbox", Variables: map[string]string{"toolbox": "1.4"}}
	s.apply(t, class)
	running := s.queue(t, env.Build{Name: "before", Demands: []string{"toolbox"}, Steps: []string{gate.Step()}})[0]
	waitArrived(t, gate, 1)
	class.Variables = map[string]string{"toolbox": "2.0"}
	s.apply(t, class)
	after := s.queue(t, env.Build{Name: "after", Demands: []string{"toolbox -gtVersion 2"}})[0]
	s.finish(t, after)
	gate.Open()
	s.finish(t, running)
	old, recent := s.jobs.job(t, s.agentOf(t, running)), s.jobs.job(t, s.agentOf(t, after))
	if old.version == "" || old.version == recent.version {
		t.Errorf("the Jobs' versions of the class are %q before and %q after the change", old.version, recent.version)
	}
	s.remove(t, class.Name)
}

func (s *stage) goneWhileRunning(t *testing.T) {
	gate := s.gate(t)
	class := env.Class{Name: "passing", Variables: map[string]string{"passing": "1"}}
	s.apply(t, class)
	running := s.queue(t, env.Build{Name: "left-alone", Demands: []string{"passing"}, Steps: []string{gate.Step()}})[0]
	waitArrived(t, gate, 1)
	s.remove(t, class.Name)
	waitUntil(t.Context(), t, "the placeholder goes with its class", func() (string, bool) {
		there := s.Service.Placeholders()
		return strings.Join(there, " "), !slices.Contains(there, class.Name)
	})
	gate.Open()
	s.finish(t, running)
}

func (s *stage) broken(t *testing.T) {
	class := env.Class{Name: "cobol", Variables: map[string]string{"cobol": "85"}, Annotations: map[string]string{"max-agents": "plenty"}, Broken: true}
	s.apply(t, class)
	s.metric(t, `azp_scaler_class_broken{class="cobol"`)
	waitForEvent(t.Context(), t, s.Env, "BrokenClass", "max-agents")
	s.finish(t, s.queue(t, env.Build{Name: "beside-the-broken", Demands: demandsJava()})...)
	class.Annotations, class.Broken = nil, false
	s.apply(t, class)
	s.finish(t, s.queue(t, env.Build{Name: "mended", Demands: []string{"cobol"}})...)
	waitUntil(t.Context(), t, "no class is broken any more", func() (string, bool) {
		_, body := get(t.Context(), s.Scaler.URL()+"/metrics")
		return body, !strings.Contains(body, `azp_scaler_class_broken{class="cobol"`) || strings.Contains(body, `azp_scaler_class_broken{class="cobol"} 0`)
	})
	s.remove(t, class.Name)
}

func (s *stage) placeholderRemoved(t *testing.T) {
	name := ""
	for _, agent := range s.Service.Agents(s.Service.PoolID) {
		if strings.HasPrefix(agent.Name, "azp-placeholder-") && strings.Contains(agent.Name, "-heavy-") {
			name = agent.Name
		}
	}
	if name == "" {
		t.Fatalf("there is no placeholder for the class heavy, only for %v", s.Service.Placeholders())
	}
	if err := s.Service.RemoveAgent(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitPlaceholders(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// apply creates or changes a class, and waits until the service knows it.
func (s *stage) apply(t *testing.T, class env.Class) {
	t.Helper()
	applyIn(t, s.Installation, class)
}

func applyIn(t *testing.T, in *env.Installation, class env.Class) {
	t.Helper()
	if err := in.Apply(t.Context(), class); err != nil {
		t.Fatal(err)
	}
	if err := in.WaitPlaceholders(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (s *stage) remove(t *testing.T, names ...string) {
	t.Helper()
	if err := s.Remove(t.Context(), names...); err != nil {
		t.Fatal(err)
	}
}

// madeFor counts the Jobs made for builds.
func (s *stage) madeFor(queued []env.Queued) int {
	n := 0
	for _, build := range queued {
		n += len(s.jobs.of(build.RequestID))
	}
	return n
}
