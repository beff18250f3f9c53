package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
)

// The parts of the agent program that the entrypoint starts.
const (
	configProgram   = "config.sh"
	listenerProgram = "bin/Agent.Listener"
)

// downloadTries is how often a package is fetched before its download is given up:
// a body cut short or altered on the way is worth a second look, not a third.
const downloadTries = 2

// given is the one package that the scaler has found.
type given struct {
	Downloads
	pkg azuredevops.Package
}

// Package gives it, whatever is asked for.
func (g given) Package(context.Context, string, string) (azuredevops.Package, error) {
	return g.pkg, nil
}

// Download gets the agent program for a pod that holds no credential of the pool's: the
// package that the scaler, which may ask the service, has found.
func (s *Supervisor) Download(ctx context.Context, from Downloads) Outcome {
	pkg := s.settings.Package
	pkg.Version, pkg.Filename = s.settings.Version, pkg.NameFromURL()
	err := s.checkRoot()
	if err == nil && !runsOn(s.settings.Platform, runtime.GOARCH) {
		err = fail(ExitConfiguration, "the package is for the platform %s, and this node's processor is %s: have the class ask for its kind of node (nodeSelector kubernetes.io/arch)", s.settings.Platform, runtime.GOARCH)
	}
	if err == nil {
		err = s.ensureProgram(ctx, given{Downloads: from, pkg: pkg})
	}
	if errors.Is(err, azuredevops.ErrAuthentication) || errors.Is(err, azuredevops.ErrAuthorization) {
		// Nobody has refused a credential: there is none.
		err = fail(ExitConfiguration, "%w; the download needs a sign-in, and a pod whose agent the scaler registers (jit) has nothing to sign in with: put the agent program into the image, or have pods register their agents (AZP_REGISTRATION or the class's annotation registration: config)", err)
	}
	o := outcomeOf(err, ExitConfiguration, "the agent program is in place")
	if o.Code != ExitDone && ctx.Err() != nil {
		return Outcome{Code: ExitNoBuild, Message: "asked to stop before the agent program was there: " + o.Message}
	}
	return o
}

// runsOn reports whether a package of the platform runs on a processor, as Go calls it. What
// is unknown is left to the try.
func runsOn(platform, processor string) bool {
	own, known := map[string]string{"amd64": "-x64", "arm64": "-arm64", "arm": "-arm"}[processor]
	return !known || strings.HasSuffix(platform, own)
}

// checkRoot makes sure that the agent program can live in its root.
func (s *Supervisor) checkRoot() error {
	root := s.settings.Root
	if !isFolder(root) {
		return fail(ExitConfiguration, "agent root %s is no folder: create it in the image, mount a volume there, or set AZP_AGENT_ROOT", root)
	}
	if err := unix.Access(root, unix.W_OK|unix.X_OK); err != nil {
		return fail(ExitConfiguration, "agent root %s is not writable for uid %d: the agent program keeps its work and logs there, so make that user its owner or mount a volume with an fsGroup", root, s.settings.EffectiveUID)
	}
	if s.settings.EffectiveUID == 0 {
		if allowed, _ := lookup(s.settings.Environment, "AGENT_ALLOW_RUNASROOT"); allowed == "" {
			return fail(ExitConfiguration, "the agent program refuses to run as root: give the container a numeric runAsUser such as 1000, or set AGENT_ALLOW_RUNASROOT=1")
		}
	}
	return nil
}

// hasProgram reports whether the agent program is in its root and executable.
func (s *Supervisor) hasProgram() bool {
	return unix.Access(filepath.Join(s.settings.Root, listenerProgram), unix.X_OK) == nil
}

