package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Run lays down what configure handed over and runs the agent for one build. When
// asked to stop it lets a running build go on for its share of the grace period,
// and an idle agent until the sidecar has told whether it is withdrawn.
//
// It holds no token. Without a handover it runs on what is in the agent root.
func (s *Supervisor) Run(ctx context.Context) Outcome {
	if s.settings.Token != nil {
		// It should not be here. Being known, it can at least be kept from the build.
		if secret, err := s.settings.Token.Token(ctx); err == nil {
			s.tokenSeen = secret.Reveal()
		}
	}
	if err := s.prepareRun(); err != nil {
		return outcomeOf(err, ExitConfiguration, "")
	}
	return s.supervise(ctx, &podCoordination{supervisor: s, log: s.log}, 0)
}

func (s *Supervisor) prepareRun() error {
	if err := s.checkRoot(); err != nil {
		return err
	}
	if !s.hasProgram() {
		return fail(ExitConfiguration, "%s is not in the agent root %s: put the agent program into the image, or mount the volume that configure downloads it to", listenerProgram, s.settings.Root)
	}
	if exists(filepath.Join(s.settings.HandoverDir, ".agent")) || !exists(filepath.Join(s.settings.Root, ".agent")) {
		if err := copyHandover(s.settings.HandoverDir, s.settings.Root, 0o600); err != nil {
			return fail(ExitConfiguration, "%w: configure must have run, with the same volume at AZP_HANDOVER_DIR", err)
		}
	}
	return s.makeBundle()
}

// All is configure, run and remove in one container. It waits idleLimit for a
// build, for ever if that is 0.
func (s *Supervisor) All(ctx context.Context) Outcome {
	reg, err := s.register(ctx)
	if err != nil {
		return stopped(ctx, outcomeOf(err, ExitConfigureFailed, ""))
	}
	direct := newDirectCoordination(ctx, s, reg)
	o := s.supervise(ctx, direct, s.settings.IdleLimit)
	direct.close()

	shares := s.shares()
	removal, cancel := context.WithTimeout(context.WithoutCancel(ctx), shares.Remove)
	defer cancel()
	if err := s.deleteAgent(removal, reg, persistent); err != nil {
		o.Message = fmt.Sprintf("%s; but %v", o.Message, err)
	}
	return o
}

func (s *Supervisor) shares() Shares {
	return Divide(s.settings.Grace, s.settings.RemoveShare, s.settings.WithdrawLimit)
}

// supervise answers the probes and runs the listener, again where it updates
// itself or asks for it, until it has ended for good.
func (s *Supervisor) supervise(ctx context.Context, with coordination, idleLimit time.Duration) Outcome {
	r := &runner{Supervisor: s, with: with, shares: s.shares(), idleLimit: idleLimit}
	r.ending.limit = s.settings.UpdateRestarts
	stopProbes, err := r.probes.serve(ctx, s.settings.ProbeAddress, s.log)
	if err != nil {
		return outcomeOf(err, ExitConfiguration, "")
	}
	defer stopProbes()
	defer func() {
		for _, l := range r.started {
			l.close()
		}
	}()
	for {
		if ctx.Err() != nil && !r.stayOn(ctx) {
			_, o := decide(r.ending)
			return o
		}
		before := r.programIdentity()
		l, err := s.startListener()
		if err != nil {
			return outcomeOf(err, ExitConfiguration, "")
		}
		s.log.Info("the agent program is started", "pid", l.cmd.Process.Pid)
		r.started = append(r.started, l)
		r.follow(ctx, l)
		r.ending.code = l.code
		next, o := decide(r.ending)
		switch next {
		case actEnd:
			r.sweep(l)
			return o
		case actUpdate:
			r.ending.updates++
			s.log.Info("the agent program updates itself", "exit_code", l.code, "update", r.ending.updates)
			if err := r.awaitUpdate(ctx, before); err != nil {
				return outcomeOf(err, ExitCrashed, "")
			}
		case actRetry:
			r.ending.retries++
			r.sweep(l)
			pause := min(s.timing.retryFirst<<r.ending.retries, s.timing.retryMax)
			s.log.Warn("the agent program ended with an error that it calls retryable; starting it again", "exit_code", l.code, "retry", r.ending.retries, "pause", pause)
			// Cut short by a stop, which the next round handles.
			sleep(ctx, pause)
		}
	}
}

