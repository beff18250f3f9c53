package agent

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// workerProgram is what the listener starts for each build.
const workerProgram = "Agent.Worker"

// hold keeps a build from getting on before its agent is disabled. The service takes an
// agent whose build has ended for free until its session is gone, and may give it a second
// build, which is lost. A build that takes longer than the disabling never comes to that;
// this has every build take longer.
//
// The worker is stopped by a signal as soon as it shows, and goes on when the agent is
// disabled, or at the limit. The program itself is left as it is. A job that the worker is
// sent meanwhile waits in its pipe, and its lock is the listener's to renew.
type hold struct {
	runner *runner
	parent int // The listener.

	release context.CancelFunc // Lets the build begin.
	cancel  context.CancelFunc // Ends the disabling.
	done    sync.WaitGroup
}

// startHold has the agent disabled, and holds its build until that is done.
func (r *runner) startHold(ctx context.Context, listener int) *hold {
	// Being asked to stop changes nothing for a build that was claimed.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	holding, release := context.WithCancel(ctx)
	h := &hold{runner: r, parent: listener, release: release, cancel: cancel}
	told := make(chan error, 1)
	h.done.Go(func() {
		err := r.with.claimed(ctx)
		if err == nil || errors.Is(err, errNobodyDisables) {
			told <- err
		} else if !errors.Is(err, context.Canceled) {
			// Its build is held to the limit: what failed for us may have been done all the same.
			r.log.Warn("whether the agent is disabled, now that it has its build, is not known: the service may give it a second one that never runs", "err", err)
		}
	})
	if r.settings.HoldLimit > 0 {
		h.done.Go(func() { h.keep(holding, told) })
	}
	return h
}

// end ends both, and waits for it.
func (h *hold) end() {
	h.release()
	h.cancel()
	h.done.Wait()
}

// keep stops the worker until it is told that the agent is disabled.
func (h *hold) keep(ctx context.Context, told <-chan error) {
	began := time.Now()
	limit := time.NewTimer(h.runner.settings.HoldLimit)
	defer limit.Stop()
	look := time.NewTicker(h.runner.timing.look)
	defer look.Stop()
	var worker *os.Process
	defer func() {
		if worker != nil {
			h.signal(worker, syscall.SIGCONT)
			_ = worker.Release()
		}
	}()
	for {
		select {
		case err := <-told:
			if err != nil {
				return // Nobody disables it at once, and has said so.
			}
			h.runner.log.Info("the build may begin: its agent is disabled", "held", time.Since(began).Round(time.Millisecond), "stopped", worker != nil)
			return
		case <-limit.C:
			h.runner.log.Warn("the build begins though its agent may not be disabled: should it end before that, the service may give the agent a second one that never runs", "limit", h.runner.settings.HoldLimit)
			return
		case <-ctx.Done():
			return
		case <-look.C:
			if worker == nil {
				worker = findWorker(h.parent)
				if worker != nil {
					h.signal(worker, syscall.SIGSTOP)
				}
			}
		}
	}
}

func (h *hold) signal(worker *os.Process, signal syscall.Signal) {
	if err := worker.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		h.runner.log.Warn("the worker could not be signalled", "signal", signal.String(), "err", err)
	}
}

// findWorker gives the worker that a listener has started, nil if there is none yet.
func findWorker(listener int) *os.Process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || !isWorkerOf(pid, listener) {
			continue
		}
		worker, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		// What has the number may have changed before it was taken hold of, and not after.
		if isWorkerOf(pid, listener) {
			return worker
		}
		_ = worker.Release()
	}
	return nil
}

// isWorkerOf reports whether a process is a listener's worker.
func isWorkerOf(pid, listener int) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil || parentIn(string(stat)) != listener {
		return false
	}
	command, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return false
	}
	program, _, _ := bytes.Cut(command, []byte{0})
	return filepath.Base(string(program)) == workerProgram
}

// parentIn reads the parent's number in /proc/PID/stat, 0 if there is none. The name before
// it is in brackets and may hold anything, brackets included.
func parentIn(stat string) int {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 2 {
		return 0
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return 0
	}
	return parent
}
