package e2e_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// TestReplicas has a second replica take over, first from one that is told to end and then
// from one that is killed, while builds are queued, start and run. In the end both work at
// the same time.
func TestReplicas(t *testing.T) {
	seed := seedOf(t)
	// Finished Jobs must outlast the time without a leader: their rights are ended by the next.
	e := startEnv(t, env.Options{Seed: seed, Scaler: map[string]string{"AZP_JOB_TTL": "20s"}})
	ctx := t.Context()
	if err := e.StartScaler(ctx); err != nil {
		t.Fatal(err)
	}
	other, err := e.AddReplica("two", nil)
	if err != nil {
		t.Fatal(err)
	}
	start := func(replica *env.Scaler) {
		t.Helper()
		if err := replica.Start(); err != nil {
			t.Fatal(err)
		}
		if err := replica.WaitStandby(ctx); err != nil {
			t.Fatal(err)
		}
	}
	takesOver := func(replica *env.Scaler, from string) {
		t.Helper()
		begun := time.Now()
		if err := replica.WaitLeading(ctx); err != nil {
			t.Fatal(err)
		}
		t.Logf("took over from one that %s after %v", from, time.Since(begun).Round(time.Millisecond))
	}
	start(other)

	burst := make(chan error, 1)
	var queued []env.Queued
	go func() {
		var err error
		queued, err = e.Queue(ctx, env.Workload(seed, 10))
		burst <- err
	}()
	waitUntil(ctx, t, "a build runs", func() (string, bool) {
		builds := e.Service.Builds(e.Service.PoolID)
		runs := slices.ContainsFunc(builds, func(build azuredevopstest.BuildStatus) bool { return !build.Received.IsZero() })
		return fmt.Sprintf("%d builds", len(builds)), runs
	})
	if err := e.Scaler.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	takesOver(other, "was told to end")
	start(e.Scaler)
	if err := other.Kill(); err != nil {
		t.Fatal(err)
	}
	takesOver(e.Scaler, "was killed")
	start(other)
	if err := <-burst; err != nil {
		t.Fatal(err)
	}
	if err := e.WaitAtRest(ctx, 3*time.Minute); err != nil {
		t.Fatal(err)
	}

	// As where one has lost its Lease without knowing: nothing is made twice.
	for _, replica := range []*env.Scaler{e.Scaler, other} {
		if err := replica.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		replica.Set("AZP_LEADER_ELECTION", "false")
		start(replica)
		if err := replica.WaitLeading(ctx); err != nil {
			t.Fatal(err)
		}
	}
	var workload []env.Build
	for i := range 10 {
		workload = append(workload, env.Build{Name: fmt.Sprintf("two-leaders-%d", i), Kind: env.KindPlain, Steps: []string{"true"}, Want: "succeeded"})
	}
	both, err := e.Queue(ctx, workload)
	if err != nil {
		t.Fatal(err)
	}
	clean(ctx, t, e)
	if err := e.Check(ctx, slices.Concat(queued, both)); err != nil {
		t.Error(err)
	}
}
