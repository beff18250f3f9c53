package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	batchv1 "k8s.io/api/batch/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// The labels by which a Job tells what it was made for.
const (
	classLabel   = "azp-scaler.github.io/class"
	requestLabel = "azp-scaler.github.io/request-id"
)

// placeholderPrefix begins the names of the agents that stand in the pool for the
// classes and never run a build.
const placeholderPrefix = "azp-placeholder-"

// classes are those of the demo, the commonest first. Each offers more than the one
// before, so that its agents serve the builds of those as well. No tool of a machine
// is called so, so that nothing else offers any of it.
func classes() []env.Class {
	return []env.Class{
		{Name: "general"},
		{Name: "java", Variables: map[string]string{"jdk": "21.0.2"}, Demands: []string{"jdk -gtVersion 17"}},
		{Name: "heavy", Variables: map[string]string{"jdk": "21.0.2", "accelerator": "A100"}, Demands: []string{"accelerator"}},
	}
}

// describe says what a class offers and which builds want it.
func describe(class env.Class) string {
	offers := make([]string, 0, len(class.Variables))
	for _, name := range slices.Sorted(maps.Keys(class.Variables)) {
		offers = append(offers, name+" "+class.Variables[name])
	}
	if len(offers) == 0 {
		return fmt.Sprintf("%-8s for builds without demands", class.Name)
	}
	return fmt.Sprintf("%-8s offers %s, for builds that demand %s", class.Name, strings.Join(offers, ", "), strings.Join(class.Demands, ", "))
}

// madeJob is a Job that was there at some time.
type madeJob struct {
	class   string
	request int64
}

// ledger remembers every Job by its name, which is its agent's too: finished ones
// go too soon to be asked.
type ledger struct {
	mu   sync.Mutex
	jobs map[string]madeJob
	stop func()
}

// newLedger starts to remember. The ledger must be closed.
func newLedger(ctx context.Context, environment *env.Env) (*ledger, error) {
	l := &ledger{jobs: map[string]madeJob{}}
	factory := informers.NewSharedInformerFactoryWithOptions(environment.Admin, 0, informers.WithNamespace(env.AgentsNamespace))
	informer := factory.Batch().V1().Jobs().Informer()
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: l.add}); err != nil {
		return nil, fmt.Errorf("watch Jobs: %w", err)
	}
	watching, cancel := context.WithCancel(context.WithoutCancel(ctx))
	factory.Start(watching.Done())
	l.stop = func() {
		cancel()
		factory.Shutdown()
	}
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		l.close()
		return nil, fmt.Errorf("watch Jobs: %w", context.Cause(ctx))
	}
	return l, nil
}

func (l *ledger) close() { l.stop() }

func (l *ledger) add(object any) {
	job, ok := object.(*batchv1.Job)
	if !ok {
		return
	}
	request, _ := strconv.ParseInt(job.Labels[requestLabel], 10, 64) // Without a number it is for no build.
	l.mu.Lock()
	defer l.mu.Unlock()
	l.jobs[job.Name] = madeJob{class: job.Labels[classLabel], request: request}
}

// made gives the Jobs seen so far, by name.
func (l *ledger) made() map[string]madeJob {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.jobs)
}

// ClassResult is what one class of agent did.
type ClassResult struct {
	Builds      int `json:"builds"` // Whose demands call for it.
	JobsCreated int `json:"jobs_created"`
	BuildsRun   int `json:"builds_run"` // By its agents, whatever they demand.
}

// byClass counts for each of the classes, and how many builds ran on another
// one's agent than their demands call for.
func byClass(queued []env.Queued, builds []azuredevopstest.BuildStatus, jobs map[string]madeJob) (results map[string]ClassResult, elsewhere int) {
	results = map[string]ClassResult{}
	count := func(class string, add ClassResult) {
		sum := results[class]
		results[class] = ClassResult{Builds: sum.Builds + add.Builds, JobsCreated: sum.JobsCreated + add.JobsCreated, BuildsRun: sum.BuildsRun + add.BuildsRun}
	}
	for _, class := range classes() {
		count(class.Name, ClassResult{})
	}
	wanted := map[int64]string{}
	for _, build := range queued {
		wanted[build.RequestID] = build.Class
		count(build.Class, ClassResult{Builds: 1})
	}
	for _, job := range jobs {
		count(job.class, ClassResult{JobsCreated: 1})
	}
	for _, build := range builds {
		job, found := jobs[build.AgentName]
		if !found || build.Received.IsZero() {
			continue
		}
		count(job.class, ClassResult{BuildsRun: 1})
		if job.class != wanted[build.RequestID] {
			elsewhere++
		}
	}
	return results, elsewhere
}

// wrongClass tells of Jobs that are of another class than the build they were
// made for calls for.
func wrongClass(queued []env.Queued, jobs map[string]madeJob) error {
	var wrong []error
	for _, build := range queued {
		for _, name := range slices.Sorted(maps.Keys(jobs)) {
			if job := jobs[name]; job.request == build.RequestID && job.class != build.Class {
				wrong = append(wrong, fmt.Errorf("job %s is of class %q, but build %s, for which it was made, demands %q and so class %q", name, job.class, build.Name, build.Demands, build.Class))
			}
		}
	}
	return errors.Join(wrong...)
}

// classLines says for each class what it did.
func classLines(results map[string]ClassResult, elsewhere int) []string {
	lines := []string{fmt.Sprintf("  %-9s %15s %13s %13s", "class", "builds want it", "agents made", "builds run")}
	for _, class := range classes() {
		result := results[class.Name]
		lines = append(lines, fmt.Sprintf("  %-9s %15d %13d %13d", class.Name, result.Builds, result.JobsCreated, result.BuildsRun))
	}
	if elsewhere > 0 {
		lines = append(lines,
			fmt.Sprintf("  Of the builds %d ran on an agent that offers more than they demand, as the service picks the agent.", elsewhere),
			"  Where another build was then left without an agent, the scaler made one.")
	}
	return lines
}
