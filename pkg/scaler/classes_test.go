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

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

func class(name string, claims ...string) agentpool.AgentClass {
	c := agentpool.AgentClass{Name: name, Version: "1", Claims: map[string]string{}}
	for _, claim := range claims {
		c.Claims[claim] = ""
	}
	c.Capabilities = agentpool.NewCapabilities(c.Claims)
	return c
}

func placeholder(c agentpool.AgentClass) string {
	return agentjob.PlaceholderName("test", c.Name, c.Claims)
}

// serve sets the classes that there are from now on.
func (m *model) serve(classes ...agentpool.AgentClass) {
	m.with(func() { m.classes = scaler.Classes{Usable: classes} })
}

// demand queues a request that demands a capability.
func (m *model) demand(id int64, name string, matched ...agentpool.AgentRef) {
	m.with(func() {
		m.requests[id] = agentpool.JobRequest{
			ID: id, PoolID: 7, QueueTime: time.Now(), Demands: []agentpool.Demand{{Name: name}}, Matched: matched,
		}
	})
}

// placeholders names those that are registered.
func (m *model) placeholders() []string {
	return read(m, func() []string {
		var names []string
		for name := range m.agents {
			if strings.HasPrefix(name, "azp-placeholder-") {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		return names
	})
}

func TestPlaceholders(t *testing.T) {
	java, npm := class("java", "java"), class("npm", "npm")
	other := agentjob.PlaceholderName("other", "java", java.Claims)
	m := newModel()
	m.serve(java, npm)
	m.agents[other] = agentpool.Agent{ID: 900, Name: other, Enabled: true}
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		there := func(why string, names ...string) {
			t.Helper()
			names = append(names, other)
			slices.Sort(names)
			if diff := cmp.Diff(names, b.placeholders()); diff != "" {
				t.Fatalf("%s (-want +got):\n%s", why, diff)
			}
		}
		there("each class has one from the start", placeholder(java), placeholder(npm))

		b.with(func() { delete(m.agents, placeholder(java)) })
		after(time.Minute + 10*time.Second)
		there("one that is removed comes back", placeholder(java), placeholder(npm))

		more := class("java", "java", "maven")
		b.serve(more, npm)
		after(10 * time.Second)
		there("one that is outdated is replaced with the next poll", placeholder(more), placeholder(npm))

		b.with(func() {
			m.classes = scaler.Classes{Usable: []agentpool.AgentClass{npm}, Broken: map[string]string{"java": "max-agents"}}
		})
		after(10 * time.Minute)
		there("a broken class keeps its own", placeholder(more), placeholder(npm))

		b.serve(npm)
		after(90 * time.Second)
		there("a class that is gone keeps it for the grace", placeholder(more), placeholder(npm))
		after(3 * time.Minute)
		there("and no longer", placeholder(npm))

		b.with(func() { m.placeholderError = errors.New("the service is away") })
		b.serve(java)
		after(10 * time.Minute)
		there("without the new one, nothing of a class that is there goes")
		b.with(func() { m.placeholderError = nil })
		after(30 * time.Second)
		there("until it can be registered", placeholder(java))
		if n := strings.Count(b.log.String(), "the placeholder of a class can't be registered"); n != 1 {
			t.Errorf("told %d times, want once", n)
		}
		if len(b.made()) != 0 {
			t.Errorf("nothing was queued, and %v were made", b.made())
		}
	})
}

func TestAPlaceholderIsReplacedOnlyByOneThatIsThere(t *testing.T) {
	java, more := class("java", "java"), class("java", "java", "maven")
	m := newModel()
	m.serve(java)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.with(func() { m.placeholderError = errors.New("the service is away") })
		b.serve(more)
		after(5 * time.Minute)
		if diff := cmp.Diff([]string{placeholder(java)}, b.placeholders()); diff != "" {
			t.Fatalf("the old one stands in until the new one can be registered (-want +got):\n%s", diff)
		}
		b.with(func() { m.placeholderError = nil })
		after(30 * time.Second)
		if diff := cmp.Diff([]string{placeholder(more)}, b.placeholders()); diff != "" {
			t.Errorf("the new one (-want +got):\n%s", diff)
		}
	})
}

func TestAClassThatClaimsWhatItsImageLacks(t *testing.T) {
	m := newModel()
	m.lacking = []string{"maven"}
	java := class("java", "java", "maven")
	m.serve(java)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.demand(1, "maven")
		after(11 * time.Second)
		b.start(jobName(1, 0))
		after(10 * time.Minute)
		if diff := cmp.Diff([]string{jobName(1, 0)}, b.made()); diff != "" {
			t.Errorf("once its agent is known to lack the capability, no other is made (-want +got):\n%s", diff)
		}
		if skipped := b.scaler.Status().Skipped; skipped[plan.SkipMismatch] != 1 {
			t.Errorf("the request waits because of the mismatch, got %v", skipped)
		}
		if reported := b.reported(); !slices.Contains(reported, "java Mismatch") {
			t.Errorf("the class says so, got %v", reported)
		}
		const want = `
# HELP azp_scaler_class_mismatch Whether the agents of a class were found to lack what it claims (1 or 0).
# TYPE azp_scaler_class_mismatch gauge
azp_scaler_class_mismatch{class="java",pool="k8s"} 1
`
		if err := testutil.GatherAndCompare(b.registry, strings.NewReader(want), "azp_scaler_class_mismatch"); err != nil {
			t.Error(err)
		}
		if n := strings.Count(b.log.String(), "claims what its agents lack"); n != 1 {
			t.Errorf("told %d times, want once", n)
		}
		// Somebody mends the image, and with it the version of the class.
		mended := java
		mended.Version = "2"
		b.with(func() { m.lacking = nil })
		b.serve(mended)
		after(15 * time.Second)
		if !slices.Contains(b.made(), jobName(1, 1)) {
			t.Errorf("the mended class serves, made %v", b.made())
		}
	})
}

