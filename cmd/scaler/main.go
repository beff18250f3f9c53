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
	command, err := parse(args)
	if err != nil {
		say(stderr, "scaler: %v\n\n%s", err, usage)
		return exitConfiguration
	}
	switch command.name {
	case "version":
		say(stdout, "azp-scaler %s\n", programVersion())
		return exitDone
	case "help":
		say(stdout, "%s", usage)
		return exitDone
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

func start(ctx context.Context, command command, stdout, stderr io.Writer) error {
	config, err := loadConfig()
	if err != nil {
		return err
	}
	log := newLogger(stderr, config)
	a, err := app.New(config, programVersion(), log)
	if err != nil {
		return err
	}
	switch command.name {
	case "check":
		return a.Check(ctx, stdout)
	case "plan":
		return a.Plan(ctx, stdout, command.json)
	case "explain":
		return a.Explain(ctx, stdout, command.request)
	case "cleanup":
		return a.Cleanup(ctx, stdout, command.cleanup)
	}
	if err := a.Listen(); err != nil {
		return err
	}
	log.Info("azp-scaler starts", "version", programVersion(), "listen", a.Addr())
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

// version is set by the linker where the build has no repository to read it from, as in
// the images.
var version string

// programVersion is what the build recorded of itself.
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

// say ignores a closed terminal: there is nobody left to tell.
func say(w io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }
