package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/app"
)

const usage = `Usage: scaler [command]

  run                   make a Job for each queued build, until told to stop (the default)
  check                 look at pools, classes, cluster and rights, and tell what is wrong
  plan [-o table|json]  tell what the next cycle would do and why, and change nothing
  explain [request]     tell why a request waits, or each queued one
  cleanup [--wait DURATION] [--timeout DURATION] [--take-over]
                        end all that is of this installation, in the pools and in the cluster, for an
                        uninstall, and tell what is left; the scaler may still run and stands down.
                        Running builds are waited for: 3m, or as long as --wait says. All of it takes
                        90s longer than that at most, or as long as --timeout says. With --take-over
                        also what another installation of the same id has in the pools, if it is gone
  version               print the version

The settings are environment variables; see the table in README.md. The commands
look at what is there now, with the settings and the rights of the scaler itself.
Exit codes: 0 done, 1 failed or something found wrong, 2 wrong settings or usage.
`

// command is what the command line asks for.
type command struct {
	name    string
	json    bool  // For plan.
	request int64 // For explain; 0 is every queued one.
	cleanup app.CleanupOptions
}

// parse reads the command line.
func parse(args []string) (command, error) {
	if len(args) == 0 {
		return command{name: "run"}, nil
	}
	c, rest := command{name: args[0]}, args[1:]
	switch c.name {
	case "-h", "--help", "help":
		c.name = "help"
	case "run", "check", "version":
	case "cleanup":
		return parseCleanup(c, rest)
	case "plan":
		return parsePlan(c, rest)
	case "explain":
		return parseExplain(c, rest)
	default:
		return command{}, fmt.Errorf("there is no command %q", c.name)
	}
	if len(rest) > 0 {
		return command{}, fmt.Errorf("%q: %s takes no further words", rest[0], c.name)
	}
	return c, nil
}

func parsePlan(c command, rest []string) (command, error) {
	flags := flag.NewFlagSet(c.name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	format := flags.String("o", "table", "")
	if err := flags.Parse(rest); err != nil {
		return command{}, fmt.Errorf("plan: %w", err)
	}
	if (*format != "table" && *format != "json") || flags.NArg() > 0 {
		return command{}, errors.New("plan takes -o table or -o json, and nothing else")
	}
	c.json = *format == "json"
	return c, nil
}

// How long a cleanup takes where the command line does not say: together that is less than the
// five minutes that Helm gives a hook.
const (
	cleanupWait = 3 * time.Minute
	cleanupRest = 90 * time.Second // For all but the wait for builds.
)

func parseCleanup(c command, rest []string) (command, error) {
	flags := flag.NewFlagSet(c.name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	wait := flags.Duration("wait", cleanupWait, "")
	timeout := flags.Duration("timeout", 0, "")
	takeOver := flags.Bool("take-over", false, "")
	if err := flags.Parse(rest); err != nil {
		return command{}, fmt.Errorf("cleanup: %w", err)
	}
	if *timeout == 0 {
		*timeout = *wait + cleanupRest
	}
	switch {
	case flags.NArg() > 0:
		return command{}, fmt.Errorf("%q: cleanup takes --wait, --timeout and --take-over, and nothing else", flags.Arg(0))
	case *wait < 0:
		return command{}, fmt.Errorf("--wait %s: want 0 or more, such as 10m", *wait)
	case *timeout <= *wait:
		return command{}, fmt.Errorf("--timeout %s: want more than the %s of --wait, or leave it out", *timeout, *wait)
	}
	c.cleanup = app.CleanupOptions{Wait: *wait, Timeout: *timeout, TakeOver: *takeOver}
	return c, nil
}

func parseExplain(c command, rest []string) (command, error) {
	if len(rest) == 0 {
		return c, nil
	}
	if len(rest) > 1 {
		return command{}, fmt.Errorf("%q: explain takes one request", rest[1])
	}
	id, err := strconv.ParseInt(rest[0], 10, 64)
	if err != nil || id <= 0 {
		return command{}, fmt.Errorf("explain takes the id of a request, a number such as 4711, and not %q", rest[0])
	}
	c.request = id
	return c, nil
}
