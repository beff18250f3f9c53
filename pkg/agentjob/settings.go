package agentjob

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// AgentSource is where the pod gets the agent program from.
type AgentSource string

// The sources of the agent program.
const (
	// SourceImage finds it in the image, under the agent root.
	SourceImage AgentSource = "image"
	// SourceDownload has the init container download it into a volume that is
	// mounted over the agent root.
	SourceDownload AgentSource = "download"
)

// What holds where the settings say nothing.
const (
	DefaultTokenSecret  = "azp-token"
	DefaultTokenKey     = "token"
	DefaultUID          = 1000
	DefaultGID          = 1000
	DefaultAgentRoot    = "/azp/agent"
	defaultWorkDir      = "_work"
	DefaultTTL          = time.Hour
	DefaultStartupLimit = 10 * time.Minute
	DefaultGracePeriod  = time.Hour
)

// Identity says which installation, pool and namespace a Job belongs to.
type Identity struct {
	Instance  string // As InstanceID gives it.
	Namespace string // Of the agents.
	Pool      agentpool.Pool
	URL       string // Of the organisation or collection.
}

// ServiceAccountTemplate is what every build's own ServiceAccount gets besides
// its name: what a cloud's identity webhook reads, and how its images are pulled.
type ServiceAccountTemplate struct {
	Labels           map[string]string `json:"labels,omitempty"`
	Annotations      map[string]string `json:"annotations,omitempty"`
	ImagePullSecrets []string          `json:"imagePullSecrets,omitempty"`
}

// Settings are those of the installation: they hold for the Jobs of every class.
// Limits that are zero are left to the entrypoint's own defaults.
type Settings struct {
	Identity Identity

	TokenSecret string // Secret with the pool's credential, in the agents' namespace.
	TokenKey    string // Its key.
	CAConfigMap string // Optional ConfigMap with the key ca.crt: a root to trust besides the image's.

	// ProxyURL is the pods' way to the service, for the entrypoint and the agent program;
	// empty is the direct one, or what a class says.
	ProxyURL string
	// ProxySecret is an optional Secret in the agents' namespace, with the keys username and
	// password, that the proxy wants to be told. Builds can read it.
	ProxySecret string
	NoProxy     string // What is reached without the proxy, comma-separated.

	// CallbackURL is the scaler's HTTP port, which a pod tells that its agent has a build where
	// the scaler has registered the agent; empty where none is to.
	CallbackURL string

	UID, GID int64 // Of the build, where the class gives none.

	AgentRoot    string
	AgentSource  AgentSource
	AgentVersion string // Of the download; empty takes the pool's newest.
	Platform     string // Of the download, such as linux-x64; empty derives it from the node.
	// Package is what pods download that have nothing to ask the service with.
	Package          Package
	WorkDir          string // AZP_WORK; empty is _work.
	IgnoredVariables string // VSO_AGENT_IGNORE: not published as capabilities.

	TTL            time.Duration // Of finished Jobs.
	StartupLimit   time.Duration // For the agent to listen, from the start of its container.
	ConfigureLimit time.Duration
	DownloadLimit  time.Duration
	RemoveShare    time.Duration // The part of the grace period kept for deregistering.
	WithdrawLimit  time.Duration
	HangLimit      time.Duration

	LogLevel, LogFormat string // Of the entrypoint.

	ServiceAccount ServiceAccountTemplate
}

// Package is a package of the agent program, as the service offers it to whoever may ask.
type Package struct {
	Platform string // Such as linux-x64.
	Version  string // Such as 4.248.0.
	URL      string
	SHA256   string // In hex.
}

// DefaultSettings are the defaults; the identity is still to be filled in.
func DefaultSettings() Settings {
	return Settings{
		TokenSecret:  DefaultTokenSecret,
		TokenKey:     DefaultTokenKey,
		UID:          DefaultUID,
		GID:          DefaultGID,
		AgentRoot:    DefaultAgentRoot,
		AgentSource:  SourceImage,
		TTL:          DefaultTTL,
		StartupLimit: DefaultStartupLimit,
	}
}

