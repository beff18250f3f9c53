// Package worker is the stand-in's bin/Agent.Worker: it is given one job over a
// pipe, runs its steps and reports timeline, logs and result.
package worker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/faults"
	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/wire"
)

// MessageType is what the listener tells its worker.
type MessageType string

// The messages.
const (
	MessageJob      MessageType = "NewJobRequest"
	MessageCancel   MessageType = "CancelRequest"
	MessageShutdown MessageType = "AgentShutdown"
)

// Message is one line on the pipe from the listener.
type Message struct {
	Type  MessageType     `json:"type"`
	Job   json.RawMessage `json:"job,omitempty"`
	Agent *Agent          `json:"agent,omitempty"`
}

// Agent is what the worker has to know of its agent.
type Agent struct {
	ID       int64  `json:"id"`
	Name     string `json:"name"`
	Version  string `json:"version"`
	Platform string `json:"platform"`
	Host     string `json:"host"`
	Root     string `json:"root"`
	Work     string `json:"work"`
	Server   string `json:"server"`
	Faults   string `json:"faults"`
}

// exitBase is added to a result's number to make the worker's exit code, so that
// it can't be mistaken for that of a crash.
const exitBase = 100

// jobMessageLimit is how long a worker waits for its job.
const jobMessageLimit = 30 * time.Second

// ResultOfExit gives the result that an exit code stands for; other codes are crashes.
func ResultOfExit(code int) (result string, ok bool) {
	results := wire.Results()
	if code < exitBase || code >= exitBase+len(results) {
		return "", false
	}
	return results[code-exitBase], true
}

// Process is what surrounds the worker.
type Process struct {
	Listener io.Reader // The pipe.
	Env      map[string]string
	Stderr   io.Writer
	// Kill ends this process as SIGKILL does; it does not come back.
	Kill func()
}

// Main runs one job and gives the exit code.
func Main(p Process) int {
	code, err := p.run()
	if err != nil {
		_, _ = fmt.Fprintf(p.Stderr, "worker: %v\n", err)
	}
	return code
}

func (p Process) run() (int, error) {
	messages := make(chan Message)
	// The reader ends with the pipe, and at the latest with the process.
	go read(p.Listener, messages)
	var first Message
	select {
	case first = <-messages:
	case <-time.After(jobMessageLimit):
		return 1, fmt.Errorf("no job came within %s", jobMessageLimit)
	}
	if first.Type != MessageJob || first.Agent == nil {
		return 1, fmt.Errorf("the first message is %q, not a job", first.Type)
	}
	var job wire.Job
	if err := json.Unmarshal(first.Job, &job); err != nil {
		return 1, fmt.Errorf("the job cannot be read: %w", err)
	}
	switches, err := faults.Parse(first.Agent.Faults)
	if err != nil {
		return 1, err
	}
	log, closeLog, err := openDiag(first.Agent.Root)
	if err != nil {
		return 1, err
	}
	defer closeLog()
	j, err := newJob(job, *first.Agent, p.Env, switches, log)
	if err != nil {
		return 1, err
	}
	defer j.client.Close()
	j.kill = p.Kill
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go func() {
		// Without its listener nobody renews the lock or wants the result, which the
		// end of the pipe tells.
		message := <-messages
		if message.Type == "" {
			cancel(errListenerGone)
			return
		}
		cancel(errCanceled)
	}()
	result, err := j.run(ctx)
	if errors.Is(context.Cause(ctx), errListenerGone) {
		return 1, errListenerGone
	}
	log.Info("ended", "result", result)
	return exitBase + slices.Index(wire.Results(), result), err
}

// Reasons for which a job ends early.
var (
	errCanceled     = errors.New("the job was canceled")
	errListenerGone = errors.New("the listener is gone")
)

// read passes on the lines of the pipe; the channel is closed with it.
func read(pipe io.Reader, messages chan<- Message) {
	defer close(messages)
	reader := bufio.NewReader(pipe)
	for {
		line, err := reader.ReadBytes('\n')
		if err != nil {
			return
		}
		var message Message
		if json.Unmarshal(line, &message) != nil {
			return
		}
		messages <- message
	}
}

func openDiag(root string) (*slog.Logger, func(), error) {
	name := time.Now().UTC().Format("Worker_20060102-150405.000-utc.log")
	file, err := os.OpenFile(filepath.Join(root, "_diag", name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, nil, fmt.Errorf("open the worker's log: %w", err)
	}
	return slog.New(slog.NewTextHandler(file, nil)), func() { _ = file.Close() }, nil
}
