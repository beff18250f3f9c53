package agent

import (
	"context"
	"errors"
	"os"
	"time"
)

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
			f.heard(ctx, e)
		case <-exited:
			exited = nil
			r.with.ended()
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
func (f *following) heard(ctx context.Context, e event) {
	switch e.kind {
	case lineListening:
		f.ending.listened = true
		f.probes.listening.Store(true)
		if f.idleLimit > 0 && !f.ending.claimed && f.stopAsked.IsZero() {
			f.idle.set(f.idleLimit)
		}
	case lineRunning:
		f.claim(ctx, e.job)
	case lineResult:
		f.ending.finished = true
		f.log.Info("the build ended", "job", e.job, "result", e.result)
		f.hang.set(f.settings.HangLimit)
	case lineOther:
	}
}

// claim notes that a build was handed over. Whatever was under way to stop an
// idle agent is off: the build is let finish.
func (f *following) claim(ctx context.Context, job string) {
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
		f.hold = f.startHold(ctx, f.listener.cmd.Process.Pid)
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
	if f.hold != nil {
		f.hold.release() // What is to be cancelled must be able to hear of it.
	}
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
