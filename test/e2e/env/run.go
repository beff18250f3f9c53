package env

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/audit"
)

// restEvery is how often the system is asked whether it is at rest.
const restEvery = 250 * time.Millisecond

// Queued is a build of a workload and the request the service made of it.
type Queued struct {
	Build
	RequestID int64
}

// action is one thing that a workload does at its time.
type action struct {
	at     time.Duration
	build  int
	cancel bool
}

// schedule puts a workload's actions in order of time.
func schedule(workload []Build) []action {
	var actions []action
	for i, build := range workload {
		actions = append(actions, action{at: build.QueueAfter, build: i})
		if build.Kind == KindCancel {
			actions = append(actions, action{at: build.QueueAfter + build.CancelAfter, build: i, cancel: true})
		}
	}
	slices.SortStableFunc(actions, func(a, b action) int { return cmp.Compare(a.at, b.at) })
	return actions
}

// Queue queues a workload's builds, and cancels those that are to be cancelled,
// each at its time. It returns when the last action is done.
func (e *Env) Queue(ctx context.Context, workload []Build) ([]Queued, error) {
	out := make([]Queued, len(workload))
	for i, build := range workload {
		out[i].Build = build
	}
	start := time.Now()
	for _, next := range schedule(workload) {
		select {
		case <-ctx.Done():
			return out, fmt.Errorf("queue builds: %w", ctx.Err())
		case <-time.After(time.Until(start.Add(next.at))):
		}
		queued := &out[next.build]
		if next.cancel {
			if err := e.Service.Cancel(queued.RequestID); err != nil {
				return out, fmt.Errorf("cancel build %s: %w", queued.Name, err)
			}
			continue
		}
		id, err := e.Service.Queue(azuredevopstest.Build{
			PoolID: e.Service.PoolID, Name: queued.Name, Steps: queued.Steps, Demands: queued.Demands, Priority: queued.Priority, Variables: queued.Variables,
		})
		if err != nil {
			return out, fmt.Errorf("queue build %s: %w", queued.Name, err)
		}
		queued.RequestID = id
	}
	return out, nil
}

// WaitFinished waits until the service has no unfinished request.
func (e *Env) WaitFinished(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := e.Service.WaitIdle(ctx, e.Service.PoolID); err != nil {
		var open []string
		for _, status := range e.Service.Builds(e.Service.PoolID) {
			if status.Result == "" {
				open = append(open, fmt.Sprintf("%s (%s, agent %q)", status.Name, status.State, status.AgentName))
			}
		}
		return fmt.Errorf("%d builds are unfinished after %s: %s: %w", len(open), limit, strings.Join(open, ", "), err)
	}
	return nil
}

// WaitAtRest waits until nothing is left to do: no unfinished request, no Job
// and no pod in the agents' namespaces, no registration but the placeholders and
// the foreign agents. The error of running out of time tells what is left.
func (e *Env) WaitAtRest(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := e.Service.WaitIdle(ctx, e.Service.PoolID); err != nil {
		return fmt.Errorf("wait until every build has ended: %w", err)
	}
	var last error
	for {
		remaining, err := e.Remaining(ctx)
		if err == nil && len(remaining) == 0 {
			return nil
		}
		if ctx.Err() == nil {
			last = err
			if err == nil {
				last = fmt.Errorf("still there: %s", strings.Join(remaining, ", "))
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the system is not at rest after %s: %w", limit, errors.Join(last, ctx.Err()))
		case <-time.After(restEvery):
		}
	}
}

// Remaining lists what a system at rest does not have, beside unfinished requests.
func (e *Env) Remaining(ctx context.Context) ([]string, error) {
	var remaining []string
	for _, in := range e.installations {
		jobs, err := e.Admin.BatchV1().Jobs(in.AgentsNamespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, fmt.Errorf("list Jobs: %w", err)
		}
		for _, job := range jobs.Items {
			remaining = append(remaining, "Job "+job.Name)
		}
		pods, err := e.Admin.CoreV1().Pods(in.AgentsNamespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, fmt.Errorf("list pods: %w", err)
		}
		for _, pod := range pods.Items {
			remaining = append(remaining, "pod "+pod.Name)
		}
	}
	for _, agent := range e.Service.Agents(e.Service.PoolID) {
		_, placeholder := placeholderName(agent.Name)
		if !placeholder && !slices.ContainsFunc(e.foreign, func(f *Foreign) bool { return f.Name == agent.Name }) {
			remaining = append(remaining, "agent "+agent.Name)
		}
	}
	return remaining, nil
}

// Check compares the results of a workload with what it was to give.
func (e *Env) Check(ctx context.Context, queued []Queued) error {
	var wrong []error
	for _, build := range queued {
		status, err := e.Service.Build(build.RequestID)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("build %s: %w", build.Name, err))
			continue
		}
		if status.Result != build.Want {
			log, _ := e.Service.Log(build.RequestID) // Without a log the message must do.
			wrong = append(wrong, fmt.Errorf("build %s (request %d, agent %q) ended %q, want %q: %s\n%s", build.Name, build.RequestID, status.AgentName, status.Result, build.Want, status.Message, tail(log, 800)))
			continue
		}
		if build.Kind != KindDeploy {
			continue
		}
		deployment, err := e.Admin.AppsV1().Deployments(TargetNamespace).Get(ctx, DeploymentName, metav1.GetOptions{})
		if err != nil {
			wrong = append(wrong, fmt.Errorf("build %s deployed nothing: %w", build.Name, err))
		} else if deployment.Status.ReadyReplicas < 1 {
			wrong = append(wrong, fmt.Errorf("build %s: Deployment %s/%s has no ready pod", build.Name, TargetNamespace, DeploymentName))
		}
	}
	return errors.Join(wrong...)
}

