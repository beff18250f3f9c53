package env

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/azp-scaler/azp-scaler/test/e2e/hostnode"
	"github.com/azp-scaler/azp-scaler/test/fakeagent"
)

// processNode is the name of the node whose containers are processes.
const processNode = "processes"

// startProcessNode gives a cluster without a real node one on which the
// entrypoint and the agent really run, as processes of this machine, and has all
// pods scheduled there.
func (e *Env) startProcessNode(ctx context.Context, dir string, options Options) error {
	nodes, err := e.Admin.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	cordon, err := json.Marshal(map[string]any{"spec": map[string]any{"unschedulable": true}})
	if err != nil {
		return fmt.Errorf("cordon: %w", err)
	}
	for _, node := range nodes.Items {
		if _, err := e.Admin.CoreV1().Nodes().Patch(ctx, node.Name, types.MergePatchType, cordon, metav1.PatchOptions{}); err != nil {
			return fmt.Errorf("cordon node %s: %w", node.Name, err)
		}
	}
	bin := filepath.Dir(e.built.scaler)
	link := filepath.Join(bin, "kubectl")
	if err := os.Remove(link); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("link to kubectl: %w", err)
	}
	if err := os.Symlink(e.Kubectl(), link); err != nil {
		return fmt.Errorf("link to kubectl: %w", err)
	}
	node := hostnode.Options{
		Name: processNode, Config: e.config, Dir: filepath.Join(e.private, "pods"), LogDir: filepath.Join(dir, "pods"),
		Supervisor: filepath.Join(bin, "supervise"), Path: bin + string(filepath.ListSeparator) + os.Getenv("PATH"),
		Problem: func(err error) {
			if options.Progress != nil {
				_, _ = fmt.Fprintf(options.Progress, "node %s: %v\n", processNode, err)
			}
		},
	}
	if !options.Download {
		unpacked := filepath.Join(e.private, "agent-root")
		if err := os.Mkdir(unpacked, 0o755); err != nil {
			return fmt.Errorf("unpack the agent: %w", err)
		}
		if err := fakeagent.Unpack(e.built.agentPackage.Path, unpacked); err != nil {
			return err
		}
		node.Image = map[string]string{agentRoot: unpacked}
	}
	if os.Geteuid() == 0 {
		// The agent refuses root, and here nothing makes it anybody else.
		node.Environment = []string{"AGENT_ALLOW_RUNASROOT=1"}
	}
	e.node, err = hostnode.Start(ctx, node)
	return err
}
