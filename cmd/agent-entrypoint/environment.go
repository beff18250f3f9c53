package main

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agent"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/entra"
)

// configuration is what the environment says, for the steps and for main.
type configuration struct {
	agent.Settings

	// proxy is the entrypoint's own way to the service: that of the agent program, or, where
	// there is none, the usual one of the environment.
	proxy          azuredevops.Proxy
	token          azuredevops.Secret
	tokenFile      string
	entra          entra.Config // Its method is empty for a personal access token.
	scheme         azuredevops.Scheme
	logLevel       slog.Level
	logText        bool
	terminationLog string
}

// variable is one setting of the environment.
type variable struct {
	name string
	// value stands for a variable that is not set or empty.
	value string
	// about is what the documentation's table says.
	about string
	set   func(c *configuration, value string) error
}

// variables lists every setting, in the order of the documentation. VSO_AGENT_IGNORE,
// which the agent program itself reads, passes through and is not among them.
func variables() []variable {
	return []variable{
		{"AZP_URL", "", "URL of the organisation or collection", text(func(c *configuration) *string { return &c.URL })},
		{"AZP_POOL", "Default", "name of the agent pool", text(func(c *configuration) *string { return &c.Pool })},
		{"AZP_TOKEN", "", "the pool's token; a file is safer", func(c *configuration, v string) error {
			c.token = azuredevops.Secret(v)
			return nil
		}},
		{"AZP_TOKEN_FILE", "", "file with the pool's token, read again when it changes; wins over `AZP_TOKEN`", text(func(c *configuration) *string { return &c.tokenFile })},
		{"AZP_AUTH", "pat", "how to sign in: `pat`, with the token, or as an identity of Microsoft Entra by `workload-identity`, `managed-identity`, `client-secret` or `client-certificate`", func(c *configuration, v string) error {
			if v != "pat" {
				c.entra.Method = entra.Method(v)
			}
			return nil
		}},
		{"AZURE_TENANT_ID", "", "tenant of the identity", text(func(c *configuration) *string { return &c.entra.TenantID })},
		{"AZURE_CLIENT_ID", "", "application (client) id of the identity", text(func(c *configuration) *string { return &c.entra.ClientID })},
		{"AZURE_FEDERATED_TOKEN_FILE", "", "for `workload-identity`: file with the ServiceAccount's token", text(func(c *configuration) *string { return &c.entra.FederatedTokenFile })},
		{"AZURE_AUTHORITY_HOST", "", "Microsoft Entra of the identity's cloud; empty is `https://login.microsoftonline.com/`", text(func(c *configuration) *string { return &c.entra.AuthorityHost })},
		{"AZURE_CLIENT_SECRET_FILE", "", "for `client-secret`: file with the secret's value", text(func(c *configuration) *string { return &c.entra.ClientSecretFile })},
		{"AZURE_CLIENT_CERTIFICATE_PATH", "", "for `client-certificate`: file with certificate and RSA key, PEM or PKCS#12", text(func(c *configuration) *string { return &c.entra.CertificateFile })},
		{"AZURE_CLIENT_CERTIFICATE_PASSWORD_FILE", "", "file with the password of that PKCS#12 file", text(func(c *configuration) *string { return &c.entra.CertificatePasswordFile })},
		{"AZP_AUTH_SCOPE", "", "what tokens are asked for; empty is Azure DevOps in the public cloud", text(func(c *configuration) *string { return &c.entra.Scope })},
		{"AZP_REGISTRATION", "config", "who registers the agent: `config`, this pod, or `jit`, the scaler; for run", func(c *configuration, v string) error {
			c.Registration = agentpool.Registration(v)
			return nil
		}},
		{"AZP_AGENT_NAME", "", "name of the agent in the pool; empty is the host's name", text(func(c *configuration) *string { return &c.AgentName })},
		{"AZP_WORK", "_work", "the agent's work folder", text(func(c *configuration) *string { return &c.Work })},
		{"AZP_CA_FILE", "", "PEM file of roots to trust besides the system's, at the same path in every container", text(func(c *configuration) *string { return &c.CAFile })},
		{"AZP_PROXY_URL", "", "proxy to Azure DevOps, of the entrypoint and the agent program; without it the entrypoint obeys `HTTPS_PROXY`", func(c *configuration, v string) error {
			c.Proxy.HTTPS, c.Proxy.HTTP = azuredevops.Secret(v), azuredevops.Secret(v)
			return nil
		}},
		{"AZP_NO_PROXY", "", "what is reached without that proxy: hosts and domains, comma-separated, each with a port or without", text(func(c *configuration) *string { return &c.Proxy.NoProxy })},
		{"AZP_PROXY_USERNAME_FILE", "", "file with the user name that the proxy wants, read again when it changes", text(func(c *configuration) *string { return &c.Proxy.UsernameFile })},
		{"AZP_PROXY_PASSWORD_FILE", "", "file with the password for that", text(func(c *configuration) *string { return &c.Proxy.PasswordFile })},
		{"AZP_AGENT_ROOT", "/azp/agent", "folder of the agent program; must be writable", text(func(c *configuration) *string { return &c.Root })},
		{"AZP_AGENT_SOURCE", "auto", "`image`, `download`, or `auto`: the image's program if there is one", func(c *configuration, v string) error {
			c.Source = agent.Source(v)
			return nil
		}},
		{"AZP_AGENT_VERSION", "", "version to download; empty is the newest", text(func(c *configuration) *string { return &c.Version })},
		{"AZP_PLATFORM", "", "platform to download; empty is `linux-x64` or `linux-arm64`, as the entrypoint was built", text(func(c *configuration) *string { return &c.Platform })},
		{"AZP_PACKAGE_URL", "", "for download: where the package lies that the scaler has found; its version is `AZP_AGENT_VERSION`", text(func(c *configuration) *string { return &c.Package.URL })},
		{"AZP_PACKAGE_SHA256", "", "for download: its SHA-256, in hex", text(func(c *configuration) *string { return &c.Package.SHA256 })},
		{"AZP_HANDOVER_DIR", "/run/azp/handover", "the agent's own files, from configure to run", text(func(c *configuration) *string { return &c.HandoverDir })},
		{"AZP_REGISTRATION_DIR", "/run/azp/registration", "the agent's id, from configure to remove", text(func(c *configuration) *string { return &c.RegistrationDir })},
		{"AZP_VERDICT_DIR", "/run/azp/verdict", "what became of a withdrawal, from withdraw to run", text(func(c *configuration) *string { return &c.VerdictDir })},
		{"AZP_CLAIMED_DIR", "/run/azp/claimed", "the sign of a claimed build, from run to remove", text(func(c *configuration) *string { return &c.ClaimedDir })},
		{"AZP_GRACE_PERIOD", "1h", "the pod's grace period", duration(func(c *configuration) *time.Duration { return &c.Grace })},
		{"AZP_REMOVE_SHARE", "60s", "part of the grace period kept for cancelling and removing", duration(func(c *configuration) *time.Duration { return &c.RemoveShare })},
		{"AZP_WITHDRAW_LIMIT", "30s", "how long the question whether the agent is idle may take", duration(func(c *configuration) *time.Duration { return &c.WithdrawLimit })},
		{"AZP_CONFIGURE_LIMIT", "2m", "how long registration may take", duration(func(c *configuration) *time.Duration { return &c.ConfigureLimit })},
		{"AZP_DOWNLOAD_LIMIT", "10m", "how long download and unpacking may take", duration(func(c *configuration) *time.Duration { return &c.DownloadLimit })},
		{"AZP_HANG_LIMIT", "75s", "how long the agent program may stay after its build's result", duration(func(c *configuration) *time.Duration { return &c.HangLimit })},
		{"AZP_HOLD_LIMIT", "10s", "how long a build is held back until its agent is disabled, and so can be given no second one; 0 is not at all", duration(func(c *configuration) *time.Duration { return &c.HoldLimit })},
		{"AZP_CALLBACK_URL", "", "where the scaler is told that the agent has its build, if it has registered the agent; for run", text(func(c *configuration) *string { return &c.CallbackURL })},
		{"AZP_JOB_UID", "", "UID of the pod's Job, by which the scaler knows it", text(func(c *configuration) *string { return &c.JobUID })},
		{"AZP_UPDATE_RESTARTS", "3", "how often the agent program may update itself, and how often it may fail in a way it calls retryable", func(c *configuration, v string) error {
			n, err := strconv.Atoi(v)
			if err != nil {
				return fmt.Errorf("%q is no whole number: give one such as 3", v)
			}
			c.UpdateRestarts = n
			return nil
		}},
		{"AZP_IDLE_LIMIT", "0", "without a subcommand: how long to wait for a build; 0 is for ever", duration(func(c *configuration) *time.Duration { return &c.IdleLimit })},
		{"AZP_PROBE_ADDRESS", ":14300", "where `/started` and `/ready` are answered; `off` is nowhere", text(func(c *configuration) *string { return &c.ProbeAddress })},
		{"AZP_LOG_LEVEL", "info", "`debug`, `info`, `warn` or `error`", func(c *configuration, v string) error {
			if err := c.logLevel.UnmarshalText([]byte(v)); err != nil {
				return fmt.Errorf("%q is no level: give debug, info, warn or error", v)
			}
			return nil
		}},
		{"AZP_LOG_FORMAT", "json", "`json` or `text`", func(c *configuration, v string) error {
			if v != "json" && v != "text" {
				return fmt.Errorf("%q is no format: give json or text", v)
			}
			c.logText = v == "text"
			return nil
		}},
		{"AZP_TERMINATION_LOG", "/dev/termination-log", "file for the last words, if it exists", text(func(c *configuration) *string { return &c.terminationLog })},
	}
}

