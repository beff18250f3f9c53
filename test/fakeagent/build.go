package fakeagent

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/archive"
	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/faults"
)

// Defaults of Options.
const (
	DefaultVersion  = "5.270.0"
	DefaultPlatform = "linux-x64"
)

const module = "github.com/azp-scaler/azp-scaler/test/fakeagent"

//go:embed files
var files embed.FS

var (
	versionForm = regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+$`)
	// errPlatform is a platform that nothing is built for.
	errPlatform = errors.New("want linux-x64 or linux-arm64")
)

// Options say what Build makes. The zero value is good.
type Options struct {
	// Version as major.minor.patch; the major one decides what SIGTERM does.
	Version string
	// Platform is linux-x64 or linux-arm64.
	Platform string
	// Faults are those of every agent from this package, as `name` or `name=value`.
	Faults []string
	// SourceDir is any folder of this module, for callers that don't run in one.
	SourceDir string
	// Race builds programs that detect their own data races and then end with 66;
	// they are not static, and take a C compiler.
	Race bool
}

// Build makes the agent's package and gives the tarball's path below destDir. The
// same content is written once, whatever processes ask for it. It takes a Go
// toolchain; the programs are kept in the user's cache.
func Build(ctx context.Context, destDir string, o Options) (string, error) {
	o.Version = cmp.Or(o.Version, DefaultVersion)
	o.Platform = cmp.Or(o.Platform, DefaultPlatform)
	if !versionForm.MatchString(o.Version) {
		return "", fmt.Errorf("build the stand-in agent: version %q is not of the form major.minor.patch", o.Version)
	}
	list := strings.Join(o.Faults, "\n")
	if _, err := faults.Parse(list); err != nil {
		return "", fmt.Errorf("build the stand-in agent: %w", err)
	}
	listener, worker, err := programs(ctx, o)
	if err != nil {
		return "", fmt.Errorf("build the stand-in agent: %w", err)
	}
	release, err := json.Marshal(map[string]string{"version": o.Version, "platform": o.Platform})
	if err != nil {
		return "", fmt.Errorf("build the stand-in agent: %w", err)
	}
	content := []archive.File{
		{Name: "bin/Agent.Listener", Mode: 0o755, Content: listener},
		{Name: "bin/Agent.Worker", Mode: 0o755, Content: worker},
		{Name: "bin/release.json", Mode: 0o644, Content: release},
		{Name: "externals/faults", Mode: 0o644, Content: []byte(list)},
	}
	for _, name := range []string{"config.sh", "run.sh", "env.sh", "license.html"} {
		text, err := files.ReadFile("files/" + name)
		if err != nil {
			return "", fmt.Errorf("build the stand-in agent: %w", err)
		}
		mode := fs.FileMode(0o755)
		if filepath.Ext(name) != ".sh" {
			mode = 0o644
		}
		content = append(content, archive.File{Name: name, Mode: mode, Content: text})
	}
	path, err := store(destDir, fmt.Sprintf("vsts-agent-%s-%s.tar.gz", o.Platform, o.Version), content)
	if err != nil {
		return "", fmt.Errorf("build the stand-in agent: %w", err)
	}
	return path, nil
}

// Unpack writes the package's content into dir, which has to be there.
func Unpack(tarball, dir string) error {
	file, err := os.Open(tarball)
	if err != nil {
		return fmt.Errorf("unpack the stand-in agent: %w", err)
	}
	defer func() { _ = file.Close() }()
	return archive.Unpack(file, dir)
}

// store packs the files below a folder named after their content, unless it is there.
func store(destDir, name string, content []archive.File) (string, error) {
	sum := sha256.New()
	for _, file := range content {
		// The sizes keep two lists of files from looking the same.
		_, _ = fmt.Fprintf(sum, "%s %o %d\n", file.Name, file.Mode, len(file.Content))
		_, _ = sum.Write(file.Content)
	}
	dir := filepath.Join(destDir, hex.EncodeToString(sum.Sum(nil))[:16])
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	var packed bytes.Buffer
	if err := archive.Pack(&packed, content); err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return path, writeWhole(path, packed.Bytes())
}

// writeWhole writes a file so that others see all of it or nothing.
func writeWhole(path string, content []byte) error {
	file, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	err = errors.Join(err, file.Chmod(0o644), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	return nil
}

// programs builds the two programs, or finds that nothing has changed since.
func programs(ctx context.Context, o Options) (listener, worker []byte, err error) {
	arch, err := architecture(o.Platform)
	if err != nil {
		return nil, nil, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, nil, fmt.Errorf("find the user's cache: %w", err)
	}
	dir := filepath.Join(cache, "azp-scaler", "fakeagent", o.Platform)
	flags, cgo := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w"}, "CGO_ENABLED=0"
	if o.Race {
		dir += "-race"
		flags, cgo = append(flags, "-race"), "CGO_ENABLED=1"
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, nil, err
	}
	unlock, err := lock(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	// An output that is up to date is left alone, which spares the linking.
	cmd := exec.CommandContext(ctx, "go", append(flags, "-o", dir+string(filepath.Separator), module+"/cmd/listener", module+"/cmd/worker")...)
	cmd.Dir = o.SourceDir
	cmd.Env = append(cmd.Environ(), cgo, "GOOS=linux", "GOARCH="+arch)
	if output, err := cmd.CombinedOutput(); err != nil {
		return nil, nil, fmt.Errorf("go build: %w: %s", err, bytes.TrimSpace(output))
	}
	if listener, err = os.ReadFile(filepath.Join(dir, "listener")); err != nil {
		return nil, nil, err
	}
	if worker, err = os.ReadFile(filepath.Join(dir, "worker")); err != nil {
		return nil, nil, err
	}
	return listener, worker, nil
}

func architecture(platform string) (string, error) {
	switch platform {
	case "linux-x64":
		return "amd64", nil
	case "linux-arm64":
		return "arm64", nil
	default:
		return "", fmt.Errorf("platform %q: %w", platform, errPlatform)
	}
}

// lock keeps other processes out until unlock.
func lock(path string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), file.Close())
	}
	// Closing the file gives the lock back.
	return func() { _ = file.Close() }, nil
}
