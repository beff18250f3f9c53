package fakeagent_test

import (
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

func TestRunsABuildAndReportsIt(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s).configured()
	p := a.listen()
	id := s.queue(t, azuredevopstest.Build{
		Name: "Compile", Steps: []string{"echo hello from $(greeting)", "echo in $PWD; echo $AGENT_NAME; echo $SYSTEM_JOBDISPLAYNAME $TF_BUILD; echo own=$OWN; echo it is $(hidden)"},
		Variables: map[string]string{"greeting": "the build"}, Secrets: map[string]string{"hidden": "t0ps3cret"}, Env: map[string]string{"OWN": "mine"},
	})
	status := s.wait(t, id)
	if status.Result != "succeeded" || status.AgentName != "azp-one" {
		t.Errorf("the build ended as %+v", status)
	}
	if code := p.wait(); code != 0 {
		t.Errorf("the listener ended with %d", code)
	}
	stamp := `\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ: `
	want := regexp.MustCompile(`(?m)^` + stamp + `Listening for Jobs\n` + stamp + `Running job: Compile\n` + stamp + `Job Compile completed with result: Succeeded\n`)
	if !want.MatchString(p.output.String()) {
		t.Errorf("the output is not that of an agent:\n%s", p.output.String())
	}
	log, err := s.Log(id)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"hello from the build", "in " + a.path("_work", "1", "s"), "azp-one", "Compile True", "own=mine", "it is ***"} {
		if !strings.Contains(log, line) {
			t.Errorf("the log has no %q:\n%s", line, log)
		}
	}
	if strings.Contains(log, "t0ps3cret") {
		t.Error("the log shows the secret")
	}
	var names []string
	for _, step := range status.Steps {
		names = append(names, step.Name+"="+step.Result)
	}
	if got := strings.Join(names, ", "); !strings.Contains(got, "Initialize job=succeeded") || !strings.Contains(got, "Finalize job=succeeded") {
		t.Errorf("the timeline is %s", got)
	}
	if n := len(s.events("session-deleted")); n != 1 {
		t.Errorf("%d sessions were deleted, not 1", n)
	}
}

// The service gives the next job as soon as it has the result of the last one, before
// that one's worker has ended.
func TestAnAgentOfOldTakesJobAfterJob(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s).configured()
	p := a.start("bin/Agent.Listener", "run")
	p.waitFor("Listening for Jobs")
	var ids []int64
	for range 5 {
		ids = append(ids, s.queue(t, azuredevopstest.Build{Steps: []string{"true"}}))
	}
	for _, id := range ids {
		if status := s.wait(t, id); status.Result != "succeeded" || status.AgentName != "azp-one" {
			t.Errorf("a build ended as %+v", status)
		}
	}
	p.signal(syscall.SIGINT)
	if code := p.wait(); code != 0 {
		t.Errorf("the listener ended with %d", code)
	}
}

func TestFailingBuildStillEndsTheAgentWell(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s).configured()
	p := a.listen()
	id := s.queue(t, azuredevopstest.Build{Steps: []string{"exit 3", "echo never reached"}})
	if status := s.wait(t, id); status.Result != "failed" {
		t.Errorf("the build ended as %+v", status)
	}
	if code := p.wait(); code != 0 {
		t.Errorf("the listener ended with %d", code)
	}
	p.says("completed with result: Failed")
	log, err := s.Log(id)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(log, "never reached") || !strings.Contains(log, "exited with code '3'") {
		t.Errorf("the log is:\n%s", log)
	}
}

func TestBuildSeesTheListenersEnvironment(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s).configured()
	p := a.startWith([]string{"LEAKED=by-the-starter", "VSTS_AGENT_INPUT_TOKEN=" + pat}, "bin/Agent.Listener", "run", "--once")
	p.waitFor("Listening for Jobs")
	id := s.queue(t, azuredevopstest.Build{Steps: []string{"env"}})
	s.wait(t, id)
	log, err := s.Log(id)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log, "LEAKED=by-the-starter") {
		t.Error("the build did not inherit the listener's environment, as builds do")
	}
	if strings.Contains(log, pat) || strings.Contains(log, "VSTS_AGENT_INPUT") {
		t.Error("the agent passed its inputs on")
	}
}

func TestCancellationFromTheService(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s).configured()
	p := a.listen()
	id := s.queue(t, azuredevopstest.Build{Steps: []string{"touch $(marker); sleep 300"}, Variables: map[string]string{"marker": a.path("started")}})
	eventually(t, "the step's start", func() bool { return a.exists("started") })
	if err := s.Cancel(id); err != nil {
		t.Fatal(err)
	}
	if status := s.wait(t, id); status.Result != "canceled" {
		t.Errorf("the build ended as %+v", status)
	}
	if code := p.wait(); code != 0 {
		t.Errorf("the listener ended with %d", code)
	}
	p.says("completed with result: Canceled")
}

func TestInterruptEndsAnIdleListener(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s).configured()
	p := a.listen()
	p.signal(syscall.SIGINT)
	if code := p.wait(); code != 0 {
		t.Errorf("the listener ended with %d", code)
	}
	p.says("Exiting...")
	s.waitEvent(t, "session-deleted")
}

func TestInterruptCancelsTheJobAndWaitsForIt(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s).configured()
	p := a.listen()
	id := s.queue(t, azuredevopstest.Build{
		Steps:     []string{"trap 'touch $(end); exit 1' INT; touch $(marker); while :; do sleep 0.1; done"},
		Variables: map[string]string{"marker": a.path("started"), "end": a.path("interrupted")},
	})
	eventually(t, "the step's start", func() bool { return a.exists("started") })
	p.signal(syscall.SIGINT)
	if code := p.wait(); code != 0 {
		t.Errorf("the listener ended with %d", code)
	}
	p.says("completed with result: Canceled")
	if status := s.wait(t, id); status.Result != "canceled" {
		t.Errorf("the build ended as %+v", status)
	}
	if !a.exists("interrupted") {
		t.Error("the step was not interrupted")
	}
	if n := len(s.events("session-deleted")); n != 1 {
		t.Errorf("%d sessions were deleted, not 1", n)
	}
}

func TestTermKillsAtOnceFromVersion5On(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s).configured()
	p := a.listen()
	p.signal(syscall.SIGTERM)
	if code := p.wait(); code != -int(syscall.SIGTERM) {
		t.Errorf("the listener ended with %d", code)
	}
	if n := len(s.events("session-deleted")); n != 0 {
		t.Errorf("%d sessions were deleted by a killed listener", n)
	}
}

func TestStepsEndWithTheListener(t *testing.T) {
	t.Parallel()
	s := newService(t, azuredevopstest.Options{})
	a := newAgent(t, s).configured()
	p := a.listen()
	s.queue(t, azuredevopstest.Build{Steps: []string{"echo $$ >$(marker).new; mv $(marker).new $(marker); sleep 300"}, Variables: map[string]string{"marker": a.path("pid")}})
	eventually(t, "the step's start", func() bool { return a.exists("pid") })
	p.signal(syscall.SIGTERM)
	p.wait()
	eventually(t, "the end of the step", func() bool { return gone(t, a.read("pid")) })
}

func TestNotConfigured(t *testing.T) {
	t.Parallel()
	a := newAgent(t, newService(t, azuredevopstest.Options{}))
	p := a.start("run.sh", "--once")
	if code := p.wait(); code != 1 {
		t.Errorf("run ended with %d", code)
	}
	p.says("Not configured")
}
