package scaler_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// farewell is a model that an installation leaves.
type farewell struct {
	*model
	agentsError error
	sweepError  error

	told sync.Map
}

func (f *farewell) Agents(ctx context.Context, poolID int) ([]agentpool.Agent, error) {
	if err := read(f.model, func() error { return f.agentsError }); err != nil {
		return nil, err
	}
	return f.model.Agents(ctx, poolID)
}

func (f *farewell) Sweep(context.Context, time.Duration) (map[string]int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	swept := 0
	for name := range f.rights {
		if _, there := f.jobs[name]; !there && f.sweepError == nil {
			delete(f.rights, name)
			swept++
		}
	}
	return map[string]int{"rolebinding": swept}, f.sweepError
}

func (f *farewell) DeleteLeavingRights(_ context.Context, job agentpool.AgentJob) error {
	f.with(func() { delete(f.jobs, job.Name) })
	return nil
}

func (f *farewell) Remains(context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for name := range f.jobs {
		names = append(names, "Job agents/"+name)
	}
	return names, f.liveError
}

// job puts an agent into the model as if the loop had made it for the request.
func (f *farewell) add(request int64) string {
	f.queue(request)
	f.with(func() { f.create(plan.Creation{Request: f.requests[request], Class: "default"}) })
	return jobName(request, 0)
}

// register puts an agent into the pool that has no Job here.
func (f *farewell) register(name string) {
	f.with(func() {
		f.nextAgent++
		f.agents[name] = agentpool.Agent{ID: f.nextAgent, Name: name, Enabled: true}
	})
}

func (f *farewell) leave(ctx context.Context, wait time.Duration) []scaler.Remainder {
	return scaler.Leave(ctx, scaler.LeaveConfig{
		Config: config(), Wait: wait, Patience: 20 * time.Second, Unreachable: 30 * time.Second, Every: time.Second,
		Tell: func(done, what string) { f.told.Store(done+" "+what, true) },
	}, f, f, slog.New(slog.DiscardHandler), time.Now)
}

func (f *farewell) inPool() []string {
	return read(f.model, func() []string {
		names := []string{}
		for name := range f.agents {
			names = append(names, name)
		}
		slices.Sort(names)
		return names
	})
}

// kinds gives what is left, without the words.
func kinds(left []scaler.Remainder) []string {
	var all []string
	for _, r := range left {
		all = append(all, string(r.Kind)+" "+r.What)
	}
	return all
}

// leaves plays one in virtual time.
func leaves(t *testing.T, body func(t *testing.T, f *farewell)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { body(t, &farewell{model: newModel()}) })
}

const standsFor = "azp-placeholder-test-default-abcdef"

func TestNothingIsLeftOfAnInstallation(t *testing.T) {
	leaves(t, func(t *testing.T, f *farewell) {
		f.add(1) // Has not started.
		f.start(f.add(2))
		busy := f.add(3)
		f.start(busy)
		f.claim(3, busy)
		over := f.add(4)
		f.start(over)
		f.claim(4, over)
		f.finish(4)
		f.register(over) // Its pod has not removed it.
		f.register(agentjob.NamePrefix("test") + "7-99-0")
		f.register(standsFor)
		f.register("somebody-elses")
		f.with(func() { f.rights["azp-test-7-98-0"] = true })
		go func() {
			time.Sleep(time.Minute)
			if job := f.job(busy); job.Name == "" || f.agent(busy).Enabled || !slices.Contains(f.inPool(), standsFor) {
				t.Errorf("while a build runs: its Job is %+v, its agent %+v, in the pool are %v", job, f.agent(busy), f.inPool())
			}
			if names := f.names(); len(names) != 1 {
				t.Errorf("agents without a build are left: %v", names)
			}
			f.finish(3)
		}()
		began := time.Now()
		if left := f.leave(t.Context(), time.Hour); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
		if took := time.Since(began); took < time.Minute || took > 70*time.Second {
			t.Errorf("it took %s, want it to end soon after the build's minute", took)
		}
		if diff := cmp.Diff([]string{"somebody-elses"}, f.inPool()); diff != "" {
			t.Errorf("agents in the pool (-want +got):\n%s", diff)
		}
		if len(f.names()) != 0 || f.rightsLeft() != 0 {
			t.Errorf("Jobs %v and rights of %d are left", f.names(), f.rightsLeft())
		}
		for _, told := range []string{
			"ended agent " + jobName(1, 0) + ", which had no build", "ended agent " + jobName(2, 0) + ", which had no build",
			"removed Job " + over + ", which had ended", "removed placeholder " + standsFor + " from pool k8s",
		} {
			if _, ok := f.told.Load(told); !ok {
				t.Errorf("it does not tell: %s", told)
			}
		}
	})
}