// stayOn decides, while no listener runs, what to do when asked to stop: only an
// agent that the service says is busy is started again, for its build is on its way.
func (r *runner) stayOn(ctx context.Context) bool {
	r.beginStop()
	asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.shares.Verdict)
	defer cancel()
	v := r.with.ask(asking)
	r.ending.stopping = v != verdictBusy
	r.ending.withdrawn = v == verdictWithdrawn
	r.verdict = v
	return v == verdictBusy
}

// sweep ends what the listener left behind in its process group.
func (r *runner) sweep(l *listener) {
	if err := l.killGroup(); err != nil {
		r.log.Warn("what the agent program left behind could not be ended", "err", err)
	}
}

// identity tells one installed program from another.
type identity struct {
	listener os.FileInfo
	bin      string // What bin links to, empty for a folder.
}

// programIdentity looks at the program; zero if it is not there.
func (r *runner) programIdentity() identity {
	info, err := os.Stat(filepath.Join(r.settings.Root, listenerProgram))
	if err != nil || !r.hasProgram() {
		return identity{}
	}
	// An error means that it is a folder.
	link, _ := os.Readlink(filepath.Join(r.settings.Root, "bin"))
	return identity{listener: info, bin: link}
}

func (i identity) there() bool { return i.listener != nil }

func (i identity) same(other identity) bool {
	return i.there() && other.there() && i.bin == other.bin && os.SameFile(i.listener, other.listener) &&
		i.listener.ModTime().Equal(other.listener.ModTime())
}

// awaitUpdate waits until the update's script, which begins when the listener has
// ended, has put another program in place and that has stood still for a moment.
// One that stays as it was is run again: the update came to nothing.
func (r *runner) awaitUpdate(ctx context.Context, before identity) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.timing.updateWait)
	defer cancel()
	began := time.Now()
	var last identity
	ready := r.wait(ctx, func() bool {
		now := r.programIdentity()
		settled := now.there() && now.same(last)
		last = now
		return settled && (!now.same(before) || time.Since(began) >= r.timing.updateSettle)
	})
	if ready || last.there() {
		return nil
	}
	return fail(ExitCrashed, "the agent program updated itself, and %s was not back after %s", listenerProgram, r.timing.updateWait)
}

// runner is one run of the agent, over all starts of the listener.
type runner struct {
	*Supervisor

	with      coordination
	shares    Shares
	idleLimit time.Duration

	probes  probes
	started []*listener
	ending  ending
	verdict verdict
	// stopAsked is when the grace period began; zero before.
	stopAsked time.Time
}

func (r *runner) beginStop() {
	if r.stopAsked.IsZero() {
		r.stopAsked = time.Now()
		r.log.Info("asked to stop", "build_share", r.shares.Build, "claimed", r.ending.claimed)
	}
}

// alarm is a timer that is off until it is set.
type alarm struct{ timer *time.Timer }

// c fires once when the time that was set has come; nil while it is off.
func (a *alarm) c() <-chan time.Time {
	if a.timer == nil {
		return nil
	}
	return a.timer.C
}

func (a *alarm) set(d time.Duration) {
	a.off()
	a.timer = time.NewTimer(max(d, 0))
}

func (a *alarm) off() {
	if a.timer != nil {
		a.timer.Stop()
		a.timer = nil
	}
}

// follow watches one listener until it has ended and its last lines are read.
func (r *runner) follow(ctx context.Context, l *listener) {
	f := &following{runner: r, listener: l, stop: ctx.Done()}
	defer f.end()
	if !r.stopAsked.IsZero() {
		// It was started because a build is on its way.
		f.stop = nil
		f.assigned.set(r.timing.assigned)
	}
	events := l.events
	exited := l.exited
	// An answer is waited for although the listener has ended: it may have ended
	// just because its registration was withdrawn.
	for exited != nil || events != nil || f.question != nil {
		select {
		case e, open := <-events:
			if !open {
				events = nil
				continue
			}
			f.heard(e)
		case <-exited:
			exited = nil
			f.drain.set(r.timing.drain)
		case <-f.stop:
			f.stop = nil
			r.beginStop()
			f.onStop(ctx)
		case v := <-f.answers:
			f.answered(v)
		case <-f.idle.c():
			f.idle.off()
			r.log.Info("no build came within the idle limit", "limit", r.idleLimit)
			f.askVerdict(ctx, r.settings.WithdrawLimit)
		case <-f.assigned.c():
			f.assigned.off()
			r.log.Warn("the assigned build did not arrive", "limit", r.timing.assigned)
			f.giveUp()
		case <-f.share.c():
			f.share.off()
			f.overtime()
		case <-f.hang.c():
			f.hang.off()
			r.log.Warn("the agent program is still there after its build: killing it", "limit", r.settings.HangLimit)
			r.ending.hung = true
			f.kill()
		case <-f.killing.c():
			f.killing.off()
			r.log.Warn("the agent program did not end after INT: killing it", "limit", r.shares.Cancel)
			f.kill()
		case <-f.drain.c():
			f.drain.off()
			l.ignore()
			events = nil
		}
	}
}

