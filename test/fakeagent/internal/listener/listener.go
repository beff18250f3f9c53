// Package listener is the stand-in's bin/Agent.Listener: it registers an agent with
// a pool, listens for jobs, hands each to a worker process and keeps the service
// informed.
package listener

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/console"
	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/faults"
	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/root"
	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/wire"
)

// Exit codes of the agent.
const (
	ExitDone            = 0
	ExitTerminated      = 1 // Ended by an error that trying again won't mend.
	ExitRetryable       = 2 // Ended by any other error.
	ExitUpdating        = 3 // An update is under way and starts the agent again.
	ExitUpdatingOnce    = 4 // An update is under way; whoever started the agent starts it again.
	ownerFallback       = "AGENT"
	variableRoot        = "AGENT_ALLOW_RUNASROOT"
	variableFaults      = "FAKEAGENT_FAULTS"
	variableUnsafeBasic = "VSS_ALLOW_UNSAFE_BASICAUTH"
)

// Process is what surrounds the listener. Nothing else of the process is read.
type Process struct {
	Args    []string
	Env     map[string]string // Changed: inputs are taken out.
	Stdout  io.Writer
	Stderr  io.Writer
	Root    root.Dir
	Host    string
	Signals Signals
	// Kill ends this process as SIGKILL does; it does not come back.
	Kill func()
}

// Signals is how the process's signals reach the listener.
type Signals struct {
	// Interrupt gives a context that ends with the first SIGINT that finds deaf false
	// (and, for major version 4, with SIGTERM).
	Interrupt func(version string, deaf func() bool) context.Context
	// IgnoreAll makes the process deaf to SIGINT and SIGTERM.
	IgnoreAll func()
}

// listener is one run of the program.
type listener struct {
	Process
	command command
	release root.Release
	faults  faults.Set // Of the agent, never changed: a job's own are the queue's.
	masker  *console.Masker
	term    *console.Terminal
	log     *slog.Logger
	deaf    atomic.Bool // To SIGINT.
	// network is how configure was told to reach the server, nil elsewhere: it is kept in
	// files only when the agent is registered.
	network *network
}

// Main runs the program and gives its exit code.
func Main(p Process) int {
	masker := &console.Masker{}
	term := console.New(p.Stdout, p.Stderr, masker)
	if kept, err := p.Root.Environment(); err == nil {
		for name, value := range kept {
			if _, set := p.Env[name]; !set {
				p.Env[name] = value
			}
		}
	}
	cmd, err := parse(p.Args, p.Env)
	for _, flag := range []string{flagToken, "password", flagProxySecret} {
		masker.Add(cmd.values[flag])
	}
	if err != nil {
		term.Errorf("%v", err)
		return ExitTerminated
	}
	release, err := p.Root.Release()
	if err != nil {
		term.Errorf("An error occurred: %v", err)
		return ExitTerminated
	}
	switches, err := faults.Load(string(p.Root), p.Env[variableFaults], p.Root.Diag())
	if err != nil {
		term.Errorf("An error occurred: %v", err)
		return ExitTerminated
	}
	l := &listener{Process: p, command: cmd, release: release, faults: switches, masker: masker, term: term}
	l.deaf.Store(switches.Has(faults.IgnoreInt))
	diag, closeDiag, err := openDiag(p.Root)
	if err != nil {
		term.Errorf("An error occurred: %v", err)
		return ExitTerminated
	}
	defer closeDiag()
	l.log = diag
	l.log.Info("started", "command", cmd.name, "version", release.Version, "faults", switches.String())
	code := l.execute()
	l.log.Info("ended", "code", code)
	return code
}

