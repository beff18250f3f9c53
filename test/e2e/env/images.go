package env

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/cluster"
	"github.com/azp-scaler/azp-scaler/test/cluster/buildah"
	"github.com/azp-scaler/azp-scaler/test/dockerfile"
)

// The delivered Dockerfiles.
const (
	scalerFile = "Dockerfile.scaler"
	agentFile  = "Dockerfile.agent"
)

// ImageVersion is what the images of the tests say that they are.
const ImageVersion = "v0.0.0-test"

// modulesPlace and compiledPlace are where builds find the modules that this machine has
// already, and what it has compiled of them.
const (
	modulesPlace  = "/modules"
	compiledPlace = "/compiled"
)

// ImageBuilder builds the Dockerfiles of one state of the sources, unmodified. What they start
// from is made on this machine: see standIns.
type ImageBuilder struct {
	*buildah.Builder

	root  string // Of the sources.
	bases string // The stand-ins, by what they are made of.
}

// NewImageBuilder is for the sources of this repository, or those below root, if it is not
// empty. It makes what the Dockerfiles start from, if it is not there from an earlier run.
func NewImageBuilder(ctx context.Context, root string, programs cluster.Binaries, progress io.Writer) (*ImageBuilder, error) {
	if root == "" {
		var err error
		if root, err = repository(); err != nil {
			return nil, err
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("cache of images: %w: set HOME or XDG_CACHE_HOME", err)
	}
	builder, err := buildah.Open(ctx, filepath.Join(cache, "azp-scaler", "images"), progress)
	if err != nil {
		return nil, err
	}
	bases, err := cluster.BaseImageCache("")
	if err != nil {
		return nil, err
	}
	b := &ImageBuilder{Builder: builder, root: root}
	stands := &standIns{builder: b, programs: programs, bases: bases, progress: progress}
	for _, file := range []string{scalerFile, agentFile} {
		instructions, err := dockerfile.Read(filepath.Join(root, file))
		if err != nil {
			return nil, err
		}
		for _, ref := range dockerfile.Bases(instructions) {
			kept, err := stands.make(ctx, ref)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			b.bases += kept + "\n"
		}
	}
	return b, nil
}

// Scaler builds the scaler's image and gives its name. anew takes nothing from an earlier time.
func (b *ImageBuilder) Scaler(ctx context.Context, anew bool) (string, error) {
	return b.build(ctx, scalerFile, map[string]string{"VERSION": ImageVersion}, nil, anew)
}

// Agent builds the agents' image with an agent program in it, and gives its name. There may be
// no way to Microsoft's packages from here, and Debian's Azure CLI is large.
func (b *ImageBuilder) Agent(ctx context.Context, program azuredevopstest.AgentPackage) (string, error) {
	content, err := os.ReadFile(program.Path)
	if err != nil {
		return "", err
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != fmt.Sprintf("/%[1]s/vsts-agent-%[2]s-%[1]s.tar.gz", program.Version, program.Platform) {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(content) // Of what is cut off the SHA-256 tells.
	}))
	defer server.Close()
	sum := digest(content)
	return b.build(ctx, agentFile, map[string]string{
		"VERSION": ImageVersion, "AZURE_CLI": "none", "AGENT_VERSION": program.Version, "AGENT_SHA256_AMD64": sum, "AGENT_SHA256_ARM64": sum,
	}, map[string]string{"AGENT_URL": server.URL}, false)
}

// build builds a Dockerfile. Passing are arguments that say nothing of what comes of it.
func (b *ImageBuilder) build(ctx context.Context, file string, arguments, passing map[string]string, anew bool) (string, error) {
	modules, err := goEnv(ctx, "GOMODCACHE")
	if err != nil {
		return "", err
	}
	compiled, err := goEnv(ctx, "GOCACHE")
	if err != nil {
		return "", err
	}
	key, err := b.key(file, arguments)
	if err != nil {
		return "", fmt.Errorf("what %s is built from: %w", file, err)
	}
	all := maps.Clone(arguments)
	maps.Copy(all, passing)
	return b.Build(ctx, buildah.Build{
		Context: b.root, File: file, Key: key, Arguments: all, Anew: anew,
		Volumes: map[string]string{modulesPlace: filepath.Join(modules, "cache", "download"), compiledPlace: compiled},
	})
}

