package listener

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/faults"
	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/wire"
)

// run listens for jobs until it is told to stop, its one job is over or an update
// is under way, and gives the exit code.
func (l *listener) run(ctx context.Context) int {
	if !l.Root.IsConfigured() {
		l.term.Errorf("Not configured. Run ./config.sh to configure the agent.")
		return ExitTerminated
	}
	strikes, err := l.faults.Strike(faults.ListenerExit2)
	if err != nil {
		l.term.Errorf("An error occurred: %v", err)
		return ExitTerminated
	}
	if strikes {
		l.term.Errorf("An error occurred: unhandled exception (fault %s)", faults.ListenerExit2)
		return ExitRetryable
	}
	if l.faults.Has(faults.NeverRegisters) {
		l.hang()
	}
	settings, err := l.Root.Settings()
	if err != nil {
		l.term.Errorf("An error occurred: %v", err)
		return ExitTerminated
	}
	credential, err := l.ownCredential()
	if err != nil {
		l.term.Errorf("An error occurred: %v", err)
		return ExitTerminated
	}
	client, err := l.client(settings.ServerURL, credential)
	if err != nil {
		l.term.Errorf("An error occurred: %v", err)
		return ExitTerminated
	}
	defer client.Close()
	code, err := l.listen(ctx, &session{l: l, client: client, settings: settings})
	switch {
	case ctx.Err() != nil:
		return ExitDone
	case errors.Is(err, errRevoked):
		l.log.Warn("credential revoked, shutting down")
		return ExitDone
	case err != nil:
		l.term.Errorf("An error occurred: %v", err)
		return ExitTerminated
	}
	return code
}

// listen opens the session and serves its queue.
func (l *listener) listen(ctx context.Context, s *session) (int, error) {
	stopNotice := context.AfterFunc(ctx, func() { l.term.Linef("Exiting...") })
	defer stopNotice()
	if err := sleep(ctx, l.faults.Duration(faults.SlowListen, 0)); err != nil {
		return ExitDone, err
	}
	if err := s.open(ctx); err != nil {
		return ExitTerminated, err
	}
	defer s.close(ctx)
	l.term.Stampf("Listening for Jobs")
	if l.faults.Has(faults.CrashBeforeJob) {
		if err := sleep(ctx, l.faults.Duration(faults.CrashBeforeJob, 0)); err == nil {
			l.Kill()
		}
	}
	q := &queue{l: l, s: s, once: l.command.on(flagOnce), switches: l.faults}
	return q.serve(ctx)
}

// received is one outcome of polling.
type received struct {
	message *wire.Message
	err     error
}

// queue is the listener's loop over the messages of its session. Its fields belong
// to serve.
type queue struct {
	l    *listener
	s    *session
	once bool

	switches faults.Set // Of the agent, and of its job once there is one.
	job      *running
	ran      bool // A once-agent has got its job.
	updating chan bool
	updates  sync.WaitGroup
}

// serve handles message after message. What it starts has ended when it returns.
func (q *queue) serve(ctx context.Context) (int, error) {
	polling, stopPolling := context.WithCancel(ctx)
	messages := make(chan received)
	var helpers sync.WaitGroup
	helpers.Go(func() { q.poll(polling, messages) })
	helpers.Go(func() { q.s.keepAlive(polling) })
	defer func() {
		stopPolling()
		helpers.Wait()
		q.updates.Wait()
	}()
	if strikes, err := q.l.faults.Strike(faults.Exit4Update); err != nil {
		return ExitTerminated, err
	} else if strikes {
		q.startUpdate(polling, wire.AgentRefresh{TargetVersion: q.l.release.Version})
	}
	for {
		select {
		case <-ctx.Done():
			q.endJob()
			return ExitDone, ctx.Err()
		case got := <-messages:
			if got.err != nil {
				q.endJob()
				return ExitTerminated, got.err
			}
			q.handle(ctx, polling, got.message)
		case <-q.jobDone():
			q.job = nil
			if q.once {
				stopPolling()
				return q.finish(ctx), nil
			}
		case ready := <-q.updating:
			q.updating = nil
			if ready {
				return map[bool]int{true: ExitUpdatingOnce, false: ExitUpdating}[q.once], nil
			}
		}
	}
}

