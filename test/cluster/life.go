package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/test/cluster/internal/proc"
)

const (
	// pollEvery is how often a start looks whether something is ready.
	pollEvery = 50 * time.Millisecond
	// askLimit bounds one look.
	askLimit = 5 * time.Second
	// logTail is how much of a component's log an error shows.
	logTail = 2000
)

// launch starts components, in the box if there is one.
func (c *Cluster) launch(components ...component) error {
	for _, component := range components {
		log, err := os.Create(filepath.Join(c.logDir, component.name+".log"))
		if err != nil {
			return fmt.Errorf("making the log of %s: %w", component.name, err)
		}
		path := binaryIn(c.programs.Dir, component)
		var cmd *exec.Cmd
		if c.box != nil {
			cmd = c.box.command(context.Background(), path, component.args...)
		} else {
			cmd = outside(context.Background(), path, component.args...)
		}
		cmd.Stdout, cmd.Stderr = log, log
		process, err := proc.Start(component.name, cmd)
		// The child has its own copy.
		err = errors.Join(err, log.Close())
		if err != nil {
			return err
		}
		if err := c.record.AddProcess(process.ID()); err != nil {
			return err
		}
		c.own(process)
	}
	return nil
}

// own takes charge of a process: Stop ends it, and its end before that is the
// cluster's failure.
func (c *Cluster) own(process *proc.Process) {
	c.mu.Lock()
	c.processes = append(c.processes, process)
	c.mu.Unlock()
	c.watchers.Go(func() {
		<-process.Done()
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.stopping || c.failure != nil {
			return
		}
		c.failure = fmt.Errorf("%s ended by itself (%w): %s", process.Name(), endOf(process), c.logEnd(process.Name()))
		close(c.failed)
	})
}

func endOf(process *proc.Process) error {
	if err := process.Err(); err != nil {
		return err
	}
	return errors.New("exit status 0")
}

// Failed is closed when a part of the cluster has ended by itself. Err tells which.
func (c *Cluster) Failed() <-chan struct{} { return c.failed }

// Err tells which part of the cluster has ended by itself; nil if none has.
func (c *Cluster) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failure
}

// logEnd gives the end of a component's log.
func (c *Cluster) logEnd(name string) string {
	text, err := os.ReadFile(filepath.Join(c.logDir, name+".log"))
	if err != nil {
		return "it has no log"
	}
	if len(text) > logTail {
		text = text[len(text)-logTail:]
	}
	return "its log ends: " + strings.TrimSpace(string(text))
}

// await calls ready until it succeeds, ctx ends or a component dies.
func (c *Cluster) await(ctx context.Context, what string, ready func(context.Context) error) error {
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for {
		ask, cancel := context.WithTimeout(ctx, askLimit)
		err := ready(ask)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-c.failed:
			return c.Err()
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w: last: %w: %s", what, context.Cause(ctx), err, c.logEnd(what))
		case <-ticker.C:
		}
	}
}

func (c *Cluster) awaitAPI(ctx context.Context) error {
	return c.await(ctx, "kube-apiserver", func(ctx context.Context) error {
		_, err := c.client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
}

// awaitNodes waits until pods can be made and would be placed.
func (c *Cluster) awaitNodes(ctx context.Context, count int) error {
	err := c.await(ctx, "the node", func(ctx context.Context) error {
		nodes, err := c.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		ready := 0
		for i := range nodes.Items {
			if schedulable(&nodes.Items[i]) {
				ready++
			}
		}
		if ready < count {
			return fmt.Errorf("%d of %d nodes are ready", ready, count)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return c.await(ctx, "kube-controller-manager", func(ctx context.Context) error {
		_, err := c.client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

func schedulable(node *corev1.Node) bool {
	for _, taint := range node.Spec.Taints {
		if taint.Effect != corev1.TaintEffectPreferNoSchedule {
			return false
		}
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

func get(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	// A transport of its own, without the environment's proxy: the address is ours.
	transport := &http.Transport{DisableKeepAlives: true}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if _, err := io.Copy(io.Discard, io.LimitReader(response.Body, 1<<20)); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, response.Status)
	}
	return nil
}

// Stop ends the cluster and removes all of it: processes, namespaces, mounts,
// cgroups, the link and files. Files asked for by Options.LogDir and
// Options.AuditLog stay. Calling it again does nothing.
func (c *Cluster) Stop(ctx context.Context) error {
	c.mu.Lock()
	again := c.stopping
	c.stopping = true
	c.mu.Unlock()
	if again {
		return nil
	}
	processes := c.processes
	end := c.report.Step("stopping Kubernetes")
	ctx, cancel := context.WithTimeout(ctx, killLimit)
	defer cancel()
	var failures []error
	// Later ones use earlier ones. On the real node the first is the box, which
	// takes all with it.
	if c.box != nil {
		failures = append(failures, c.box.first.Kill(ctx))
	}
	for i := len(processes) - 1; i >= 0; i-- {
		failures = append(failures, processes[i].Kill(ctx))
	}
	if c.names != nil {
		failures = append(failures, c.names.close())
	}
	failures = append(failures, c.record.Close(ctx))
	err := errors.Join(failures...)
	if err == nil {
		c.watchers.Wait()
	}
	end(err)
	if err != nil {
		return fmt.Errorf("stopping the cluster: %w", err)
	}
	return nil
}
