package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
)

// Configure registers the agent, records its id for remove, and hands the agent's
// own files over to run. When it fails after the service may have registered the
// agent, it takes the registration back.
func (s *Supervisor) Configure(ctx context.Context) Outcome {
	reg, err := s.register(ctx)
	if err == nil {
		err = s.handOver(ctx, reg)
	}
	return stopped(ctx, outcomeOf(err, ExitConfigureFailed, fmt.Sprintf("agent %q is registered", s.settings.AgentName)))
}

// stopped says of a step that ended with an error because it was asked to stop,
// that no build came.
func stopped(ctx context.Context, o Outcome) Outcome {
	if o.Code != ExitDone && ctx.Err() != nil {
		return Outcome{Code: ExitNoBuild, Message: "asked to stop before the agent was registered: " + o.Message}
	}
	return o
}

// handOver leaves for the other containers what they need: the id first, so that
// remove knows it whatever follows.
func (s *Supervisor) handOver(ctx context.Context, reg registration) error {
	err := writeRegistration(s.settings.RegistrationDir, reg)
	if err == nil {
		// Readable for the group, which is the volume's, and laid down as 0600 by run.
		err = copyHandover(s.settings.Root, s.settings.HandoverDir, 0o640)
	}
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.timing.cleanup)
	defer cancel()
	return errors.Join(
		fail(ExitConfiguration, "handing the agent over: %w: mount memory-backed volumes at AZP_REGISTRATION_DIR and AZP_HANDOVER_DIR that this container can write", err),
		s.deleteAgent(ctx, reg, persistent))
}

// register sees to the agent program and registers the agent within the limit.
func (s *Supervisor) register(ctx context.Context) (registration, error) {
	if err := s.checkRoot(); err != nil {
		return registration{}, err
	}
	// A token that can't be had at all is told at once. Whoever issues tokens may be out of
	// reach for a while, as the service may, and checkPool waits for both.
	secret, err := s.settings.Token.Token(ctx)
	if err != nil && !transient(err) {
		return registration{}, fail(codeOf(err, ExitCredential), "%w", err)
	}
	s.tokenSeen = secret.Reveal()
	// The pool first: a wrong name, token or address shows in a second, and in the
	// words of the service, and not after a download.
	if err := s.checkPool(ctx); err != nil {
		return registration{}, err
	}
	if err := s.ensureProgram(ctx, s.service); err != nil {
		return registration{}, err
	}
	if !exists(filepath.Join(s.settings.Root, configProgram)) {
		return registration{}, fail(ExitConfiguration, "%s is not in the agent root %s: put the whole agent program there", configProgram, s.settings.Root)
	}
	if err := s.layDownNetwork(); err != nil {
		return registration{}, err
	}
	limited, cancel := context.WithTimeoutCause(ctx, s.settings.ConfigureLimit,
		fmt.Errorf("over its limit of %s (AZP_CONFIGURE_LIMIT)", s.settings.ConfigureLimit))
	defer cancel()
	cleared := false
	for {
		reg, err := s.configureOnce(limited)
		if err == nil {
			return reg, nil
		}
		removed, cleanErr := s.takeBack(ctx)
		// An agent of our name that is offline is a leftover: of an earlier life of this
		// pod, or of an answer that was lost. With it gone the name is free.
		if removed && !cleared && limited.Err() == nil {
			cleared = true
			s.log.Warn("an offline agent of this name was in the pool and is deleted; trying once more", "agent", s.settings.AgentName, "err", err)
			continue
		}
		if codeOf(s.explain(err, cleanErr), ExitConfigureFailed) == ExitCredential && s.admittedAgain(limited) {
			cleared = false
			s.log.Warn("the token was refused, and is taken now; trying again", "agent", s.settings.AgentName, "err", err)
			continue
		}
		return registration{}, s.explain(err, cleanErr)
	}
}

// admittedAgain reports whether what has refused the token is over: another one is there that
// the service takes, or it takes the same again. It waits for that within the context.
func (s *Supervisor) admittedAgain(ctx context.Context) bool {
	refused := false
	_, err := s.pool(ctx, func(err error) bool {
		refused = refused || errors.Is(err, azuredevops.ErrAuthentication)
		return patient(err)
	})
	if err != nil {
		return false
	}
	now, err := s.settings.Token.Token(ctx)
	return err == nil && (refused || now.Reveal() != s.tokenSeen)
}

// checkPool asks for the pool, waiting within the limit for an unreachable service, and for
// another token where this one is refused.
func (s *Supervisor) checkPool(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.settings.ConfigureLimit)
	defer cancel()
	if _, err := s.pool(ctx, patient); err != nil {
		return fail(codeOf(err, ExitConfiguration), "%w", err)
	}
	return nil
}

// takeBack deletes what a failed configure may have registered, and reports
// whether there was something. It goes on when the step was asked to stop.
func (s *Supervisor) takeBack(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.timing.cleanup)
	defer cancel()
	return s.removeByName(ctx, transient)
}

// explain chooses the exit code of a failed configure: when the service itself
// refuses or does not answer, that is the reason, and not config.sh.
func (s *Supervisor) explain(err, cleanErr error) error {
	if cleanErr == nil {
		return err
	}
	code := codeOf(err, ExitConfigureFailed)
	if clean := codeOf(cleanErr, code); code == ExitConfigureFailed {
		code = clean
	}
	return fail(code, "%w; and looking for what it left behind: %w", err, cleanErr)
}

