package env

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/cluster"
	"github.com/azp-scaler/azp-scaler/test/cluster/image"
	"github.com/azp-scaler/azp-scaler/test/fakeagent"
)

// module is the path of this repository's module.
const module = "github.com/azp-scaler/azp-scaler"

// The build's user in the image; pods run as it.
const (
	agentUser  = 1000
	agentGroup = 1000
	agentHome  = "/home/agent"
	agentRoot  = "/azp/agent"
)

// artefacts are what was built for a run.
type artefacts struct {
	root         string // Of the repository.
	scaler       string
	agentPackage azuredevopstest.AgentPackage
}

// build makes the scaler, the entrypoint and the stand-in agent.
func build(ctx context.Context, steps *steps, dir string, options Options) (artefacts, error) {
	root, err := repository()
	if err != nil {
		return artefacts{}, err
	}
	built := artefacts{root: root}
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return built, fmt.Errorf("directory for binaries: %w", err)
	}
	if err := steps.run("building scaler and entrypoint", func() error {
		return goBuild(ctx, root, bin, "./cmd/scaler", "./cmd/agent-entrypoint", "./test/e2e/hostnode/cmd/supervise", "./test/e2e/hostile/cmd/hostile-build")
	}); err != nil {
		return built, err
	}
	built.scaler = filepath.Join(bin, "scaler")
	platform, err := platform()
	if err != nil {
		return built, err
	}
	var tarball string
	if err := steps.run("building the stand-in agent", func() (err error) {
		tarball, err = fakeagent.Build(ctx, filepath.Join(dir, "agent"), fakeagent.Options{Platform: platform, Faults: options.AgentFaults})
		return err
	}); err != nil {
		return built, err
	}
	built.agentPackage = azuredevopstest.AgentPackage{Platform: platform, Version: fakeagent.DefaultVersion, Path: tarball}
	return built, nil
}

// loadImage makes the agent's image and gives it to the node.
func (e *Env) loadImage(ctx context.Context, steps *steps, dir string, options Options) error {
	archive := filepath.Join(e.private, "agent-image.tar")
	if err := steps.run("building the agent's image", func() error {
		return buildImage(ctx, archive, filepath.Join(dir, "bin"), e.built.agentPackage.Path, e.cluster.Binaries(), options)
	}); err != nil {
		return err
	}
	return steps.run("loading the agent's image into the node", func() error {
		if err := e.cluster.LoadImage(ctx, archive); err != nil {
			return err
		}
		return os.Remove(archive) // The node has its own copy now, and it is large.
	})
}

func buildImage(ctx context.Context, target, bin, tarball string, programs cluster.Binaries, options Options) error {
	cache, err := os.UserCacheDir()
	if err != nil {
		return fmt.Errorf("cache of base images: %w: set HOME or XDG_CACHE_HOME", err)
	}
	base, err := image.Debian{
		Cache: filepath.Join(cache, "azp-scaler", "cluster", "bases"), Packages: image.AgentPackages(), Progress: options.Progress,
	}.Base(ctx)
	if err != nil {
		return err
	}
	files := []image.File{
		{Path: "/usr/local/bin/agent-entrypoint", Source: filepath.Join(bin, "agent-entrypoint"), Mode: 0o755},
		// What a hostile build brings along.
		{Path: "/usr/local/bin/hostile-build", Source: filepath.Join(bin, "hostile-build"), Mode: 0o755},
		{Path: "/usr/local/bin/kubectl", Source: programs.Kubectl(), Mode: 0o755},
		{Path: agentHome, Dir: true, UID: agentUser, GID: agentGroup},
		{Path: "/azp", Dir: true, UID: agentUser, GID: agentGroup},
		{Path: agentRoot, Dir: true, UID: agentUser, GID: agentGroup},
	}
	if !options.Download {
		files = append(files, image.File{Path: agentRoot, Archive: tarball, UID: agentUser, GID: agentGroup})
	}
	return image.Write(ctx, target, image.Spec{
		Ref: AgentImage, Base: base, Files: files,
		User: fmt.Sprintf("%d:%d", agentUser, agentGroup), Env: []string{"HOME=" + agentHome, "AZP_AGENT_ROOT=" + agentRoot},
		Entrypoint: []string{"tini", "--", "agent-entrypoint"}, WorkingDir: agentHome,
	})
}

// goBuild builds commands as they are delivered: static, without paths. It does so in a
// directory of the user's cache and copies them from there: go leaves what is up to date as
// it is, and linking is most of the work, which every system of a test run needs anew.
func goBuild(ctx context.Context, root, bin string, packages ...string) error {
	cache, err := os.UserCacheDir()
	if err != nil {
		return fmt.Errorf("cache of programs: %w: set HOME or XDG_CACHE_HOME", err)
	}
	shared := filepath.Join(cache, "azp-scaler", "env")
	if err := os.MkdirAll(shared, 0o755); err != nil {
		return fmt.Errorf("cache of programs: %w", err)
	}
	unlock, err := lock(ctx, filepath.Join(shared, "lock"))
	if err != nil {
		return fmt.Errorf("cache of programs: %w", err)
	}
	defer unlock()
	if err := goBuildIn(ctx, root, shared, packages); err != nil {
		return err
	}
	for _, name := range packages {
		if err := copyProgram(filepath.Join(shared, filepath.Base(name)), filepath.Join(bin, filepath.Base(name))); err != nil {
			return fmt.Errorf("copy a program out of the cache: %w", err)
		}
	}
	return nil
}

// lockEvery is how often a lock that somebody else has is asked for.
const lockEvery = 50 * time.Millisecond

// lock keeps other processes, and others in this one, from building at the same place.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = file.Close() }, nil // Closing unlocks.
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), file.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, ctx.Err()), file.Close())
		case <-time.After(lockEvery):
		}
	}
}

// copyProgram copies an executable file to where there is none.
func copyProgram(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func goBuildIn(ctx context.Context, root, dir string, packages []string) error {
	arguments := append([]string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", dir + string(filepath.Separator)}, packages...)
	command := exec.CommandContext(ctx, "go", arguments...)
	command.Dir = root
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", strings.Join(packages, " "), err, out)
	}
	return nil
}

// platform is the service's name for packages that run here.
func platform() (string, error) {
	switch runtime.GOARCH {
	case "amd64":
		return "linux-x64", nil
	case "arm64":
		return "linux-arm64", nil
	default:
		return "", fmt.Errorf("there is no agent for %s: use a machine with amd64 or arm64", runtime.GOARCH)
	}
}

// repository finds the root of this repository from the working directory
// upwards: programs are built from its sources.
func repository() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the repository: %w", err)
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		switch {
		case err == nil && strings.HasPrefix(string(text), "module "+module+"\n"):
			return dir, nil
		case err != nil && !errors.Is(err, os.ErrNotExist):
			return "", fmt.Errorf("find the repository: %w", err)
		case dir == filepath.Dir(dir):
			return "", fmt.Errorf("find the repository: no go.mod of %s in %s or above it: run inside the repository", module, start)
		}
	}
}
