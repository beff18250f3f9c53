// Command hostile-build is a step of a build that wants the pool's credential; see
// package hostile.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/azp-scaler/azp-scaler/test/e2e/hostile"
)

// The ports in the pod at which the program waits, beside whatever else is there.
const (
	waitAddress  = "127.0.0.1:14380"
	decoyAddress = "127.0.0.1:14381"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "hostile-build:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, arguments []string) error {
	if len(arguments) < 2 {
		return errors.New("want: search | wait | decoy | lure, and the listener's URL")
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	b := hostile.Build{
		Listener: arguments[1], Program: program, Root: "/azp/agent", Proxy: "http://" + waitAddress,
		Environ: os.Environ(), Lookup: os.LookupEnv, Host: host,
	}
	switch arguments[0] {
	case "search":
		return b.Run(ctx)
	case "wait":
		return b.Wait(ctx, waitAddress)
	case "decoy":
		return b.Decoy(ctx, decoyAddress)
	case "lure":
		return b.Lure(ctx, arguments[2:])
	default:
		return fmt.Errorf("%q is nothing to do", arguments[0])
	}
}
