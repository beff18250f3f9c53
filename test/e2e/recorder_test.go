package e2e_test

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// The labels and annotations by which a Job tells what it was made for.
const (
	classLabel        = "azp-scaler.github.io/class"
	versionAnnotation = "azp-scaler.github.io/class-version"
)

// made is a Job that was there at some time; finished ones go too soon to be asked.
type made struct {
	namespace, name, class, version string
	request                         int64
	gone                            time.Time // Zero as long as it is there.
}

// recorder remembers every Job of every installation.
type recorder struct {
	mu   sync.Mutex
	jobs map[string]*made
}

// record starts to remember Jobs and goes on until the test ends.
func record(t *testing.T, e *env.Env) *recorder {
	t.Helper()
	r := &recorder{jobs: map[string]*made{}}
	factory := informers.NewSharedInformerFactory(e.Admin, 0)
	informer := factory.Batch().V1().Jobs().Informer()
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: r.add, DeleteFunc: r.remove}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	factory.Start(ctx.Done())
	t.Cleanup(func() {
		cancel()
		factory.Shutdown()
	})
	if !cache.WaitForCacheSync(t.Context().Done(), informer.HasSynced) {
		t.Fatal("the test can't watch Jobs")
	}
	return r
}

func (r *recorder) add(object any) {
	job, ok := object.(*batchv1.Job)
	if !ok || !strings.HasPrefix(job.Namespace, env.AgentsNamespace) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.jobs[job.Name] = &made{namespace: job.Namespace, name: job.Name, class: job.Labels[classLabel], version: job.Annotations[versionAnnotation], request: requestOf(job.Name)}
}

func (r *recorder) remove(object any) {
	if missed, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = missed.Obj
	}
	job, ok := object.(*batchv1.Job)
	if !ok {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if known, found := r.jobs[job.Name]; found {
		known.gone = time.Now()
	}
}

// all gives the Jobs seen so far, by name.
func (r *recorder) all() []made {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []made
	for _, job := range r.jobs {
		out = append(out, *job)
	}
	slices.SortFunc(out, func(a, b made) int { return strings.Compare(a.name, b.name) })
	return out
}

// of gives those made for a request.
func (r *recorder) of(request int64) []made {
	return slices.DeleteFunc(r.all(), func(job made) bool { return job.request != request })
}

// ofClass gives those of a class of an installation.
func (r *recorder) ofClass(in *env.Installation, class string) []made {
	return slices.DeleteFunc(r.all(), func(job made) bool { return job.namespace != in.AgentsNamespace || job.class != class })
}

// job gives the Job of an agent. It fails the test where there was none.
func (r *recorder) job(t *testing.T, agent string) made {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	known, found := r.jobs[agent]
	if !found {
		t.Fatalf("there never was a Job %q", agent)
	}
	return *known
}

// jobForm is how Jobs, and so agents, are named.
var jobForm = regexp.MustCompile(`^azp-[a-z0-9]{8}-\d+-(\d+)-\d+$`)

// requestOf gives the request that a Job was made for by its name, -1 where that
// tells none.
func requestOf(name string) int64 {
	match := jobForm.FindStringSubmatch(name)
	if match == nil {
		return -1
	}
	id, err := strconv.ParseInt(match[1], 10, 64)
	if err != nil {
		return -1
	}
	return id
}

// stage is a running system with what the scenarios on it share.
type stage struct {
	*env.Env
	jobs *recorder
	way  string // In which agents are registered.
}

// newStage sets a system up with classes, and starts its scaler.
func newStage(t *testing.T, options env.Options) *stage {
	t.Helper()
	e := startEnv(t, options)
	s := &stage{Env: e, jobs: record(t, e), way: options.Registration}
	if err := e.StartScaler(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// scenario is one part of a run. It ends with nothing left, unless it failed: then
// so does all that comes after it.
func (s *stage) scenario(t *testing.T, name string, play func(t *testing.T)) {
	t.Helper()
	if !t.Run(name, func(t *testing.T) {
		play(t)
		if err := s.WaitAtRest(t.Context(), troubleLimit); err != nil {
			t.Fatal(err)
		}
	}) {
		t.Fatalf("the scenario %q failed; logs: %s", name, s.ScalerLog)
	}
}

// queue queues builds at once and gives their requests in order.
func (s *stage) queue(t *testing.T, builds ...env.Build) []env.Queued {
	t.Helper()
	for i := range builds {
		if builds[i].Want == "" {
			builds[i].Want = "succeeded"
		}
		if len(builds[i].Steps) == 0 {
			builds[i].Steps = []string{s.briefStep()}
		}
	}
	queued, err := s.Queue(t.Context(), builds)
	if err != nil {
		t.Fatal(err)
	}
	return queued
}

// briefStep is that of a build as short as a pool takes it. An agent that the scaler has
// registered is disabled by it alone, a second or so after it has got its build; should the
// build be over by then, the service may give it another one, as docs/agent.md says.
func (s *stage) briefStep() string {
	if s.way == byScaler {
		return "sleep 2"
	}
	return "true"
}

// finish waits for builds to end as they were to.
func (s *stage) finish(t *testing.T, queued ...env.Queued) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), troubleLimit)
	defer cancel()
	for _, build := range queued {
		if status, err := s.Service.Wait(ctx, build.RequestID); err != nil {
			t.Fatalf("build %s (%s, agent %q): %v", build.Name, status.State, status.AgentName, err)
		}
	}
	if err := s.Check(ctx, queued); err != nil {
		t.Error(err)
	}
}

// agentOf gives the agent that a build ran on.
func (s *stage) agentOf(t *testing.T, build env.Queued) string {
	t.Helper()
	status, err := s.Service.Build(build.RequestID)
	if err != nil {
		t.Fatal(err)
	}
	return status.AgentName
}

// gate makes a gate that builds wait at.
func (s *stage) gate(t *testing.T) *env.Gate {
	t.Helper()
	gate, err := s.NewGate()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := gate.Close(); err != nil {
			t.Error(err)
		}
	})
	return gate
}

// waitArrived waits until so many builds have come to a gate.
func waitArrived(t *testing.T, gate *env.Gate, builds int) {
	t.Helper()
	waitUntil(t.Context(), t, fmt.Sprintf("%d builds run", builds), func() (string, bool) {
		return fmt.Sprintf("%d run", gate.Arrived()), gate.Arrived() >= builds
	})
}

// waitJobs waits until there has been a Job for each of the builds.
func (s *stage) waitJobs(t *testing.T, queued ...env.Queued) {
	t.Helper()
	for _, build := range queued {
		waitUntil(t.Context(), t, "there is a Job for "+build.Name, func() (string, bool) {
			return "", len(s.jobs.of(build.RequestID)) > 0
		})
	}
}

// metric waits until the scaler shows a line.
func (s *stage) metric(t *testing.T, line string) {
	t.Helper()
	waitForMetric(t.Context(), t, s.Scaler, line)
}

// judge has the auditor judge the whole run.
func (s *stage) judge(t *testing.T) {
	t.Helper()
	clean(t.Context(), t, s.Env)
}
