package plan_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

func class(name string, claims ...string) agentpool.AgentClass {
	c := agentpool.AgentClass{Name: name, Version: "1", Claims: map[string]string{"Agent.OS": "Linux"}}
	for _, claim := range claims {
		c.Claims[claim] = ""
	}
	c.Capabilities = agentpool.NewCapabilities(c.Claims)
	return c
}

// ofClass makes a Job what one of the class is.
func ofClass(c agentpool.AgentClass, set func(*agentpool.AgentJob)) func(*agentpool.AgentJob) {
	return func(j *agentpool.AgentJob) {
		j.Class, j.ClassVersion, j.Capabilities = c.Name, c.Version, c.Capabilities
		set(j)
	}
}

// warmJob is the n-th Job that was made for no request.
func warmJob(n int, change func(*agentpool.AgentJob)) agentpool.AgentJob {
	return job(agentpool.WarmRequest, func(j *agentpool.AgentJob) {
		j.Name = fmt.Sprintf("azp-test-7-0-%d", n)
		j.UID, j.Attempt = j.Name, n
		change(j)
	})
}

func demanding(id int64, demands ...string) agentpool.JobRequest {
	r := request(id)
	for _, text := range demands {
		d, err := agentpool.ParseDemand(text)
		if err != nil {
			panic(err) // A demand in a table that does not parse.
		}
		r.Demands = append(r.Demands, d)
	}
	return r
}

func inClasses(s plan.Snapshot, classes ...agentpool.AgentClass) plan.Snapshot {
	s.Classes = classes
	s.Limits.MismatchLimit = time.Minute
	return s
}

// made gives the classes of the Jobs to make, by request.
func made(p plan.Plan) map[int64]string {
	var classes map[int64]string
	for _, c := range p.Create {
		if classes == nil {
			classes = map[int64]string{}
		}
		classes[c.Request.ID] += c.Class
	}
	return classes
}

func aging(set func(*agentpool.AgentJob), age time.Duration) func(*agentpool.AgentJob) {
	return func(j *agentpool.AgentJob) {
		set(j)
		j.CreatedAt = ago(age)
		if j.Ready {
			j.ReadySince = ago(age)
		}
	}
}

