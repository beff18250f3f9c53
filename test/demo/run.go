package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/azp-scaler/azp-scaler/test/audit"
	"github.com/azp-scaler/azp-scaler/test/cluster"
	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// Limits of a run.
const (
	closeLimit = 60 * time.Second
	restLimit  = 2 * time.Minute
	// Builds end at this rate at least, on the slowest machine worth the wait.
	perBuild  = 10 * time.Second
	baseLimit = 3 * time.Minute
)

// Result is what out/demo.json holds.
type Result struct {
	Builds       int                    `json:"builds"`
	Succeeded    int                    `json:"succeeded"`
	Failed       int                    `json:"failed"`
	Canceled     int                    `json:"canceled"`
	JobsCreated  int                    `json:"jobs_created"`
	Duplicates   int                    `json:"duplicates"`
	Lost         int                    `json:"lost"`
	Leaked       map[string]int         `json:"leaked"`
	QueueToJob   audit.Quantiles        `json:"queue_to_job_seconds"`
	QueueToAgent audit.Quantiles        `json:"queue_to_agent_seconds"`
	Classes      map[string]ClassResult `json:"classes"`
	Node         string                 `json:"node"`
}

// run runs the demo and tells whether all is well. What it starts is gone when
// it returns. An error means that there is nothing to judge.
func run(ctx context.Context, s settings, out io.Writer) (well bool, err error) {
	begun := time.Now()
	resultPath := filepath.Join(s.out, "demo.json")
	// An old result must not pass for this run's.
	if err := os.Remove(resultPath); err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("remove the last run's result: %w", err)
	}
	tell := &printer{out: out}
	tell.printf("azp-scaler demo: %d builds, seed %d (the same seed gives the same builds)\n", s.builds, s.seed)
	environment, err := env.Start(ctx, env.Options{Dir: filepath.Join(s.out, "demo"), Seed: s.seed, Node: s.node, Progress: out, Classes: classes()})
	if err != nil {
		return false, err
	}
	defer func() {
		// The run's own context may be what ended.
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
		defer cancel()
		err = errors.Join(err, environment.Close(closing))
	}()
	introduce(tell, environment)
	if err := environment.StartScaler(ctx); err != nil {
		return false, err
	}
	tell.printf("The system is up after %s.\n\n", round(time.Since(begun)))

	made, err := newLedger(ctx, environment)
	if err != nil {
		return false, err
	}
	defer made.close()
	queued, trouble, err := perform(ctx, environment, made, s, out)
	if err != nil {
		return false, err
	}
	jobs := made.made()
	results, elsewhere := byClass(queued, environment.Service.Builds(environment.Service.PoolID), jobs)
	report, err := judge(ctx, environment, s.keep)
	if err != nil {
		return false, err
	}
	trouble = errors.Join(trouble, environment.Check(ctx, queued), wrongClass(queued, jobs))
	if err := writeResult(resultPath, report, results, environment.Node().String()); err != nil {
		return false, err
	}
	well = report.Clean() && trouble == nil
	tell.printf("\n%s\n", strings.Join(classLines(results, elsewhere), "\n"))
	summarise(tell, report, trouble, resultPath, time.Since(begun))
	if s.keep {
		keep(ctx, tell, environment)
	}
	return well, tell.err
}

// perform queues the builds and shows what becomes of them until the system is
// at rest again. Trouble is what did not come to its end in time; an error means
// that the run itself broke off.
func perform(ctx context.Context, environment *env.Env, made *ledger, s settings, out io.Writer) (queued []env.Queued, trouble, err error) {
	showing, stop := context.WithCancel(ctx)
	shown := make(chan error, 1)
	workload := env.Workload(s.seed, s.builds, classes()...)
	go func() { shown <- newBoard(environment, made, workload, out).show(showing) }()
	defer func() {
		stop()
		err = errors.Join(err, <-shown)
	}()
	if queued, err = environment.Queue(ctx, workload); err != nil {
		return queued, nil, err
	}
	trouble = environment.WaitFinished(ctx, baseLimit+time.Duration(s.builds)*perBuild)
	if trouble == nil {
		trouble = environment.WaitAtRest(ctx, restLimit)
	}
	if ctx.Err() != nil {
		return queued, nil, context.Cause(ctx)
	}
	return queued, trouble, nil
}

