package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/fakeagent"
)

// standInPackage builds the stand-in agent once. It lies in the user's cache.
var standInPackage = sync.OnceValues(func() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	return fakeagent.Build(ctx, filepath.Join(cache, "azp-scaler", "entrypoint-test"), fakeagent.Options{Platform: platform()})
})

// newStandInPod makes a pod whose agent is the stand-in, downloaded from the
// service as Microsoft's is.
func newStandInPod(t *testing.T, faults ...string) *pod {
	t.Helper()
	return newStandInPodOf(t, "", faults...)
}

// newStandInPodOf makes one of an organisation, or of the collection of a server.
func newStandInPodOf(t *testing.T, organisation string, faults ...string) *pod {
	t.Helper()
	return newStandInPodWith(t, azuredevopstest.Options{Organisation: organisation}, faults...)
}

// newStandInPodWith makes one of a service with these options, but for packages and tokens.
func newStandInPodWith(t *testing.T, options azuredevopstest.Options, faults ...string) *pod {
	t.Helper()
	t.Parallel()
	file, err := standInPackage()
	if err != nil {
		t.Fatal(err)
	}
	options.Packages = []azuredevopstest.AgentPackage{{Platform: platform(), Version: fakeagent.DefaultVersion, Path: file}}
	options.Tokens = []azuredevopstest.Token{{Secret: "read-only-token", Identity: "reader", Rights: azuredevopstest.RightsRead}}
	p := newPodWith(t, options)
	p.must(os.RemoveAll(p.path("root")))
	p.must(os.Mkdir(p.path("root"), 0o755))
	p.env["FAKEAGENT_FAULTS"] = strings.Join(faults, ",")
	return p
}

// queue queues a build of one shell step.
func (p *pod) queue(step string) int64 {
	p.t.Helper()
	id, err := p.service.Queue(azuredevopstest.Build{PoolID: p.poolID, Name: "build", Steps: []string{step}})
	p.must(err)
	return id
}

// result waits for the end of a build.
func (p *pod) result(id int64) azuredevopstest.BuildStatus {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	status, err := p.service.Wait(ctx, id)
	p.must(err)
	return status
}

// running waits until a build runs.
func (p *pod) running(id int64) {
	p.t.Helper()
	p.eventually("the build to run", func() bool {
		status, err := p.service.Build(id)
		p.must(err)
		return status.State == "running"
	})
}

// configuredStandIn runs configure, whatever the last words of others are meanwhile.
func (p *pod) configuredStandIn() {
	p.t.Helper()
	if code := p.start("configure", withToken(p)...).wait(); code != 0 {
		p.t.Fatalf("configure ended with %d", code)
	}
}

func TestStandInWholePod(t *testing.T) {
	p := newStandInPod(t)
	remove := p.removing()
	p.configuredStandIn()
	run := p.listening()
	// What a build can get hold of: its environment, what is in the agent's folders,
	// and the command lines and environments of the processes above it.
	snoop := `env
find "` + p.path("root") + `" "` + p.path("handover") + `" "` + p.path("claimed") + `" "` + p.path("verdict") + `" -type f -size -256k -exec cat {} +
pid=$$
while [ "$pid" -gt 1 ] && ! grep -q 'test.run\|\.test' "/proc/$pid/cmdline"; do
  tr '\0' '\n' < "/proc/$pid/cmdline"; tr '\0' '\n' < "/proc/$pid/environ"
  pid=$(awk '/^PPid:/{print $2}' "/proc/$pid/status")
done
sleep 1
echo snooped`
	first := p.queue(snoop)
	p.running(first)
	second := p.queue("echo never here")
	status := p.result(first)
	if status.Result != "succeeded" {
		t.Errorf("the build ended as %q: %s", status.Result, status.Message)
	}
	if code := run.wait(); code != 0 {
		t.Errorf("run ended with %d, want 0", code)
	}
	log, err := p.service.Log(first)
	p.must(err)
	if !strings.Contains(log, "snooped") || strings.Contains(log, canary) || strings.Contains(log, "AZP_TOKEN") {
		t.Errorf("the build saw the token, or nothing at all:\n%.5000s", log)
	}
	if code := p.start("withdraw", withToken(p)...).wait(); code != 0 {
		t.Errorf("withdraw ended with %d", code)
	}
	remove.signal(syscall.SIGTERM)
	remove.expect(0, "the registration is gone")
	if got := p.agents(); len(got) > 0 {
		t.Errorf("still registered: %v", got)
	}
	// The service gives a second build to an agent that ends, unless it is disabled.
	if status, err := p.service.Build(second); err != nil || status.State == "assigned" || status.State == "running" || status.AgentID != 0 {
		t.Errorf("the second build is %+v, %v, want it never assigned", status, err)
	}
}

func TestStandInWithdrawnWhileIdle(t *testing.T) {
	p := newStandInPod(t)
	remove := p.removing()
	p.configuredStandIn()
	run := p.listening()
	withdraw := p.start("withdraw", withToken(p)...)
	run.signal(syscall.SIGTERM)
	if code := run.wait(); code != 10 {
		t.Errorf("run ended with %d, want 10", code)
	}
	if code := withdraw.wait(); code != 0 {
		t.Errorf("withdraw ended with %d", code)
	}
	remove.signal(syscall.SIGTERM)
	remove.expect(0)
	if got := p.agents(); len(got) > 0 {
		t.Errorf("still registered: %v", got)
	}
}

