package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// bundleFile is where in the agent root the system's roots and the extra one are
// put together.
const bundleFile = ".azp-ca-bundle.pem"

// largestBundle bounds the system's bundle, which has about 250 KB.
const largestBundle = 16 << 20

// systemBundles are the places where distributions keep their roots in one file.
func systemBundles() []string {
	return []string{
		"/etc/ssl/certs/ca-certificates.crt",
		"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
		"/etc/pki/tls/certs/ca-bundle.crt",
		"/etc/ssl/ca-bundle.pem",
		"/etc/ssl/cert.pem",
	}
}

// makeBundle writes the system's roots and the extra one into one file, for
// SSL_CERT_FILE, which the agent program and most tools of a build obey, replaces
// the system's file instead of adding to it.
func (s *Supervisor) makeBundle() error {
	if s.settings.CAFile == "" {
		return nil
	}
	extra, err := os.ReadFile(s.settings.CAFile)
	if err != nil {
		return fail(ExitConfiguration, "AZP_CA_FILE: %w", err)
	}
	candidates := systemBundles()
	if given, ok := lookup(s.settings.Environment, "SSL_CERT_FILE"); ok && given != "" {
		candidates = append([]string{given}, candidates...)
	}
	var bundle bytes.Buffer
	for _, path := range candidates {
		info, err := os.Stat(path)
		if err != nil || !info.Mode().IsRegular() || info.Size() > largestBundle {
			continue
		}
		system, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		bundle.Write(system)
		bundle.WriteByte('\n')
		break
	}
	bundle.Write(extra)
	if err := writeFile(s.bundlePath(), bundle.Bytes(), 0o644); err != nil {
		return fail(ExitConfiguration, "agent root: %w", errors.Join(fmt.Errorf("the bundle of certificates: %w", err)))
	}
	return nil
}

func (s *Supervisor) bundlePath() string { return filepath.Join(s.settings.Root, bundleFile) }
