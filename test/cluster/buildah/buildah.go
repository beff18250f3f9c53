// Package buildah builds Dockerfiles as they are, with images of this machine's making in
// the place of those that they start from: no registry is asked for anything.
package buildah

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/azp-scaler/azp-scaler/test/cluster/image"
	"github.com/azp-scaler/azp-scaler/test/cluster/internal/filelock"
	"github.com/azp-scaler/azp-scaler/test/cluster/internal/hostdeps"
	"github.com/azp-scaler/azp-scaler/test/cluster/internal/proc"
	"github.com/azp-scaler/azp-scaler/test/cluster/internal/progress"
)

// buildLimit bounds one build, with nothing of it there yet.
const buildLimit = 20 * time.Minute

// standInPrefix begins the names under which stand-ins are kept by what they are made of.
const standInPrefix = "localhost/stand-in:"

// builtPrefix begins those of what was built.
const builtPrefix = "localhost/built:"

// Builder has a store of images of its own, apart from those of the machine.
type Builder struct {
	dir    string
	report *progress.Reporter
}

// Open gives the builder whose store is in dir, which is made if need be. It needs root,
// and installs buildah if it may. Progress receives what takes time; nil means silence.
func Open(ctx context.Context, dir string, out io.Writer) (*Builder, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("building images needs root here: the machine's own users may have no ranges of user ids")
	}
	report := progress.New(out)
	if err := hostdeps.Ensure(ctx, report, hostdeps.Need{Program: "buildah", Package: "buildah"}); err != nil {
		return nil, fmt.Errorf("building images: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory for images: %w", err)
	}
	return &Builder{dir: dir, report: report}, nil
}

// run calls buildah on the builder's store and gives what it printed.
func (b *Builder) run(ctx context.Context, arguments ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, buildLimit)
	defer cancel()
	store := []string{"--root", filepath.Join(b.dir, "store"), "--runroot", filepath.Join(b.dir, "run")}
	cmd := exec.CommandContext(ctx, "buildah", append(store, arguments...)...)
	// Killed, it would leave what it has mounted.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	// Not after our end: it would go on with a registry that is gone.
	process, err := proc.Start("buildah", cmd)
	if err != nil {
		return "", err
	}
	<-process.Done()
	if err := process.Err(); err != nil {
		said := []byte(out.String() + complaints.String())
		return "", fmt.Errorf("buildah %s: %w: %s", arguments[0], err, bytes.TrimSpace(said[max(0, len(said)-4000):]))
	}
	return strings.TrimSpace(out.String()), nil
}

// StandIn has builds find an image under its name, and gives the one under which it is kept.
// Key says what it is made of, by content: it is made once for each.
func (b *Builder) StandIn(ctx context.Context, key string, spec image.Spec) (string, error) {
	sum := sha256.Sum256([]byte(spec.Ref + "\n" + key))
	kept := standInPrefix + hex.EncodeToString(sum[:8])
	unlock, err := filelock.Acquire(ctx, filepath.Join(b.dir, "stand-ins.lock"), b.report)
	if err != nil {
		return "", fmt.Errorf("waiting for another run that makes images: %w", err)
	}
	defer unlock()
	if _, err := b.run(ctx, "inspect", "--type", "image", kept); err != nil {
		end := b.report.Step("making a stand-in for the image %s", spec.Ref)
		err := b.make(ctx, kept, spec)
		end(err)
		if err != nil {
			return "", fmt.Errorf("stand-in for %s: %w", spec.Ref, err)
		}
	}
	_, err = b.run(ctx, "tag", kept, spec.Ref)
	return kept, err
}

func (b *Builder) make(ctx context.Context, kept string, spec image.Spec) error {
	archive := filepath.Join(b.dir, "stand-in.tar")
	defer func() { _ = os.Remove(archive) }()
	if err := image.Write(ctx, archive, spec); err != nil {
		return err
	}
	id, err := b.run(ctx, "pull", "--quiet", "oci-archive:"+archive)
	if err != nil {
		return err
	}
	_, err = b.run(ctx, "tag", id, kept)
	return err
}

