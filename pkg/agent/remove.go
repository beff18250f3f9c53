package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
)

// Remove waits until it is asked to stop and then deletes the registration, within
// AZP_REMOVE_SHARE. While it waits it disables the agent once a build was claimed.
//
// It is a native sidecar: the kubelet stops it after the container of the build
// has ended, and kills it at the end of the pod's grace period.
func (s *Supervisor) Remove(ctx context.Context) Outcome {
	s.log.Info("keeping the registration until asked to stop", "agent", s.settings.AgentName, "share", s.settings.RemoveShare)
	if s.wait(ctx, func() bool { return isClaimed(s.settings.ClaimedDir) }) {
		if err := s.disableClaimed(ctx); err != nil {
			s.log.Warn("the agent could not be disabled after it had claimed its build: the service may assign it a second one that never runs", "err", err)
		}
	}
	<-ctx.Done()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.settings.RemoveShare)
	defer cancel()
	return outcomeOf(s.unregister(ctx), ExitUnreachable, "the registration is gone")
}

// disableClaimed disables the agent and tells run, which holds the build until then. One that
// is not registered gets no second build either.
func (s *Supervisor) disableClaimed(ctx context.Context) error {
	reg, err := s.recorded(ctx)
	if err != nil {
		return fmt.Errorf("which agent to disable is not known: %w", err)
	}
	if reg.AgentID != 0 {
		if err := s.disableAgent(ctx, reg); err != nil {
			return err
		}
	}
	if err := writeFile(filepath.Join(s.settings.VerdictDir, disabledFile), nil, 0o644); err != nil {
		s.log.Warn("that the agent is disabled could not be told: its build is held to the limit", "err", err)
	}
	return nil
}

// unregister deletes the recorded agent, or the one of our name if none was recorded.
func (s *Supervisor) unregister(ctx context.Context) error {
	reg, err := readRegistration(s.settings.RegistrationDir)
	switch {
	case err == nil:
		return s.deleteAgent(ctx, reg, persistent)
	case !errors.Is(err, fs.ErrNotExist):
		s.log.Warn("what configure recorded cannot be read; looking for the agent by its name", "err", err)
	}
	// Configure was cut short, or never ran. It may have registered the agent
	// without knowing.
	removed, err := s.removeByName(ctx, persistent)
	if err == nil && !removed {
		s.log.Info("there is no registration to delete", "agent", s.settings.AgentName)
	}
	return err
}

// Withdraw asks the service whether the agent is idle and, if so, deletes it; it
// tells run the verdict. It is the preStop hook of remove, which the kubelet calls
// at the moment it sends TERM to run. A claim that run has reported is verdict enough.
func (s *Supervisor) Withdraw(ctx context.Context) Outcome {
	limit := s.settings.WithdrawLimit
	// A little less than run waits, so that the verdict is there in time.
	ctx, cancel := context.WithTimeout(ctx, limit-limit/10)
	defer cancel()
	v, err := s.ask(ctx)
	if err == nil {
		err = writeVerdict(s.settings.VerdictDir, v)
	}
	message := "the agent was idle and is withdrawn"
	if v == verdictBusy {
		message = "the agent is busy and stays until its build has ended"
	}
	o := outcomeOf(err, ExitUnreachable, message)
	if err == nil {
		s.log.Info("the verdict is told", "agent", s.settings.AgentName, "verdict", message)
	}
	return o
}

func (s *Supervisor) ask(ctx context.Context) (verdict, error) {
	if isClaimed(s.settings.ClaimedDir) {
		return verdictBusy, nil
	}
	reg, err := s.recorded(ctx)
	if err != nil {
		return verdictNone, fmt.Errorf("which agent to withdraw is not known: %w", err)
	}
	if reg.AgentID == 0 {
		// What is not in the pool gets no build.
		return verdictWithdrawn, nil
	}
	return s.withdraw(ctx, reg)
}