// configureOnce runs config.sh and reads what it made. The registration is taken
// from the agent's own file, and the credentials in it are checked.
func (s *Supervisor) configureOnce(ctx context.Context) (registration, error) {
	if err := clearConfiguration(s.settings.Root); err != nil {
		return registration{}, fail(ExitConfiguration, "%w", err)
	}
	// Asked for at each try, for it may have been replaced since.
	secret, err := s.settings.Token.Token(ctx)
	if err != nil {
		return registration{}, fail(codeOf(err, ExitCredential), "%w", err)
	}
	s.tokenSeen = secret.Reveal()
	if err := s.runConfig(ctx); err != nil {
		return registration{}, err
	}
	reg, err := readAgentFile(s.settings.Root)
	if err != nil {
		return registration{}, fail(ExitConfigureFailed, "%s ended well, but: %w", configProgram, err)
	}
	if !strings.EqualFold(reg.AgentName, s.settings.AgentName) {
		return registration{}, fail(ExitConfigureFailed, "%s registered the agent %q and not %q", configProgram, reg.AgentName, s.settings.AgentName)
	}
	if err := checkCredentials(s.settings.Root, s.tokenSeen); err != nil {
		return registration{}, fail(ExitConfigureFailed, "%w", err)
	}
	if err := s.cleanDiagnostics(); err != nil {
		return registration{}, fail(ExitConfigureFailed, "%w", err)
	}
	s.log.Info("the agent is registered", "agent", reg.AgentName, "agent_id", reg.AgentID, "pool_id", reg.PoolID)
	return reg, nil
}

// configArguments is the command line of config.sh. The token is not in it: it
// would be seen in /proc. --replace is not either: it can loop for ever.
func (s *Supervisor) configArguments() []string {
	return []string{
		"--unattended", "--acceptTeeEula",
		"--url", s.settings.URL,
		"--auth", "PAT",
		"--pool", s.settings.Pool,
		"--agent", s.settings.AgentName,
		"--work", s.settings.Work,
	}
}

// runConfig runs config.sh. At the limit, or when asked to stop, everything it
// started is killed.
func (s *Supervisor) runConfig(ctx context.Context) error {
	tail := &lastLines{}
	out := &maskWriter{w: io.MultiWriter(tail, s.stdout), secret: s.tokenSeen}
	defer out.Flush()
	cmd := exec.Command("./"+configProgram, s.configArguments()...)
	cmd.Dir = s.settings.Root
	var err error
	if cmd.Env, err = s.withNetwork(configureEnvironment(s.settings.Environment, s.settings.Hidden, s.tokenSeen, s.settings.CAFile)); err != nil {
		return fail(ExitConfiguration, "%w", err)
	}
	cmd.Stdout = out
	cmd.Stderr = out
	began := time.Now()
	p, err := startProcess(cmd)
	if err != nil {
		return fail(ExitConfiguration, "%s: %w", configProgram, err)
	}
	select {
	case <-p.exited:
	case <-ctx.Done():
		err := p.killGroup()
		<-p.exited
		return fail(ExitConfigureFailed, "%s was killed after %s: %w", configProgram, time.Since(began).Round(time.Millisecond), errors.Join(context.Cause(ctx), err))
	}
	out.Flush()
	if p.code == 0 {
		return nil
	}
	code := ExitConfigureFailed
	if tail.tellsOfRefusal() {
		code = ExitCredential
	}
	return fail(code, "%s ended with exit code %d after %s: %s", configProgram, p.code, time.Since(began).Round(time.Millisecond), tail)
}

// largestLog bounds what is searched of a log; a longer one is deleted.
const largestLog = 16 << 20

// cleanDiagnostics deletes the logs of configure that hold the token, should the
// agent program ever fail to mask it: a build can read that folder.
func (s *Supervisor) cleanDiagnostics() error {
	logs, err := filepath.Glob(filepath.Join(s.settings.Root, "_diag", "*"))
	if err != nil || s.tokenSeen == "" {
		return err
	}
	for _, path := range logs {
		content, err := readLimited(path, largestLog)
		if err == nil && !bytes.Contains(content, []byte(s.tokenSeen)) {
			continue
		}
		s.log.Warn("a log of configure is deleted, because it holds the token or could not be searched for it", "path", path, "err", err)
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("a log of configure may hold the token and cannot be deleted: %w", err)
		}
	}
	return nil
}

// tailLines is how much of a program's output goes into an error.
const tailLines = 5

// lastLines keeps the last lines that were written to it. It takes whole lines,
// as maskWriter gives them.
type lastLines struct{ lines []string }

// Write takes lines.
func (l *lastLines) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		if line = strings.TrimSpace(stamp.ReplaceAllString(line, "")); line != "" {
			l.lines = append(l.lines, line[:min(len(line), 500)])
		}
	}
	l.lines = l.lines[max(0, len(l.lines)-tailLines):]
	return len(p), nil
}

// String gives the lines as one.
func (l *lastLines) String() string {
	if len(l.lines) == 0 {
		return "it printed nothing"
	}
	return strings.Join(l.lines, " | ")
}

// tellsOfRefusal reports whether the agent program says that the token was refused
// or lacks a right. The texts are its own and the service's.
func (l *lastLines) tellsOfRefusal() bool {
	signs := []string{"access denied", "needs manage permissions", "tf400813", "vs30063", "vs800075", "not authorized", "unauthorized"}
	text := strings.ToLower(l.String())
	return slices.ContainsFunc(signs, func(sign string) bool { return strings.Contains(text, sign) })
}
