package worker

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/console"
	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/wire"
)

// What is reported is tried a few times: only the job's end is worth failing for.
const (
	attempts     = 4
	attemptPause = 500 * time.Millisecond
	attemptLimit = 30 * time.Second
	// pageSize is how much of a log is kept back at most.
	pageSize = 256 << 10
)

// reporter tells the service how the job goes. It is safe for concurrent use.
type reporter struct {
	client   *wire.Client
	plan     wire.Plan
	timeline string
	log      *slog.Logger
	// orphaned tells whether the listener is gone: as if it had crashed with it, the
	// worker then reports nothing more.
	orphaned func() bool
}

// try does a call until it succeeds or the attempts are used up.
func (r *reporter) try(ctx context.Context, what string, do func(context.Context) error) error {
	var err error
	for attempt := range attempts {
		if r.orphaned() {
			return errListenerGone
		}
		if attempt > 0 {
			time.Sleep(attemptPause << attempt)
		}
		limited, cancel := context.WithTimeout(ctx, attemptLimit)
		err = do(limited)
		cancel()
		if err == nil {
			return nil
		}
		r.log.Warn("not reported", "what", what, "error", err)
		if wire.IsUnauthorized(err) {
			break
		}
	}
	return fmt.Errorf("report %s: %w", what, err)
}

// update sends a record. One that fails for good is in the log already and stops nothing.
func (r *reporter) update(ctx context.Context, record *wire.Record) {
	_ = r.try(ctx, "record "+record.Name, func(ctx context.Context) error {
		return r.client.UpdateRecords(ctx, r.plan, r.timeline, *record)
	})
}

func (r *reporter) begin(ctx context.Context, record *wire.Record) {
	now := time.Now().UTC()
	record.StartTime, record.State = &now, "inProgress"
	r.update(ctx, record)
}

func (r *reporter) end(ctx context.Context, record *wire.Record, result string) {
	now := time.Now().UTC()
	record.FinishTime, record.State, record.Result, record.PercentComplete = &now, "completed", result, 100
	r.update(ctx, record)
}

// completed tells the plan that its job is over.
func (r *reporter) completed(ctx context.Context, event wire.Event) error {
	return r.try(ctx, "the job's end", func(ctx context.Context) error {
		return r.client.RaiseEvent(ctx, r.plan, event)
	})
}

// openLog begins the log of a record. ctx holds for all that is sent of it.
func (r *reporter) openLog(ctx context.Context, record *wire.Record, masker *console.Masker) *logWriter {
	return &logWriter{ctx: ctx, reporter: r, record: record, masker: masker}
}

// logWriter collects the lines of one record and sends them page by page. It is
// safe for concurrent use.
type logWriter struct {
	ctx      context.Context
	reporter *reporter
	record   *wire.Record
	masker   *console.Masker

	mu   sync.Mutex
	page bytes.Buffer
}

// linef adds a line, with the time before it and without the secrets.
func (w *logWriter) linef(format string, args ...any) {
	line := w.masker.Mask(fmt.Sprintf(format, args...))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.page.WriteString(time.Now().UTC().Format("2006-01-02T15:04:05.0000000Z "))
	w.page.WriteString(line)
	w.page.WriteByte('\n')
	if w.page.Len() >= pageSize {
		w.flush()
	}
}

func (w *logWriter) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flush()
}

func (w *logWriter) flush() {
	if w.page.Len() == 0 {
		return
	}
	// A page that can't be sent is lost, as the reporter has logged.
	_ = w.reporter.try(w.ctx, "the log of "+w.record.Name, func(ctx context.Context) error {
		if w.record.Log == nil {
			id, err := w.reporter.client.CreateLog(ctx, w.reporter.plan, `logs\`+uuid.NewString())
			if err != nil {
				return err
			}
			w.record.Log = &wire.LogRef{ID: id}
		}
		return w.reporter.client.AppendLog(ctx, w.reporter.plan, w.record.Log.ID, w.page.Bytes())
	})
	w.page.Reset()
}