// ensureProgram sees to it that the agent program is in its root: that of the image,
// or a package downloaded, verified and unpacked within the limit.
func (s *Supervisor) ensureProgram(ctx context.Context, packages Packages) error {
	if s.settings.Source != SourceDownload && s.hasProgram() {
		s.log.Info("the agent program is in the image", "root", s.settings.Root)
		return nil
	}
	if s.settings.Source == SourceImage {
		return fail(ExitConfiguration, "%s is not in the agent root %s: put the agent program into the image, or set AZP_AGENT_SOURCE to auto or download", listenerProgram, s.settings.Root)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, s.settings.DownloadLimit,
		fmt.Errorf("the agent program was not there within AZP_DOWNLOAD_LIMIT (%s): raise it, or put the program into the image", s.settings.DownloadLimit))
	defer cancel()
	for try := 1; ; try++ {
		err := s.download(ctx, packages)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fail(ExitUnreachable, "%w (%w)", context.Cause(ctx), err)
		}
		// A version or platform that the service does not have is a wrong setting.
		if code := codeOf(err, ExitConfiguration); try >= downloadTries || code != ExitUnreachable {
			return fail(code, "%w", err)
		}
		s.log.Warn("the download failed and is tried once more", "err", err)
	}
}

func (s *Supervisor) download(ctx context.Context, packages Packages) error {
	var pkg azuredevops.Package
	err := s.retry(ctx, "finding the agent's package", transient, func(ctx context.Context) error {
		var err error
		pkg, err = packages.Package(ctx, s.settings.Platform, s.settings.Version)
		return err
	})
	if err != nil {
		return err
	}
	// In the agent root, because no other folder is sure to have the room, and
	// renaming works only within one volume.
	staging, err := os.MkdirTemp(s.settings.Root, ".azp-download-*")
	if err != nil {
		return fail(ExitConfiguration, "agent root: %w", err)
	}
	err = s.fetchInto(ctx, packages, pkg, staging)
	return errors.Join(err, os.RemoveAll(staging))
}

func (s *Supervisor) fetchInto(ctx context.Context, from Downloads, pkg azuredevops.Package, staging string) error {
	began := time.Now()
	s.log.Info("downloading the agent program", "version", pkg.Version, "platform", s.settings.Platform, "file", pkg.Filename)
	archive := filepath.Join(staging, "package.tar.gz")
	if err := s.fetch(ctx, from, pkg, archive); err != nil {
		return err
	}
	fetched := time.Now()
	content := filepath.Join(staging, "content")
	if err := os.Mkdir(content, 0o755); err != nil {
		return fail(ExitConfiguration, "agent root: %w", err)
	}
	if err := unpackFile(ctx, archive, content); err != nil {
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			return fail(ExitConfiguration, "unpacking %s: %w: give the agent root's volume more room", pkg.Filename, err)
		}
		return fail(ExitUnreachable, "unpacking %s: %w", pkg.Filename, err)
	}
	if _, err := os.Stat(filepath.Join(content, listenerProgram)); err != nil {
		return fail(ExitUnreachable, "package %s holds no %s: it is not an agent package", pkg.Filename, listenerProgram)
	}
	if err := install(content, s.settings.Root); err != nil {
		return fail(ExitConfiguration, "agent root: %w", err)
	}
	s.log.Info("the agent program is unpacked", "version", pkg.Version,
		"download", fetched.Sub(began).Round(time.Millisecond), "unpack", time.Since(fetched).Round(time.Millisecond))
	return nil
}

// fetch downloads the package, whose SHA-256 the client verifies.
func (s *Supervisor) fetch(ctx context.Context, from Downloads, pkg azuredevops.Package, path string) (err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fail(ExitConfiguration, "agent root: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	last := time.Now()
	return from.Download(ctx, pkg, file, func(done, total int64) {
		if done != total && time.Since(last) < s.timing.progress {
			return
		}
		last = time.Now()
		if total > 0 {
			s.log.Info("downloading the agent program", "mib", done>>20, "of_mib", total>>20, "percent", done*100/total)
		} else {
			s.log.Info("downloading the agent program", "mib", done>>20)
		}
	})
}

// install moves what was unpacked into the root, bin/ last: while the listener is
// not there, the program counts as absent, so a crash in between leaves nothing
// that looks whole.
func install(content, root string) error {
	entries, err := os.ReadDir(content)
	if err != nil {
		return err
	}
	move := func(name string) error {
		target := filepath.Join(root, name)
		if err := os.RemoveAll(target); err != nil {
			return err
		}
		return os.Rename(filepath.Join(content, name), target)
	}
	if err := os.RemoveAll(filepath.Join(root, "bin")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		if entry.Name() == "bin" {
			continue
		}
		if err := move(entry.Name()); err != nil {
			return err
		}
	}
	return move("bin")
}
