package cluster

import (
	"fmt"
	"os"
	"path/filepath"
)

// registriesDir is, below the cluster's directory, where containerd looks up at each pull how
// it reaches a registry.
const registriesDir = "registries"

// useRegistry writes that down, as containerd's documentation of hosts.toml has it:
// https://github.com/containerd/containerd/blob/main/docs/hosts.md
func (n realNode) useRegistry(name, address string) error {
	dir := filepath.Join(n.dir, registriesDir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("telling the node of registry %s: %w", name, err)
	}
	// With a server of its own it would be asked under its name, which nobody knows.
	text := fmt.Sprintf("server = %q\n\n[host.%q]\n  capabilities = ['pull', 'resolve']\n", "http://"+address, "http://"+address)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600); err != nil {
		return fmt.Errorf("telling the node of registry %s: %w", name, err)
	}
	return nil
}
