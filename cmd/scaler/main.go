// Command scaler makes one Kubernetes Job for each build that is queued in an
// Azure DevOps agent pool. It takes its settings from the environment.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/azp-scaler/azp-scaler/pkg/app"
)

// The program's exit codes.
const (
	exitDone          = 0 // Told to stop, or nothing left to do.
	exitFailed        = 1
	exitConfiguration = 2 // Nothing but another configuration mends it.
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	command := "run"
	if len(args) > 0 {
		command = args[0]
	}
	switch {
	case len(args) > 1:
		say(stderr, "scaler: %q: a command takes no further words\n\n%s", args[1], usage)
		return exitConfiguration
	case command == "version":
		say(stdout, "azp-scaler %s\n", version())
		return exitDone
	case command == "help", command == "-h", command == "--help":
		say(stdout, "%s", usage)
		return exitDone
	case command == "run", command == "check":
	default:
		say(stderr, "scaler: there is no command %q\n\n%s", command, usage)
		return exitConfiguration
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := start(ctx, command, stdout, stderr); err != nil {
		say(stderr, "scaler: %v\n", err)
		if errors.Is(err, app.ErrConfiguration) {
			return exitConfiguration
		}
		return exitFailed
	}
	return exitDone
}

const usage = `Usage: scaler [command]

  run       make a Job for each queued build, until told to stop (the default)
  check     look at pool, cluster and rights, and tell what is wrong
  version   print the version

The settings are environment variables; see the table in README.md.
`

func start(ctx context.Context, command string, stdout, stderr io.Writer) error {
	config, err := loadConfig()
	if err != nil {
		return err
	}
	log := newLogger(stderr, config)
	a, err := app.New(config, version(), log)
	if err != nil {
		return err
	}
	if command == "check" {
		return a.Check(ctx, stdout)
	}
	log.Info("azp-scaler starts", "version", version(), "listen", a.Addr())
	err = a.Run(ctx)
	if err == nil {
		log.Info("azp-scaler has stopped")
	}
	return err
}

func newLogger(w io.Writer, config app.Config) *slog.Logger {
	options := &slog.HandlerOptions{Level: config.LogLevel.Level}
	if config.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

// version is what the build recorded of itself.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}

// say ignores a closed terminal: there is nobody left to tell.
func say(w io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }
