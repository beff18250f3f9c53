package azuredevopstest_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

// TestSwapsAreTheRule names each agent after a request and expects nearly all
// of them to get another one's.
func TestSwapsAreTheRule(t *testing.T) {
	if _, err := keyPair(); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		s := inProcess(t, azuredevopstest.Options{Seed: 11, NoSecondJob: true, MessageWait: time.Second})
		s.register("placeholder", nil)
		const n = 12
		var agents []*agent
		own := map[string]int64{}
		for range n {
			id := s.queue(azuredevopstest.Build{Name: "build"})
			a := s.register(fmt.Sprintf("azp-abcdefgh-1-%d-1", id), nil)
			own[a.Name] = id
			agents = append(agents, a)
		}
		for _, a := range agents {
			a.connect()
		}
		swapped := 0
		for _, a := range agents {
			if _, j := a.nextJob(); j.RequestID != own[a.Name] {
				swapped++
			}
		}
		if swapped < n-1 {
			t.Errorf("%d of %d agents got another request than the one in their name, want all but at most one", swapped, n)
		}
		s.srv.Close()
	})
}

// TestSameSeedSameRun compares the assignments of two runs.
func TestSameSeedSameRun(t *testing.T) {
	run := func(t *testing.T, seed uint64) string {
		var pairs []string
		synctest.Test(t, func(t *testing.T) {
			s := inProcess(t, azuredevopstest.Options{Seed: seed, MessageWait: time.Second})
			for i := range 6 {
				a := s.register(fmt.Sprintf("agent-%c", 'a'+i), nil)
				a.connect()
			}
			for range 6 {
				s.queue(azuredevopstest.Build{Name: "build"})
			}
			time.Sleep(time.Second)
			for _, b := range s.srv.Builds(s.pool) {
				pairs = append(pairs, fmt.Sprintf("%d=%s", b.RequestID, b.AgentName))
			}
			s.srv.Close()
		})
		return strings.Join(pairs, " ")
	}
	if _, err := keyPair(); err != nil {
		t.Fatal(err)
	}
	first := run(t, 1)
	if again := run(t, 1); again != first {
		t.Errorf("seed 1 twice:\n%s\n%s", first, again)
	}
	if other := run(t, 2); other == first {
		t.Errorf("seeds 1 and 2 alike: %s", other)
	}
}

// TestRareAgentsAreWasted expects a plain request to take the agent that can
// do the most.
func TestRareAgentsAreWasted(t *testing.T) {
	s := start(t, azuredevopstest.Options{NoSecondJob: true})
	s.register("plain", nil).connect()
	s.register("rich", map[string]string{"gpu": "yes", "npm": "yes"}).connect()
	id := s.queue(azuredevopstest.Build{Name: "plain"})
	if got := s.awaitState(id, azuredevopstest.StateAssigned); got.AgentName != "rich" {
		t.Errorf("given to %s", got.AgentName)
	}
}

func TestDemands(t *testing.T) {
	s := start(t, azuredevopstest.Options{NoSecondJob: true})
	s.register("offline", map[string]string{"java": "17.0.2-beta", "Tool": "Some Thing", "odd": "none"})
	for _, tc := range []struct {
		demand string
		fits   bool
	}{
		{"java", true},
		{"JAVA", true},
		{"npm", false},
		{"tool -equals some thing", true},
		{"tool -equals \"some thing\"", false},
		{"java -gtVersion 17.0.2", true},
		{"java -gtVersion 17.0.3", false},
		{"java -gtVersion 17.0", true},
		{"java -gtVersion 9.1", true},
		{"odd -gtVersion 1.0", false},
		{"odd -gtVersion none", true},
		{"Agent.Version -gtVersion 4.999.0", false},
		{"Agent.Name -equals OFFLINE", true},
		{"Agent.OS -equals linux", true},
	} {
		id := s.queue(azuredevopstest.Build{Name: tc.demand, Demands: []string{tc.demand}})
		got := s.status(id)
		if fits := got.State == azuredevopstest.StateQueued; fits != tc.fits {
			t.Errorf("%q fits %t, want %t: %+v", tc.demand, fits, tc.fits, got)
		}
		if !tc.fits && (got.Result != azuredevopstest.ResultFailed || !strings.HasPrefix(got.Message, "No agent found in pool builds which satisfies the specified demands: "+tc.demand)) {
			t.Errorf("%q: %+v", tc.demand, got)
		}
	}
	for _, bad := range []string{"", "a -is b", "a -Equals b", "a b"} {
		if _, err := s.srv.Queue(azuredevopstest.Build{PoolID: s.pool, Demands: []string{bad}}); err == nil {
			t.Errorf("demand %q was taken", bad)
		}
	}
}

