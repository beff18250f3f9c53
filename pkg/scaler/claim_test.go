package scaler_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// TestAPodTellsOfItsClaim: the agent is disabled when the call returns, whatever the pod's
// probes have shown, and the loop does not do it once more.
func TestAPodTellsOfItsClaim(t *testing.T) {
	m := newJITModel(1)
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.start(jobName(1, 0))
		uid := b.job(jobName(1, 0)).UID
		for range 2 {
			if err := b.scaler.Claimed(t.Context(), uid); err != nil {
				t.Fatal(err)
			}
			if b.agent(jobName(1, 0)).Enabled {
				t.Fatal("the agent is still enabled")
			}
		}
		b.claim(1, jobName(1, 0))
		after(5 * time.Second)
		if calls := b.disabledCount(); calls != 1 {
			t.Errorf("the service was asked %d times to disable the agent, want once", calls)
		}
		if made := b.made(); len(made) != 1 {
			t.Errorf("agents made: %v, want the one that has the build", made)
		}
		b.end(1)
		after(5 * time.Second)
		if err := b.scaler.Claimed(t.Context(), uid); !errors.Is(err, scaler.ErrUnknownJob) {
			t.Errorf("a pod that has ended is answered %v", err)
		}
	})
}

func TestAPodThatIsUnknownIsToldSo(t *testing.T) {
	m := newModel(1) // Its agents register themselves.
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.start(jobName(1, 0))
		for _, uid := range []string{"", "nobody", b.job(jobName(1, 0)).UID} {
			if err := b.scaler.Claimed(t.Context(), uid); !errors.Is(err, scaler.ErrUnknownJob) {
				t.Errorf("UID %q is answered %v", uid, err)
			}
		}
		if calls := b.disabledCount(); calls != 0 {
			t.Errorf("the service was called %d times", calls)
		}
	})
}

// TestAClaimThatFailsIsTriedAgain: not more often than once a second, however often the pod
// calls, as builds can call, too.
func TestAClaimThatFailsIsTriedAgain(t *testing.T) {
	m := newJITModel(1)
	m.disableError = errors.New("the service is away")
	inLoop(t, m, nil, func(t *testing.T, b *bench) {
		b.start(jobName(1, 0))
		uid := b.job(jobName(1, 0)).UID
		if err := b.scaler.Claimed(t.Context(), uid); !errors.Is(err, m.disableError) {
			t.Errorf("the pod is answered %v", err)
		}
		for range 5 {
			if err := b.scaler.Claimed(t.Context(), uid); !errors.Is(err, scaler.ErrClaimUnderWay) {
				t.Errorf("the pod that calls again at once is answered %v", err)
			}
		}
		if calls := b.disabledCount(); calls != 1 {
			t.Errorf("the service was called %d times in a moment", calls)
		}
		b.with(func() { b.disableError = nil })
		after(2 * time.Second)
		if err := b.scaler.Claimed(t.Context(), uid); err != nil {
			t.Errorf("the pod that calls later is answered %v", err)
		}
	})
}

// TestAStandbyTakesClaims: pods call any replica.
func TestAStandbyTakesClaims(t *testing.T) {
	m := newJITModel(1)
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, m, nil)
		b.start(jobName(1, 0))
		uid := b.job(jobName(1, 0)).UID
		b.stop()
		if err := b.scaler.Claimed(t.Context(), uid); err != nil {
			t.Fatal(err)
		}
		if b.agent(jobName(1, 0)).Enabled {
			t.Error("the agent is still enabled")
		}
	})
}
