package e2e_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/test/cluster"
	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// TestManyAtOnce queues 250 builds in one moment, under a limit of so many agents as
// two processors can run: they serve them all, each once.
//
// The node is the one of processes. Entrypoint, agent, service, API server and
// scaler are the same; what it leaves out is the making of 250 sandboxes, of which
// a real node of two processors makes about one a second: the test would be longer by
// some minutes, and would show no more of the scaler. For the same reason the Job
// controller may be faster than it is by default. Polls and idle limit are those of
// users.
//
// It takes all of the machine, so nothing else runs beside it.
func TestManyAtOnce(t *testing.T) {
	for _, way := range waysOf(t, []string{fromPods}) {
		t.Run(way, func(t *testing.T) { manyAtOnce(t, way) })
	}
}

func manyAtOnce(t *testing.T, way string) {
	const (
		builds = 250
		limit  = 4 * time.Minute
	)
	s := newStage(t, env.Options{Seed: seedOf(t), Registration: way, Node: cluster.Simulated, ControllerManagerQPS: 200, Scaler: map[string]string{
		"AZP_MAX_AGENTS": "50", "AZP_POLL_BUSY": "2s", "AZP_POLL_IDLE": "10s", "AZP_IDLE_LIMIT": "60s",
	}})
	workload := make([]env.Build, builds)
	for i := range workload {
		workload[i] = env.Build{Name: fmt.Sprintf("many-%03d", i)}
	}
	begun := time.Now()
	queued := s.queue(t, workload...)
	if err := s.WaitFinished(t.Context(), limit); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d builds took %s", builds, time.Since(begun).Round(time.Second))
	if err := s.Check(t.Context(), queued); err != nil {
		t.Error(err)
	}
	if made := s.madeFor(queued); made != builds {
		t.Errorf("%d Jobs for %d builds", made, builds)
	}
	// Which request a Job is made for is a name for people: the service gives agents to
	// others, and what is then missing is made in the name of whoever waits. It is the sum
	// that is exact.
	renamed := 0
	for _, build := range queued {
		if len(s.jobs.of(build.RequestID)) != 1 {
			renamed++
		}
	}
	t.Logf("the service's choices gave %d builds another number of Jobs than one", renamed)
	s.judge(t)
}