func TestClasses(t *testing.T) {
	const served = plan.SkipServed
	base, java, all := class("base"), class("java", "java"), class("all", "java", "docker", "npm")
	first := all
	first.Priority = 1
	warm := func(c agentpool.AgentClass, n int) agentpool.AgentClass { c.MinIdle = n; return c }
	capped := func(c agentpool.AgentClass, n int) agentpool.AgentClass { c.MaxAgents = n; return c }
	changed := func(c agentpool.AgentClass) agentpool.AgentClass { c.Version = "2"; return c }
	foreign := func(r agentpool.JobRequest) agentpool.JobRequest {
		r.Foreign = agentpool.AgentRef{ID: 9, Name: "static-vm"}
		return r
	}
	list := func(requests ...agentpool.JobRequest) []agentpool.JobRequest { return requests }
	without := func(c agentpool.AgentClass, offered ...string) func(*plan.Snapshot) {
		return func(s *plan.Snapshot) {
			s.Offers = map[plan.ClassVersion]agentpool.Capabilities{{Class: c.Name, Version: c.Version}: class("", offered...).Capabilities}
		}
	}
	for name, test := range map[string]struct {
		snapshot plan.Snapshot
		change   func(*plan.Snapshot)
		create   map[int64]string
		end      map[string]plan.EndReason
		skip     map[int64]plan.SkipReason
		inspect  []string
	}{
		"the class with the fewest capabilities serves": {
			snapshot: inClasses(snapshot(list(demanding(1), demanding(2, "java"), demanding(3, "docker", "java"))), all, java, base),
			create:   map[int64]string{1: "base", 2: "java", 3: "all"},
		},
		"a priority counts over that": {
			snapshot: inClasses(snapshot(list(demanding(1), demanding(2, "java"))), first, java, base),
			create:   map[int64]string{1: "all", 2: "all"},
		},
		"an agent of another class is capacity": {
			snapshot: inClasses(snapshot(list(demanding(1)), job(5, ofClass(all, starting))), all, base),
			skip:     map[int64]plan.SkipReason{1: served},
		},
		"a rare agent is kept for the request that only it serves": {
			snapshot: inClasses(snapshot(list(demanding(1), demanding(2, "docker")), job(5, ofClass(all, idle)), job(6, ofClass(base, starting))), all, base),
			skip:     map[int64]plan.SkipReason{1: served, 2: served},
		},
		"a common request gets its own when the rare agent is needed": {
			snapshot: inClasses(snapshot(list(demanding(1), demanding(2, "docker")), job(5, ofClass(all, idle))), all, base),
			create:   map[int64]string{2: "all"},
			skip:     map[int64]plan.SkipReason{1: served},
		},
		"an agent of a class that is gone still counts": {
			snapshot: inClasses(snapshot(list(demanding(1, "java")), job(5, ofClass(java, idle))), base),
			skip:     map[int64]plan.SkipReason{1: served},
		},
		"and is surplus without need": {
			snapshot: inClasses(snapshot(nil, job(5, ofClass(warm(java, 1), aging(idle, time.Minute)))), base),
			end:      map[string]plan.EndReason{agentName(5): plan.EndSurplus},
		},
		"what an agent registered with counts over its class": {
			snapshot: inClasses(snapshot(list(demanding(1, "java")), job(5, ofClass(java, idle))), java),
			change: func(s *plan.Snapshot) {
				s.Registered = map[string]agentpool.Capabilities{agentName(5): base.Capabilities}
			},
			create: map[int64]string{1: "java"},
		},
		"a class whose agents lack what it claims serves no more": {
			snapshot: inClasses(snapshot(list(demanding(1, "java"))), java),
			change:   without(java),
			skip:     map[int64]plan.SkipReason{1: plan.SkipMismatch},
		},
		"another class serves in its place": {
			snapshot: inClasses(snapshot(list(demanding(1, "java"))), java, all),
			change:   without(java),
			create:   map[int64]string{1: "all"},
		},
		"agents that offer more than is claimed serve": {
			snapshot: inClasses(snapshot(list(demanding(1, "go"))), java),
			change:   without(java, "java", "go"),
			create:   map[int64]string{1: "java"},
		},
		"no class but an agent of somebody else": {
			snapshot: inClasses(snapshot(list(foreign(demanding(1, "windows")), demanding(2, "windows"))), base),
			skip:     map[int64]plan.SkipReason{1: plan.SkipForeign, 2: plan.SkipUnmatched},
		},
		"a request that a class serves gets an agent beside a foreign one": {
			snapshot: inClasses(snapshot(list(foreign(demanding(1)))), base),
			create:   map[int64]string{1: "base"},
		},
		"demands that are not understood": {
			snapshot: inClasses(snapshot([]agentpool.JobRequest{{ID: 1, QueueTime: ago(time.Hour), UnknownDemands: []string{"java 17"}}}, job(5, ofClass(all, idle))), all),
			skip:     map[int64]plan.SkipReason{1: plan.SkipUnmatched},
			inspect:  []string{agentName(5)},
		},
		"agents are kept waiting": {
			snapshot: inClasses(snapshot(nil), warm(java, 2), base),
			create:   map[int64]string{0: "javajava"},
		},
		"beyond need": {
			snapshot: inClasses(snapshot(requests(1, 2), warmJob(0, ofClass(base, idle)), warmJob(1, ofClass(base, idle))), warm(base, 2)),
			create:   map[int64]string{0: "basebase"},
			skip:     map[int64]plan.SkipReason{1: served, 2: served},
		},
		"through a burst": {
			snapshot: inClasses(snapshot(requests(1, 2, 3), warmJob(0, ofClass(base, idle))), warm(base, 1)),
			create:   map[int64]string{2: "base", 3: "base", 0: "base"},
			skip:     map[int64]plan.SkipReason{1: served},
		},
		"but not more than asked for": {
			snapshot: inClasses(snapshot(nil, warmJob(0, ofClass(base, aging(idle, 5*time.Minute))), warmJob(1, ofClass(base, aging(idle, 2*time.Minute)))), warm(base, 1)),
			end:      map[string]plan.EndReason{"azp-test-7-0-1": plan.EndSurplus},
		},
		"one of another class takes the request before a waiting one does": {
			snapshot: inClasses(snapshot(requests(1), warmJob(0, ofClass(base, idle)), job(5, ofClass(all, idle))), warm(base, 1), all),
			skip:     map[int64]plan.SkipReason{1: served},
		},
		"an agent that has waited too long is replaced before it goes": {
			snapshot: inClasses(snapshot(nil, warmJob(0, ofClass(base, aging(idle, time.Hour)))), warm(base, 1)),
			create:   map[int64]string{0: "base"},
		},
		"and goes when the new one waits": {
			snapshot: inClasses(snapshot(nil, warmJob(0, ofClass(base, aging(idle, time.Hour))), warmJob(1, ofClass(base, idle))), warm(base, 1)),
			end:      map[string]plan.EndReason{"azp-test-7-0-0": plan.EndMaxIdleAge},
		},
		"it stays while the new one starts": {
			snapshot: inClasses(snapshot(nil, warmJob(0, ofClass(base, aging(idle, time.Hour))), warmJob(1, ofClass(base, starting))), warm(base, 1)),
		},
		"an agent of an earlier version is replaced too": {
			snapshot: inClasses(snapshot(nil, warmJob(0, ofClass(base, idle)), warmJob(1, ofClass(changed(base), idle))), warm(changed(base), 1)),
			end:      map[string]plan.EndReason{"azp-test-7-0-0": plan.EndClassChanged},
		},
		"and first of all where a cap leaves no room for both": {
			snapshot: inClasses(snapshot(nil, warmJob(0, ofClass(base, idle))), capped(warm(changed(base), 1), 1)),
			end:      map[string]plan.EndReason{"azp-test-7-0-0": plan.EndClassChanged},
		},
		"waiting agents take no parallel job": {
			snapshot: inClasses(snapshot(requests(1, 2), warmJob(0, ofClass(base, idle))), warm(base, 1)),
			change:   func(s *plan.Snapshot) { s.Limits.ParallelJobs = 1 },
			create:   map[int64]string{0: "base"},
			skip:     map[int64]plan.SkipReason{1: served, 2: plan.SkipParallelJobs},
		},
		"a waiting agent makes room for a request of another class": {
			snapshot: inClasses(snapshot(list(demanding(1, "java")), warmJob(0, ofClass(base, idle)), warmJob(1, ofClass(base, starting))), warm(base, 2), java),
			change:   func(s *plan.Snapshot) { s.Limits.PoolAgents = 2 },
			end:      map[string]plan.EndReason{"azp-test-7-0-1": plan.EndMakeRoom},
			skip:     map[int64]plan.SkipReason{1: plan.SkipPoolCap},
		},
		"unless one is leaving already": {
			snapshot: inClasses(snapshot(list(demanding(1, "java")), warmJob(0, ofClass(base, idle)), warmJob(1, ofClass(base, func(j *agentpool.AgentJob) { idle(j); j.Deleting = true }))), warm(base, 1), java),
			change:   func(s *plan.Snapshot) { s.Limits.PoolAgents = 2 },
			skip:     map[int64]plan.SkipReason{1: plan.SkipPoolCap},
		},
		"an agent that serves another request makes no room": {
			snapshot: inClasses(snapshot(list(demanding(1), demanding(2, "java")), job(1, ofClass(base, idle))), base, java),
			change:   func(s *plan.Snapshot) { s.Limits.PoolAgents = 1 },
			skip:     map[int64]plan.SkipReason{1: served, 2: plan.SkipPoolCap},
		},
		"the cap of one class leaves the others alone": {
			snapshot: inClasses(snapshot(list(demanding(1, "java"), demanding(2, "java"), demanding(3))), capped(java, 1), base),
			create:   map[int64]string{1: "java", 3: "base"},
			skip:     map[int64]plan.SkipReason{2: plan.SkipClassCap},
		},
		"an agent that others of its kind are not known by is looked at": {
			snapshot: inClasses(snapshot(nil, job(1, ofClass(base, idle)), job(2, ofClass(base, idle)), job(3, ofClass(java, starting))), base, java),
			inspect:  []string{agentName(1)},
		},
		"and one beside which a request waits for long": {
			snapshot: inClasses(snapshot(requests(1), job(1, ofClass(base, aging(idle, time.Minute)))), base),
			change:   without(base),
			skip:     map[int64]plan.SkipReason{1: served},
			inspect:  []string{agentName(1)},
		},
		"one that serves after all leaves it to the service": {
			snapshot: inClasses(snapshot(requests(1), job(1, ofClass(base, aging(idle, time.Minute)))), base),
			change: func(s *plan.Snapshot) {
				without(base)(s)
				s.Registered = map[string]agentpool.Capabilities{agentName(1): base.Capabilities}
			},
			skip: map[int64]plan.SkipReason{1: plan.SkipHeld},
		},
		"a failed agent is not replaced in another request's name": {
			snapshot: inClasses(snapshot(requests(1, 2), job(1, ofClass(base, failed)), job(2, ofClass(base, starting))), base),
			skip:     map[int64]plan.SkipReason{1: plan.SkipBackoff, 2: served},
		},
		"a back-off in one class does not hold in another": {
			snapshot: inClasses(snapshot(requests(1), job(1, ofClass(base, failed))), java),
			create:   map[int64]string{1: "java"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if test.change != nil {
				test.change(&test.snapshot)
			}
			p := plan.Make(test.snapshot)
			var inspect []string
			for _, j := range p.Inspect {
				inspect = append(inspect, j.Name)
			}
			if test.inspect == nil {
				inspect = nil
			}
			for what, diff := range map[string]string{
				"made":      cmp.Diff(test.create, made(p)),
				"ended":     cmp.Diff(test.end, ended(p)),
				"skipped":   cmp.Diff(test.skip, skipped(p)),
				"inspected": cmp.Diff(test.inspect, inspect),
			} {
				if diff != "" {
					t.Errorf("%s (-want +got):\n%s", what, diff)
				}
			}
		})
	}
}