// Audit stops the scalers and has them clean up as an uninstall would, and has the
// auditor judge everything since the start.
func (e *Env) Audit(ctx context.Context) (audit.Report, error) {
	for _, in := range e.installations {
		if err := in.end(ctx); err != nil {
			return audit.Report{}, err
		}
	}
	return e.judge(ctx, true)
}

// Judge has the auditor judge everything since the start. Call it when the
// system is at rest: it counts whatever is there, but for the placeholders, which
// are the installation's.
func (e *Env) Judge(ctx context.Context) (audit.Report, error) { return e.judge(ctx, false) }

func (e *Env) judge(ctx context.Context, cleanedUp bool) (audit.Report, error) {
	in := audit.Input{AgentsListed: true}
	var err error
	if in.Objects, err = audit.ListObjects(ctx, e.config); err != nil {
		return audit.Report{}, fmt.Errorf("audit: %w", err)
	}
	if in.Agents, err = audit.ListAgents(ctx, e.Service.client, e.Service.URL, e.Service.Token, e.Service.PoolID); err != nil {
		return audit.Report{}, fmt.Errorf("audit: %w", err)
	}
	if in.Service, err = readLog(e.Service.AuditLog, audit.ReadServiceLog); err != nil {
		return audit.Report{}, fmt.Errorf("audit: %w", err)
	}
	if in.Kube, err = readLog(e.KubeAuditLog, audit.ReadKubeLog); err != nil {
		return audit.Report{}, fmt.Errorf("audit: %w", err)
	}
	rules := audit.Rules{
		Placeholders: placeholderPrefix, CleanedUp: cleanedUp, Warm: e.Warm, Administrators: []string{administrator}, StandingAccounts: e.StandingAccounts,
		Killed: e.Killed,
	}
	var outages []audit.Interval
	for _, installation := range e.installations {
		rules.ScalerUsers = append(rules.ScalerUsers, installation.user())
		outages = append(outages, installation.outages()...)
		rules.StandingObjects = append(rules.StandingObjects, installation.lease(in.Objects)...)
	}
	rules.Outages = union(outages)
	return audit.Judge(in, rules), nil
}

// union makes of stretches of time that overlap ones that do not.
func union(intervals []audit.Interval) []audit.Interval {
	slices.SortFunc(intervals, func(a, b audit.Interval) int { return a.From.Compare(b.From) })
	var out []audit.Interval
	for _, next := range intervals {
		if last := len(out) - 1; last >= 0 && !next.From.After(out[last].To) {
			if next.To.After(out[last].To) {
				out[last].To = next.To
			}
			continue
		}
		out = append(out, next)
	}
	return out
}

// intersection gives the times that are in both.
func intersection(as, bs []audit.Interval) []audit.Interval {
	var out []audit.Interval
	for _, a := range as {
		for _, b := range bs {
			both := a
			if b.From.After(both.From) {
				both.From = b.From
			}
			if b.To.Before(both.To) {
				both.To = b.To
			}
			if both.From.Before(both.To) {
				out = append(out, both)
			}
		}
	}
	return out
}

// lease names the one Lease that an installation keeps, if it is there.
func (in *Installation) lease(objects []audit.LiveObject) []string {
	for _, object := range objects {
		if object.Resource == "leases" && object.Namespace == in.AgentsNamespace {
			return []string{object.Resource + "/" + object.Namespace + "/" + object.Name}
		}
	}
	return nil
}

func readLog[T any](path string, read func(io.Reader) ([]T, error)) ([]T, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	return read(file)
}

// tail gives the end of a text, from a line's start.
func tail(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	text = text[len(text)-limit:]
	if _, rest, found := strings.Cut(text, "\n"); found {
		return rest
	}
	return text
}
