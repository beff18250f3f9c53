package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/console"
	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/faults"
	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/root"
	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/wire"
)

// phaseDelay is how long "Initialize job" and "Finalize job" take each.
const phaseDelay = 500 * time.Millisecond

// job is one job under way. Its goroutine owns it.
type job struct {
	wire     wire.Job
	agent    Agent
	env      map[string]string // Inherited from the listener.
	vars     *variables
	masker   *console.Masker
	client   *wire.Client
	report   *reporter
	switches faults.Set
	log      *slog.Logger
	kill     func() // Ends this process as SIGKILL does.

	result string // So far.
	order  int    // Of the last record.
}

func newJob(message wire.Job, agent Agent, env map[string]string, switches faults.Set, log *slog.Logger) (*job, error) {
	masker := &console.Masker{}
	endpoint, err := systemConnection(message)
	if err != nil {
		return nil, err
	}
	token := endpoint.Authorization.Parameters["AccessToken"]
	masker.Add(token)
	dir := root.Dir(agent.Root)
	certificates, err := dir.Certificates()
	if err != nil {
		return nil, err
	}
	proxy, err := dir.Proxy(env)
	if err != nil {
		return nil, err
	}
	client, err := wire.New(wire.Options{
		URL:        endpoint.URL,
		Credential: wire.Bearer(token),
		SkipVerify: certificates.SkipServerCertValidation,
		Proxy:      proxy.Choose,
		UserAgent:  fmt.Sprintf("VSServices/19 (NetStandard; Linux; stand-in) vstsagentcore-%s/%s worker", agent.Platform, agent.Version),
	})
	if err != nil {
		return nil, err
	}
	j := &job{
		wire: message, agent: agent, env: env, masker: masker, client: client, switches: switches, log: log,
		result: wire.ResultSucceeded,
	}
	j.vars = newVariables(message, agent, masker)
	j.showNetwork(proxy, certificates)
	j.report = &reporter{client: client, plan: message.Plan, timeline: message.Timeline.ID, log: log}
	return j, nil
}

// showNetwork tells the steps of a job how the agent reaches the service, and takes out of
// their environment what the agent was told, as the ExecutionContext of the real one does.
func (j *job) showNetwork(proxy root.Proxy, certificates root.Certificates) {
	if certificates.CACert != "" {
		j.vars.set("Agent.CAInfo", certificates.CACert, false)
	}
	for _, known := range []struct {
		name, value, variable string
		secret                bool
	}{
		{"Agent.ProxyUrl", proxy.Address, root.VariableProxy, false},
		{"Agent.ProxyUsername", proxy.Username, root.VariableProxyUser, false},
		{"Agent.ProxyPassword", proxy.Password, root.VariableProxyPassword, true},
	} {
		if proxy.Address != "" && known.value != "" {
			j.vars.set(known.name, known.value, known.secret)
			delete(j.env, known.variable)
		}
	}
}

func systemConnection(message wire.Job) (wire.Endpoint, error) {
	for _, endpoint := range message.Resources.Endpoints {
		if strings.EqualFold(endpoint.Name, "SystemVssConnection") {
			if endpoint.Authorization.Parameters["AccessToken"] == "" {
				return endpoint, errors.New("the job's endpoint SystemVssConnection has no AccessToken")
			}
			return endpoint, nil
		}
	}
	return wire.Endpoint{}, errors.New("the job has no endpoint SystemVssConnection")
}

// run runs the job and gives its result. ctx ends with the job's cancellation; what
// is reported afterwards is reported all the same.
func (j *job) run(ctx context.Context) (string, error) {
	reporting := context.WithoutCancel(ctx)
	j.report.orphaned = func() bool { return errors.Is(context.Cause(ctx), errListenerGone) }
	record := &wire.Record{ID: j.wire.JobID, Type: "Job", Name: j.wire.JobDisplayName, RefName: j.wire.JobName, WorkerName: j.agent.Name}
	j.report.begin(reporting, record)
	j.phase(ctx, record.ID, "Initialize job", true, j.initialize)
	for _, step := range j.wire.Steps {
		if j.report.orphaned() {
			break
		}
		if j.switches.Has(faults.WorkerCrash) {
			j.kill()
		}
		j.runStep(ctx, record.ID, step)
	}
	j.phase(ctx, record.ID, "Finalize job", false, func(lines *logWriter) error {
		lines.linef("Cleaning up task key")
		lines.linef("Finishing: Finalize job")
		return nil
	})
	if ctx.Err() != nil {
		j.result = wire.ResultCanceled
	}
	j.report.end(reporting, record, j.result)
	err := j.report.completed(reporting, wire.Event{Name: "JobCompleted", JobID: j.wire.JobID, RequestID: j.wire.RequestID, Result: j.result})
	if err != nil {
		j.result = wire.ResultFailed
	}
	return j.result, err
}

// newRecord makes the record of the job's next part.
func (j *job) newRecord(parent, id, name string) *wire.Record {
	j.order++
	if id == "" {
		id = uuid.NewString()
	}
	return &wire.Record{ID: id, ParentID: parent, Type: "Task", Name: name, Order: j.order, WorkerName: j.agent.Name}
}

// phase runs one of the parts that every job has around its steps. The first is cut
// short by a cancellation, the last is done in any case.
func (j *job) phase(ctx context.Context, parent, name string, cancelable bool, do func(*logWriter) error) {
	reporting := context.WithoutCancel(ctx)
	record := j.newRecord(parent, "", name)
	j.report.begin(reporting, record)
	lines := j.report.openLog(reporting, record, j.masker)
	lines.linef("##[section]Starting: %s", name)
	err := do(lines)
	delay := j.switches.Duration(faults.WorkerDelay, phaseDelay)
	if j.switches.Has(faults.NoWorkerDelay) {
		delay = 0
	}
	waiting := reporting
	if cancelable {
		waiting = ctx
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-waiting.Done():
	}
	result := wire.ResultSucceeded
	if err != nil {
		lines.linef("##[error]%v", err)
		record.Issues = append(record.Issues, wire.Issue{Type: "error", Message: err.Error()})
		record.ErrorCount++
		result = wire.ResultFailed
		j.result = wire.ResultFailed
	}
	lines.linef("##[section]Finishing: %s", name)
	lines.close()
	j.report.end(reporting, record, result)
}

// initialize makes the folders that steps expect.
func (j *job) initialize(lines *logWriter) error {
	lines.linef("Agent name: '%s'", j.agent.Name)
	lines.linef("Agent machine name: '%s'", j.agent.Host)
	lines.linef("Current agent version: '%s'", j.agent.Version)
	lines.linef("Prepare build directory.")
	// What an earlier job left in the temporary folder is nobody's business.
	if err := os.RemoveAll(j.vars.get("Agent.TempDirectory")); err != nil {
		return fmt.Errorf("clear the temporary folder: %w", err)
	}
	for _, name := range folders() {
		if err := os.MkdirAll(j.vars.get(name), 0o755); err != nil {
			return fmt.Errorf("make the folder of %s: %w", name, err)
		}
	}
	return nil
}
