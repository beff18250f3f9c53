// Command agent-entrypoint is what the agent's image starts: it configures, runs
// and removes an Azure Pipelines agent, each as a subcommand or, without one, all
// in turn. docs/agent.md lists its settings and exit codes.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/azp-scaler/azp-scaler/pkg/agent"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
)

const usage = `usage: agent-entrypoint [configure | run | remove | withdraw | download | version | --once]

  configure   register the agent and hand its files over (init container, with the token)
  run         run the agent for one build (agent container, without the token)
  remove      wait, then delete the registration (native sidecar, with the token)
  withdraw    delete the agent if it is idle and tell run (preStop hook of remove)
  download    get the agent program for an agent that the scaler registers (init container,
              without a token)
  version     print the version
  (none)      configure, run and remove in turn; --once says the same

Settings are taken from the environment (AZP_URL, AZP_POOL, AZP_TOKEN_FILE, ...).
`

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	name, err := os.Hostname()
	if err != nil {
		name = ""
	}
	p := program{
		args:   os.Args[1:],
		lookup: os.LookupEnv,
		host:   host{name: name, uid: os.Geteuid(), environ: os.Environ()},
		stdout: os.Stdout,
		stderr: os.Stderr,
	}
	code := p.run(ctx)
	cancel()
	os.Exit(int(code))
}

// program is the command with everything it takes from the process.
type program struct {
	args   []string
	lookup func(string) (string, bool)
	host   host
	stdout io.Writer
	stderr io.Writer
}

// run carries out the subcommand. Its last words go to the log and to the
// container's termination message.
func (p program) run(ctx context.Context) agent.ExitCode {
	step, code, done := p.step()
	if done {
		return code
	}
	config, err := load(p.lookup, p.host)
	log := newLogger(p.stderr, config).With("step", string(step))
	o := agent.Outcome{Code: agent.ExitConfiguration}
	err = errors.Join(err, config.signIn(step, log))
	if err := errors.Join(err, config.Validate(step)); err != nil {
		o.Message = strings.ReplaceAll(err.Error(), "\n", "; ")
	} else {
		o = p.carryOut(ctx, step, config, log)
	}
	o.Message = strings.ReplaceAll(o.Message, "\n", "; ")
	if o.Code == agent.ExitDone || o.Code == agent.ExitNoBuild {
		log.Info("ended", "exit_code", int(o.Code), "outcome", o.Code.String(), "message", o.Message)
	} else {
		log.Error("ended", "exit_code", int(o.Code), "outcome", o.Code.String(), "message", o.Message)
	}
	if err := leaveLastWords(config.terminationLog, o.String()); err != nil {
		log.Warn("the termination message could not be written", "err", err)
	}
	return o.Code
}

// step understands the command line; done says that nothing is left to do.
func (p program) step() (step agent.Step, code agent.ExitCode, done bool) {
	if len(p.args) == 0 {
		return agent.StepAll, 0, false
	}
	if len(p.args) == 1 {
		switch arg := p.args[0]; arg {
		case "--once":
			return agent.StepAll, 0, false
		case string(agent.StepConfigure), string(agent.StepRun), string(agent.StepRemove), string(agent.StepWithdraw), string(agent.StepDownload):
			return agent.Step(arg), 0, false
		case "version", "--version":
			_, _ = fmt.Fprintln(p.stdout, programVersion())
			return "", agent.ExitDone, true
		case "help", "--help", "-h":
			_, _ = io.WriteString(p.stdout, usage)
			return "", agent.ExitDone, true
		}
	}
	_, _ = fmt.Fprintf(p.stderr, "agent-entrypoint: unknown arguments %q\n%s", p.args, usage)
	return "", agent.ExitConfiguration, true
}

// carryOut runs the step.
func (p program) carryOut(ctx context.Context, step agent.Step, config configuration, log *slog.Logger) agent.Outcome {
	if step == agent.StepRun {
		if config.Token != nil {
			log.Warn("run needs no token and should not have one: take AZP_TOKEN and AZP_TOKEN_FILE from the agent's container")
		}
		return agent.New(config.Settings, nil, log, p.stdout, p.stderr).Run(ctx)
	}
	network := azuredevops.Config{CAFile: config.CAFile, Proxy: config.proxy, UserAgent: "azp-scaler-agent/" + programVersion(), Logger: log}
	if step == agent.StepDownload {
		downloads, err := azuredevops.NewDownloader(network)
		if err != nil {
			return agent.Outcome{Code: agent.ExitConfiguration, Message: err.Error()}
		}
		return agent.New(config.Settings, nil, log, p.stdout, p.stderr).Download(ctx, downloads)
	}
	// Whoever holds the token must not be read by others of the same user: this
	// closes /proc/PID/environ and /proc/PID/mem to the build in the all-in-one form.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		log.Warn("the process could not be made unreadable for builds of the same user", "err", err)
	}
	network.URL, network.Token, network.Scheme = config.URL, config.Token, config.scheme
	client, err := azuredevops.New(network)
	if err != nil {
		return agent.Outcome{Code: agent.ExitConfiguration, Message: err.Error()}
	}
	s := agent.New(config.Settings, client, log, p.stdout, p.stderr)
	switch step {
	case agent.StepConfigure:
		return s.Configure(ctx)
	case agent.StepRemove:
		return s.Remove(ctx)
	case agent.StepWithdraw:
		return s.Withdraw(ctx)
	case agent.StepRun, agent.StepDownload, agent.StepAll:
		return s.All(ctx)
	default:
		return agent.Outcome{Code: agent.ExitConfiguration, Message: fmt.Sprintf("unknown step %q", step)}
	}
}

// newLogger makes the log that the settings ask for.
func newLogger(w io.Writer, config configuration) *slog.Logger {
	options := &slog.HandlerOptions{Level: config.logLevel, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Value.Kind() == slog.KindDuration {
			// JSON would show nanoseconds.
			a.Value = slog.StringValue(a.Value.Duration().String())
		}
		return a
	}}
	if config.logText {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

// longestMessage is what Kubernetes keeps of a termination message.
const longestMessage = 4096

// leaveLastWords writes the container's termination message. The kubelet makes
// the file; where there is none, nobody asked.
func leaveLastWords(path, words string) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = io.WriteString(file, words[:min(len(words), longestMessage)])
	return errors.Join(err, file.Close())
}

// version is set by the linker where the build has no repository to read it from, as in
// the images.
var version string

// programVersion is what the binary was built from.
func programVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}