// Build says what to build.
type Build struct {
	Context string // Directory.
	File    string // The Dockerfile, in it.
	// Key says all that the image is made of, by content. An image of the same file and key
	// is taken from an earlier time.
	Key       string
	Arguments map[string]string
	// Anew takes nothing from an earlier time.
	Anew bool
	// Volumes are directories of this machine, by the place where steps of the build find them
	// and may write.
	Volumes map[string]string
}

// Build builds an image and gives the name under which it is kept. Where there is none of its
// key, steps that have not changed are taken from an earlier time.
func (b *Builder) Build(ctx context.Context, build Build) (string, error) {
	sum := sha256.Sum256([]byte(build.File + "\n" + build.Key))
	kept := builtPrefix + hex.EncodeToString(sum[:8])
	unlock, err := filelock.Acquire(ctx, filepath.Join(b.dir, "builds.lock"), b.report)
	if err != nil {
		return "", fmt.Errorf("waiting for another run that builds images: %w", err)
	}
	defer unlock()
	if build.Anew {
		kept += "-anew"
	} else if _, err := b.run(ctx, "inspect", "--type", "image", kept); err == nil {
		return kept, nil
	}
	arguments := []string{
		"build", "--layers", "--force-rm", "--isolation", "chroot", "--pull-never", "--quiet",
		// Older versions tell the build nothing of its processor otherwise.
		"--platform", "linux/" + runtime.GOARCH,
		"--file", filepath.Join(build.Context, build.File), "--tag", kept,
	}
	if build.Anew {
		arguments = append(arguments, "--no-cache")
	}
	for _, name := range slices.Sorted(maps.Keys(build.Arguments)) {
		arguments = append(arguments, "--build-arg", name+"="+build.Arguments[name])
	}
	for _, place := range slices.Sorted(maps.Keys(build.Volumes)) {
		arguments = append(arguments, "--volume", build.Volumes[place]+":"+place)
	}
	end := b.report.Step("building %s", build.File)
	_, err = b.run(ctx, append(arguments, build.Context)...)
	end(err)
	if err != nil {
		return "", fmt.Errorf("building %s: %w", build.File, err)
	}
	return kept, nil
}

// Config is what an image says of itself, as far as tests look.
type Config struct {
	Config struct {
		User   string
		Labels map[string]string
	} `json:"config"`
}

// Config gives what an image says of itself.
func (b *Builder) Config(ctx context.Context, tag string) (Config, error) {
	text, err := b.run(ctx, "inspect", "--type", "image", "--format", "{{.Config}}", tag)
	if err != nil {
		return Config{}, err
	}
	var config Config
	if err := json.Unmarshal([]byte(text), &config); err != nil {
		return Config{}, fmt.Errorf("configuration of image %s: %w", tag, err)
	}
	return config, nil
}

// Copy gives a file of an image: it is written to a path of this machine.
func (b *Builder) Copy(ctx context.Context, tag, file, to string) error {
	container, err := b.run(ctx, "from", "--pull-never", tag)
	if err != nil {
		return err
	}
	root, err := b.run(ctx, "mount", container)
	if err == nil {
		err = copyFile(filepath.Join(root, file), to)
	}
	_, removed := b.run(context.WithoutCancel(ctx), "rm", container)
	return errors.Join(err, removed)
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// Push gives an image to a registry that speaks plain HTTP, under a name such as
// 127.0.0.1:5000/agent:1.
func (b *Builder) Push(ctx context.Context, tag, name string) error {
	end := b.report.Step("pushing %s", name)
	// The way is short, and compressing takes long.
	_, err := b.run(ctx, "push", "--quiet", "--tls-verify=false", "--disable-compression", tag, "docker://"+name)
	end(err)
	if err != nil {
		return fmt.Errorf("pushing %s: %w", name, err)
	}
	return nil
}