func (q *queue) poll(ctx context.Context, messages chan<- received) {
	for {
		message, err := q.s.next(ctx)
		select {
		case messages <- received{message, err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// finish is what a once-agent does after its job.
func (q *queue) finish(ctx context.Context) int {
	if q.switches.Has(faults.HangAfterJob) {
		q.l.hang()
	}
	// The pause may be cut short by a signal; it is over either way.
	_ = sleep(ctx, q.switches.Duration(faults.Linger, 0))
	return ExitDone
}

func (q *queue) jobDone() <-chan struct{} {
	if q.job == nil {
		return nil
	}
	return q.job.done
}

// endJob cancels a job that runs and waits for its end.
func (q *queue) endJob() {
	if q.job != nil {
		q.job.cancel(cancelShutdown, shutdownLimit)
		<-q.job.done
		q.job = nil
	}
}

// handle does what a message asks for, and deletes it unless it is for another run.
func (q *queue) handle(ctx, polling context.Context, message *wire.Message) {
	q.l.log.Info("message", "id", message.ID, "type", message.Type)
	keep := false
	switch {
	case strings.EqualFold(message.Type, wire.MessageJob):
		keep = !q.handleJob(ctx, message)
	case strings.EqualFold(message.Type, wire.MessageCancel):
		keep = !q.handleCancel(message) && (q.ran || q.updating != nil)
	case strings.EqualFold(message.Type, wire.MessageRefresh):
		var refresh wire.AgentRefresh
		if err := json.Unmarshal([]byte(message.Body), &refresh); err != nil {
			q.l.log.Error("update order not understood", "error", err)
		} else if q.updating == nil {
			q.startUpdate(polling, refresh)
		}
	default:
		q.l.log.Error("message of an unsupported type", "type", message.Type)
	}
	if !keep {
		q.s.deleteMessage(ctx, message.ID)
	}
}

// handleJob starts the job and tells whether the message is done with. A once-agent
// that had its job, and one about to be updated, leave it to whoever comes next.
func (q *queue) handleJob(ctx context.Context, message *wire.Message) bool {
	if q.job != nil && !q.once {
		// The service gives the next job as soon as it has the last one's result; an agent
		// that takes job after job first lets that one's worker end.
		select {
		case <-q.job.done:
			q.job = nil
		case <-ctx.Done():
		}
	}
	if q.updating != nil || q.ran || q.job != nil {
		q.l.log.Warn("job left in the queue", "message", message.ID)
		return false
	}
	var job wire.Job
	if err := json.Unmarshal([]byte(message.Body), &job); err != nil {
		q.l.log.Error("job not understood", "error", err)
		return true
	}
	switches, err := q.l.faults.With(job.Variables["fakeagent.faults"].Value)
	if err != nil {
		q.l.term.Errorf("An error occurred: variable fakeagent.faults: %v", err)
	} else {
		q.switches = switches
		q.l.deaf.Store(switches.Has(faults.IgnoreInt))
	}
	q.ran = q.once
	q.job = q.l.start(ctx, q.s, job, json.RawMessage(message.Body), q.switches)
	return true
}

// handleCancel cancels the job that the message is about and tells whether it runs.
func (q *queue) handleCancel(message *wire.Message) bool {
	var cancellation wire.JobCancellation
	if err := json.Unmarshal([]byte(message.Body), &cancellation); err != nil {
		q.l.log.Error("cancellation not understood", "error", err)
		return false
	}
	if q.job == nil || !strings.EqualFold(q.job.id, cancellation.JobID) {
		return false
	}
	if q.switches.Has(faults.IgnoreCancel) {
		return true
	}
	q.job.cancel(cancelRequested, time.Duration(cancellation.Timeout))
	return true
}

// startUpdate prepares an update besides the polling; its outcome arrives on
// q.updating.
func (q *queue) startUpdate(ctx context.Context, refresh wire.AgentRefresh) {
	outcome := make(chan bool, 1)
	q.updating = outcome
	job := q.job
	u := updater{l: q.l, client: q.s.client, once: q.once}
	q.updates.Go(func() {
		if job != nil {
			select {
			case <-job.done:
			case <-ctx.Done():
			}
		}
		err := u.update(ctx, refresh.TargetVersion)
		if err != nil {
			q.l.log.Error("update failed", "error", err)
			q.l.term.Errorf("Agent update failed: %v", err)
		}
		outcome <- err == nil
	})
}
