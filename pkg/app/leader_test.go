package app_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/azp-scaler/azp-scaler/pkg/app"
)

// leases is an API server that has Leases, and that each replica reaches by a way of its
// own.
type leases struct {
	t   *testing.T
	all *fake.Clientset
	at  *watchfulness

	versions int // Of all Leases.
}

// watchfulness notes who worked when, and complains when two did.
type watchfulness struct {
	mu      sync.Mutex
	working map[string]bool
	began   map[string]time.Time
	twice   bool
}

// replica is one taker of the election.
type replica struct {
	app.Election
	name string
	cut  atomic.Bool // From when on it does not reach the API server.
	log  *bytes.Buffer
	stop context.CancelFunc
	over chan error
}

func newLeases(t *testing.T) *leases {
	t.Helper()
	l := &leases{t: t, all: fake.NewClientset(), at: &watchfulness{working: map[string]bool{}, began: map[string]time.Time{}}}
	l.all.PrependReactor("update", "leases", l.update)
	return l
}

// update refuses a write on a version that is not the present one, as the API server does and
// the fake clientset does not.
func (l *leases) update(action clienttesting.Action) (bool, runtime.Object, error) {
	update, ok := action.(clienttesting.UpdateAction)
	if !ok {
		return false, nil, nil
	}
	lease, ok := update.GetObject().DeepCopyObject().(*coordinationv1.Lease)
	if !ok {
		return false, nil, nil
	}
	l.at.mu.Lock()
	defer l.at.mu.Unlock()
	found, err := l.all.Tracker().Get(action.GetResource(), lease.Namespace, lease.Name)
	if err != nil {
		return true, nil, err
	}
	if there, ok := found.(*coordinationv1.Lease); ok && there.ResourceVersion != lease.ResourceVersion {
		return true, nil, apierrors.NewConflict(action.GetResource().GroupResource(), lease.Name, errors.New("the object has been modified"))
	}
	l.versions++
	lease.ResourceVersion = strconv.Itoa(l.versions)
	return true, lease, l.all.Tracker().Update(action.GetResource(), lease, lease.Namespace)
}

// start has a replica take part. What it does when it leads takes a while to end.
func (l *leases) start(name string, failing error) *replica {
	l.t.Helper()
	r := &replica{name: name, log: &bytes.Buffer{}, over: make(chan error, 1)}
	client := fake.NewClientset()
	client.ReactionChain = nil
	client.AddReactor("*", "*", func(action clienttesting.Action) (bool, runtime.Object, error) {
		switch {
		case failing != nil:
			return true, nil, failing
		case r.cut.Load():
			return true, nil, errors.New("no way to the API server")
		}
		object, err := l.all.Invokes(action, nil)
		return true, object, err
	})
	config := app.Config{URL: "https://dev.azure.com/acme", Pools: []string{"linux"}, Namespace: "agents", Release: "azp-scaler", Replica: name}
	var err error
	if r.Election, err = app.NewElection(client.CoordinationV1(), config, slog.New(slog.NewTextHandler(r.log, nil))); err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(l.t.Context())
	r.stop = cancel
	go func() { r.over <- r.Lead(ctx, func(ctx context.Context) error { return l.at.work(ctx, name) }) }()
	return r
}

func (w *watchfulness) work(ctx context.Context, name string) error {
	w.mu.Lock()
	w.twice = w.twice || len(w.working) > 0
	w.working[name], w.began[name] = true, time.Now()
	w.mu.Unlock()
	<-ctx.Done()
	time.Sleep(2 * time.Second)
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.working, name)
	return nil
}

// alone says who works, if nobody else does.
func (w *watchfulness) alone() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name := range w.working {
		if len(w.working) == 1 {
			return name
		}
	}
	return ""
}

// since tells when a replica began to work last.
func (w *watchfulness) since(name string) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.began[name]
}

// end ends a replica and waits for it.
func (r *replica) end(t *testing.T) {
	t.Helper()
	r.stop()
	if err := <-r.over; err != nil {
		t.Error(err)
	}
}

// TestReplicas elects among two, in virtual time.
func TestReplicas(t *testing.T) {
	for name, test := range map[string]struct {
		// fall is how the first leader goes; it gives the time from which to count.
		fall func(t *testing.T, first *replica) time.Time
		most time.Duration // Until the other one works.
		rest bool          // The first one stays, and gets the lease again when the other one ends.
	}{
		"the leader is told to end": {most: 2500 * time.Millisecond, fall: func(t *testing.T, first *replica) time.Time {
			first.end(t)
			return time.Now()
		}},
		"the leader loses the API server": {most: 15 * time.Second, rest: true, fall: func(_ *testing.T, first *replica) time.Time {
			first.cut.Store(true)
			return time.Now()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLeases(t)
				first := l.start("one", nil)
				time.Sleep(5 * time.Second)
				second := l.start("two", nil)
				time.Sleep(time.Minute)
				if leader := l.at.alone(); leader != "one" {
					t.Fatalf("%q works, want the first", leader)
				}
				for _, r := range []*replica{first, second} {
					if why := r.NotReady(); why != "" {
						t.Errorf("replica %s is not ready: %s", r.name, why)
					}
				}
				from := test.fall(t, first)
				time.Sleep(time.Minute)
				if leader := l.at.alone(); leader != "two" {
					t.Fatalf("%q works, want the second", leader)
				}
				began := l.at.since("two")
				if took := began.Sub(from); took > test.most {
					t.Errorf("the second took over after %v, want at most %v", took, test.most)
				}
				if !test.rest {
					second.end(t)
				} else {
					first.cut.Store(false)
					time.Sleep(time.Minute)
					if leader := l.at.alone(); leader != "two" {
						t.Errorf("%q works when the first reaches the API server again, want the second still", leader)
					}
					second.end(t)
					time.Sleep(5 * time.Second)
					if leader := l.at.alone(); leader != "one" {
						t.Errorf("%q works, want the first again", leader)
					}
					first.end(t)
				}
				if l.at.twice {
					t.Error("both have worked at a time")
				}
			})
		})
	}
}

// TestReplicaStartedAgain does not wait for the lease of the process that it follows.
func TestReplicaStartedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLeases(t)
		first := l.start("one", nil)
		time.Sleep(30 * time.Second)
		first.cut.Store(true) // Killed: it gives nothing back.
		again := l.start("one", nil)
		from := time.Now()
		time.Sleep(time.Second)
		if l.at.since("one").Before(from) {
			t.Error("the process that was started again does not work after a second")
		}
		again.end(t)
		first.end(t)
	})
}

// TestReplicaWithoutTheRight says what it lacks, once, and goes on asking.
func TestReplicaWithoutTheRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLeases(t)
		r := l.start("one", apierrors.NewForbidden(schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"}, "azp-scaler-x", errors.New("no")))
		time.Sleep(time.Minute)
		for _, want := range []string{"leases.coordination.k8s.io", "namespace agents", "AZP_LEADER_ELECTION"} {
			if why := r.NotReady(); !strings.Contains(why, want) {
				t.Errorf("not ready for %q, want %q in it", why, want)
			}
		}
		r.end(t)
		if n := strings.Count(r.log.String(), "no leader can be elected"); n != 1 {
			t.Errorf("said %d times, want once:\n%s", n, r.log)
		}
		if list, err := l.all.CoordinationV1().Leases("").List(t.Context(), metav1.ListOptions{}); err != nil || len(list.Items) > 0 {
			t.Errorf("leases %v, error %v", list, err)
		}
	})
}
