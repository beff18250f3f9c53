package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// registered lays a pod out as the scaler does where it registers the agent: the agent's
// files are there, and no folder to exchange anything with other containers.
func (p *pod) registered() {
	p.t.Helper()
	p.configured()
	p.must(os.RemoveAll(p.path("verdict")))
	p.must(os.RemoveAll(p.path("claimed")))
}

func TestRunRegisteredByTheScaler(t *testing.T) {
	p := newPod(t)
	p.registered()
	p.script("fake-listener", aBuild()...)
	address := freeAddress(t)
	c := p.start("run", "AZP_REGISTRATION=jit", "AZP_PROBE_ADDRESS="+address)
	c.logged("Listening for Jobs")
	p.eventually("started", func() bool { return probe(address, "/started") == http.StatusOK })
	p.touch("job")
	p.eventually("not ready", func() bool { return probe(address, "/ready") == http.StatusServiceUnavailable })
	p.touch("end")
	c.expect(0, "the build ended")
	if p.has("claimed") {
		t.Error("it tells of its claim by a file that nobody reads")
	}
}

func TestRunWithdrawnByTheScaler(t *testing.T) {
	p := newPod(t)
	p.registered()
	p.script("fake-listener", "print Listening for Jobs", "wait gone", "exit 1")
	c := p.listening("AZP_REGISTRATION=jit", "AZP_WITHDRAW_LIMIT=5m")
	c.signal(syscall.SIGTERM)
	c.logged("leaving the scaler time to withdraw the agent")
	if got := p.signals(); len(got) > 0 {
		t.Errorf("the listener got %v before the agent was withdrawn", got)
	}
	// Without its registration the agent program ends by itself, long before the limit.
	p.touch("gone")
	c.expect(10, "asked to stop while idle")
}

func TestRunRegisteredByNobody(t *testing.T) {
	p := newPod(t)
	c := p.start("run", "AZP_REGISTRATION=magic")
	c.expect(11, "AZP_REGISTRATION", `"magic"`, "config or jit")
}

// scalerOf plays the scaler to a pod: it takes the calls that tell of a claim, and answers them
// with what it is given, in turn; the last answer stands.
func scalerOf(t *testing.T, answers ...int) (url string, called <-chan string, answer chan<- struct{}) {
	t.Helper()
	calls, release := make(chan string, 100), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status := answers[0]
		if len(answers) > 1 {
			answers = answers[1:]
		}
		calls <- r.Method + " " + r.URL.Path
		select {
		case <-release:
		case <-r.Context().Done():
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(server.Close)
	return server.URL, calls, release
}

// heldBuild has a pod whose agent the scaler has registered claim a build. Its worker takes a
// while before the first step, as Microsoft's does.
func heldBuild(t *testing.T, settings ...string) (p *pod, run *container, id int64) {
	t.Helper()
	p = newStandInPod(t, "worker-delay=3s")
	p.configuredStandIn()
	run = p.listening(append([]string{"AZP_REGISTRATION=jit", "AZP_JOB_UID=uid-of-the-job"}, settings...)...)
	id = p.queue("true")
	run.logged("a build was claimed")
	return p, run, id
}

// workerStopped waits until the pod's worker is stopped by a signal.
func (p *pod) workerStopped() {
	p.t.Helper()
	p.eventually("the worker to be stopped", func() bool {
		stats, err := filepath.Glob("/proc/[0-9]*/stat")
		p.must(err)
		return slices.ContainsFunc(stats, func(stat string) bool {
			command, err := os.ReadFile(filepath.Join(filepath.Dir(stat), "cmdline"))
			if err != nil || !strings.HasPrefix(string(command), p.path("root")) || !strings.Contains(string(command), "Agent.Worker") {
				return false
			}
			content, err := os.ReadFile(stat)
			return err == nil && strings.Contains(string(content), ") T ")
		})
	})
}

func TestRunHoldsTheBuildUntilItsAgentIsDisabled(t *testing.T) {
	url, called, answer := scalerOf(t, http.StatusServiceUnavailable, http.StatusNoContent)
	p, run, id := heldBuild(t, "AZP_CALLBACK_URL="+url, "AZP_HOLD_LIMIT=5m")
	for range 2 { // The first call is answered that it is worth another one.
		select {
		case call := <-called:
			if want := "POST /agents/uid-of-the-job/claimed"; call != want {
				t.Errorf("the scaler was called by %s, want %s", call, want)
			}
		case <-time.After(patience):
			t.Fatal("the scaler was not called")
		}
		p.workerStopped()
		answer <- struct{}{}
	}
	if status := p.result(id); status.Result != "succeeded" {
		t.Errorf("the build ended as %q: %s", status.Result, status.Message)
	}
	run.expect(0, "the build ended")
}

func TestRunHoldsNoBuildForEver(t *testing.T) {
	url, _, _ := scalerOf(t, http.StatusNoContent)
	p, run, id := heldBuild(t, "AZP_CALLBACK_URL="+url, "AZP_HOLD_LIMIT=2s")
	p.workerStopped()
	if status := p.result(id); status.Result != "succeeded" {
		t.Errorf("the build ended as %q: %s", status.Result, status.Message)
	}
	run.logged("the build begins though its agent may not be disabled")
	run.expect(0, "the build ended")
}

// TestRunHoldsNoBuildForNobody: without anybody to call there is nothing to wait for.
func TestRunHoldsNoBuildForNobody(t *testing.T) {
	p, run, id := heldBuild(t, "AZP_HOLD_LIMIT=5m")
	if status := p.result(id); status.Result != "succeeded" {
		t.Errorf("the build ended as %q: %s", status.Result, status.Message)
	}
	run.expect(0, "the build ended")
}

// TestRunHeldIsCancelled: a build that is held hears that it is cancelled.
func TestRunHeldIsCancelled(t *testing.T) {
	url, _, _ := scalerOf(t, http.StatusNoContent)
	p, run, id := heldBuild(t, "AZP_CALLBACK_URL="+url, "AZP_HOLD_LIMIT=5m", "AZP_GRACE_PERIOD=12s", "AZP_REMOVE_SHARE=11s")
	p.workerStopped()
	run.signal(syscall.SIGTERM)
	run.expect(16, "grace period")
	if status := p.result(id); status.Result != "canceled" {
		t.Errorf("the build ended as %q", status.Result)
	}
}
