package agent

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
)

func TestDivide(t *testing.T) {
	const s = time.Second
	tests := []struct {
		name                    string
		grace, remove, withdraw time.Duration
		want                    Shares
	}{
		{"defaults", 3600 * s, 60 * s, 30 * s, Shares{Verdict: 30 * s, Build: 3540 * s, Cancel: 30 * s, Remove: 30 * s}},
		{"the grace period of a pod that says nothing", 30 * s, 10 * s, 30 * s, Shares{Verdict: 20 * s, Build: 20 * s, Cancel: 5 * s, Remove: 5 * s}},
		{"a share as long as the grace period is cut", 30 * s, 30 * s, 5 * s, Shares{Verdict: 5 * s, Build: 15 * s, Cancel: 7500 * time.Millisecond, Remove: 7500 * time.Millisecond}},
		{"a longer one too", 30 * s, 60 * s, 5 * s, Shares{Verdict: 5 * s, Build: 15 * s, Cancel: 7500 * time.Millisecond, Remove: 7500 * time.Millisecond}},
		{"nothing for remove", 30 * s, 0, 5 * s, Shares{Verdict: 5 * s, Build: 30 * s}},
		{"no grace", 0, 60 * s, 5 * s, Shares{}},
		{"negative values count as none", -5 * s, -1, -1, Shares{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Divide(tt.grace, tt.remove, tt.withdraw); got != tt.want {
				t.Errorf("Divide(%s, %s, %s) = %+v, want %+v", tt.grace, tt.remove, tt.withdraw, got, tt.want)
			}
		})
	}
}

func TestDivideAddsUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		some := rapid.Int64Range(0, int64(48*time.Hour))
		grace := time.Duration(some.Draw(t, "grace"))
		got := Divide(grace, time.Duration(some.Draw(t, "remove")), time.Duration(some.Draw(t, "withdraw")))
		if sum := got.Build + got.Cancel + got.Remove; sum != grace {
			t.Errorf("shares add up to %s of %s", sum, grace)
		}
		if got.Build < 0 || got.Cancel < 0 || got.Remove < 0 || got.Verdict < 0 || got.Verdict > got.Build {
			t.Errorf("shares out of bounds: %+v", got)
		}
	})
}

func TestParseLine(t *testing.T) {
	const at = "2026-01-02 03:04:05Z: "
	tests := []struct {
		line string
		want event
	}{
		{at + "Listening for Jobs", event{kind: lineListening}},
		{"Listening for Jobs\r\n", event{kind: lineListening}},
		{at + "Running job: Build and test\n", event{kind: lineRunning, job: "Build and test"}},
		{at + "Job Build and test completed with result: Succeeded\n", event{kind: lineResult, job: "Build and test", result: "Succeeded"}},
		{at + "Job x completed with result: Canceled", event{kind: lineResult, job: "x", result: "Canceled"}},
		{"Job x completed with result: SucceededWithIssues", event{kind: lineResult, job: "x", result: "SucceededWithIssues"}},
		// Names of jobs are chosen by others.
		{at + "Running job: Job x completed with result: Succeeded", event{kind: lineRunning, job: "Job x completed with result: Succeeded"}},
		{at + "Job Running job: y completed with result: Failed", event{kind: lineResult, job: "Running job: y", result: "Failed"}},
		{at + "Job a completed with result: Failed completed with result: Succeeded", event{kind: lineResult, job: "a completed with result: Failed", result: "Succeeded"}},
		{at + "Running job: Listening for Jobs", event{kind: lineRunning, job: "Listening for Jobs"}},
		{at + "Job x completed with result: Listening", event{}},
		{at + "job x completed with result: Succeeded", event{}},
		{"xListening for Jobs", event{}},
		{"echo Running job: x", event{}},
		{"", event{}},
	}
	for _, tt := range tests {
		if got := parseLine(tt.line); got != tt.want {
			t.Errorf("parseLine(%q) = %+v, want %+v", tt.line, got, tt.want)
		}
	}
}

