package listener

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/faults"
	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/wire"
	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/worker"
)

const (
	renewInterval = 60 * time.Second
	// firstRenewals is how often the first renewal, without which no job starts, is tried.
	firstRenewals = 5
	// shutdownLimit and cancelLimit are how long a worker gets to end a cancelled job.
	shutdownLimit = 30 * time.Second
	cancelLimit   = time.Minute
	// finishAttempts is how often the result is reported.
	finishAttempts = 5
	finishPause    = 2 * time.Second
)

// reason is why a job is cancelled.
type reason int

const (
	cancelRequested reason = iota
	cancelShutdown
)

type cancellation struct {
	reason reason
	limit  time.Duration
}

// running is a job under way.
type running struct {
	id      string
	cancels chan cancellation // Takes one; later ones change nothing.
	done    chan struct{}     // Closed when the job is over and reported.
}

// cancel asks the job to end within limit; 0 is the usual limit.
func (r *running) cancel(why reason, limit time.Duration) {
	if limit <= 0 {
		limit = cancelLimit
	}
	select {
	case r.cancels <- cancellation{why, limit}:
	default:
	}
}

// dispatch is what one job needs. Its goroutine owns it.
type dispatch struct {
	l        *listener
	s        *session
	job      wire.Job
	raw      json.RawMessage
	switches faults.Set
	running  *running
}

// start runs a job besides the polling. The job outlives ctx: it ends by itself or
// by cancel.
func (l *listener) start(ctx context.Context, s *session, job wire.Job, raw json.RawMessage, switches faults.Set) *running {
	r := &running{id: job.JobID, cancels: make(chan cancellation, 1), done: make(chan struct{})}
	d := &dispatch{l: l, s: s, job: job, raw: raw, switches: switches, running: r}
	go func() {
		defer close(r.done)
		d.run(context.WithoutCancel(ctx))
	}()
	return r
}

func (d *dispatch) run(ctx context.Context) {
	if !d.renewFirst(ctx) {
		d.l.log.Error("job request not valid, no worker started", "request", d.job.RequestID)
		return
	}
	d.l.term.Stampf("Running job: %s", d.job.JobDisplayName)
	renewing, stopRenewing := context.WithCancel(ctx)
	lost := make(chan struct{})
	var renewal sync.WaitGroup
	renewal.Go(func() { d.renew(renewing, lost) })
	if d.switches.Has(faults.CrashDuringJob) {
		timer := time.AfterFunc(d.switches.Duration(faults.CrashDuringJob, 0), d.l.Kill)
		defer timer.Stop()
	}
	result := d.work(lost)
	d.l.term.Stampf("Job %s completed with result: %s", d.job.JobDisplayName, display(result))
	stopRenewing()
	renewal.Wait()
	d.finish(ctx, result)
}

// display writes a result as people read it: Succeeded for succeeded.
func display(result string) string {
	return string(bytes.ToUpper([]byte(result[:1]))) + result[1:]
}

// renewFirst takes the lock, and with it the job.
func (d *dispatch) renewFirst(ctx context.Context) bool {
	for range firstRenewals {
		until, err := d.s.client.RenewRequest(ctx, d.s.settings.PoolID, d.job.RequestID)
		if err == nil {
			d.l.log.Info("lock taken", "request", d.job.RequestID, "until", until)
			return true
		}
		d.l.log.Warn("lock not taken", "request", d.job.RequestID, "error", err)
		if gone(err) {
			return false
		}
		if sleep(ctx, finishPause) != nil {
			return false
		}
	}
	return false
}

// gone tells whether the request is not ours any more.
func gone(err error) bool {
	return wire.HasKey(err, wire.KeyJobNotFound, wire.KeyJobTokenExpired)
}

// renew keeps the lock until ctx ends; lost is closed when that is over for good.
func (d *dispatch) renew(ctx context.Context, lost chan<- struct{}) {
	interval := d.switches.Duration(faults.RenewInterval, renewInterval)
	for sleep(ctx, interval) == nil {
		if d.switches.Has(faults.NoRenew) {
			continue
		}
		_, err := d.s.client.RenewRequest(ctx, d.s.settings.PoolID, d.job.RequestID)
		if err == nil || ctx.Err() != nil {
			continue
		}
		d.l.log.Warn("lock not renewed", "request", d.job.RequestID, "error", err)
		if gone(err) {
			close(lost)
			return
		}
	}
}

