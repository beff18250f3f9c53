package scaler_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// marked gives an installation the mark of a cluster.
func marked(mark string) func(*scaler.Config) {
	return func(c *scaler.Config) {
		c.Mark = func(context.Context) (string, error) { return mark, nil }
	}
}

func TestASecondInstallationOfTheSameIdIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := begin(t, newModel(1), marked("uid-of-one"))
		defer first.stop()
		first.start(jobName(1, 0))
		after(time.Minute)
		// The same pool, from another cluster.
		other := newModel(2)
		other.agents = first.agents
		second := begin(t, other, marked("uid-of-two"))
		defer second.stop()
		after(20 * time.Minute)
		if made := second.made(); len(made) > 0 {
			t.Errorf("the second installation makes %v", made)
		}
		if first.agent(jobName(1, 0)).Name == "" {
			t.Error("the second installation has removed an agent of the first")
		}
		why := second.scaler.NotReady(time.Now())
		for _, want := range []string{"uid-of-one", "uid-of-two", "AZP_RELEASE", "cleanup --take-over"} {
			if !strings.Contains(why, want) {
				t.Errorf("%q is missing from why it is not ready: %s", want, why)
			}
		}
		if n := strings.Count(second.log.String(), "no plan this cycle"); n != 1 {
			t.Errorf("said %d times, want once", n)
		}
		if why := first.scaler.NotReady(time.Now()); why != "" {
			t.Errorf("the first does not go on: %s", why)
		}
	})
}

func TestPlaceholdersWithoutAMarkAreReplaced(t *testing.T) {
	m := newModel()
	old := agentjob.PlaceholderName("test", "default", nil)
	m.agents[old] = agentpool.Agent{ID: 90, Name: old, Enabled: true}
	inLoop(t, m, marked("uid-of-one"), func(t *testing.T, b *bench) {
		after(5 * time.Minute)
		want := agentjob.PlaceholderName("test", "default", map[string]string{agentjob.CapabilityCluster: "uid-of-one"})
		b.with(func() {
			if _, there := m.agents[want]; !there || len(m.agents) != 1 {
				t.Errorf("the pool has %v, want only %s", m.agents, want)
			}
		})
		if why := b.scaler.NotReady(time.Now()); why != "" {
			t.Errorf("not ready: %s", why)
		}
	})
}

func TestNothingIsDoneBeforeTheMarkIsKnown(t *testing.T) {
	m := newModel(1)
	err := errors.New("no API server")
	inLoop(t, m, func(c *scaler.Config) {
		c.Mark = func(context.Context) (string, error) { return "uid-of-one", read(m, func() error { return err }) }
	}, func(t *testing.T, b *bench) {
		after(time.Minute)
		if made := b.made(); len(made) > 0 {
			t.Errorf("it makes %v", made)
		}
		b.with(func() { err = nil })
		after(time.Minute)
		if made := b.made(); len(made) != 1 {
			t.Errorf("it makes %v, want one Job", made)
		}
	})
}

func TestLeavingKeepsWhatAnotherInstallationHas(t *testing.T) {
	leaves(t, func(t *testing.T, f *farewell) {
		theirs := agentjob.NamePrefix("test") + "7-99-0"
		f.register(theirs)
		f.with(func() {
			f.agents[standsFor] = agentpool.Agent{ID: 90, Name: standsFor, Enabled: true, Capabilities: agentpool.Capabilities{agentjob.CapabilityCluster: "uid-of-two"}}
		})
		leave := func(mark func(*scaler.Config)) []scaler.Remainder {
			c := config()
			mark(&c)
			return scaler.Leave(t.Context(), scaler.LeaveConfig{
				Config: c, Patience: 20 * time.Second, Every: time.Second, Tell: func(string, string) {},
			}, f, f, slog.New(slog.DiscardHandler), time.Now)
		}
		left := leave(marked("uid-of-one"))
		if len(left) != 1 || left[0].Kind != scaler.RemainderPool || !strings.Contains(left[0].Why, "uid-of-two") {
			t.Errorf("left: %v", left)
		}
		if diff := cmp.Diff([]string{standsFor, theirs}, f.inPool()); diff != "" {
			t.Errorf("in the pool (-want +got):\n%s", diff)
		}
		if left := leave(func(*scaler.Config) {}); len(left) != 0 || len(f.inPool()) != 0 { // To take over.
			t.Errorf("left: %v and %v", left, f.inPool())
		}
	})
}