func TestTeeLines(t *testing.T) {
	long := strings.Repeat("x", 3*longestLine)
	input := "one\ntwo\n" + long + "\nRunning job: after\nlast without an end"
	for name, reader := range map[string]io.Reader{
		"whole":       strings.NewReader(input),
		"by the byte": iotest.OneByteReader(strings.NewReader(input)),
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			var lines []string
			if err := teeLines(reader, &out, func(line string) { lines = append(lines, line) }); err != nil {
				t.Fatal(err)
			}
			if out.String() != input {
				t.Errorf("what went through differs: %d bytes of %d", out.Len(), len(input))
			}
			want := []string{"one\n", "two\n", long[:longestLine], "Running job: after\n", "last without an end"}
			if diff := cmp.Diff(want, lines); diff != "" {
				t.Errorf("lines (-want +got):\n%.2000s", diff)
			}
		})
	}
}

func TestTeeLinesGoesOnWhenNobodyTakesTheLog(t *testing.T) {
	n := 0
	if err := teeLines(strings.NewReader("a\nb\n"), brokenWriter{}, func(string) { n++ }); err != nil || n != 2 {
		t.Errorf("lines %d, error %v, want 2 and none", n, err)
	}
}

func TestTeeLinesTellsOfAFailedRead(t *testing.T) {
	broken := errors.New("broken")
	if err := teeLines(iotest.ErrReader(broken), io.Discard, func(string) {}); !errors.Is(err, broken) {
		t.Errorf("error %v, want %v", err, broken)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("nobody listens") }

func TestMaskWriter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const secret = "s3cr3t-t0k3n"
		parts := rapid.SliceOfN(rapid.SampledFrom([]string{secret, "a", "\n", "s3cr", "3t-t0k3n", strings.Repeat("y", longestLine/3)}), 0, 40).Draw(t, "parts")
		input := strings.Join(parts, "")
		var out strings.Builder
		w := &maskWriter{w: &out, secret: secret}
		for rest := input; rest != ""; {
			n := min(rapid.IntRange(1, 1+longestLine/2).Draw(t, "n"), len(rest))
			if got, err := w.Write([]byte(rest[:n])); got != n || err != nil {
				t.Fatalf("Write = %d, %v", got, err)
			}
			rest = rest[n:]
		}
		w.Flush()
		if want := strings.ReplaceAll(input, secret, "[redacted]"); out.String() != want {
			t.Errorf("masked output differs from the input with the secret replaced (%d bytes, want %d)", out.Len(), len(want))
		}
	})
}

func TestDecide(t *testing.T) {
	tests := []struct {
		name string
		e    ending
		next action
		code ExitCode
		says string
	}{
		{"result and exit 0", ending{listened: true, claimed: true, finished: true}, actEnd, ExitDone, "the build ended"},
		{"result and a crash", ending{listened: true, claimed: true, finished: true, code: 139}, actEnd, ExitDone, "the build ended"},
		{"hung after the result", ending{listened: true, claimed: true, finished: true, hung: true, code: 137}, actEnd, ExitDone, "hung"},
		{"exit 0 without a result", ending{listened: true, claimed: true}, actEnd, ExitDone, "not seen"},
		{"crash during the build", ending{listened: true, claimed: true, code: 139}, actEnd, ExitBuildLost, "139"},
		{"retryable during the build", ending{listened: true, claimed: true, code: 2, limit: 3}, actEnd, ExitBuildLost, "exit code 2"},
		{"cut", ending{listened: true, claimed: true, finished: true, cut: true}, actEnd, ExitBuildLost, "grace period"},
		{"withdrawn before listening", ending{withdrawn: true, stopping: true, code: 1}, actEnd, ExitNoBuild, "withdrawn"},
		{"stopped while idle", ending{listened: true, stopping: true}, actEnd, ExitNoBuild, "idle"},
		{"stopped before listening", ending{stopping: true}, actEnd, ExitCrashed, "before the agent was listening"},
		{"update with once", ending{listened: true, code: 4, updates: 2, limit: 3}, actUpdate, 0, ""},
		{"update", ending{code: 3, limit: 3}, actUpdate, 0, ""},
		{"one update too many", ending{code: 4, updates: 3, limit: 3}, actEnd, ExitCrashed, "AZP_UPDATE_RESTARTS"},
		{"retryable", ending{code: 2, retries: 2, limit: 3}, actRetry, 0, ""},
		{"one retry too many", ending{code: 2, retries: 3, limit: 3}, actEnd, ExitCrashed, "more than 3 times"},
		{"exit 0 for no reason", ending{listened: true, limit: 3}, actEnd, ExitCrashed, "by itself"},
		{"configuration error", ending{code: 1, limit: 3}, actEnd, ExitCrashed, "exit code 1"},
		{"killed by someone", ending{listened: true, code: 137, limit: 3}, actEnd, ExitCrashed, "137"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			next, o := decide(tt.e)
			if next != tt.next || o.Code != tt.code || !strings.Contains(o.Message, tt.says) {
				t.Errorf("decide(%+v) = %d, %v, want %d, %d with %q", tt.e, next, o, tt.next, tt.code, tt.says)
			}
		})
	}
}

