package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
)

// ExitCode is what the entrypoint ends with. The numbers are a contract: the
// scaler reads them from the container's status.
type ExitCode int

// The exit codes. They start at 10 so that none is taken for one of the agent
// program (0 to 4), of a shell (126, 127) or of a signal (over 128).
const (
	// ExitDone says that a build ran and ended, whatever its result; of the other
	// steps, that they did what they are for.
	ExitDone ExitCode = 0
	// ExitNoBuild says that the agent was idle until it was asked to stop.
	ExitNoBuild ExitCode = 10
	// ExitConfiguration says that a setting is wrong or something that the image or
	// the pod must provide is not there. Trying again does not help.
	ExitConfiguration ExitCode = 11
	// ExitCredential says that the service refused the token, up to the limit in which another one
	// could have come, or that the token lacks a right.
	ExitCredential ExitCode = 12
	// ExitUnreachable says that the service could not be reached, or did not give or
	// do what was asked within the limit (a package with a wrong hash included).
	ExitUnreachable ExitCode = 13
	// ExitCrashed says that the agent program ended by itself, or never listened,
	// before a build came.
	ExitCrashed ExitCode = 14
	// ExitConfigureFailed says that the agent's own configuration failed or took longer
	// than its limit.
	ExitConfigureFailed ExitCode = 15
	// ExitBuildLost says that the agent program crashed, or was stopped because the grace
	// period was over, while a build ran.
	ExitBuildLost ExitCode = 16
)

// ExitCodes lists every exit code, in order.
func ExitCodes() []ExitCode {
	return []ExitCode{
		ExitDone, ExitNoBuild, ExitConfiguration, ExitCredential, ExitUnreachable,
		ExitCrashed, ExitConfigureFailed, ExitBuildLost,
	}
}

// String says in a few words what the code means, as the documentation's table does.
func (c ExitCode) String() string {
	switch c {
	case ExitDone:
		return "done"
	case ExitNoBuild:
		return "no build came"
	case ExitConfiguration:
		return "bad configuration"
	case ExitCredential:
		return "credential refused"
	case ExitUnreachable:
		return "service unreachable"
	case ExitCrashed:
		return "agent crashed before a build"
	case ExitConfigureFailed:
		return "configure failed"
	case ExitBuildLost:
		return "agent crashed or was stopped while a build ran"
	default:
		return fmt.Sprintf("unknown exit code %d", int(c))
	}
}

// Outcome is how a step ended.
type Outcome struct {
	Code ExitCode
	// Message says it in one line for people, without any secret.
	Message string
}

// String gives the container's last words.
func (o Outcome) String() string {
	return fmt.Sprintf("%s (exit %d): %s", o.Code, int(o.Code), o.Message)
}

// failure is an error whose exit code is known where it arises.
type failure struct {
	code ExitCode
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// fail makes an error with the exit code that it leads to.
func fail(code ExitCode, format string, args ...any) error {
	return &failure{code: code, err: fmt.Errorf(format, args...)}
}

// codeOf gives the exit code that an error leads to: the one it carries, the one
// that the kind of the service's answer implies, or else the given one.
func codeOf(err error, otherwise ExitCode) ExitCode {
	var known *failure
	var throttled *azuredevops.ThrottledError
	switch {
	case errors.As(err, &known):
		return known.code
	case errors.Is(err, azuredevops.ErrAuthentication), errors.Is(err, azuredevops.ErrAuthorization):
		return ExitCredential
	case errors.Is(err, azuredevops.ErrUnavailable), errors.Is(err, azuredevops.ErrUnexpectedAnswer),
		errors.As(err, &throttled), errors.Is(err, context.DeadlineExceeded):
		return ExitUnreachable
	default:
		return otherwise
	}
}

// outcomeOf turns an error into how the step ended; nil is done.
func outcomeOf(err error, otherwise ExitCode, done string) Outcome {
	if err == nil {
		return Outcome{Code: ExitDone, Message: done}
	}
	return Outcome{Code: codeOf(err, otherwise), Message: err.Error()}
}