// TestStandInStoppedAroundTheAssignment stops the pod at different moments before
// and after a build is queued: it is either run to its end or not taken at all.
func TestStandInStoppedAroundTheAssignment(t *testing.T) {
	const ms = time.Millisecond
	for _, delay := range []time.Duration{-300 * ms, -150 * ms, -75 * ms, 0, 75 * ms, 150 * ms, 300 * ms} {
		t.Run(delay.String(), func(t *testing.T) {
			p := newStandInPod(t)
			remove := p.removing()
			p.configuredStandIn()
			run := p.listening()
			var withdraw *container
			stop := func() {
				withdraw = p.start("withdraw", withToken(p)...)
				run.signal(syscall.SIGTERM)
			}
			// The moment is what the test varies, not something it waits for.
			if delay < 0 {
				stop()
				<-time.After(-delay)
			}
			id := p.queue("sleep 1")
			if delay >= 0 {
				<-time.After(delay)
				stop()
			}
			code := run.wait()
			if got := withdraw.wait(); got != 0 {
				t.Errorf("withdraw ended with %d", got)
			}
			remove.signal(syscall.SIGTERM)
			if got := remove.wait(); got != 0 {
				t.Errorf("remove ended with %d", got)
			}
			status, err := p.service.Build(id)
			p.must(err)
			switch {
			case code == 0 && status.Result == "succeeded":
			case code == 10 && status.AgentID == 0:
			default:
				t.Errorf("run ended with %d and the build is %+v", code, status)
			}
			t.Logf("run ended with %d, the build is %s %s", code, status.State, status.Result)
		})
	}
}

func TestStandInStoppedDuringTheBuild(t *testing.T) {
	p := newStandInPod(t)
	remove := p.removing()
	p.configuredStandIn()
	run := p.listening()
	id := p.queue("sleep 2; echo end")
	p.running(id)
	withdraw := p.start("withdraw", withToken(p)...)
	run.signal(syscall.SIGTERM)
	if code := run.wait(); code != 0 {
		t.Errorf("run ended with %d, want 0", code)
	}
	if status := p.result(id); status.Result != "succeeded" {
		t.Errorf("the build ended as %q: %s", status.Result, status.Message)
	}
	if code := withdraw.wait(); code != 0 {
		t.Errorf("withdraw ended with %d", code)
	}
	remove.signal(syscall.SIGTERM)
	remove.expect(0)
}

func TestStandInCutAtTheGracePeriod(t *testing.T) {
	p := newStandInPod(t)
	p.configuredStandIn()
	run := p.listening("AZP_GRACE_PERIOD=12s", "AZP_REMOVE_SHARE=11s")
	id := p.queue("sleep 100")
	p.running(id)
	run.logged("a build was claimed")
	run.signal(syscall.SIGTERM)
	run.expect(16, "grace period")
	if status := p.result(id); status.Result != "canceled" {
		t.Errorf("the build ended as %q, want canceled", status.Result)
	}
}

func TestStandInTraps(t *testing.T) {
	tests := []struct {
		name   string
		faults []string
		env    []string
		code   int
		// listens is for which listening of the agent the build is queued: one that is
		// assigned to an agent just before it updates itself is lost with any service. 0
		// queues none.
		listens int
		result  string
	}{
		{name: "hangs after the job, deaf to signals", faults: []string{"hang-after-job"}, env: []string{"AZP_HANG_LIMIT=1s"}, code: 0, listens: 1, result: "succeeded"},
		{name: "updates itself", faults: []string{"exit-4-update", "update-gap=500ms"}, code: 0, listens: 2, result: "succeeded"},
		{name: "loses its program in an update", faults: []string{"exit-4-update", "update-loses-bin"}, code: 14},
		{name: "updates itself for ever", faults: []string{"exit-4-update=9", "update-gap=100ms"}, env: []string{"AZP_UPDATE_RESTARTS=1"}, code: 14},
		{name: "exits retryable", faults: []string{"listener-exit-2=2"}, code: 0, listens: 1, result: "succeeded"},
		{name: "crashes before the job", faults: []string{"crash-before-job"}, code: 14},
		{name: "crashes during the job", faults: []string{"crash-during-job=200ms"}, code: 16, listens: 1},
		{name: "lingers", faults: []string{"linger=1s"}, code: 0, listens: 1, result: "succeeded"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newStandInPod(t, tt.faults...)
			p.configuredStandIn()
			c := p.start("run", tt.env...)
			var id int64
			if tt.listens > 0 {
				p.eventually("the agent to listen", func() bool {
					return strings.Count(c.stdout.String(), "Listening for Jobs") >= tt.listens
				})
				id = p.queue("sleep 0.5")
			}
			c.expect(tt.code)
			if tt.result != "" {
				if status := p.result(id); status.Result != tt.result {
					t.Errorf("the build ended as %q, want %q: %s", status.Result, tt.result, status.Message)
				}
			}
		})
	}
}