func TestARunningBuildIsLeftWhenTheWaitIsOver(t *testing.T) {
	for name, wait := range map[string]time.Duration{"not waited for": 0, "waited for in vain": 40 * time.Second} {
		t.Run(name, func(t *testing.T) {
			leaves(t, func(t *testing.T, f *farewell) {
				busy := f.add(1)
				f.start(busy)
				f.claim(1, busy)
				assigned := f.add(2) // The pod does not show yet that it has a build.
				f.start(assigned)
				f.with(func() {
					agent := f.agents[assigned]
					agent.AssignedRequest = 2
					f.agents[assigned] = agent
				})
				f.register(standsFor)
				began := time.Now()
				left := f.leave(t.Context(), wait)
				if diff := cmp.Diff([]string{"build agent " + busy, "build agent " + assigned}, kinds(left)); diff != "" {
					t.Errorf("left (-want +got):\n%s", diff)
				}
				if took := time.Since(began); took < wait || took > wait+5*time.Second {
					t.Errorf("it took %s, want the wait of %s", took, wait)
				}
				if f.agent(busy).Enabled || f.agent(assigned).Enabled {
					t.Error("an agent that is left may get another build")
				}
				if f.rightsLeft() != 2 {
					t.Error("a running build has lost its rights")
				}
				if diff := cmp.Diff([]string{busy, assigned}, f.inPool()); diff != "" {
					t.Errorf("in the pool (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestLeavingAServiceThatDoesNotAnswer(t *testing.T) {
	leaves(t, func(t *testing.T, f *farewell) {
		f.add(1)
		idle := f.add(2)
		f.start(idle)
		busy := f.add(3)
		f.start(busy)
		f.claim(3, busy)
		f.with(func() { f.agentsError = errors.New("credential refused") })
		go func() {
			time.Sleep(20 * time.Second)
			if diff := cmp.Diff([]string{idle, busy}, f.names()); diff != "" {
				t.Errorf("before the service counts as unreachable (-want +got):\n%s", diff)
			}
		}()
		began := time.Now()
		left := f.leave(t.Context(), 2*time.Minute)
		if len(left) != 2 || left[0].Kind != scaler.RemainderBuild || left[1].Kind != scaler.RemainderPool || !strings.Contains(left[1].Why, "credential refused") {
			t.Errorf("left: %+v", left)
		}
		if diff := cmp.Diff([]string{busy}, f.names()); diff != "" {
			t.Errorf("Jobs (-want +got):\n%s", diff)
		}
		if took := time.Since(began); took > 2*time.Minute+5*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

func TestLeavingWhatMayNotBeTouched(t *testing.T) {
	leaves(t, func(t *testing.T, f *farewell) {
		f.start(f.add(1))
		f.with(func() {
			f.deleteError = refusal{agentpool.ReasonForbidden}
			f.sweepError = errors.New("rolebindings in namespace shop can't be listed")
		})
		left := f.leave(t.Context(), 0)
		if diff := cmp.Diff([]string{"object what builds were given"}, kinds(left)); diff != "" {
			t.Errorf("left (-want +got):\n%s", diff)
		}
		if len(f.names()) != 0 || len(f.inPool()) != 0 {
			t.Errorf("left: Jobs %v, agents %v", f.names(), f.inPool())
		}
	})
}

func TestLeavingACluster(t *testing.T) {
	leaves(t, func(t *testing.T, f *farewell) {
		f.register(agentjob.NamePrefix("test") + "7-99-0") // Offline.
		f.start(f.add(1))                                  // Online.
		f.register(standsFor)
		f.with(func() { f.liveError = errors.New("no API server") })
		left := f.leave(t.Context(), 0)
		if len(left) < 2 {
			t.Errorf("left: %v", left)
		}
		if diff := cmp.Diff([]string{jobName(1, 0)}, f.inPool()); diff != "" {
			t.Errorf("in the pool (-want +got):\n%s", diff)
		}
	})
}

func TestLeavingIsInterrupted(t *testing.T) {
	leaves(t, func(t *testing.T, f *farewell) {
		busy := f.add(1)
		f.start(busy)
		f.claim(1, busy)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		began := time.Now()
		left := f.leave(ctx, time.Hour)
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("it took %s, want it to end when it is told to", took)
		}
		if len(left) != 2 || left[0].Kind != scaler.RemainderBuild || left[1].Kind != scaler.RemainderInterrupted {
			t.Errorf("left: %+v", left)
		}
	})
}

func TestLeavingNothing(t *testing.T) {
	leaves(t, func(t *testing.T, f *farewell) {
		if left := f.leave(t.Context(), time.Hour); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
		f.told.Range(func(what, _ any) bool {
			t.Errorf("it tells of %v", what)
			return true
		})
	})
}