// key says all that a Dockerfile's image is made of, but for the packages of its distribution,
// which are those of the day.
func (b *ImageBuilder) key(file string, arguments map[string]string) (string, error) {
	sum := sha256.New()
	_, _ = io.WriteString(sum, b.bases) // A hash takes everything.
	for _, name := range slices.Sorted(maps.Keys(arguments)) {
		_, _ = fmt.Fprintf(sum, "%s=%s\n", name, arguments[name])
	}
	instructions, err := dockerfile.Read(filepath.Join(b.root, file))
	if err != nil {
		return "", err
	}
	for _, source := range append([]string{file}, dockerfile.Copied(instructions)...) {
		if err := filepath.WalkDir(filepath.Join(b.root, source), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			relative, err := filepath.Rel(b.root, path)
			_, _ = fmt.Fprintf(sum, "%s %s\n", relative, digest(content))
			return err
		}); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

func goEnv(ctx context.Context, name string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", name).Output()
	if err != nil {
		return "", fmt.Errorf("go env %s: %w", name, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// git runs it on this repository.
func git(ctx context.Context, root string, arguments ...string) (string, error) {
	command := exec.CommandContext(ctx, "git", append([]string{"-C", root}, arguments...)...)
	var complaint strings.Builder
	command.Stderr = &complaint
	out, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("git %s: %w: %s", arguments[0], err, strings.TrimSpace(complaint.String()))
	}
	return strings.TrimSpace(string(out)), nil
}

// PreviousVersion gives the commit of the chart's previous version: that before the one which
// gave the chart its present version, or, as long as it has had no other, the one that delivered
// it first. The error is ErrNoHistory where that can't be known.
func PreviousVersion(ctx context.Context) (string, error) {
	const chart = "deploy/helm/azp-scaler/Chart.yaml"
	root, err := repository()
	if err != nil {
		return "", err
	}
	commit, err := git(ctx, root, "log", "-1", "--format=%H", "-G", "^version:", "--", chart)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoHistory, err)
	}
	if commit == "" {
		return "", fmt.Errorf("%w: no commit has given the chart its version", ErrNoHistory)
	}
	if _, err := git(ctx, root, "cat-file", "-e", commit+"^:"+chart); err == nil {
		commit += "^"
	}
	return commit, nil
}

// sourcesOf unpacks the sources as they were at a commit below dir.
func sourcesOf(ctx context.Context, root, commit, dir string) (string, error) {
	fail := func(err error) (string, error) { return "", fmt.Errorf("the sources of commit %s: %w", commit, err) }
	archive, sources := filepath.Join(dir, "sources.tar"), filepath.Join(dir, "sources")
	if _, err := git(ctx, root, "archive", "--output", archive, commit); err != nil {
		return fail(err)
	}
	if err := os.Mkdir(sources, 0o755); err != nil {
		return fail(err)
	}
	if out, err := exec.CommandContext(ctx, "tar", "--extract", "--file", archive, "--directory", sources).CombinedOutput(); err != nil {
		return fail(fmt.Errorf("%w: %s", err, out))
	}
	return sources, os.Remove(archive)
}

// ErrNoHistory says that the sources are there without git's history.
var ErrNoHistory = errors.New("the chart's previous version is not known: a clone with its history has it")

// CanBuildImages tells what a machine lacks to build images, and nothing if it has all.
func CanBuildImages(ctx context.Context) string {
	if err := cluster.CanBeReal(ctx); err != nil {
		return fmt.Sprintf("images are built and run by root, on a real node, only: %v", err)
	}
	for _, program := range []string{"buildah", "mmdebstrap"} {
		_, missing := exec.LookPath(program)
		_, noApt := exec.LookPath("apt-get")
		if missing == nil || noApt == nil {
			continue
		}
		return program + " is not there, and no apt-get to install it"
	}
	return ""
}