func TestStandInNeverListens(t *testing.T) {
	p := newStandInPod(t, "never-registers")
	p.configuredStandIn()
	// It is deaf to signals as well, so the end comes by KILL.
	c := p.start("run", "AZP_WITHDRAW_LIMIT=300ms", "AZP_GRACE_PERIOD=3s", "AZP_REMOVE_SHARE=2s")
	c.logged("the agent program is started")
	c.signal(syscall.SIGTERM)
	c.expect(14, "before the agent was listening")
}

func TestStandInConfigureTraps(t *testing.T) {
	tests := []struct {
		name   string
		faults []string
		env    []string
		code   int
		says   string
	}{
		{name: "fails", faults: []string{"configure-fails"}, code: 15, says: "config.sh"},
		{name: "fails after registering", faults: []string{"configure-fails-registered"}, code: 15, says: "config.sh"},
		{name: "hangs, deaf to signals", faults: []string{"configure-hangs"}, env: []string{"AZP_CONFIGURE_LIMIT=8s"}, code: 15, says: "AZP_CONFIGURE_LIMIT"},
		{name: "hangs after registering", faults: []string{"configure-hangs-registered"}, env: []string{"AZP_CONFIGURE_LIMIT=8s"}, code: 15, says: "AZP_CONFIGURE_LIMIT"},
		{name: "too slow", faults: []string{"slow-configure=60s"}, env: []string{"AZP_CONFIGURE_LIMIT=8s"}, code: 15, says: "AZP_CONFIGURE_LIMIT"},
		{name: "slow", faults: []string{"slow-configure=1s"}, code: 0, says: "registered"},
		{name: "a loop that --replace would bring", faults: []string{"replace-loop"}, env: []string{"VSTS_AGENT_INPUT_REPLACE=true"}, code: 0, says: "registered"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newStandInPod(t, tt.faults...)
			p.start("configure", append(withToken(p), tt.env...)...).expect(tt.code, tt.says)
			if got := p.agents(); (len(got) > 0) != (tt.code == 0) {
				t.Errorf("agents %v after exit code %d", got, tt.code)
			}
		})
	}
}

func TestStandInTokenWithoutTheRight(t *testing.T) {
	p := newStandInPod(t)
	p.write("token", "read-only-token")
	p.start("configure", withToken(p)...).expect(12)
}

func TestStandInNameOfAnAgentThatIsOnline(t *testing.T) {
	p := newStandInPod(t)
	p.configuredStandIn()
	run := p.listening()
	// A second pod of the same name, beside the first.
	other := t.TempDir()
	c := p.start("configure", append(withToken(p), "AZP_AGENT_ROOT="+other)...)
	c.expect(15, "online", "AZP_AGENT_NAME")
	if got := p.agents(); len(got) != 1 {
		t.Errorf("agents %v, want the one that is online", got)
	}
	id := p.queue("echo fine")
	if status := p.result(id); status.Result != "succeeded" {
		t.Errorf("the agent that was there first failed its build: %q", status.Result)
	}
	if code := run.wait(); code != 0 {
		t.Errorf("run ended with %d, want 0", code)
	}
}

func TestStandInAll(t *testing.T) {
	p := newStandInPod(t)
	c := p.start("", withToken(p)...)
	c.logged("Listening for Jobs")
	first := p.queue("sleep 1")
	p.running(first)
	second := p.queue("echo never here")
	if code := c.wait(); code != 0 {
		t.Errorf("ended with %d, want 0", code)
	}
	if status := p.result(first); status.Result != "succeeded" {
		t.Errorf("the build ended as %q: %s", status.Result, status.Message)
	}
	if status, err := p.service.Build(second); err != nil || status.AgentID != 0 {
		t.Errorf("the second build is %+v, %v, want it never assigned", status, err)
	}
	if got := p.agents(); len(got) > 0 {
		t.Errorf("still registered: %v", got)
	}
}

// TestStandInOfACollection registers with an Azure DevOps Server, downloads from it, and runs
// a build of it.
func TestStandInOfACollection(t *testing.T) {
	const collection = "tfs/DefaultCollection"
	p := newStandInPodOf(t, collection)
	c := p.start("", withToken(p)...)
	c.logged("Listening for Jobs")
	var agent struct{ ServerURL string }
	p.must(json.Unmarshal([]byte(strings.TrimPrefix(p.read("root/.agent"), "\ufeff")), &agent))
	if agent.ServerURL != p.url || !strings.HasSuffix(p.url, "/"+collection) {
		t.Errorf("the agent serves %s, want %s", agent.ServerURL, p.url)
	}
	id := p.queue("true")
	if code := c.wait(); code != 0 {
		t.Errorf("ended with %d, want 0", code)
	}
	if status := p.result(id); status.Result != "succeeded" {
		t.Errorf("the build ended as %q: %s", status.Result, status.Message)
	}
	if got := p.agents(); len(got) > 0 {
		t.Errorf("still registered: %v", got)
	}
}