// judge has the auditor judge. A system that is kept keeps its placeholder and
// its scaler; otherwise the scaler ends first, as it would in an uninstall.
func judge(ctx context.Context, environment *env.Env, keep bool) (audit.Report, error) {
	if keep {
		return environment.Judge(ctx)
	}
	return environment.Audit(ctx)
}

func writeResult(path string, report audit.Report, classes map[string]ClassResult, node string) error {
	data, err := json.MarshalIndent(Result{
		Builds: report.Builds, Succeeded: report.Succeeded, Failed: report.Failed, Canceled: report.Canceled, JobsCreated: report.JobsCreated,
		Duplicates: report.Duplicates, Lost: report.Lost, Leaked: report.Leaked,
		QueueToJob: report.QueueToJob, QueueToAgent: report.QueueToAgent, Classes: classes, Node: node,
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// introduce says what stands in for what.
func introduce(tell *printer, environment *env.Env) {
	node := "real: etcd, control plane, containerd, runc, kubelet and kube-proxy; the entrypoint runs in containers"
	if environment.Node() == cluster.Simulated {
		node = "real control plane, SIMULATED pods (no root here): the entrypoint runs as a process beside each pod"
	}
	tell.printf("\n  Kubernetes    %s\n", node)
	tell.printf("  Azure DevOps  a stand-in that speaks the real protocol, %s\n", environment.Service.URL)
	tell.printf("  agent         a stand-in for Microsoft's program, with its flags, files, messages and traps\n")
	tell.printf("  scaler        this repository's, signed in as ServiceAccount %s/%s with only the documented rights\n", environment.ScalerNamespace, env.ScalerAccount)
	title := "classes"
	for _, class := range classes() {
		tell.printf("  %-12s  %s\n", title, describe(class))
		title = ""
	}
	tell.printf("  placeholders  an agent of each class that is always offline: with it the pool accepts builds\n\n")
}

func summarise(tell *printer, report audit.Report, trouble error, path string, took time.Duration) {
	tell.printf("\nThe auditor, from the logs of the service and of the API server:\n")
	if tell.err == nil {
		tell.err = report.WriteText(indent{tell.out})
	}
	if trouble != nil {
		tell.printf("\nNot as it was to be:\n%v\n", trouble)
	}
	verdict := "All is well"
	if trouble != nil || !report.Clean() {
		verdict = "NOT WELL"
	}
	tell.printf("\n%s after %s: %d duplicates, %d lost, %d leaked. The figures are in %s, the logs beside it in demo/.\n",
		verdict, round(took), report.Duplicates, report.Lost, report.LeakedTotal(), path)
}

// keep shows where to look and waits for an interrupt.
func keep(ctx context.Context, tell *printer, environment *env.Env) {
	tell.printf("\nEverything stays up until you press Ctrl-C. To look at:\n\n")
	tell.printf("  export KUBECONFIG=%s\n  %s get jobs,pods -n %s\n", environment.AdminKubeconfig, environment.Kubectl(), env.AgentsNamespace)
	tell.printf("  curl %s/metrics\n", environment.Scaler.URL())
	tell.printf("  tail -f %s\n\nQueue another build:\n\n", environment.ScalerLog)
	tell.printf("  curl --cacert %s %s/_control/builds -H 'Content-Type: application/json' -d '{\"poolId\":%d,\"name\":\"mine\",\"demands\":[\"jdk\"],\"steps\":[\"hostname\",\"sleep 5\"]}'\n\n",
		environment.CAFile, environment.ServiceOrigin(), environment.Service.PoolID)
	<-ctx.Done()
	tell.printf("\nStopping.\n")
}

// printer prints until it fails once.
type printer struct {
	out io.Writer
	err error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.out, format, args...)
	}
}

// indent moves each line of what is written to the right. It is only for whole
// lines.
type indent struct{ out io.Writer }

func (i indent) Write(text []byte) (int, error) {
	for line := range splitLines(string(text)) {
		if _, err := fmt.Fprintf(i.out, "  %s\n", line); err != nil {
			return 0, err
		}
	}
	return len(text), nil
}

func round(d time.Duration) time.Duration { return d.Round(100 * time.Millisecond) }
