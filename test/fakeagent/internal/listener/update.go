package listener

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/archive"
	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/faults"
	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/wire"
)

// updateScript waits for the listener's end and exchanges the programs.
//
//go:embed update.sh
var updateScript string

// updater replaces the agent's programs. As with the real agent, a script that
// outlives the listener does the last part, so that bin/ is missing for a moment
// while whoever started the listener already knows of its end.
type updater struct {
	l      *listener
	client *wire.Client
	once   bool
}

// update prepares the version and starts the script.
func (u updater) update(ctx context.Context, version string) error {
	u.l.term.Linef("Agent update in progress, do not shutdown agent.")
	// Inside the root, and so on its file system: the script can move it in place.
	latest := u.l.Root.Path("_work", "_update")
	if err := os.RemoveAll(latest); err != nil {
		return fmt.Errorf("clear the update folder: %w", err)
	}
	if err := os.MkdirAll(latest, 0o755); err != nil {
		return fmt.Errorf("make the update folder: %w", err)
	}
	if version == u.l.release.Version {
		// The fault: the programs that are there go round and come back.
		u.l.log.Info("updating to the version that is there", "version", version)
	} else if err := u.download(ctx, version, latest); err != nil {
		return err
	}
	u.l.term.Linef("Generate and execute update script.")
	if err := u.startScript(latest); err != nil {
		return err
	}
	u.l.term.Linef("Agent will exit shortly for update, should be back online within 10 seconds.")
	return nil
}

func (u updater) download(ctx context.Context, version, latest string) (err error) {
	u.l.term.Linef("Downloading %s agent", version)
	pack, err := u.client.AgentPackage(ctx, u.l.release.Platform, version)
	if err != nil {
		return fmt.Errorf("find the package of version %s: %w", version, err)
	}
	file, err := os.CreateTemp(latest, "agent-*.tar.gz")
	if err != nil {
		return fmt.Errorf("keep the package of version %s: %w", version, err)
	}
	defer func() {
		_ = file.Close()
		_ = os.Remove(file.Name())
	}()
	sum := sha256.New()
	if err := u.client.Download(ctx, pack.DownloadURL, io.MultiWriter(file, sum)); err != nil {
		return err
	}
	want := strings.ToLower(strings.ReplaceAll(pack.HashValue, "-", ""))
	if got := hex.EncodeToString(sum.Sum(nil)); want != "" && got != want {
		return fmt.Errorf("package of version %s has the SHA-256 %s, not %s: it was damaged on the way", version, got, want)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read the package of version %s: %w", version, err)
	}
	return archive.Unpack(file, latest)
}

// startScript starts the exchange as a process of its own. It inherits our output,
// as that of the real agent does.
func (u updater) startScript(latest string) error {
	path := filepath.Join(filepath.Dir(latest), "_update.sh")
	if err := os.WriteFile(path, []byte(updateScript), 0o755); err != nil {
		return fmt.Errorf("write the update script: %w", err)
	}
	cmd := exec.Command("/bin/bash", path)
	cmd.Dir = string(u.l.Root)
	cmd.Env = append(u.l.environ(),
		"UPDATE_PID="+strconv.Itoa(os.Getpid()),
		"UPDATE_ROOT="+string(u.l.Root),
		"UPDATE_LATEST="+latest,
		"UPDATE_OLD="+u.l.release.Version,
		fmt.Sprintf("UPDATE_GAP=%.3f", u.l.faults.Duration(faults.UpdateGap, 0).Seconds()),
		"UPDATE_LOSE="+strconv.FormatBool(u.l.faults.Has(faults.UpdateLosesBin)),
		"UPDATE_RESTART="+strconv.FormatBool(!u.once),
	)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the update script: %w", err)
	}
	// It waits for our end: nobody here can wait for its.
	return cmd.Process.Release()
}