func TestARequestBesideAnIdleAgent(t *testing.T) {
	m := newModel(1)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.start(jobName(1, 0))
		after(50 * time.Second)
		if skipped := b.scaler.Status().Skipped; skipped[plan.SkipServed] != 1 {
			t.Errorf("at first an agent is simply coming, got %v", skipped)
		}
		after(30 * time.Second)
		if skipped := b.scaler.Status().Skipped; skipped[plan.SkipHeld] != 1 || len(b.made()) != 1 {
			t.Errorf("an agent that serves it and gets no build is the service's matter, got %v, made %v", skipped, b.made())
		}
	})
}

func TestWarmAgents(t *testing.T) {
	kept := class("base")
	kept.MinIdle = 2
	m := newModel()
	m.serve(kept)
	inLoop(t, m, func(c *scaler.Config) { c.Limits.MaxIdleAge = 30 * time.Minute }, func(t *testing.T, b *bench) {
		first := []string{jobName(0, 0), jobName(0, 1)}
		made := b.made()
		slices.Sort(made)
		if diff := cmp.Diff(first, made); diff != "" {
			t.Fatalf("two wait from the start (-want +got):\n%s", diff)
		}
		b.start(first[0])
		b.start(first[1])
		b.queue(1)
		b.claim(1, first[0])
		after(15 * time.Second)
		if diff := cmp.Diff(jobName(0, 2), b.made()[2]); diff != "" {
			t.Fatalf("the one that was taken is replaced, and its number is not used again (-want +got):\n%s", diff)
		}
		b.start(jobName(0, 2))
		b.finish(1)
		after(40 * time.Minute)
		for _, name := range []string{jobName(0, 3), jobName(0, 4)} {
			if b.job(name).Name == "" {
				t.Fatalf("%s is to replace one that has waited too long, there are %v", name, b.names())
			}
			b.start(name)
		}
		after(2 * time.Minute)
		if diff := cmp.Diff([]string{jobName(0, 0), jobName(0, 3), jobName(0, 4)}, b.names()); diff != "" {
			t.Errorf("the old ones go when the new ones wait (-want +got):\n%s", diff)
		}
		b.serve()
		after(2 * time.Minute)
		if diff := cmp.Diff([]string{jobName(0, 0)}, b.names()); diff != "" {
			t.Errorf("without its class none is kept (-want +got):\n%s", diff)
		}
	})
}

func TestAgentsOfSomebodyElse(t *testing.T) {
	m := newModel()
	m.agents["static-vm"] = agentpool.Agent{ID: 800, Name: "static-vm", Enabled: false}
	ours := agentpool.AgentRef{ID: 1, Name: placeholder(class("default"))}
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.demand(1, "windows", ours, agentpool.AgentRef{ID: 800, Name: "static-vm"})
		b.demand(2, "windows", ours)
		after(11 * time.Second)
		skipped := b.scaler.Status().Skipped
		if skipped[plan.SkipForeign] != 1 || skipped[plan.SkipUnmatched] != 1 {
			t.Errorf("one request is left to an agent of somebody else, the other is unmatched: %v", skipped)
		}
		if n := strings.Count(b.log.String(), "the closest is default, which lacks windows"); n != 1 {
			t.Errorf("the unmatched one is told %d times with what it lacks, want once:\n%s", n, b.log)
		}
	})
}

func TestLookChangesNothing(t *testing.T) {
	m := newModel(1, 2)
	m.lacking = []string{"java"}
	java := class("java", "java")
	m.serve(java)
	m.blocked = map[string]string{"java": "the role is absent"}
	synctest.Test(t, func(t *testing.T) {
		m.queue(m.initial...)
		if _, err := m.Create(t.Context(), plan.Creation{Request: m.requests[1], Class: "java"}); err != nil {
			t.Fatal(err)
		}
		m.start(jobName(1, 0))
		m.demand(3, "java")
		before := m.names()
		snapshot, err := scaler.Look(t.Context(), config(), m, m, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		p := plan.Make(snapshot)
		if len(p.Create) != 0 || len(p.Skipped) != 3 || len(p.Mismatches) != 1 || snapshot.Blocked["java"] == "" {
			t.Errorf("the plan is not that of the loop: %+v", p)
		}
		if diff := cmp.Diff(before, m.names()); diff != "" || len(m.placeholders()) != 0 || len(m.reported()) != 0 {
			t.Errorf("looking has changed something: Jobs %s, placeholders %v, Events %v", diff, m.placeholders(), m.reported())
		}
		m.with(func() { m.pollError = errors.New("the sign-in page") })
		if _, err := scaler.Look(t.Context(), config(), m, m, time.Now); err == nil || !strings.Contains(err.Error(), "the sign-in page") {
			t.Errorf("a queue that can't be read is no queue, got %v", err)
		}
	})
}