// work runs the job in a worker process and gives its result.
func (d *dispatch) work(lost <-chan struct{}) string {
	w, err := d.startWorker()
	if err != nil {
		d.l.log.Error("worker not started", "error", err)
		return wire.ResultFailed
	}
	defer w.close()
	select {
	case <-w.exited:
		return w.result(d.l)
	case <-lost:
		d.stopWorker(w, worker.MessageCancel, cancelLimit)
		return wire.ResultAbandoned
	case c := <-d.running.cancels:
		kind := worker.MessageCancel
		if c.reason == cancelShutdown {
			kind = worker.MessageShutdown
		}
		d.stopWorker(w, kind, c.limit)
		return wire.ResultCanceled
	}
}

// stopWorker asks the worker to cancel its job, and kills it when it takes too long.
func (d *dispatch) stopWorker(w *workerProcess, kind worker.MessageType, limit time.Duration) {
	if err := w.send(worker.Message{Type: kind}); err != nil {
		d.l.log.Warn("worker not told to cancel", "error", err)
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-w.exited:
	case <-timer.C:
		d.l.log.Warn("worker killed: it did not end in time", "limit", limit)
		w.kill()
		<-w.exited
	}
}

// finish reports the result, without which the request stays open until its lock lapses.
func (d *dispatch) finish(ctx context.Context, result string) {
	for range finishAttempts {
		err := d.s.client.FinishRequest(ctx, d.s.settings.PoolID, d.job.RequestID, result)
		if err == nil {
			return
		}
		d.l.log.Warn("request not finished", "request", d.job.RequestID, "result", result, "error", err)
		if gone(err) || sleep(ctx, finishPause) != nil {
			return
		}
	}
}

// workerProcess is bin/Agent.Worker with the pipe through which it hears from us.
type workerProcess struct {
	cmd    *exec.Cmd
	pipe   *os.File
	output bytes.Buffer // Its stdout and stderr: read after exited.
	exited chan struct{}
	err    error // Of the process: read after exited.
}

// startWorker starts the worker, which inherits the listener's environment, and
// sends it the job.
func (d *dispatch) startWorker() (*workerProcess, error) {
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make the worker's pipe: %w", err)
	}
	w := &workerProcess{pipe: writer, exited: make(chan struct{})}
	w.cmd = exec.Command(d.l.Root.Path("bin", "Agent.Worker"), "spawnclient", "3")
	w.cmd.Dir = d.l.Root.Path("bin")
	w.cmd.Env = d.l.environ()
	w.cmd.ExtraFiles = []*os.File{reader}
	w.cmd.Stdout, w.cmd.Stderr = &w.output, &w.output
	// A step's grandchild that lives on holds the output open: don't wait for it.
	w.cmd.WaitDelay = 5 * time.Second
	err = w.cmd.Start()
	_ = reader.Close()
	if err != nil {
		_ = writer.Close()
		return nil, fmt.Errorf("start the worker: %w", err)
	}
	go func() {
		defer close(w.exited)
		w.err = w.cmd.Wait()
	}()
	err = w.send(worker.Message{Type: worker.MessageJob, Job: d.raw, Agent: &worker.Agent{
		ID:       d.s.settings.AgentID,
		Name:     d.s.settings.AgentName,
		Version:  d.l.release.Version,
		Platform: d.l.release.Platform,
		Host:     d.l.Host,
		Root:     string(d.l.Root),
		Work:     d.s.settings.WorkFolder,
		Server:   d.s.settings.ServerURL,
		Faults:   d.switches.String(),
	}})
	if err != nil {
		w.kill()
		<-w.exited
		w.close()
		return nil, fmt.Errorf("send the job to the worker: %w", err)
	}
	return w, nil
}

func (w *workerProcess) send(message worker.Message) error {
	line, err := json.Marshal(message)
	if err != nil {
		return err
	}
	_, err = w.pipe.Write(append(line, '\n'))
	return err
}

// kill ends the worker; an error says that it has ended already.
func (w *workerProcess) kill() { _ = w.cmd.Process.Kill() }

func (w *workerProcess) close() { _ = w.pipe.Close() }

// result reads the exit code of a worker that ended by itself.
func (w *workerProcess) result(l *listener) string {
	code := w.cmd.ProcessState.ExitCode()
	if result, ok := worker.ResultOfExit(code); ok {
		return result
	}
	l.log.Error("worker crashed", "error", errors.Join(w.err, errors.New(w.output.String())))
	return wire.ResultFailed
}
