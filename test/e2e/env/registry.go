package env

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/azp-scaler/azp-scaler/test/e2e/process"
)

// registryLimit is how long a registry may take to start.
const registryLimit = 20 * time.Second

// The images that an installation by the chart is made of. The node finds registryName at the
// registry of this machine.
const (
	registryName = "azp-scaler.local"
	imageTag     = "env"
	previousTag  = "previous"
	scalerImage  = registryName + "/scaler"
	agentImage   = registryName + "/agent" // With the tag it is AgentImage.
)

// registry is a container registry on this machine, which the node alone reaches.
type registry struct {
	address string
	process *process.Process
	log     *os.File
}

// startRegistry starts one, and has the node pull from it.
func (e *Env) startRegistry(ctx context.Context) error {
	address, err := freeAddress(e.HostAddress())
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(e.dir, "registry.log"))
	if err != nil {
		return fmt.Errorf("the registry's log: %w", err)
	}
	blobs := filepath.Join(e.private, "registry")
	if err := os.Mkdir(blobs, 0o700); err != nil {
		return errors.Join(fmt.Errorf("the registry's directory: %w", err), log.Close())
	}
	command := exec.Command(e.cluster.Binaries().Crane(), "registry", "serve", "--address", address, "--disk", blobs)
	command.Env = []string{"HOME=" + e.private}
	command.Stdout, command.Stderr = log, log
	started, err := process.Start(command)
	if err != nil {
		return errors.Join(err, log.Close())
	}
	e.registry = &registry{address: address, process: started, log: log}
	if err := e.registry.wait(ctx); err != nil {
		return err
	}
	return e.cluster.UseRegistry(registryName, address)
}

func (r *registry) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, registryLimit)
	defer cancel()
	return await(ctx, "the registry", "ready", r.process, r.log, func(ctx context.Context, client *http.Client) error {
		_, err := probe(ctx, client, "http://"+r.address+"/v2/")
		return err
	})
}

func (r *registry) close() error { return errors.Join(r.process.Kill(), r.log.Close()) }

// TagImage gives an image in the registry a further name, as somebody does who pushes it late.
// Both are names that pods have.
func (e *Env) TagImage(ctx context.Context, image, name string) error {
	here := func(name string) string {
		return e.registry.address + strings.TrimPrefix(name, registryName)
	}
	command := exec.CommandContext(ctx, e.cluster.Binaries().Crane(), "copy", "--insecure", here(image), here(name))
	command.Env = []string{"HOME=" + e.private}
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s to %s: %w: %s", image, name, err, out)
	}
	return nil
}