func TestBuildEnvironment(t *testing.T) {
	const secret = "canary-of-52-characters"
	got, leaked := buildEnvironment([]string{
		"PATH=/bin", "HOME=/home/agent", "AZP_TOKEN=" + secret, "AZP_TOKEN_FILE=/run/t", "AZP_URL=https://x/y", "azp_pool=lower",
		"VSTS_AGENT_INPUT_TOKEN=" + secret, "VSTS_AGENT_INPUT_PROXYURL=http://p", "vsts_agent_input_auth=PAT",
		"AZURE_DEVOPS_EXT_PAT=" + secret, "HEADER=Basic :" + secret + ";", "VSO_AGENT_IGNORE=A,B", "EMPTY=", "LC_ALL=de_DE.UTF-8", "LANGUAGE=de",
		"AZURE_CLIENT_SECRET_FILE=/run/s", "AZURE_CONFIG_DIR=/azure",
	}, []string{"AZURE_CLIENT_SECRET_FILE"}, secret)
	want := []string{"PATH=/bin", "HOME=/home/agent", "VSO_AGENT_IGNORE=A,B", "EMPTY=", "AZURE_CONFIG_DIR=/azure", "LANG=de_DE.UTF-8", "LC_MESSAGES=C.UTF-8"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"AZURE_DEVOPS_EXT_PAT", "HEADER"}, leaked); diff != "" {
		t.Errorf("leaked (-want +got):\n%s", diff)
	}
}

func TestBuildEnvironmentKeepsLang(t *testing.T) {
	got, _ := buildEnvironment([]string{"LANG=fr_FR.UTF-8", "LC_NUMERIC=fr_FR.UTF-8"}, nil, "")
	if diff := cmp.Diff([]string{"LANG=fr_FR.UTF-8", "LC_NUMERIC=fr_FR.UTF-8", "LC_MESSAGES=C.UTF-8"}, got); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
}

