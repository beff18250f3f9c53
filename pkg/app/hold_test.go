package app_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/pkg/app"
)

// cleaner is a cleanup that reaches the same API server as the replicas.
func (l *leases) cleaner() app.Election {
	l.t.Helper()
	config := app.Config{URL: "https://dev.azure.com/acme", Pools: []string{"linux"}, Namespace: "agents", Release: "azp-scaler", Replica: "hook"}
	e, err := app.NewElection(l.all.CoordinationV1(), config, slog.New(slog.DiscardHandler))
	if err != nil {
		l.t.Fatal(err)
	}
	return e
}

// deleteLease calls a cleanup off.
func (l *leases) deleteLease() {
	l.t.Helper()
	all := l.all.CoordinationV1().Leases("agents")
	list, err := all.List(l.t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 {
		l.t.Fatalf("leases %v, error %v", list, err)
	}
	if err := all.Delete(l.t.Context(), list.Items[0].Name, metav1.DeleteOptions{}); err != nil {
		l.t.Fatal(err)
	}
}

// TestACleanupHasTheReplicasStandDown plays a cleanup beside two replicas, in virtual time.
func TestACleanupHasTheReplicasStandDown(t *testing.T) {
	for name, test := range map[string]struct {
		killed bool // The leader, before the cleanup begins.
		off    bool // The cleanup is called off by the deletion of the Lease.
	}{
		"a leader at work":   {},
		"a leader that died": {killed: true},
		"called off":         {off: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLeases(t)
				first := l.start("one", nil)
				time.Sleep(5 * time.Second)
				second := l.start("two", nil)
				time.Sleep(30 * time.Second)
				first.cut.Store(test.killed)
				said := ""
				began := time.Now()
				keep, doubt, err := l.cleaner().Hold(t.Context(), func(what string) { said = what })
				if doubt != "" || err != nil {
					t.Fatalf("the Lease can't be taken: %q, %v", doubt, err)
				}
				if took := time.Since(began); took > 15*time.Second {
					t.Errorf("it took %s to take the Lease", took)
				}
				if !test.killed && (l.at.alone() != "" || !strings.Contains(said, "replica one")) {
					t.Errorf("when the Lease is taken, %q still works; the cleanup said %q", l.at.alone(), said)
				}
				time.Sleep(5 * time.Second)
				if l.at.alone() != "" || !second.Cleaning() {
					t.Errorf("beside a cleanup %q works; the other replica knows of it: %t", l.at.alone(), second.Cleaning())
				}
				ctx, cancel := context.WithCancel(t.Context())
				over := make(chan error, 1)
				go func() { over <- keep(ctx) }()
				time.Sleep(10 * time.Minute)
				if l.at.alone() != "" {
					t.Errorf("beside a long cleanup %q works", l.at.alone())
				}
				from := time.Now()
				if test.off {
					l.deleteLease()
				} else {
					cancel()
				}
				if err := <-over; (err != nil) != test.off {
					t.Errorf("the cleanup ended with %v", err)
				}
				cancel()
				time.Sleep(3 * time.Minute)
				worker := l.at.alone()
				if worker == "" {
					t.Fatal("no replica works after the cleanup")
				}
				again := l.at.since(worker).Sub(from)
				if !test.off && (again < 100*time.Second || again > 130*time.Second) || test.off && again > 5*time.Second {
					t.Errorf("a replica works %s after the end of the cleanup", again)
				}
				if first.Cleaning() && !test.killed || second.Cleaning() {
					t.Error("a replica believes that the cleanup is still at work")
				}
				first.end(t)
				second.end(t)
				if l.at.twice && !test.killed {
					t.Error("both have worked at a time")
				}
			})
		})
	}
}

func TestACleanupOfWhatNobodyServes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLeases(t)
		began := time.Now()
		if _, doubt, err := l.cleaner().Hold(t.Context(), func(what string) { t.Error(what) }); doubt != "" || err != nil {
			t.Errorf("the Lease can't be taken: %q, %v", doubt, err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %s", took)
		}
	})
}