func openDiag(dir root.Dir) (*slog.Logger, func(), error) {
	if err := os.MkdirAll(dir.Diag(), 0o755); err != nil {
		return nil, nil, fmt.Errorf("make the folder of the agent's logs: %w", err)
	}
	name := time.Now().UTC().Format("Agent_20060102-150405.000-utc.log")
	file, err := os.OpenFile(filepath.Join(dir.Diag(), name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, nil, fmt.Errorf("open the agent's log: %w", err)
	}
	return slog.New(slog.NewTextHandler(file, nil)), func() { _ = file.Close() }, nil
}

func (l *listener) execute() int {
	switch {
	case l.command.on(flagHelp):
		l.term.Linef("Usage: ./config.sh [remove] --unattended --url U --auth PAT --pool P [--agent N] [--work W] [--replace] [--acceptTeeEula] [--sslcacert F], or ./run.sh [--once]")
		return ExitDone
	case l.command.on(flagVersion):
		l.term.Linef("%s", l.release.Version)
		return ExitDone
	case l.command.on(flagCommit):
		l.term.Linef("%s", strings.Repeat("0", 40))
		return ExitDone
	}
	ctx := l.Signals.Interrupt(l.release.Version, l.deaf.Load)
	var err error
	switch l.command.name {
	case commandConfigure:
		err = l.configure(ctx)
	case commandRemove:
		err = l.remove(ctx)
	default:
		return l.run(ctx)
	}
	if err != nil {
		l.log.Error("command failed", "error", err)
		if ctx.Err() != nil {
			l.term.Linef("Exiting...")
		} else {
			l.term.Errorf("%v", err)
		}
		return ExitTerminated
	}
	return ExitDone
}

// client makes a client for the organisation at address.
func (l *listener) client(address string, credential wire.Credential) (*wire.Client, error) {
	n := l.network
	if n == nil {
		var err error
		if n, err = l.loadNetwork(); err != nil {
			return nil, err
		}
	}
	return wire.New(wire.Options{
		URL:        address,
		Credential: credential,
		SkipVerify: n.certificates.SkipServerCertValidation,
		Proxy:      n.proxy.Choose,
		UserAgent:  fmt.Sprintf("VSServices/19 (NetStandard; Linux; stand-in) vstsagentcore-%s/%s", l.release.Platform, l.release.Version),
	})
}

// ownCredential makes the credential that configure left.
func (l *listener) ownCredential() (wire.Credential, error) {
	kept, err := l.Root.Credentials()
	if err != nil {
		return nil, err
	}
	switch kept.Scheme {
	case root.SchemeOAuth:
		key, err := l.Root.Key()
		if err != nil {
			return nil, err
		}
		return oauth(kept, key)
	case root.SchemePAT:
		l.masker.Add(kept.Data["token"])
		return wire.PAT(kept.Data["token"]), nil
	default:
		return nil, fmt.Errorf("scheme %q of the credentials is not supported: configure the agent again", kept.Scheme)
	}
}

func oauth(kept root.Credentials, key *rsa.PrivateKey) (wire.Credential, error) {
	credential := &wire.OAuth{
		ClientID:         kept.Data["clientId"],
		AuthorizationURL: kept.Data["authorizationUrl"],
		EndpointURL:      kept.Data["oauthEndpointUrl"],
		Key:              key,
	}
	if credential.EndpointURL == "" {
		credential.EndpointURL = credential.AuthorizationURL
	}
	if credential.ClientID == "" || credential.AuthorizationURL == "" {
		return nil, errors.New("the credentials name no clientId or no authorizationUrl: configure the agent again")
	}
	return credential, nil
}

// hang sits there until the process is killed, by others as a rule. Once its root
// folder is gone nobody can be interested any more, and it does that itself.
func (l *listener) hang() {
	l.Signals.IgnoreAll()
	for {
		time.Sleep(time.Second)
		if _, err := os.Stat(string(l.Root)); errors.Is(err, fs.ErrNotExist) {
			l.Kill()
		}
	}
}

// environ gives the environment for what the agent starts, its inputs taken out.
func (l *listener) environ() []string {
	list := make([]string, 0, len(l.Env))
	for name := range maps.Keys(l.Env) {
		list = append(list, name+"="+l.Env[name])
	}
	return list
}

// sleep waits, unless ctx ends before.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
