// Command devcluster runs the tests' Kubernetes for a person to look at.
//
//	devcluster up           start a cluster and keep it until INT or TERM
//	devcluster down         end the one that runs
//	devcluster kubeconfig   print the path of its kubeconfig
//	devcluster build        build the programs and stop
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/azp-scaler/azp-scaler/test/cluster"
	"github.com/azp-scaler/azp-scaler/test/cluster/internal/proc"
)

const (
	// stopLimit bounds the end of a cluster.
	stopLimit = 90 * time.Second
	pollEvery = 100 * time.Millisecond
)

const usage = `usage: devcluster [flags] up | down | kubeconfig | build

  up           start a cluster and keep it until INT or TERM
  down         end the one that runs
  kubeconfig   print the path of its kubeconfig
  build        build the programs and stop

flags:
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "devcluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, progress io.Writer) error {
	flags := flag.NewFlagSet("devcluster", flag.ContinueOnError)
	flags.SetOutput(progress)
	flags.Usage = func() {
		fmt.Fprint(progress, usage)
		flags.PrintDefaults()
	}
	node := flags.String("node", cluster.Auto.String(), "kind of node: auto, real (needs root) or simulated")
	logs := flags.String("logs", "", "directory for the components' logs, kept afterwards")
	audit := flags.String("audit", "", "file for the API server's audit log, kept afterwards")
	rate := flags.Int("controller-manager-qps", 0, "calls a second that kube-controller-manager may make; 0 for its default of 20")
	nodes := flags.Int("nodes", 1, "number of simulated nodes")
	if err := flags.Parse(args); err != nil {
		return flag.ErrHelp
	}
	kind, err := cluster.ParseNodeKind(*node)
	if err != nil {
		return err
	}
	options := cluster.Options{
		Node: kind, LogDir: *logs, AuditLog: *audit,
		ControllerManagerQPS: *rate, SimulatedNodes: *nodes, Progress: progress,
	}
	state, err := stateFile()
	if err != nil {
		return err
	}
	switch flags.Arg(0) {
	case "up":
		return up(ctx, options, state, out)
	case "down":
		return down(ctx, state, out)
	case "kubeconfig":
		running, err := readState(state)
		if err == nil {
			fmt.Fprintln(out, running.Kubeconfig)
		}
		return err
	case "build":
		built, err := cluster.Ensure(ctx, options)
		if err == nil {
			fmt.Fprintln(out, filepath.Dir(built.Kubectl()))
		}
		return err
	default:
		flags.Usage()
		return flag.ErrHelp
	}
}

// running is the cluster that runs, as other calls find it.
type running struct {
	Owner      proc.ID `json:"owner"`
	Kubeconfig string  `json:"kubeconfig"`
}

func stateFile() (string, error) {
	bases, err := cluster.BaseImageCache("")
	if err != nil {
		return "", err
	}
	return filepath.Join(filepath.Dir(bases), "devcluster.json"), nil
}

func readState(path string) (running, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return running{}, errors.New("no cluster runs: start one by devcluster up")
	}
	if err != nil {
		return running{}, fmt.Errorf("finding the cluster: %w", err)
	}
	var found running
	if err := json.Unmarshal(text, &found); err != nil {
		return running{}, fmt.Errorf("finding the cluster: %s: %w", path, err)
	}
	if !found.Owner.Alive() {
		return running{}, errors.New("no cluster runs: the last one was killed; start one by devcluster up")
	}
	return found, nil
}

func up(ctx context.Context, options cluster.Options, state string, out io.Writer) error {
	if found, err := readState(state); err == nil {
		return fmt.Errorf("a cluster runs already (process %d, %s): end it by devcluster down", found.Owner.PID, found.Kubeconfig)
	}
	c, err := cluster.Start(ctx, options)
	if err != nil {
		return err
	}
	failure := serve(ctx, c, state, out)
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
	defer cancel()
	return errors.Join(failure, c.Stop(ending), os.Remove(state))
}

// serve tells where the cluster is, and returns when it is to end.
func serve(ctx context.Context, c *cluster.Cluster, state string, out io.Writer) error {
	self, err := proc.Identify(os.Getpid())
	if err != nil {
		return err
	}
	text, err := json.Marshal(running{Owner: self, Kubeconfig: c.AdminKubeconfig()})
	if err != nil {
		return fmt.Errorf("encoding the cluster's place: %w", err)
	}
	if err := os.WriteFile(state, text, 0o600); err != nil {
		return fmt.Errorf("writing the cluster's place: %w", err)
	}
	fmt.Fprintf(out, "node:        %s\nAPI server:  %s\nlogs:        %s\nhost:        %s is this machine, for pods\n", c.Node(), c.APIServer(), c.LogDir(), c.HostAddress())
	if c.AuditLogPath() != "" {
		fmt.Fprintf(out, "audit log:   %s\n", c.AuditLogPath())
	}
	fmt.Fprintf(out, "\nexport KUBECONFIG=%s\nalias kubectl=%s\n\nCtrl-C ends it.\n", c.AdminKubeconfig(), c.Binaries().Kubectl())
	select {
	case <-ctx.Done():
		return nil
	case <-c.Failed():
		return c.Err()
	}
}

func down(ctx context.Context, state string, out io.Writer) error {
	found, err := readState(state)
	if err != nil {
		return err
	}
	process, err := os.FindProcess(found.Owner.PID)
	if err != nil {
		return fmt.Errorf("finding process %d: %w", found.Owner.PID, err)
	}
	if err := process.Signal(os.Interrupt); err != nil {
		return fmt.Errorf("asking process %d to end its cluster: %w", found.Owner.PID, err)
	}
	ctx, cancel := context.WithTimeout(ctx, stopLimit)
	defer cancel()
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for found.Owner.Alive() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("process %d does not end: %w", found.Owner.PID, context.Cause(ctx))
		case <-ticker.C:
		}
	}
	fmt.Fprintln(out, "ended")
	return nil
}
