package hostnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/azp-scaler/azp-scaler/test/e2e/process"
)

const (
	// messageLimit is what a kubelet reads of a termination message.
	messageLimit = 4096
	// outputWait is how long a container's output may stay open after its end.
	outputWait = 2 * time.Second
	// killSignal has the supervisor kill all of a container; the kernel sends it
	// when the node dies.
	killSignal = syscall.SIGHUP
	// killLimit is longer than the supervisor's own.
	killLimit = 8 * time.Second
)

// container is one container of a pod: a process, and what is known of it.
type container struct {
	pod  *pod
	spec *corev1.Container
	log  string // Path.

	// The pod's mutex guards what follows.
	process     *process.Process
	hook        *process.Process // That of preStop, while it runs.
	ports       map[int32]string // Where a probed port is on this machine.
	waiting     string
	waitingText string
	startedAt   metav1.Time
	finishedAt  metav1.Time
	ended       bool
	message     string
	restarts    int32
	before      *corev1.ContainerStateTerminated // How it ended before it was restarted.
	isStarted   bool
	isReady     bool
}

func newContainer(p *pod, spec *corev1.Container) *container {
	return &container{
		pod: p, spec: spec, waiting: "PodInitializing", ports: map[int32]string{},
		log: filepath.Join(p.node.options.LogDir, p.object.Name+"-"+spec.Name+".log"),
	}
}

// sidecar tells an init container that stays.
func (c *container) sidecar() bool {
	return c.spec.RestartPolicy != nil && *c.spec.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// start starts the process. What keeps it from starting becomes the reason for
// which the container waits.
func (c *container) start() bool {
	err := c.tryStart()
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	if err != nil {
		c.waiting, c.waitingText = "RunContainerError", err.Error()
		return false
	}
	c.waiting, c.startedAt = "", metav1.Now()
	// Without probes a container is started and ready at once.
	c.isStarted = c.spec.StartupProbe == nil
	c.isReady = c.isStarted && c.spec.ReadinessProbe == nil
	return true
}

func (c *container) tryStart() error {
	if err := c.choosePorts(); err != nil {
		return err
	}
	command, err := c.command(append(append([]string{}, c.spec.Command...), c.spec.Args...))
	if err != nil {
		return err
	}
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("log of container %s: %w", c.spec.Name, err)
	}
	defer func() { _ = log.Close() }() // The child has its own.
	command.Stdout, command.Stderr = log, log
	started, err := process.StartWith(command, killSignal)
	if err != nil {
		return err
	}
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	c.process = started
	return nil
}

// command gives a command of the container with its environment.
func (c *container) command(arguments []string) (*exec.Cmd, error) {
	if len(arguments) > 2 && arguments[0] == "tini" && arguments[1] == "--" {
		arguments = arguments[2:] // Orphans are this machine's init process's here.
	}
	if len(arguments) == 0 {
		return nil, fmt.Errorf("container %s names no command, and there is no image to have one", c.spec.Name)
	}
	environment, err := c.environment()
	if err != nil {
		return nil, err
	}
	program, err := c.lookPath(arguments[0])
	if err != nil {
		return nil, err
	}
	command := exec.Command(c.pod.node.options.Supervisor, append([]string{program}, arguments[1:]...)...)
	command.Env, command.Dir, command.WaitDelay = environment, c.home(), outputWait
	return command, nil
}

// lookPath finds a program in the node's PATH, not in ours.
func (c *container) lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range filepath.SplitList(c.pod.node.options.Path) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("container %s: program %q is not in the node's PATH %s", c.spec.Name, name, c.pod.node.options.Path)
}

func (c *container) home() string { return filepath.Join(c.pod.dir, "home") }

func (c *container) terminationLog() string {
	return filepath.Join(c.pod.dir, "termination", c.spec.Name)
}

// choosePorts finds a free port for each one that is probed.
func (c *container) choosePorts() error {
	for _, probe := range []*corev1.Probe{c.spec.StartupProbe, c.spec.ReadinessProbe} {
		if probe == nil || probe.HTTPGet == nil || probe.HTTPGet.Port.Type != intstr.Int {
			continue
		}
		port := probe.HTTPGet.Port.IntVal
		if c.ports[port] != "" {
			continue
		}
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return fmt.Errorf("container %s: a port for its probe: %w", c.spec.Name, err)
		}
		c.ports[port] = listener.Addr().String()
		if err := listener.Close(); err != nil {
			return fmt.Errorf("container %s: a port for its probe: %w", c.spec.Name, err)
		}
	}
	return nil
}

// done is closed when the process is gone. A container that never started is
// never done.
func (c *container) done() <-chan struct{} {
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	if c.process == nil {
		return nil
	}
	return c.process.Done()
}

// settle ends the process if it still runs, and notes its end.
func (c *container) settle() {
	c.kill()
	message, err := os.ReadFile(c.terminationLog())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		c.pod.node.options.Problem(fmt.Errorf("termination message of %s: %w", c.spec.Name, err))
	}
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	if c.ended || c.process == nil {
		return
	}
	c.ended, c.finishedAt, c.isReady, c.isStarted = true, metav1.Now(), false, false
	c.message = string(message[:min(len(message), messageLimit)])
}

