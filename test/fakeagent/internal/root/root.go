// Package root is the agent's root folder: the files that configure leaves there
// and run reads, in the forms of the real agent.
package root

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Names of files in the root.
const (
	fileSettings     = ".agent"
	fileCredentials  = ".credentials"
	fileKey          = ".credentials_rsaparams"
	fileCertificates = ".certificates"
	fileCapabilities = ".capabilities"
	fileEnvironment  = ".env"
	fileLicense      = "license.html"
	fileRelease      = "bin/release.json"
)

// Dir is an agent's root folder.
type Dir string

// Path joins elements below the root.
func (d Dir) Path(elements ...string) string {
	return filepath.Join(append([]string{string(d)}, elements...)...)
}

// Diag is the folder of the agent's own logs.
func (d Dir) Diag() string { return d.Path("_diag") }

// Settings is the content of .agent.
type Settings struct {
	AcceptTeeEula        bool   `json:"acceptTeeEula"`
	AgentID              int64  `json:"agentId"`
	AgentName            string `json:"agentName"`
	PoolID               int64  `json:"poolId"`
	PoolName             string `json:"poolName"`
	ServerURL            string `json:"serverUrl"`
	WorkFolder           string `json:"workFolder"`
	SkipCapabilitiesScan bool   `json:"skipCapabilitiesScan,omitempty"`
	SkipSessionRecover   bool   `json:"skipSessionRecover,omitempty"`
}

// Schemes of credentials.
const (
	SchemeOAuth = "OAuth"
	SchemePAT   = "PAT"
)

// Credentials is the content of .credentials. For OAuth, Data has clientId,
// authorizationUrl and oauthEndpointUrl; for a PAT it has token.
type Credentials struct {
	Scheme string            `json:"scheme"`
	Data   map[string]string `json:"data"`
}

// Certificates is the content of .certificates, the real agent's AgentCertificateSetting. Of
// CACert the agent itself makes no use but to show it to tasks: which authority it trusts is
// the system's business, or that of SSL_CERT_FILE.
type Certificates struct {
	SkipServerCertValidation bool   `json:"skipServerCertValidation"`
	CACert                   string `json:"caCert,omitempty"`
}

// Release is what was built: the content of bin/release.json, which stands in for
// what the real agent has compiled in.
type Release struct {
	Version  string `json:"version"`
	Platform string `json:"platform"`
}

// IsConfigured tells whether configure has been here.
func (d Dir) IsConfigured() bool {
	_, err := os.Stat(d.Path(fileSettings))
	return err == nil
}

// HasLicense tells whether the licence that configure insists on is there.
func (d Dir) HasLicense() bool {
	_, err := os.Stat(d.Path(fileLicense))
	return err == nil
}

// Release reads what was built.
func (d Dir) Release() (Release, error) {
	release, err := load[Release](d, fileRelease)
	if err == nil && (release.Version == "" || release.Platform == "") {
		err = fmt.Errorf("%s names no version or no platform: take a whole package", d.Path(fileRelease))
	}
	return release, err
}

// Settings reads .agent.
func (d Dir) Settings() (Settings, error) { return load[Settings](d, fileSettings) }

// SaveSettings writes .agent.
func (d Dir) SaveSettings(s Settings) error { return d.save(fileSettings, s, 0o644) }

// Credentials reads .credentials.
func (d Dir) Credentials() (Credentials, error) { return load[Credentials](d, fileCredentials) }

// SaveCredentials writes .credentials.
func (d Dir) SaveCredentials(c Credentials) error { return d.save(fileCredentials, c, 0o644) }

// Certificates reads .certificates; without the file they are empty.
func (d Dir) Certificates() (Certificates, error) {
	certificates, err := load[Certificates](d, fileCertificates)
	if errors.Is(err, fs.ErrNotExist) {
		return Certificates{}, nil
	}
	return certificates, err
}

// SaveCertificates writes .certificates.
func (d Dir) SaveCertificates(c Certificates) error { return d.save(fileCertificates, c, 0o644) }

// Capabilities reads the lines `name=value` of .capabilities.
func (d Dir) Capabilities() (map[string]string, error) { return d.pairs(fileCapabilities) }

// Environment reads the variables that env.sh kept in .env.
func (d Dir) Environment() (map[string]string, error) { return d.pairs(fileEnvironment) }

func (d Dir) pairs(name string) (map[string]string, error) {
	pairs := map[string]string{}
	content, err := os.ReadFile(d.Path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return pairs, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s of the agent root: %w", name, err)
	}
	for line := range strings.Lines(string(content)) {
		key, value, found := strings.Cut(strings.TrimSpace(line), "=")
		if found && key != "" {
			pairs[key] = value
		}
	}
	return pairs, nil
}

// RemoveConfiguration deletes what configure left and tells, for each file, whether
// it was there.
func (d Dir) RemoveConfiguration(report func(name string, existed bool)) error {
	for _, name := range []string{fileCredentials, fileKey, fileProxyCredentials, fileCredentialStore, fileProxyBypass, fileProxy, fileCertificates, fileSettings} {
		err := os.Remove(d.Path(name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the agent's configuration: %w", err)
		}
		report(name, err == nil)
	}
	return nil
}

// byteOrderMark leads the agent's JSON files: .NET writes them so.
const byteOrderMark = "\ufeff"

func (d Dir) save(name string, value any, mode fs.FileMode) error {
	content, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	path := d.Path(name)
	// A file that is there keeps its mode, so it goes first.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replace %s: %w", name, err)
	}
	if err := os.WriteFile(path, append([]byte(byteOrderMark), content...), mode); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func load[T any](d Dir, name string) (T, error) {
	var value T
	content, err := os.ReadFile(d.Path(name))
	if err != nil {
		return value, fmt.Errorf("read %s of the agent root: %w", name, err)
	}
	if err := json.Unmarshal(bytes.TrimPrefix(content, []byte(byteOrderMark)), &value); err != nil {
		return value, fmt.Errorf("%s is not the JSON that configure writes: %w", d.Path(name), err)
	}
	return value, nil
}
