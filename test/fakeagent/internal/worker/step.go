package worker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/wire"
)

// How long a cancelled step gets after SIGINT and after SIGTERM.
const (
	interruptGrace = 7500 * time.Millisecond
	terminateGrace = 2500 * time.Millisecond
	// outputGrace is how long output is read on once the step's shell has ended.
	outputGrace = 5 * time.Second
	// maxLine is the longest line of output that is kept whole.
	maxLine = 1 << 20
)

// step is one step under way.
type step struct {
	j      *job
	record *wire.Record
	lines  *logWriter

	mu       sync.Mutex
	declared string // Result that the step's output declared.
}

// runStep runs a step, or skips it, and counts its result in the job's.
func (j *job) runStep(ctx context.Context, parent string, message wire.Step) {
	reporting := context.WithoutCancel(ctx)
	name := message.DisplayName
	if name == "" {
		name = message.Name
	}
	if message.Enabled != nil && !*message.Enabled {
		return
	}
	record := j.newRecord(parent, message.ID, name)
	record.RefName = message.Name
	wanted, err := j.wanted(ctx, message.Condition)
	if err == nil && !wanted {
		j.report.end(reporting, record, wire.ResultSkipped)
		return
	}
	j.report.begin(reporting, record)
	s := &step{j: j, record: record, lines: j.report.openLog(reporting, record, j.masker)}
	s.lines.linef("##[section]Starting: %s", name)
	result := wire.ResultFailed
	if err == nil {
		result, err = s.run(ctx, message)
	}
	if err != nil {
		s.issue("error", err.Error())
		s.lines.linef("##[error]%v", err)
	}
	if result == wire.ResultFailed && message.ContinueOnError {
		result = wire.ResultIssues
	}
	s.lines.linef("##[section]Finishing: %s", name)
	s.lines.close()
	j.report.end(reporting, record, result)
	j.count(result)
	j.log.Info("step ended", "step", name, "result", result)
}

// count merges a step's result into the job's: the worst one stays.
func (j *job) count(result string) {
	switch result {
	case wire.ResultFailed:
		j.result = wire.ResultFailed
		j.vars.set("Agent.JobStatus", "Failed", false)
	case wire.ResultIssues:
		if j.result == wire.ResultSucceeded {
			j.result = wire.ResultIssues
			j.vars.set("Agent.JobStatus", "SucceededWithIssues", false)
		}
	}
}

// wanted evaluates a step's condition: the status functions, which is what pipelines
// mostly have there.
func (j *job) wanted(ctx context.Context, condition string) (bool, error) {
	canceled := ctx.Err() != nil
	failed := j.result == wire.ResultFailed
	switch strings.ToLower(strings.ReplaceAll(condition, " ", "")) {
	case "", "succeeded()":
		return !canceled && !failed, nil
	case "failed()":
		return !canceled && failed, nil
	case "succeededorfailed()":
		return !canceled, nil
	case "canceled()":
		return canceled, nil
	case "always()":
		return true, nil
	default:
		return false, fmt.Errorf("condition %q is not supported by the stand-in: use one of the status functions", condition)
	}
}

// run runs the step's script and gives its result; the error says what went wrong.
func (s *step) run(ctx context.Context, message wire.Step) (string, error) {
	if task := message.Reference.Name; !strings.EqualFold(task, "CmdLine") && !strings.EqualFold(task, "Bash") {
		return wire.ResultFailed, fmt.Errorf("task %q is not supported by the stand-in: only CmdLine and Bash are", task)
	}
	vars := s.j.vars
	script := filepath.Join(vars.get("Agent.TempDirectory"), uuid.NewString()+".sh")
	if err := os.WriteFile(script, []byte(vars.expand(message.Inputs["script"])+"\n"), 0o644); err != nil {
		return wire.ResultFailed, fmt.Errorf("write the script: %w", err)
	}
	defer func() { _ = os.Remove(script) }()
	dir := vars.expand(message.Inputs["workingDirectory"])
	if dir == "" {
		dir = vars.get("System.DefaultWorkingDirectory")
	}
	// A step that always runs is run after a cancellation too.
	if ctx.Err() != nil {
		ctx = context.WithoutCancel(ctx)
	}
	if message.TimeoutInMinutes > 0 {
		limited, cancel := context.WithTimeout(ctx, time.Duration(message.TimeoutInMinutes)*time.Minute)
		defer cancel()
		ctx = limited
	}
	s.lines.linef("Generating script.")
	s.lines.linef("========================== Starting Command Output ===========================")
	s.lines.linef("[command]/bin/bash --noprofile --norc %s", script)
	code, err := s.shell(ctx, script, dir, vars.environment(s.j.env, message.Environment))
	if err != nil {
		return wire.ResultFailed, err
	}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return wire.ResultFailed, fmt.Errorf("the step took more than its %d minutes", message.TimeoutInMinutes)
	case ctx.Err() != nil:
		return wire.ResultCanceled, errors.New("the operation was canceled")
	case code != 0:
		return wire.ResultFailed, fmt.Errorf("bash exited with code '%d'", code)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.declared != "" {
		return s.declared, nil
	}
	return wire.ResultSucceeded, nil
}