// following is the watch over one listener.
type following struct {
	*runner

	listener *listener
	stop     <-chan struct{}
	answers  chan verdict
	// question ends the question for the verdict; nil while none is asked.
	question context.CancelFunc

	idle, assigned, share, hang, killing, drain alarm
}

// end stops what still waits.
func (f *following) end() {
	f.listener.ignore()
	f.dropQuestion()
	for _, a := range []*alarm{&f.idle, &f.assigned, &f.share, &f.hang, &f.killing, &f.drain} {
		a.off()
	}
}

// heard takes a line of the listener.
func (f *following) heard(e event) {
	switch e.kind {
	case lineListening:
		f.ending.listened = true
		f.probes.listening.Store(true)
		if f.idleLimit > 0 && !f.ending.claimed && f.stopAsked.IsZero() {
			f.idle.set(f.idleLimit)
		}
	case lineRunning:
		f.claim(e.job)
	case lineResult:
		f.ending.finished = true
		f.log.Info("the build ended", "job", e.job, "result", e.result)
		f.hang.set(f.settings.HangLimit)
	case lineOther:
	}
}

// claim notes that a build was handed over. Whatever was under way to stop an
// idle agent is off: the build is let finish.
func (f *following) claim(job string) {
	f.probes.claimed.Store(true)
	f.idle.off()
	f.assigned.off()
	f.hang.off()
	f.dropQuestion()
	if f.ending.stopping {
		// INT is on its way already and will cancel the build.
		f.ending.cut = true
	}
	first := !f.ending.claimed
	f.ending.claimed = true
	f.ending.finished = false
	if first {
		f.log.Info("a build was claimed", "job", job)
		f.with.claimed()
	}
	if asked := f.stopAsked; !asked.IsZero() {
		f.share.set(time.Until(asked.Add(f.shares.Build)))
	}
}

// onStop acts on being asked to stop.
func (f *following) onStop(ctx context.Context) {
	f.idle.off()
	if f.ending.claimed {
		f.share.set(f.shares.Build)
		return
	}
	if f.question == nil {
		f.askVerdict(ctx, f.shares.Verdict)
	}
}

// askVerdict finds out beside the watch whether the idle agent may go.
func (f *following) askVerdict(ctx context.Context, limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	f.question = cancel
	answers := make(chan verdict, 1)
	f.answers = answers
	go func() {
		defer cancel()
		answers <- f.with.ask(ctx)
	}()
}

// dropQuestion ends a question whose answer does not matter any more, and waits
// for its end.
func (f *following) dropQuestion() {
	if f.question == nil {
		return
	}
	f.question()
	<-f.answers
	f.question = nil
}

// answered acts on the verdict.
func (f *following) answered(v verdict) {
	f.question = nil
	f.verdict = v
	switch {
	case v == verdictWithdrawn:
		f.log.Info("the agent is withdrawn; stopping the agent program")
		f.ending.withdrawn = true
		f.ending.stopping = true
		f.interrupt()
	case v == verdictBusy:
		f.log.Info("a build is on its way; going on")
		f.assigned.set(f.timing.assigned)
	case f.stopAsked.IsZero():
		// Only idleness asked, and the service did not answer: the agent goes on idling.
		f.idle.set(f.timing.idleRetry)
	default:
		f.log.Warn("no verdict came; stopping the agent program")
		f.giveUp()
	}
}

// overtime ends what is left of a build when its share of the grace period is over.
func (f *following) overtime() {
	if f.ending.finished {
		f.ending.hung = true
		f.kill()
		return
	}
	f.log.Warn("the build's share of the grace period is over: cancelling the build", "share", f.shares.Build)
	f.ending.cut = true
	f.interrupt()
}

// giveUp stops the idle listener without a verdict.
func (f *following) giveUp() {
	f.ending.stopping = true
	f.interrupt()
}

// interrupt asks the listener to end, and sees to it that it does.
func (f *following) interrupt() {
	if err := f.listener.interrupt(); err != nil {
		f.log.Warn("the agent program could not be interrupted", "err", err)
	}
	f.killing.set(f.shares.Cancel)
}

func (f *following) kill() {
	if err := f.listener.killGroup(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		f.log.Error("the agent program could not be killed", "err", err)
	}
}
