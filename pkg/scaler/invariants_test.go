package scaler_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// wantInvariants compares what the last cycle found with what it should have.
func wantInvariants(t *testing.T, when string, b *bench, leaked, duplicates, surplus int) {
	t.Helper()
	want := scaler.Invariants{Leaked: leaked, Duplicates: map[string]int{"default": duplicates}, Surplus: map[string]int{"default": surplus}}
	if diff := cmp.Diff(want, b.scaler.Status().Invariants); diff != "" {
		t.Errorf("%s (-want +got):\n%s", when, diff)
	}
}

func TestRightsThatOutliveTheirBuildCountAsLeaked(t *testing.T) {
	m := newModel(1)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.start(jobName(1, 0))
		b.claim(1, jobName(1, 0))
		b.with(func() { m.rightsError = errors.New("no API server") })
		b.finish(1)
		after(3 * time.Minute)
		wantInvariants(t, "before twice the grace", b, 0, 0, 0)
		after(2 * time.Minute)
		wantInvariants(t, "after it", b, 1, 0, 0)
		const shown = `
# HELP azp_scaler_leaked Things of ours that should be gone and are not, for twice AZP_SWEEP_GRACE: finished Jobs whose build still has rights, Jobs that were deleted, and registrations without an unfinished Job. Always 0 if all is well.
# TYPE azp_scaler_leaked gauge
azp_scaler_leaked{pool="k8s"} 1
`
		if err := testutil.GatherAndCompare(b.registry, strings.NewReader(shown), "azp_scaler_leaked"); err != nil {
			t.Error(err)
		}
		b.with(func() { m.rightsError = nil })
		after(30 * time.Second)
		wantInvariants(t, "when the rights have ended", b, 0, 0, 0)
	})
}

func TestRegistrationsWithoutAJobCountAsLeaked(t *testing.T) {
	m := newModel()
	name := agentjob.NamePrefix("test") + "7-99-0"
	m.agents[name] = agentpool.Agent{ID: 99, Name: name, Enabled: true}
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.with(func() { m.withdrawError = errors.New("refused") })
		after(3 * time.Minute)
		wantInvariants(t, "before twice the grace", b, 0, 0, 0)
		after(2 * time.Minute)
		wantInvariants(t, "after it", b, 1, 0, 0)
		b.with(func() { m.withdrawError = nil })
		after(2 * time.Minute)
		wantInvariants(t, "when it is removed", b, 0, 0, 0)
	})
}

func TestAnAgentThatCanNotBeEndedCountsAsSurplus(t *testing.T) {
	m := newModel(1)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.with(func() { delete(m.requests, 1) })
		b.with(func() { m.unstartedError = errors.New("no API server") })
		after(110 * time.Second)
		wantInvariants(t, "before the limit and a minute", b, 0, 0, 0)
		after(30 * time.Second)
		wantInvariants(t, "after them", b, 0, 0, 1)
		b.with(func() { m.unstartedError = nil })
		after(30 * time.Second)
		wantInvariants(t, "when it has ended", b, 0, 0, 0)
	})
}

func TestASecondAgentForOneRequestCountsAsDuplicate(t *testing.T) {
	m := newModel(1)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		wantInvariants(t, "one agent", b, 0, 0, 0)
		b.with(func() {
			m.create(plan.Creation{Request: m.requests[1], Class: "default", Attempt: 1})
		})
		after(5 * time.Second)
		wantInvariants(t, "two agents", b, 0, 1, 0)
		b.claimBy(1, jobName(1, 1))
		after(3 * time.Minute)
		wantInvariants(t, "when one has the build and the other has ended", b, 0, 0, 0)
	})
}

// claimBy has an agent come online and get a request.
func (b *bench) claimBy(id int64, name string) {
	b.start(name)
	b.claim(id, name)
}

// TestASwapMakesNoDuplicate: the service gives a build to the agent that was made for another
// one, and that other one is cancelled, so that its agent is one too many.
func TestASwapMakesNoDuplicate(t *testing.T) {
	m := newModel(1, 2)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.claimBy(1, jobName(2, 0))
		after(5 * time.Second)
		wantInvariants(t, "a swap", b, 0, 0, 0)
		// A more urgent one takes the place of the second, for which another agent is made.
		b.with(func() {
			m.requests[3] = agentpool.JobRequest{ID: 3, PoolID: 7, Priority: 9, QueueTime: time.Now()}
		})
		after(5 * time.Second)
		wantInvariants(t, "a more urgent build", b, 0, 0, 0)
		b.with(func() { delete(m.requests, 3) })
		after(5 * time.Second)
		wantInvariants(t, "its cancellation", b, 0, 0, 0)
		after(3 * time.Minute)
		wantInvariants(t, "the end of the agent too many", b, 0, 0, 0)
	})
}
