package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// The names of the files by which the containers of a pod speak with each other.
const (
	registrationFile = "agent.json"
	withdrawnFile    = "withdrawn"
	busyFile         = "busy"
	claimedFile      = "claimed"
	disabledFile     = "disabled"
)

// largestFile bounds what is read of any file handed over. The real ones have a
// few kilobytes at most.
const largestFile = 256 << 10

// handoverFiles are what configure leaves in the agent root and run needs there;
// requiredFiles of them always.
func handoverFiles() []string {
	return append(requiredFiles(), proxyFile, ".proxycredentials", ".credential_store", bypassFile, certificatesFile, ".options")
}

func requiredFiles() []string { return []string{".agent", ".credentials", ".credentials_rsaparams"} }

// registration identifies an agent to the service.
type registration struct {
	AgentID   int    `json:"agentId"`
	AgentName string `json:"agentName"`
	PoolID    int    `json:"poolId"`
}

// writeRegistration records the agent for remove, whole or not at all.
func writeRegistration(dir string, reg registration) error {
	content, err := json.Marshal(reg)
	if err != nil {
		return fmt.Errorf("registration: %w", err)
	}
	// The group is the volume's: remove runs as another user than configure.
	return writeFile(filepath.Join(dir, registrationFile), content, 0o640)
}

// readRegistration gives what configure recorded; fs.ErrNotExist if nothing.
func readRegistration(dir string) (registration, error) {
	path := filepath.Join(dir, registrationFile)
	content, err := readFile(path)
	if err != nil {
		return registration{}, err
	}
	var reg registration
	if err := json.Unmarshal(content, &reg); err != nil {
		return registration{}, fmt.Errorf("registration %s: %w", path, err)
	}
	if reg.AgentID <= 0 || reg.PoolID <= 0 {
		return registration{}, fmt.Errorf("registration %s: agent id %d and pool id %d must be above 0", path, reg.AgentID, reg.PoolID)
	}
	return reg, nil
}

// agentFile is the part of the agent's own .agent that matters here.
type agentFile struct {
	AgentID   int    `json:"agentId"`
	AgentName string `json:"agentName"`
	PoolID    int    `json:"poolId"`
}

// readAgentFile gives the registration that the agent program wrote for itself.
func readAgentFile(root string) (registration, error) {
	path := filepath.Join(root, ".agent")
	var file agentFile
	if err := readJSON(path, &file); err != nil {
		return registration{}, err
	}
	if file.AgentID <= 0 || file.PoolID <= 0 {
		return registration{}, fmt.Errorf("%s: agentId %d and poolId %d must be above 0", path, file.AgentID, file.PoolID)
	}
	return registration(file), nil
}

// checkCredentials refuses credentials that a build must not get: those of another
// scheme than the agent's own key pair, and any file that holds the token.
func checkCredentials(root, token string) error {
	var credentials struct {
		Scheme string `json:"scheme"`
	}
	path := filepath.Join(root, ".credentials")
	if err := readJSON(path, &credentials); err != nil {
		return err
	}
	if credentials.Scheme != "OAuth" {
		return fmt.Errorf("%s has the scheme %q and not OAuth: the agent would run with the pool's own credential, which a build could read", path, credentials.Scheme)
	}
	for _, name := range handoverFiles() {
		content, err := readFile(filepath.Join(root, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if token != "" && bytes.Contains(content, []byte(token)) {
			return fmt.Errorf("%s holds the pool's token: it is not handed to the build", filepath.Join(root, name))
		}
	}
	return nil
}

// readJSON reads a file of the agent program, which begins with a byte order mark.
func readJSON(path string, into any) error {
	content, err := readFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(bytes.TrimPrefix(content, []byte("\ufeff")), into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// copyHandover copies the agent's files from one folder to another with the given
// mode. It follows links, for a mounted Secret is made of them.
func copyHandover(from, to string, mode fs.FileMode) error {
	for _, name := range requiredFiles() {
		if _, err := os.Stat(filepath.Join(from, name)); err != nil {
			return fmt.Errorf("handover: %w", err)
		}
	}
	for _, name := range handoverFiles() {
		content, err := readFile(filepath.Join(from, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("handover: %w", err)
		}
		if err := writeFile(filepath.Join(to, name), content, mode); err != nil {
			return fmt.Errorf("handover: %w", err)
		}
	}
	return nil
}

// clearConfiguration takes what an earlier configure left out of the agent root,
// for config.sh refuses to configure twice.
func clearConfiguration(root string) error {
	var errs []error
	for _, name := range requiredFiles() {
		if err := os.Remove(filepath.Join(root, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("an earlier configuration cannot be cleared: %w", err))
		}
	}
	return errors.Join(errs...)
}

// verdict is what became of the attempt to withdraw an idle agent.
type verdict int

const (
	// verdictNone is not known, or not yet.
	verdictNone verdict = iota
	// verdictWithdrawn is deleted: no build can come any more.
	verdictWithdrawn
	// verdictBusy is refused: a build runs or is on its way.
	verdictBusy
)

// writeVerdict tells run what became of the withdrawal.
func writeVerdict(dir string, v verdict) error {
	name := busyFile
	if v == verdictWithdrawn {
		name = withdrawnFile
	}
	return writeFile(filepath.Join(dir, name), nil, 0o644)
}

// readVerdict gives the verdict, as far as there is one.
func readVerdict(dir string) verdict {
	if exists(filepath.Join(dir, withdrawnFile)) {
		return verdictWithdrawn
	}
	if exists(filepath.Join(dir, busyFile)) {
		return verdictBusy
	}
	return verdictNone
}

// markClaimed leaves the sign that a build was claimed.
func markClaimed(dir string) error {
	file, err := os.OpenFile(filepath.Join(dir, claimedFile), os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("claimed: %w", err)
	}
	return file.Close()
}

// isClaimed reports whether a build was claimed. The folder belongs to the build:
// the one name in it is looked at, never followed and never read.
func isClaimed(dir string) bool { return exists(filepath.Join(dir, claimedFile)) }

// exists reports whether there is something of that name, a dangling link included.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// isFolder reports whether there is a folder of that name.
func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// readFile reads a small regular file.
func readFile(path string) ([]byte, error) { return readLimited(path, largestFile) }

// readLimited reads a regular file of at most limit bytes.
func readLimited(path string, limit int64) (_ []byte, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	content, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(content)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return content, nil
}

// writeFile writes a file whole or not at all, by way of another name beside it.
func writeFile(path string, content []byte, mode fs.FileMode) (err error) {
	file, err := os.CreateTemp(filepath.Dir(path), ".azp-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(file.Name()))
		}
	}()
	_, err = file.Write(content)
	// By Chmod, because the mode given to open is subject to the umask.
	err = errors.Join(err, file.Chmod(mode), file.Close())
	if err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}
