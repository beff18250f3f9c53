package main

import (
	"net/http"
	"os"
	"syscall"
	"testing"
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
