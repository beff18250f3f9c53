package worker

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/console"
	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/wire"
)

func TestParseCommand(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]*logCommand{
		"##vso[task.setvariable variable=x;issecret=true]a%0Ab": {
			name: "task.setvariable", properties: map[string]string{"variable": "x", "issecret": "true"}, data: "a\nb",
		},
		"before ##vso[Task.Complete result=Failed;]":    {name: "task.complete", properties: map[string]string{"result": "Failed"}},
		"##vso[task.logissue type=error;code=a%3Bb%5D]": {name: "task.logissue", properties: map[string]string{"type": "error", "code": "a;b]"}},
		"##vso[task.debug]":                             {name: "task.debug", properties: map[string]string{}},
		"##vso[nonsense]":                               nil,
		"##vso[task.debug":                              nil,
		"plain":                                         nil,
	} {
		got, ok := parseCommand(line)
		if ok != (want != nil) {
			t.Errorf("%q is a command: %v", line, ok)
		} else if ok && cmp.Diff(*want, got, cmp.AllowUnexported(logCommand{})) != "" {
			t.Errorf("%q is %+v, not %+v", line, got, *want)
		}
	}
}

func testVariables(masker *console.Masker) *variables {
	return newVariables(wire.Job{
		JobID: "j", JobDisplayName: "Job", RequestID: 12, Plan: wire.Plan{Type: "Build"},
		Variables: map[string]wire.Variable{
			"greeting": {Value: "hello"}, "password": {Value: "hidden-value", IsSecret: true}, "Agent.Name": {Value: "not this"}, "Build.BuildId": {Value: "99"},
		},
	}, Agent{ID: 3, Name: "azp-one", Root: "/azp/agent", Work: "_work", Platform: "linux-arm64", Server: "https://x/acme"}, masker)
}

func TestVariables(t *testing.T) {
	t.Parallel()
	masker := &console.Masker{}
	v := testVariables(masker)
	if got := v.expand("$(GREETING) $(agent.name) $(unknown) $(password) $(cmd arg)"); got != "hello azp-one $(unknown) hidden-value $(cmd arg)" {
		t.Errorf("expanded to %q", got)
	}
	if got := masker.Mask("a hidden-value"); got != "a ***" {
		t.Errorf("masked to %q", got)
	}
	v.set("password", "other-value", false)
	env := v.environment(map[string]string{"PATH": "/bin", "AGENT_NAME": "inherited"}, map[string]string{"Own": "$(greeting)"})
	for _, want := range []string{
		"PATH=/bin", "AGENT_NAME=azp-one", "GREETING=hello", "Own=hello", "TF_BUILD=True", "BUILD_BUILDID=99", "AGENT_OSARCHITECTURE=ARM64",
		"SYSTEM_DEFAULTWORKINGDIRECTORY=/azp/agent/_work/1/s", "SYSTEM_TEAMFOUNDATIONCOLLECTIONURI=https://x/acme/", "SYSTEM_HOSTTYPE=build",
	} {
		if !slices.Contains(env, want) {
			t.Errorf("the environment has no %s:\n%s", want, strings.Join(env, "\n"))
		}
	}
	if strings.Contains(strings.Join(env, "\n"), "other-value") {
		t.Error("a secret is in the environment")
	}
}

func TestConditions(t *testing.T) {
	t.Parallel()
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	states := map[string]struct {
		ctx    context.Context
		result string
	}{
		"well":     {t.Context(), wire.ResultSucceeded},
		"failed":   {t.Context(), wire.ResultFailed},
		"canceled": {canceled, wire.ResultSucceeded},
	}
	for condition, want := range map[string]string{
		"": "well", "succeeded()": "well", "Failed()": "failed", "succeededOrFailed()": "failed well", "canceled()": "canceled", "always( )": "canceled failed well",
	} {
		var got []string
		for _, name := range slices.Sorted(maps.Keys(states)) {
			j := &job{result: states[name].result}
			if ok, err := j.wanted(states[name].ctx, condition); err != nil {
				t.Errorf("%q: %v", condition, err)
			} else if ok {
				got = append(got, name)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q holds when %v, not when %s", condition, got, want)
		}
	}
	if _, err := (&job{}).wanted(t.Context(), "eq(1, 1)"); err == nil {
		t.Error("a condition that is not understood was taken")
	}
}

func TestJobsResultIsItsWorstSteps(t *testing.T) {
	t.Parallel()
	for want, steps := range map[string][]string{
		wire.ResultSucceeded: {wire.ResultSucceeded, wire.ResultSkipped},
		wire.ResultIssues:    {wire.ResultIssues, wire.ResultSucceeded},
		wire.ResultFailed:    {wire.ResultIssues, wire.ResultFailed, wire.ResultIssues, wire.ResultSucceeded},
	} {
		j := &job{result: wire.ResultSucceeded, vars: testVariables(&console.Masker{})}
		for _, step := range steps {
			j.count(step)
		}
		if j.result != want {
			t.Errorf("%v make %s, not %s", steps, j.result, want)
		}
	}
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	for code, want := range map[int]string{100: "succeeded", 101: "succeededWithIssues", 102: "failed", 103: "canceled", 105: "abandoned", 0: "", 1: "", 106: "", -1: "", 137: ""} {
		if got, ok := ResultOfExit(code); got != want || ok != (want != "") {
			t.Errorf("exit code %d is %q, %v", code, got, ok)
		}
	}
}

func TestBadJobs(t *testing.T) {
	t.Parallel()
	agent := `"agent":{"root":"` + t.TempDir() + `"}`
	for name, c := range map[string]struct{ message, says string }{
		"nothing":       {"", `first message is ""`},
		"no JSON":       {"hello\n", `first message is ""`},
		"a cancel":      {`{"type":"CancelRequest"}` + "\n", "CancelRequest"},
		"a wrong shape": {`{"type":"NewJobRequest",` + agent + `,"job":[]}` + "\n", "cannot be read"},
	} {
		var stderr strings.Builder
		code := Main(Process{Listener: strings.NewReader(c.message), Env: map[string]string{}, Stderr: &stderr, Kill: func() {}})
		if code != 1 || !strings.Contains(stderr.String(), c.says) {
			t.Errorf("%s: the worker ended with %d and said %q", name, code, stderr.String())
		}
	}
	for name, c := range map[string]struct{ job, says string }{
		"no endpoint": {`{"resources":{"endpoints":[]}}`, "no endpoint SystemVssConnection"},
		"no token":    {`{"resources":{"endpoints":[{"name":"SystemVssConnection","url":"https://x/acme"}]}}`, "no AccessToken"},
	} {
		root := t.TempDir()
		if err := os.Mkdir(filepath.Join(root, "_diag"), 0o755); err != nil {
			t.Fatal(err)
		}
		message := `{"type":"NewJobRequest","agent":{"root":"` + root + `"},"job":` + c.job + "}\n"
		var stderr strings.Builder
		code := Main(Process{Listener: strings.NewReader(message), Env: map[string]string{}, Stderr: &stderr, Kill: func() {}})
		if code != 1 || !strings.Contains(stderr.String(), c.says) {
			t.Errorf("%s: the worker ended with %d and said %q", name, code, stderr.String())
		}
	}
}