func TestWarmAgentsHaveNamesOfTheirOwn(t *testing.T) {
	c := class("base")
	c.MinIdle = 3
	s := inClasses(snapshot(nil, warmJob(4, ofClass(c, idle))), c)
	s.Attempts = map[int64]int{agentpool.WarmRequest: 6}
	p := plan.Make(s)
	var attempts []int
	for _, creation := range p.Create {
		attempts = append(attempts, creation.Attempt)
	}
	if diff := cmp.Diff([]int{7, 8}, attempts); diff != "" {
		t.Errorf("attempts (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]plan.Warm{"base": {Want: 3, Have: 3}}, p.View.Warm); diff != "" {
		t.Errorf("warm agents (-want +got):\n%s", diff)
	}
}

func TestWhatKeepsAgentsFromWaiting(t *testing.T) {
	c := class("base")
	c.MinIdle = 2
	s := inClasses(snapshot(nil), c)
	s.Limits.PoolAgents = 1
	got := plan.Make(s).View.Warm["base"]
	if want := (plan.Warm{Want: 2, Have: 1, Held: plan.SkipPoolCap, Detail: "the pool may have 1 agents"}); got != want {
		t.Errorf("want %+v, got %+v", want, got)
	}
}

func TestWarmFailuresAreForgivenOnce(t *testing.T) {
	c := class("base")
	c.MinIdle = 1
	broken := warmJob(0, ofClass(c, failed))
	s := inClasses(snapshot(nil, broken), c)
	if warm := plan.Make(s).View.Warm["base"]; warm.Held != plan.SkipBackoff {
		t.Fatalf("a warm agent that failed is to be waited for, got %+v", warm)
	}
	came := warmJob(1, ofClass(c, finished))
	came.CreatedAt = now().Add(-time.Millisecond)
	s.Jobs[0].Ended = ago(time.Second)
	s.Jobs = append(s.Jobs, came)
	if p := plan.Make(s); len(p.Create) != 1 || p.Create[0].Failures != 0 {
		t.Fatalf("once another has come up, its failures count no more: %+v, %+v", p.Create, p.View.Warm)
	}
}

func TestClosestClass(t *testing.T) {
	s := inClasses(snapshot([]agentpool.JobRequest{demanding(1, "java", "npm", "gpu -equals a100")}), class("base"), class("java", "java"), class("all", "java", "docker", "npm"))
	s.Broken = map[string]string{"gpu": "annotation capabilities"}
	p := plan.Make(s)
	if len(p.Skipped) != 1 || p.Skipped[0].Closest != "all" || !slices.Equal(p.Skipped[0].Missing, []string{"gpu -equals a100"}) {
		t.Fatalf("the closest class is \"all\", which lacks the gpu, got %+v", p.Skipped)
	}
	const want = "no class satisfies all demands; the closest is all, which lacks gpu -equals a100; not usable as they are written: gpu"
	if p.Skipped[0].Detail != want {
		t.Errorf("want %q, got %q", want, p.Skipped[0].Detail)
	}
}

func TestMismatches(t *testing.T) {
	c := class("java", "java")
	c.Claims["maven"], c.Claims["Agent.ComputerName"] = "3.9", "host"
	s := inClasses(snapshot(nil), c)
	s.Offers = map[plan.ClassVersion]agentpool.Capabilities{{Class: "java", Version: "1"}: agentpool.NewCapabilities(map[string]string{
		"agent.os": "linux", "maven": "3.8", "Agent.ComputerName": "other",
	})}
	want := []plan.Mismatch{{Class: "java", Version: "1", Lacking: []string{"java", "maven=3.9"}}}
	if diff := cmp.Diff(want, plan.Make(s).Mismatches); diff != "" {
		t.Errorf("mismatches (-want +got):\n%s", diff)
	}
	s.Jobs = []agentpool.AgentJob{job(1, ofClass(c, aging(idle, time.Minute))), job(2, ofClass(c, idle))}
	s.Registered = map[string]agentpool.Capabilities{agentName(1): {}}
	if p := plan.Make(s); len(p.Inspect) != 1 || p.Inspect[0].Name != agentName(2) {
		t.Errorf("the newest agent of a class with a mismatch is to be looked at, got %+v", p.Inspect)
	}
}

func TestARequestThatIsThereTwiceCountsOnce(t *testing.T) {
	taken := request(2)
	taken.AssignTime, taken.Reserved = now(), agentpool.AgentRef{ID: 1, Name: "static-vm"}
	s := snapshot([]agentpool.JobRequest{request(1), request(1), request(2), taken})
	if diff := cmp.Diff([]int64{1}, created(plan.Make(s))); diff != "" {
		t.Errorf("made (-want +got):\n%s", diff)
	}
}
