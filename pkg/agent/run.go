package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// Run lays down what configure handed over and runs the agent for one build. When
// asked to stop it lets a running build go on for its share of the grace period,
// and an idle agent until the sidecar has told whether it is withdrawn. Where the scaler
// has registered the agent, it has handed over the same files and withdraws the agent.
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
	var with coordination = &podCoordination{supervisor: s, log: s.log}
	if s.settings.Registration == agentpool.RegistrationJIT {
		with = newScalerCoordination(s)
	}
	return s.supervise(ctx, with, 0)
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
	if err := s.layDownNetwork(); err != nil {
		return err
	}
	return s.layDownAuthority()
}

// All is configure, run and remove in one container. It waits idleLimit for a
// build, for ever if that is 0.
func (s *Supervisor) All(ctx context.Context) Outcome {
	reg, err := s.register(ctx)
	if err != nil {
		return stopped(ctx, outcomeOf(err, ExitConfigureFailed, ""))
	}
	o := s.supervise(ctx, directCoordination{supervisor: s, reg: reg}, s.settings.IdleLimit)

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
		if r.hold != nil {
			r.hold.end()
		}
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
	hold    *hold // Of the build; nil before.
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
