package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	loopback = "127.0.0.1"
	// kwokAnnotation marks the nodes that KWOK drives.
	kwokAnnotation = "kwok.x-k8s.io/node"
)

// The annotations by which a pod on a simulated node says what becomes of it.
// They may be set in the pod's template or at any time later, which is how a
// program plays the agent: each takes effect when it appears. Durations are
// written as Go writes them ("1m30s").
//
// A pod on a simulated node is accepted, runs (its init containers done, its
// sidecars up), listens (started and ready), and stays so. It is busy when told
// so, and finishes when told so. A deleted pod ends with exit code 143.
const (
	simulationPrefix = "simulate.azp-scaler.github.io/"
	// SimulateStartAfter is the time until the containers run. Default 300ms.
	SimulateStartAfter = simulationPrefix + "start-after"
	// SimulateListenAfter is the time from there until the containers are
	// started (their start-up probe has succeeded) and ready. Default 200ms.
	SimulateListenAfter = simulationPrefix + "listen-after"
	// SimulateBusy, if "true", makes the containers not ready, though started.
	SimulateBusy = simulationPrefix + "busy"
	// SimulateFinishAfter is the time after which the containers end, counted
	// from when they are started, or from when this is set if that is later. Of a
	// pod without it the containers run until it is deleted.
	SimulateFinishAfter = simulationPrefix + "finish-after"
	// SimulateExitCode is that of the containers when they finish. Default 0.
	SimulateExitCode = simulationPrefix + "exit-code"
	// SimulateOutcome is one of the Outcome values.
	SimulateOutcome = simulationPrefix + "outcome"
)

// The values of SimulateOutcome, each a way not to get anywhere.
const (
	// OutcomeImagePullBackOff: the first container's image can't be pulled.
	OutcomeImagePullBackOff = "image-pull-back-off"
	// OutcomeCreating: the pod's containers are never made, as when a volume's
	// Secret is missing.
	OutcomeCreating = "creating"
	// OutcomeSilent: the containers run and never listen.
	OutcomeSilent = "silent"
)

// startSimulated runs the control plane on loopback, and KWOK.
func (c *Cluster) startSimulated(ctx context.Context, o Options) error {
	free, err := freePorts(ctx, 5)
	if err != nil {
		return err
	}
	c.plane = controlPlane{
		dir: c.dir, write: c.dir, address: loopback, loopback: true,
		auditLog: c.auditLog, managerQPS: o.ControllerManagerQPS,
		ports: ports{etcd: free[0], etcdPeer: free[1], api: free[2], controllerManager: free[3], scheduler: free[4]},
	}
	if err := c.plane.writeFiles("none"); err != nil {
		return err
	}
	stages, err := renderStages()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(c.dir, "stages.yaml"), stages, 0o600); err != nil {
		return fmt.Errorf("writing KWOK's stages: %w", err)
	}
	if err := c.launch(c.plane.etcd(), c.plane.apiServer()); err != nil {
		return err
	}
	if err := c.connect(); err != nil {
		return err
	}
	if err := c.awaitAPI(ctx); err != nil {
		return err
	}
	if err := c.launch(c.plane.controllerManager(), c.plane.scheduler(), kwok(c.dir)); err != nil {
		return err
	}
	count := max(o.SimulatedNodes, 1)
	for i := range count {
		_, err := c.client.CoreV1().Nodes().Create(ctx, simulatedNode(i), metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("making simulated node %d: %w", i, err)
		}
	}
	return c.awaitNodes(ctx, count)
}

func kwok(dir string) component {
	return component{"kwok", []string{
		"--kubeconfig=" + dir + "/kwok.kubeconfig", "--config=" + dir + "/stages.yaml",
		"--manage-all-nodes=false", "--manage-nodes-with-annotation-selector=" + kwokAnnotation + "=fake",
		"--node-ip=" + loopback, "--server-address=", "--cidr=" + podCIDR, "--node-lease-duration-seconds=40",
	}}
}

func simulatedNode(number int) *corev1.Node {
	name := fmt.Sprintf("simulated-%d", number)
	room := corev1.ResourceList{
		corev1.ResourceCPU:              resource.MustParse("100k"),
		corev1.ResourceMemory:           resource.MustParse("100Ti"),
		corev1.ResourceEphemeralStorage: resource.MustParse("100Ti"),
		corev1.ResourcePods:             *resource.NewQuantity(podsPerSimulatedNode, resource.DecimalSI),
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name:        name,
			Annotations: map[string]string{kwokAnnotation: "fake"},
			Labels: map[string]string{
				corev1.LabelHostname: name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64",
				simulationPrefix + "node": "true",
			},
		},
		Status: corev1.NodeStatus{Allocatable: room, Capacity: room},
	}
}

// freePorts finds ports that nothing listens on. Another program may take one
// before we do; the start then fails with the component's own words.
func freePorts(ctx context.Context, count int) (numbers []int, err error) {
	var listeners []net.Listener
	defer func() {
		for _, listener := range listeners {
			err = errors.Join(err, listener.Close())
		}
	}()
	for range count {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", loopback+":0")
		if err != nil {
			return nil, fmt.Errorf("finding a free port: %w", err)
		}
		listeners = append(listeners, listener)
		address, ok := listener.Addr().(*net.TCPAddr)
		if !ok {
			return nil, fmt.Errorf("finding a free port: %v is no TCP address", listener.Addr())
		}
		numbers = append(numbers, address.Port)
	}
	return numbers, nil
}