// text sets a string.
func text(field func(*configuration) *string) func(*configuration, string) error {
	return func(c *configuration, v string) error {
		*field(c) = v
		return nil
	}
}

// duration sets a length of time in Go's notation.
func duration(field func(*configuration) *time.Duration) func(*configuration, string) error {
	return func(c *configuration, v string) error {
		d, err := time.ParseDuration(v)
		if err != nil {
			return fmt.Errorf("%q is no duration: give a number with a unit, such as 90s or 1h", v)
		}
		*field(c) = d
		return nil
	}
}

// host is what the settings take from the machine.
type host struct {
	name    string
	uid     int
	environ []string
}

// load reads the settings. All that does not parse is in the one error. What a
// step needs beyond that is for Settings.Validate.
func load(lookup func(string) (string, bool), on host) (configuration, error) {
	c := configuration{}
	c.Environment, c.EffectiveUID = on.environ, on.uid
	var errs []error
	for _, v := range variables() {
		value, _ := lookup(v.name)
		if value == "" {
			// Set but empty is not set: a manifest cannot unset what an image sets.
			value = v.value
		}
		if err := v.set(&c, value); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", v.name, err))
		}
	}
	if c.AgentName == "" {
		c.AgentName = on.name
	}
	if c.Platform == "" {
		c.Platform = platform()
	}
	if c.proxy = c.Proxy; c.Proxy.HTTPS == "" {
		c.Proxy = azuredevops.Proxy{}
		c.proxy = usualProxy(lookup, c.proxy)
	}
	return c, errors.Join(errs...)
}

// usualProxy adds to the files with the proxy's user and password the proxy that programs
// find in their environment, in either case.
func usualProxy(lookup func(string) (string, bool), files azuredevops.Proxy) azuredevops.Proxy {
	either := func(name string) string {
		if value, _ := lookup(name); value != "" {
			return value
		}
		value, _ := lookup(strings.ToLower(name))
		return value
	}
	files.HTTPS, files.HTTP = azuredevops.Secret(either("HTTPS_PROXY")), azuredevops.Secret(either("HTTP_PROXY"))
	files.NoProxy = either("NO_PROXY")
	return files
}

// platform names the service's package for the processor that this was built for.
func platform() string {
	switch runtime.GOARCH {
	case "amd64":
		return "linux-x64"
	case "arm64":
		return "linux-arm64"
	default:
		return ""
	}
}
