package e2e_test

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/test/cluster"
	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// rotationVariable is how many builds there are while tokens are replaced, and again while they
// end: few by default, as a real node of two processors makes about one pod a second.
const (
	rotationVariable = "ROTATION_BUILDS"
	rotationFew      = 24
)

func rotationBuilds(t *testing.T) int {
	t.Helper()
	text := os.Getenv(rotationVariable)
	if text == "" {
		return rotationFew
	}
	builds, err := strconv.Atoi(text)
	if err != nil || builds < 20 {
		t.Fatalf("%s=%q: want a number from 20 on", rotationVariable, text)
	}
	return builds
}

// rotationAgents is how many agents there are at most.
const rotationAgents = 16

// tokenLife is that of the tokens of Entra here. Two thirds of it must be over before a new one is
// got, and the kubelet takes up to a quarter of a minute here to show that in pods.
const tokenLife = 30 * time.Second

// TestTokensEndInTheMiddle replaces and ends tokens while builds wait, start, run and go: none
// is lost, and nothing is left of any.
func TestTokensEndInTheMiddle(t *testing.T) { registered(t, []string{fromPods}, tokensEnd) }

func tokensEnd(t *testing.T, way string) {
	t.Helper()
	builds := rotationBuilds(t)
	settings := quick(map[string]string{"AZP_MAX_AGENTS": strconv.Itoa(rotationAgents)})
	options := env.Options{Seed: seedOf(t), Registration: way, Scaler: settings}
	if builds > 4*rotationFew {
		// Of as many a real node would take a quarter of an hour. The one of processes shows a changed
		// Secret in its pods as late as that does.
		options.Node, options.ControllerManagerQPS = cluster.Simulated, 200
	}
	s := newStage(t, options)
	s.scenario(t, "a personal access token is replaced", func(t *testing.T) { s.replaced(t, builds) })
	s.scenario(t, "tokens of Entra end", func(t *testing.T) { s.renewed(t, builds, settings) })
	s.judge(t)
}

// replaced does it twice: first as people are told to, with both tokens good for a while, and then
// the wrong way round, so that for a while nothing is.
func (s *stage) replaced(t *testing.T, builds int) {
	begun := time.Now()
	queued := s.queue(t, shortBuilds("pat", builds/2)...)
	s.waitEnded(t, queued, builds/8)
	old, err := s.ReplaceToken(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.waitEnded(t, queued, builds/4)
	s.Service.RemoveToken(old)
	s.allEnded(t, queued)
	t.Logf("%d builds took %s", len(queued), time.Since(begun).Round(time.Second))

	s.throughAGap(t, builds-len(queued), s.Scaler, s.RevokeToken, func() {
		if _, err := s.ReplaceToken(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// renewed has each token end after a short time, and at last nobody who issues one while they do.
func (s *stage) renewed(t *testing.T, builds int, settings map[string]string) {
	in, entra, err := s.InstallEntra(t.Context(), "entra", tokenLife, settings)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Scaler.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := in.StartScaler(t.Context()); err != nil {
		t.Fatal(err)
	}
	begun, before := time.Now(), entra.Counts().Issued
	queued := s.queue(t, shortBuilds("entra", builds/2)...)
	s.allEnded(t, queued)
	t.Logf("%d builds took %s, in which there were %d new tokens", len(queued), time.Since(begun).Round(time.Second), entra.Counts().Issued-before)

	s.throughAGap(t, builds-len(queued), in.Scaler, func() { entra.SetOutage(http.StatusServiceUnavailable) }, func() { entra.SetOutage(0) })
	if issued := entra.Counts().Issued; issued < 3 {
		t.Errorf("%d tokens were issued, so that this shows little", issued)
	}
}

// throughAGap has builds run while the service takes no token for a time. Their length is more than
// that: a build that begins and ends within it leaves an agent that nobody could disable, and
// the service may give such a one another build while it shuts down.
func (s *stage) throughAGap(t *testing.T, builds int, scaler *env.Scaler, begin, end func()) {
	t.Helper()
	begun := time.Now()
	gate := s.gate(t)
	workload := make([]env.Build, builds)
	for i := range workload {
		workload[i] = env.Build{Name: fmt.Sprintf("gap-%03d", i), Steps: []string{gate.Step()}}
	}
	queued := s.queue(t, workload...)
	waitArrived(t, gate, 3)
	begin()
	refused := failedPolls(t, scaler)
	waitUntil(t.Context(), t, "the scaler can't read the queue", func() (string, bool) {
		n := failedPolls(t, scaler) - refused
		return fmt.Sprintf("%d times", n), n >= 4
	})
	atGate := gate.Arrived()
	end()
	waitUntil(t.Context(), t, "builds begin again, on agents that get no second one", func() (string, bool) {
		enabled := s.enabledWithABuild()
		return fmt.Sprintf("%d at the gate, %d before; enabled: %v", gate.Arrived(), atGate, enabled),
			(gate.Arrived() > atGate || atGate == min(builds, rotationAgents)) && len(enabled) == 0
	})
	gate.Open()
	s.allEnded(t, queued)
	t.Logf("%d builds took %s, of which %d had begun before there was a token again", builds, time.Since(begun).Round(time.Second), atGate)
}

// enabledWithABuild names the agents to which the service may assign a second build.
func (s *stage) enabledWithABuild() []string {
	var names []string
	for _, agent := range s.Service.Agents(s.Service.PoolID) {
		if agent.RequestID != 0 && agent.Enabled {
			names = append(names, agent.Name)
		}
	}
	return names
}

// shortBuilds are builds of a second.
func shortBuilds(name string, n int) []env.Build {
	builds := make([]env.Build, n)
	for i := range builds {
		builds[i] = env.Build{Name: fmt.Sprintf("%s-%03d", name, i), Steps: []string{"sleep 1"}}
	}
	return builds
}

// ended is how many of the builds have.
func (s *stage) ended(queued []env.Queued) int {
	n := 0
	for _, build := range queued {
		if status, err := s.Service.Build(build.RequestID); err == nil && status.Result != "" {
			n++
		}
	}
	return n
}

// waitEnded waits until so many of the builds have ended, as long as any further one does.
func (s *stage) waitEnded(t *testing.T, queued []env.Queued, want int) {
	t.Helper()
	for seen := s.ended(queued); seen < want; seen = s.ended(queued) {
		waitUntil(t.Context(), t, fmt.Sprintf("%d builds of %d have ended", want, len(queued)), func() (string, bool) {
			n := s.ended(queued)
			return fmt.Sprintf("%d have", n), n > seen
		})
	}
}

// allEnded waits until all of the builds have ended, as they were to.
func (s *stage) allEnded(t *testing.T, queued []env.Queued) {
	t.Helper()
	s.waitEnded(t, queued, len(queued))
	if err := s.Check(t.Context(), queued); err != nil {
		t.Error(err)
	}
}

// failedPolls is how often the scaler could not read the queue.
func failedPolls(t *testing.T, scaler *env.Scaler) int {
	t.Helper()
	_, body := get(t.Context(), scaler.URL()+"/metrics")
	line := grep(body, `azp_scaler_polls_total{outcome="error",pool="kubernetes"}`)
	_, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
	n, _ := strconv.Atoi(value) // There is no line before the first.
	return n
}