func TestEmptyPoolFailsAtOnce(t *testing.T) {
	s := start(t, azuredevopstest.Options{})
	id := s.queue(azuredevopstest.Build{Name: "lonely"})
	if got := s.status(id); got.Result != azuredevopstest.ResultFailed {
		t.Fatalf("status %+v", got)
	}
	if got := strings.Join(s.events(id), " "); got != "request-queued request-failed-no-agent" {
		t.Errorf("events %s", got)
	}
	a := s.register("offline", nil)
	if r := s.manage("PATCH", s.poolPath("agents/"+itoa(a.ID)), map[string]any{"id": a.ID, "enabled": false}); r.status != 200 {
		t.Fatalf("disable: %d", r.status)
	}
	if got := s.status(s.queue(azuredevopstest.Build{Name: "waits"})); got.State != azuredevopstest.StateQueued {
		t.Errorf("beside an agent that is registered, though offline and disabled: %+v", got)
	}
}

func TestDisabledAgentsGetNothing(t *testing.T) {
	bubble(t, azuredevopstest.Options{MessageWait: time.Second}, func(t *testing.T, s *service, a *agent) {
		set := func(enabled bool) {
			if r := s.manage("PATCH", s.poolPath("agents/"+itoa(a.ID)), map[string]any{"id": a.ID, "enabled": enabled}); r.status != 200 {
				t.Fatalf("PATCH: %d %s", r.status, r.body)
			}
		}
		set(false)
		id := s.queue(azuredevopstest.Build{Name: "waits"})
		if r := a.poll(t.Context()); r.status != 202 {
			t.Fatalf("a disabled agent got %s", r.body)
		}
		set(true)
		if _, j := a.nextJob(); j.RequestID != id {
			t.Fatalf("job %+v", j)
		}
	})
}

func TestSecondJobWindow(t *testing.T) {
	for _, tc := range []struct {
		name             string
		disable, without bool
		want             string
	}{
		{"by default", false, false, azuredevopstest.StateAssigned},
		{"disabled in time", true, false, azuredevopstest.StateQueued},
		{"turned off", false, true, azuredevopstest.StateQueued},
	} {
		t.Run(tc.name, func(t *testing.T) {
			// A tick so slow that only the window can assign.
			bubble(t, azuredevopstest.Options{Tick: time.Second, NoSecondJob: tc.without}, func(t *testing.T, s *service, a *agent) {
				first := s.queue(azuredevopstest.Build{Name: "first"})
				a.nextJob()
				a.renew(first)
				second := s.queue(azuredevopstest.Build{Name: "second"})
				if tc.disable {
					s.manage("PATCH", s.poolPath("agents/"+itoa(a.ID)), map[string]any{"id": a.ID, "enabled": false})
				}
				if r := a.finish(first, "succeeded"); r.status != 200 {
					t.Fatalf("finish: %d %s", r.status, r.body)
				}
				a.close()
				if got := s.status(second); got.State != tc.want {
					t.Fatalf("second job: %+v, want %s", got, tc.want)
				}
				time.Sleep(2 * time.Minute)
				got := s.status(second)
				if lost := got.Result == azuredevopstest.ResultAbandoned; lost != (tc.want == azuredevopstest.StateAssigned) {
					t.Fatalf("after the window: %+v", got)
				}
				if tc.want == azuredevopstest.StateAssigned && !strings.Contains(got.Message, "We stopped hearing from agent") {
					t.Fatalf("message %q", got.Message)
				}
			})
		})
	}
}