func TestConfigureEnvironment(t *testing.T) {
	const secret = "canary-of-52-characters"
	got := configureEnvironment([]string{
		"PATH=/bin", "AZP_TOKEN=" + secret, "VSTS_AGENT_INPUT_PROXYURL=http://p", "VSTS_AGENT_INPUT_REPLACE=true",
		"VSTS_AGENT_INPUT_TOKEN=other", "VSTS_AGENT_INPUT_URL=https://elsewhere", "VSTS_AGENT_INPUT_PROXYPASSWORD=" + secret,
		"AZURE_CLIENT_SECRET_FILE=/run/s",
	}, []string{"AZURE_CLIENT_SECRET_FILE"}, secret, "/ca.crt")
	want := []string{
		"PATH=/bin", "LC_MESSAGES=C.UTF-8", "VSTS_AGENT_INPUT_PROXYURL=http://p",
		"VSTS_AGENT_INPUT_SSLCACERT=/ca.crt", "VSTS_AGENT_INPUT_TOKEN=" + secret,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
}

func TestExitCodesAreDistinct(t *testing.T) {
	// The numbers are a contract with whoever reads the container's status.
	want := map[ExitCode]string{
		0:  "done",
		10: "no build came",
		11: "bad configuration",
		12: "credential refused",
		13: "service unreachable",
		14: "agent crashed before a build",
		15: "configure failed",
		16: "agent crashed or was stopped while a build ran",
	}
	got := map[ExitCode]string{}
	for _, code := range ExitCodes() {
		got[code] = code.String()
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("exit codes (-want +got):\n%s", diff)
	}
	if got := ExitCode(99).String(); got != "unknown exit code 99" {
		t.Errorf("ExitCode(99) = %q", got)
	}
}

func TestCodeOf(t *testing.T) {
	wrapped := func(kind error) error { return fmt.Errorf("context: %w", &azuredevops.Error{Kind: kind}) }
	tests := []struct {
		err  error
		want ExitCode
	}{
		{wrapped(azuredevops.ErrAuthentication), ExitCredential},
		{wrapped(azuredevops.ErrAuthorization), ExitCredential},
		{wrapped(azuredevops.ErrUnavailable), ExitUnreachable},
		{wrapped(azuredevops.ErrUnexpectedAnswer), ExitUnreachable},
		{wrapped(&azuredevops.ThrottledError{RetryAfter: time.Second}), ExitUnreachable},
		{wrapped(azuredevops.ErrNotFound), ExitConfigureFailed},
		{fail(ExitConfiguration, "wraps %w", wrapped(azuredevops.ErrUnavailable)), ExitConfiguration},
		{errors.New("anything"), ExitConfigureFailed},
	}
	for _, tt := range tests {
		if got := codeOf(tt.err, ExitConfigureFailed); got != tt.want {
			t.Errorf("codeOf(%v) = %d, want %d", tt.err, got, tt.want)
		}
	}
}

// valid gives settings that are right for every step.
func valid() Settings {
	return Settings{
		URL: "https://dev.azure.com/acme", Pool: "p", AgentName: "a", Work: "_work", Registration: agentpool.RegistrationConfig,
		Token: azuredevops.StaticToken("t"),
		Root:  "/r", Source: SourceAuto, Platform: "linux-x64",
		HandoverDir: "/h", RegistrationDir: "/g", VerdictDir: "/v", ClaimedDir: "/c",
		Grace: time.Hour, RemoveShare: time.Minute, WithdrawLimit: time.Second, ConfigureLimit: time.Second,
		DownloadLimit: time.Second, HangLimit: time.Second, UpdateRestarts: 3, ProbeAddress: ":1",
	}
}

func allSteps() []Step { return []Step{StepConfigure, StepRun, StepRemove, StepWithdraw, StepAll} }

func TestSettingsValidate(t *testing.T) {
	withToken := []Step{StepConfigure, StepRemove, StepWithdraw, StepAll}
	running := []Step{StepRun, StepAll}
	tests := []struct {
		names  string
		change func(*Settings)
		steps  []Step // Those that must complain; all others must not.
	}{
		{"AZP_URL", func(s *Settings) { s.URL = "" }, withToken},
		{"AZP_URL", func(s *Settings) { s.URL = "https://dev.azure.com" }, withToken},
		{"AZP_POOL", func(s *Settings) { s.Pool = "" }, withToken},
		{"AZP_TOKEN_FILE", func(s *Settings) { s.Token = nil }, withToken},
		{"AZP_AGENT_NAME", func(s *Settings) { s.AgentName = "" }, withToken},
		{"AZP_AGENT_NAME", func(s *Settings) { s.AgentName = "a/b" }, withToken},
		{"AZP_WORK", func(s *Settings) { s.Work = "" }, []Step{StepConfigure, StepAll}},
		{"AZP_AGENT_SOURCE", func(s *Settings) { s.Source = "guess" }, []Step{StepConfigure, StepAll}},
		{"AZP_PLATFORM", func(s *Settings) { s.Platform = "" }, []Step{StepConfigure, StepAll}},
		{"AZP_AGENT_ROOT", func(s *Settings) { s.Root = "relative" }, []Step{StepConfigure, StepRun, StepAll}},
		{"AZP_HANDOVER_DIR", func(s *Settings) { s.HandoverDir = "" }, []Step{StepConfigure, StepRun}},
		{"AZP_REGISTRATION", func(s *Settings) { s.Registration = "magic" }, []Step{StepRun}},
		{"AZP_REGISTRATION_DIR", func(s *Settings) { s.RegistrationDir = "" }, []Step{StepConfigure, StepRemove, StepWithdraw}},
		{"AZP_VERDICT_DIR", func(s *Settings) { s.VerdictDir = "" }, []Step{StepRun, StepRemove, StepWithdraw}},
		{"AZP_CLAIMED_DIR", func(s *Settings) { s.ClaimedDir = "" }, []Step{StepRun, StepRemove, StepWithdraw}},
		{"AZP_GRACE_PERIOD", func(s *Settings) { s.Grace = 0 }, []Step{StepRun, StepRemove, StepAll}},
		{"AZP_REMOVE_SHARE", func(s *Settings) { s.RemoveShare = s.Grace }, running},
		{"AZP_REMOVE_SHARE", func(s *Settings) { s.RemoveShare = -1 }, []Step{StepRun, StepRemove, StepAll}},
		{"AZP_WITHDRAW_LIMIT", func(s *Settings) { s.WithdrawLimit = 0 }, []Step{StepRun, StepWithdraw, StepAll}},
		{"AZP_CONFIGURE_LIMIT", func(s *Settings) { s.ConfigureLimit = 0 }, []Step{StepConfigure, StepAll}},
		{"AZP_DOWNLOAD_LIMIT", func(s *Settings) { s.DownloadLimit = 0 }, []Step{StepConfigure, StepAll}},
		{"AZP_HANG_LIMIT", func(s *Settings) { s.HangLimit = 0 }, running},
		{"AZP_UPDATE_RESTARTS", func(s *Settings) { s.UpdateRestarts = -1 }, running},
		{"AZP_PROBE_ADDRESS", func(s *Settings) { s.ProbeAddress = "14300" }, running},
		{"AZP_HOLD_LIMIT", func(s *Settings) { s.HoldLimit = -1 }, running},
		{"AZP_CALLBACK_URL", func(s *Settings) { s.CallbackURL, s.JobUID = "azp-scaler:8080", "uid" }, []Step{StepRun}},
		{"AZP_JOB_UID", func(s *Settings) { s.CallbackURL = "http://azp-scaler:8080" }, []Step{StepRun}},
		{"AZP_IDLE_LIMIT", func(s *Settings) { s.IdleLimit = -1 }, []Step{StepAll}},
	}
	for _, step := range allSteps() {
		if err := valid().Validate(step); err != nil {
			t.Errorf("valid settings are refused for %s: %v", step, err)
		}
		for i, tt := range tests {
			s := valid()
			tt.change(&s)
			err := s.Validate(step)
			if !slices.Contains(tt.steps, step) {
				if err != nil {
					t.Errorf("case %d, %s: %s complains though it has no use for it: %v", i, tt.names, step, err)
				}
				continue
			}
			if err == nil || !strings.Contains(err.Error(), tt.names) || codeOf(err, ExitDone) != ExitConfiguration {
				t.Errorf("case %d: Validate(%s) = %v, want an error naming %s with exit code 11", i, step, err, tt.names)
			}
		}
	}
}

func TestSettingsValidateTellsEverythingAtOnce(t *testing.T) {
	err := Settings{}.Validate(StepAll)
	for _, name := range []string{"AZP_URL", "AZP_POOL", "AZP_TOKEN", "AZP_AGENT_NAME", "AZP_AGENT_ROOT", "AZP_GRACE_PERIOD"} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error does not name %s: %v", name, err)
		}
	}
}
