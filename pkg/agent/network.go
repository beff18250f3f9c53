package agent

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
)

// The files of the agent root by which the agent program, listener and worker alike, finds
// its way to the service, as its own VstsAgentWebProxy and AgentCertificateManager read them:
// a URL in the first line; a regular expression a line, for scheme://host:port without a
// default port; JSON.
const (
	proxyFile        = ".proxy"
	bypassFile       = ".proxybypass"
	certificatesFile = ".certificates"
)

// The variables by which the agent program takes what the proxy wants to be told. Its worker
// takes them out of the environment of a build's steps. The other place that the agent looks
// at, a store of its own that it obscures with the machine's id, is no contract.
const (
	proxyUserVariable     = "VSTS_HTTP_PROXY_USERNAME"
	proxyPasswordVariable = "VSTS_HTTP_PROXY_PASSWORD"
	// ignoreVariable lists the variables that the agent does not publish as capabilities.
	ignoreVariable = "VSO_AGENT_IGNORE"
)

// replacedByProxy are the variables that a proxy of the settings takes the place of: those of
// the agent program, and its inputs.
func replacedByProxy() []string {
	return []string{
		"VSTS_HTTP_PROXY", proxyUserVariable, proxyPasswordVariable,
		inputPrefix + "PROXYURL", inputPrefix + "PROXYUSERNAME", inputPrefix + "PROXYPASSWORD",
	}
}

// layDownNetwork puts in place what the agent program needs to reach the service, before
// config.sh and before the listener.
func (s *Supervisor) layDownNetwork() error {
	if err := s.makeBundle(); err != nil {
		return err
	}
	if s.settings.Proxy.HTTPS == "" {
		return nil
	}
	patterns, err := azuredevops.BypassPatterns(s.settings.Proxy.NoProxy)
	if err != nil {
		return fail(ExitConfiguration, "AZP_NO_PROXY %w", err)
	}
	for name, lines := range map[string][]string{proxyFile: {s.settings.Proxy.HTTPS.Reveal()}, bypassFile: patterns} {
		if err := writeFile(filepath.Join(s.settings.Root, name), []byte(strings.Join(lines, "\n")), 0o644); err != nil {
			return fail(ExitConfiguration, "agent root: %w", err)
		}
	}
	return nil
}

// layDownAuthority says to the tasks of a build which certificate authority to trust, where
// config.sh has not: the agent shows them the file as agent.cainfo.
func (s *Supervisor) layDownAuthority() error {
	path := filepath.Join(s.settings.Root, certificatesFile)
	if s.settings.CAFile == "" || exists(path) {
		return nil
	}
	content, err := json.MarshalIndent(struct {
		SkipServerCertValidation bool   `json:"skipServerCertValidation"`
		CACert                   string `json:"caCert"`
	}{CACert: s.settings.CAFile}, "", "  ")
	if err == nil {
		err = writeFile(path, content, 0o644)
	}
	if err != nil {
		return fail(ExitConfiguration, "agent root: %w", err)
	}
	return nil
}

// withNetwork completes the environment of the agent program: with the bundle of
// certificates, if there is an authority of its own, and with what the proxy wants to be
// told, which must not be published as a capability.
func (s *Supervisor) withNetwork(env []string) ([]string, error) {
	if s.settings.CAFile != "" {
		env = append(without(env, "SSL_CERT_FILE"), "SSL_CERT_FILE="+s.bundlePath())
	}
	if s.settings.Proxy.HTTPS == "" {
		return env, nil
	}
	user, password, err := s.settings.Proxy.Credentials()
	if err != nil {
		return nil, fail(ExitConfiguration, "%w: AZP_PROXY_USERNAME_FILE and AZP_PROXY_PASSWORD_FILE name files of the Secret with the proxy's credential", err)
	}
	env = slices.DeleteFunc(slices.Clone(env), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return slices.Contains(replacedByProxy(), strings.ToUpper(name))
	})
	if user == "" {
		return env, nil
	}
	ignored, _ := lookup(env, ignoreVariable)
	names := strings.TrimPrefix(fmt.Sprintf("%s,%s,%s", ignored, proxyUserVariable, proxyPasswordVariable), ",")
	return append(without(env, ignoreVariable),
		ignoreVariable+"="+names, proxyUserVariable+"="+user, proxyPasswordVariable+"="+password.Reveal()), nil
}