// stop tells the process to end and kills it at the deadline, or when the node
// closes.
func (c *container) stop(ctx context.Context, deadline time.Time) {
	c.pod.mu.Lock()
	running := c.process
	c.pod.mu.Unlock()
	if running == nil {
		return
	}
	if err := running.Signal(syscall.SIGTERM); err != nil {
		c.pod.node.options.Problem(err)
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-running.Done():
	case <-timer.C:
	case <-ctx.Done():
	}
	c.settle()
}

// kill ends the process and its group at once.
func (c *container) kill() {
	c.pod.mu.Lock()
	running := c.process
	c.pod.mu.Unlock()
	if running == nil {
		return
	}
	c.pod.node.kill(running)
}

// kill has the supervisor kill the container, and kills the supervisor if it
// does not.
func (n *Node) kill(supervised *process.Process) {
	if err := supervised.Signal(killSignal); err != nil {
		n.options.Problem(err)
	}
	select {
	case <-supervised.Done():
		return
	case <-time.After(killLimit):
	}
	if err := supervised.Kill(); err != nil {
		n.options.Problem(err)
	}
}

// preStop runs the container's hook if it has one and still runs.
func (c *container) preStop(ctx context.Context, deadline time.Time) {
	c.pod.mu.Lock()
	running := c.process
	c.pod.mu.Unlock()
	if running == nil || !running.Running() || c.spec.Lifecycle == nil || c.spec.Lifecycle.PreStop == nil || c.spec.Lifecycle.PreStop.Exec == nil {
		return
	}
	command, err := c.command(c.spec.Lifecycle.PreStop.Exec.Command)
	if err != nil {
		c.pod.node.options.Problem(err)
		return
	}
	hook, err := process.StartWith(command, killSignal)
	if err != nil {
		c.pod.node.options.Problem(err)
		return
	}
	c.pod.mu.Lock()
	c.hook = hook
	c.pod.mu.Unlock()
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-hook.Done():
	case <-timer.C:
	case <-ctx.Done():
	}
	c.pod.node.kill(hook)
}

func (c *container) exitCode() int {
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	return c.exitCodeLocked()
}

func (c *container) exitCodeLocked() int {
	if c.process == nil {
		return -1
	}
	return c.process.ExitCode()
}

// probe asks the container's probes until it has ended: first the one for
// start-up, then the one for readiness.
func (c *container) probe(ctx context.Context) {
	if !c.probeStart(ctx) || c.spec.ReadinessProbe == nil {
		return
	}
	failures := int32(0)
	c.each(ctx, c.spec.ReadinessProbe, func(err error) bool {
		if err != nil {
			failures++
		} else {
			failures = 0
		}
		ready := err == nil
		if ready || failures >= max(c.spec.ReadinessProbe.FailureThreshold, 1) {
			c.set(ctx, true, ready)
		}
		return true
	})
}

// probeStart tells whether the container has started, and kills one that takes
// too long.
func (c *container) probeStart(ctx context.Context) bool {
	if c.spec.StartupProbe == nil {
		return true
	}
	started, failures := false, int32(0)
	c.each(ctx, c.spec.StartupProbe, func(err error) bool {
		if err == nil {
			started = true
			c.set(ctx, true, c.spec.ReadinessProbe == nil)
			return false
		}
		if failures++; failures >= max(c.spec.StartupProbe.FailureThreshold, 1) {
			c.kill()
			return false
		}
		return true
	})
	return started
}

// each asks a probe once a period until next says no, the process is gone or the
// context ends.
func (c *container) each(ctx context.Context, probe *corev1.Probe, next func(error) bool) {
	tick := time.NewTicker(time.Duration(max(probe.PeriodSeconds, 1)) * time.Second)
	defer tick.Stop()
	for {
		if !next(c.ask(ctx, probe)) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-c.done():
			return
		case <-tick.C:
		}
	}
}

// ask asks a probe once.
func (c *container) ask(ctx context.Context, probe *corev1.Probe) error {
	if probe.HTTPGet == nil {
		return fmt.Errorf("container %s: only HTTP probes are known here", c.spec.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(max(probe.TimeoutSeconds, 1))*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.ports[probe.HTTPGet.Port.IntVal]+probe.HTTPGet.Path, nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if _, err := io.Copy(io.Discard, io.LimitReader(response.Body, 10<<10)); err != nil {
		return err
	}
	if response.StatusCode < http.StatusOK || response.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("the probe answers %s", response.Status)
	}
	return nil
}

// set notes what a probe found and reports it if it is new.
func (c *container) set(ctx context.Context, started, ready bool) {
	c.pod.mu.Lock()
	changed := !c.ended && (c.isStarted != started || c.isReady != ready)
	if changed {
		c.isStarted, c.isReady = started, ready
	}
	c.pod.mu.Unlock()
	if changed {
		c.pod.report(ctx)
	}
}