// Validate names everything that is wrong, each with what would be right.
func (s Settings) Validate() error {
	var wrong []error
	bad := func(field string, value any, why string) {
		wrong = append(wrong, fmt.Errorf("agent settings: %s %q: %s", field, fmt.Sprint(value), why))
	}
	s.Identity.validate(bad)
	if problems := validation.IsDNS1123Subdomain(s.TokenSecret); len(problems) > 0 {
		bad("TokenSecret", s.TokenSecret, "name the Secret that holds the pool's credential, such as azp-token")
	}
	if problems := validation.IsConfigMapKey(s.TokenKey); len(problems) > 0 {
		bad("TokenKey", s.TokenKey, "name the key of the Secret, such as token")
	}
	if s.CAConfigMap != "" && len(validation.IsDNS1123Subdomain(s.CAConfigMap)) > 0 {
		bad("CAConfigMap", s.CAConfigMap, "name a ConfigMap with the key ca.crt, or leave it empty")
	}
	s.validateProxy(bad)
	if problem := CallbackProblem(s.CallbackURL); problem != "" {
		bad("CallbackURL", "…", problem) // It may carry a password by mistake.
	}
	if s.UID <= 0 {
		bad("UID", s.UID, "the agent refuses to run as root: give a number above 0, such as 1000")
	}
	if s.GID <= 0 {
		bad("GID", s.GID, "give a number above 0, such as 1000")
	}
	if !path.IsAbs(s.AgentRoot) || path.Clean(s.AgentRoot) != s.AgentRoot || s.AgentRoot == "/" {
		bad("AgentRoot", s.AgentRoot, "give a clean absolute directory, such as /azp/agent")
	}
	if s.AgentSource != SourceImage && s.AgentSource != SourceDownload {
		bad("AgentSource", s.AgentSource, "want image (the agent is in the image) or download")
	}
	for _, limit := range []struct {
		field string
		value time.Duration
		least time.Duration
	}{
		{"TTL", s.TTL, 0},
		{"StartupLimit", s.StartupLimit, time.Second},
		{"ConfigureLimit", s.ConfigureLimit, 0},
		{"DownloadLimit", s.DownloadLimit, 0},
		{"RemoveShare", s.RemoveShare, 0},
		{"WithdrawLimit", s.WithdrawLimit, 0},
		{"HangLimit", s.HangLimit, 0},
	} {
		if limit.value < limit.least {
			bad(limit.field, limit.value, fmt.Sprintf("want a duration of at least %s, such as 10m", limit.least))
		}
	}
	return errors.Join(wrong...)
}

// CallbackProblem tells what is wrong with the address at which pods call the scaler, or
// nothing; none is right as well.
func CallbackProblem(address string) string {
	if address == "" {
		return ""
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "is no address that pods can call: want one such as http://azp-scaler.azp-scaler:8080, or none"
	}
	return ""
}

func (s Settings) validateProxy(bad func(field string, value any, why string)) {
	if s.ProxyURL != "" {
		if u, err := url.Parse(s.ProxyURL); err != nil || u.Host == "" || u.User != nil {
			// It may carry a password by mistake, so it is not repeated.
			bad("ProxyURL", "…", "want the proxy's URL without a user or password, such as http://proxy.example:3128")
		}
	}
	switch {
	case s.ProxySecret == "":
	case len(validation.IsDNS1123Subdomain(s.ProxySecret)) > 0:
		bad("ProxySecret", s.ProxySecret, "name a Secret with the keys username and password, or leave it empty")
	case s.ProxySecret == s.TokenSecret:
		bad("ProxySecret", s.ProxySecret, "is the Secret that holds the pool's credential, and builds can read the proxy's: use two")
	case s.ProxyURL == "":
		bad("ProxySecret", s.ProxySecret, "is for a proxy, and there is none: give its URL")
	}
}

func (i Identity) validate(bad func(field string, value any, why string)) {
	if len(i.Instance) != instanceLength || len(validation.IsDNS1123Label(i.Instance)) > 0 || strings.Contains(i.Instance, "-") {
		bad("Identity.Instance", i.Instance, "want the eight characters that InstanceID gives")
	}
	if len(validation.IsDNS1123Label(i.Namespace)) > 0 {
		bad("Identity.Namespace", i.Namespace, "name the namespace of the agents, such as azp-agents")
	}
	if i.Pool.ID <= 0 || i.Pool.Name == "" {
		bad("Identity.Pool", i.Pool.Name, fmt.Sprintf("want a pool of the organisation with its id, not id %d", i.Pool.ID))
	}
	if u, err := url.Parse(i.URL); err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		// The URL may carry a user and password by mistake, so it is not repeated.
		bad("Identity.URL", "…", "want the organisation's URL, such as https://dev.azure.com/acme")
	} else if u.User != nil {
		bad("Identity.URL", u.Redacted(), "must not carry a credential: it becomes part of the Job's environment")
	}
}