// shell runs the script until its end, or ends it when ctx does.
func (s *step) shell(ctx context.Context, script, dir string, env []string) (int, error) {
	reader, writer, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("make the script's pipe: %w", err)
	}
	defer func() { _ = reader.Close() }()
	cmd := exec.Command("/bin/bash", "--noprofile", "--norc", script)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, env, writer, writer
	// A group of its own, so that what the script starts can be ended with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	_ = writer.Close()
	if err != nil {
		return 0, fmt.Errorf("start the script: %w", err)
	}
	exited := make(chan struct{})
	drained := make(chan struct{})
	var stopper sync.WaitGroup
	stopper.Go(func() { stop(ctx, cmd.Process.Pid, exited) })
	go func() {
		defer close(drained)
		s.read(reader)
	}()
	// Only the exit code is of interest, and an error is one of those.
	_ = cmd.Wait()
	close(exited)
	stopper.Wait()
	// What the script left running keeps the pipe open: it is not waited for long.
	_ = reader.SetReadDeadline(time.Now().Add(outputGrace))
	<-drained
	return cmd.ProcessState.ExitCode(), nil
}

// stop ends the script's processes once ctx ends: gently, then less so.
func stop(ctx context.Context, group int, exited <-chan struct{}) {
	select {
	case <-exited:
		return
	case <-ctx.Done():
	}
	if errors.Is(context.Cause(ctx), errListenerGone) {
		_ = syscall.Kill(-group, syscall.SIGKILL)
		return
	}
	for _, try := range []struct {
		signal syscall.Signal
		grace  time.Duration
	}{{syscall.SIGINT, interruptGrace}, {syscall.SIGTERM, terminateGrace}} {
		// An error says that the group has ended.
		_ = syscall.Kill(-group, try.signal)
		timer := time.NewTimer(try.grace)
		select {
		case <-exited:
			timer.Stop()
			_ = syscall.Kill(-group, syscall.SIGKILL)
			return
		case <-timer.C:
		}
	}
	_ = syscall.Kill(-group, syscall.SIGKILL)
}

// read passes the script's output on, line by line.
func (s *step) read(output io.Reader) {
	reader := bufio.NewReaderSize(output, maxLine)
	for {
		line, err := reader.ReadSlice('\n')
		if len(line) > 0 {
			s.line(strings.TrimRight(string(line), "\r\n"))
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// line takes one line of output, which may be a command to the agent.
func (s *step) line(text string) {
	command, ok := parseCommand(text)
	if !ok {
		s.lines.linef("%s", text)
		return
	}
	switch command.name {
	case "task.setvariable":
		s.mu.Lock()
		s.j.vars.set(command.properties["variable"], command.data, strings.EqualFold(command.properties["issecret"], "true"))
		s.mu.Unlock()
	case "task.complete":
		s.mu.Lock()
		s.declared = map[string]string{
			"failed": wire.ResultFailed, "succeededwithissues": wire.ResultIssues, "succeeded": wire.ResultSucceeded,
		}[strings.ToLower(command.properties["result"])]
		s.mu.Unlock()
	case "task.logissue":
		kind := command.properties["type"]
		s.issue(kind, command.data)
		s.lines.linef("##[%s]%s", kind, command.data)
	case "task.debug":
		s.lines.linef("##[debug]%s", command.data)
	default:
		s.lines.linef("##[warning]command %s is not supported by the stand-in", command.name)
	}
}

func (s *step) issue(kind, message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if kind == "error" {
		s.record.ErrorCount++
	} else {
		s.record.WarningCount++
	}
	s.record.Issues = append(s.record.Issues, wire.Issue{Type: kind, Message: s.j.masker.Mask(message)})
}
