package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// TestCancelledNeed cancels builds whose Jobs are there already: some before a
// container of theirs has started, the rest when agents are coming online. What
// was made for them ends by itself, and the auditor finds each explained.
func TestCancelledNeed(t *testing.T) { registered(t, bothWays(), cancelledNeed) }

func cancelledNeed(t *testing.T, way string) {
	const builds, kept = 8, 2
	seed := seedOf(t)
	e := startEnv(t, env.Options{Seed: seed, Registration: way})
	ctx := t.Context()
	if err := e.StartScaler(ctx); err != nil {
		t.Fatal(err)
	}
	workload := make([]env.Build, builds)
	for i := range workload {
		workload[i] = env.Build{Name: fmt.Sprintf("need-%d", i), Kind: env.KindPlain, Steps: []string{"sleep 1"}}
	}
	queued, err := e.Queue(ctx, workload)
	if err != nil {
		t.Fatal(err)
	}
	waitUntil(ctx, t, "there is a Job for each build", func() (string, bool) {
		jobs, err := e.Admin.BatchV1().Jobs(env.AgentsNamespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err.Error(), false
		}
		return fmt.Sprintf("%d Jobs", len(jobs.Items)), len(jobs.Items) >= builds
	})
	// One after the other, the last ones as late as possible.
	cancel := func(build env.Queued) {
		if status, err := e.Service.Build(build.RequestID); err != nil || status.State != "queued" {
			return // An agent was faster.
		}
		if err := e.Service.Cancel(build.RequestID); err != nil {
			t.Logf("build %s: %v", build.Name, err)
		}
	}
	half := (builds - kept) / 2
	for _, build := range queued[kept : kept+half] {
		cancel(build)
	}
	waitUntil(ctx, t, "agents come online", func() (string, bool) {
		online := 0
		for _, agent := range e.Service.Agents(e.Service.PoolID) {
			if agent.Online {
				online++
			}
		}
		return fmt.Sprintf("%d online", online), online > 0
	})
	for _, build := range queued[kept+half:] {
		cancel(build)
	}
	if err := e.WaitAtRest(ctx, 4*time.Minute); err != nil {
		t.Error(err)
	}
	report, err := e.Audit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	if err := report.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	t.Log(text.String())
	if !report.Clean() {
		t.Errorf("the auditor has findings:\n%s", text.String())
	}
	if report.Canceled < half || report.Succeeded < kept || report.Canceled+report.Succeeded != builds {
		t.Errorf("%d canceled and %d succeeded of %d builds, at least %d and %d were to", report.Canceled, report.Succeeded, builds, half, kept)
	}
}