func TestParallelJobs(t *testing.T) {
	bubble(t, azuredevopstest.Options{ParallelJobs: 2}, func(t *testing.T, s *service, _ *agent) {
		for i := range 3 {
			s.register(fmt.Sprintf("further-%d", i), nil).connect()
		}
		var ids []int64
		for range 4 {
			ids = append(ids, s.queue(azuredevopstest.Build{Name: "build"}))
		}
		assigned := func() (n int, queued int64) {
			// Long enough for many ticks.
			time.Sleep(10 * time.Second)
			for _, id := range ids {
				if s.status(id).State == azuredevopstest.StateQueued {
					queued = id
				} else {
					n++
				}
			}
			return n, queued
		}
		n, queued := assigned()
		if n != 2 {
			t.Fatalf("%d run, the limit is 2", n)
		}
		type usage struct {
			UsedCount       int
			ResourceLimit   struct{ TotalCount *int }
			RunningRequests []struct{ RequestID int64 }
		}
		const path = "/_apis/distributedtask/resourceusage?parallelismTag=Private&poolIsHosted=false&includeRunningRequests=true"
		var limited, unlimited usage
		s.manage("GET", path, nil).into(t, &limited)
		if limited.UsedCount != 2 || limited.ResourceLimit.TotalCount == nil || *limited.ResourceLimit.TotalCount != 2 || len(limited.RunningRequests) != 2 {
			t.Fatalf("usage %+v", limited)
		}
		var row struct{ StatusMessage string }
		s.manage("GET", s.poolPath(fmt.Sprintf("jobrequests/%d?includeStatus=true", queued)), nil).into(t, &row)
		if !strings.Contains(row.StatusMessage, "maximum number of requests") {
			t.Errorf("status message %q", row.StatusMessage)
		}
		s.srv.SetParallelJobs(0)
		if n, _ := assigned(); n != 4 {
			t.Errorf("%d run without a limit, want 4", n)
		}
		s.manage("GET", path, nil).into(t, &unlimited)
		if unlimited.ResourceLimit.TotalCount != nil {
			t.Errorf("no limit is answered with %d", *unlimited.ResourceLimit.TotalCount)
		}
	})
}

func TestPriority(t *testing.T) {
	s := start(t, azuredevopstest.Options{Seed: 4, NoSecondJob: true})
	a := s.register("agent-1", nil)
	for range 5 {
		s.queue(azuredevopstest.Build{Name: "low"})
	}
	urgent := s.queue(azuredevopstest.Build{Name: "high", Priority: 5})
	a.connect()
	if _, j := a.nextJob(); j.RequestID != urgent {
		t.Errorf("got %s first", j.JobName)
	}
}

// TestSelfUpdate has the service demand a newer agent than is online.
func TestSelfUpdate(t *testing.T) {
	tarball := filepath.Join(t.TempDir(), "agent.tar.gz")
	if err := os.WriteFile(tarball, []byte("an agent"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, azuredevopstest.Options{
		NoSecondJob: true,
		Packages:    []azuredevopstest.AgentPackage{{Platform: "linux-x64", Version: "4.300.0", Path: tarball}},
	})
	a := s.register("agent-1", nil)
	a.connect()
	id := s.queue(azuredevopstest.Build{Name: "modern", Demands: []string{"Agent.Version -gtVersion 4.300.0"}})
	m := a.next()
	var body struct {
		AgentID                int
		TargetVersion, Timeout string
	}
	if err := json.Unmarshal([]byte(m.Body), &body); err != nil || m.MessageType != "AgentRefresh" || body.AgentID != a.ID || body.TargetVersion != "4.300.0" {
		t.Fatalf("message %+v, %v", m, err)
	}
	if r := a.close(); r.status != 200 {
		t.Fatalf("close: %d %s", r.status, r.body)
	}
	r := a.send("POST", s.poolPath("sessions"), map[string]any{
		"ownerName": "host", "agent": map[string]any{"id": a.ID, "name": a.Name, "version": "4.300.0"},
		"systemCapabilities": map[string]string{"Agent.Version": "4.300.0"},
	})
	var session struct{ SessionID string }
	r.into(t, &session)
	a.session, a.last = session.SessionID, 0
	if _, j := a.nextJob(); j.RequestID != id {
		t.Fatalf("job %+v", j)
	}
	if err := s.srv.RequestUpdate(s.pool, a.ID, "4.301.0"); err != nil {
		t.Fatal(err)
	}
	if m := a.next(); m.MessageType != "AgentRefresh" {
		t.Fatalf("message %+v", m)
	}
	offline := s.register("agent-2", nil)
	for _, err := range []error{
		s.srv.RequestUpdate(s.pool, offline.ID, "4.301.0"),
		s.srv.RequestUpdate(s.pool, a.ID, "new"),
		s.srv.RequestUpdate(s.pool, 1, "4.301.0"),
	} {
		if err == nil {
			t.Error("an update was sent that cannot be")
		}
	}
}

// TestEmptyCapabilities has an agent connect with a set that is empty, as one
// does that was told to skip its scan.
func TestEmptyCapabilities(t *testing.T) {
	s := start(t, azuredevopstest.Options{})
	a := s.register("agent-1", map[string]string{"npm": "yes"})
	a.connect()
	a.close()
	a.send("POST", s.poolPath("sessions"), map[string]any{
		"ownerName": "host", "agent": map[string]any{"id": a.ID}, "systemCapabilities": map[string]string{},
	})
	if got := s.status(s.queue(azuredevopstest.Build{Name: "npm", Demands: []string{"npm"}})); got.Result != azuredevopstest.ResultFailed {
		t.Errorf("status %+v", got)
	}
}
