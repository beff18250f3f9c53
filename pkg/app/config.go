package app

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
)

// Config is everything the scaler is told. The names of the variables, their
// defaults and what they mean stand in the tags, from which the table in the
// README is made.
type Config struct {
	URL       string             `envconfig:"AZP_URL" needed:"true" desc:"Organisation or collection, such as https://dev.azure.com/contoso"`
	Pools     Names              `envconfig:"AZP_POOL" needed:"true" desc:"Name of the agent pool; several, comma-separated, are served each for itself"`
	Token     azuredevops.Secret `envconfig:"AZP_TOKEN" desc:"Personal access token with Agent Pools (read & manage); prefer the file"`
	TokenFile string             `envconfig:"AZP_TOKEN_FILE" desc:"File that holds the token; read again when it changes"`
	CAFile    string             `envconfig:"AZP_CA_FILE" desc:"PEM file of a further certificate authority to trust"`

	Auth                    string `envconfig:"AZP_AUTH" default:"pat" desc:"How to sign in: pat (with the token above), or as an identity of Microsoft Entra by workload-identity, managed-identity, client-secret or client-certificate; see docs/signing-in.md"`
	TenantID                string `envconfig:"AZURE_TENANT_ID" desc:"Tenant of the identity; not for managed-identity. In AKS the workload identity webhook sets it"`
	ClientID                string `envconfig:"AZURE_CLIENT_ID" desc:"Application (client) id of the identity; with managed-identity it may be left out where the machine has only one. The webhook sets it"`
	FederatedTokenFile      string `envconfig:"AZURE_FEDERATED_TOKEN_FILE" desc:"For workload-identity: file with the token of the pod's ServiceAccount. The webhook sets it"`
	AuthorityHost           string `envconfig:"AZURE_AUTHORITY_HOST" desc:"Microsoft Entra of the identity's cloud; without it https://login.microsoftonline.com/. The webhook sets it"`
	ClientSecretFile        string `envconfig:"AZURE_CLIENT_SECRET_FILE" desc:"For client-secret: file with the secret's value; read again for each new token"`
	CertificatePath         string `envconfig:"AZURE_CLIENT_CERTIFICATE_PATH" desc:"For client-certificate: file with certificate and RSA key, PEM or PKCS#12; read again for each new token"`
	CertificatePasswordFile string `envconfig:"AZURE_CLIENT_CERTIFICATE_PASSWORD_FILE" desc:"File with the password of that PKCS#12 file"`
	AuthScope               string `envconfig:"AZP_AUTH_SCOPE" desc:"What tokens are asked for; without it Azure DevOps in the public cloud"`

	HTTPSProxy        azuredevops.Secret `envconfig:"HTTPS_PROXY" desc:"Proxy on the way to Azure DevOps, such as http://proxy.example:3128, and to the API server where NO_PROXY does not name it"`
	HTTPProxy         azuredevops.Secret `envconfig:"HTTP_PROXY" desc:"The same for addresses without TLS"`
	NoProxy           string             `envconfig:"NO_PROXY" desc:"What is reached without the proxy, comma-separated; the API server should be among it"`
	ProxyUsernameFile string             `envconfig:"AZP_PROXY_USERNAME_FILE" desc:"File with the user name that the proxy wants, instead of one in its address; read again when it changes"`
	ProxyPasswordFile string             `envconfig:"AZP_PROXY_PASSWORD_FILE" desc:"File with the password for that"`

	Kubeconfig string `envconfig:"KUBECONFIG" desc:"Path of a kubeconfig; without it the pod's own ServiceAccount is used"`
	Namespace  string `envconfig:"AZP_NAMESPACE" needed:"true" desc:"Namespace of the agents' Jobs; nothing else should run there"`
	Release    string `envconfig:"AZP_RELEASE" default:"azp-scaler" desc:"Tells apart installations that share pool and namespace"`

	AgentImage           string   `envconfig:"AZP_AGENT_IMAGE" desc:"Image of the built-in class's agents, with agent-entrypoint in it; needed where there are no classes of agent"`
	AgentImagePullPolicy string   `envconfig:"AZP_AGENT_IMAGE_PULL_POLICY" default:"IfNotPresent" desc:"Always, IfNotPresent or Never"`
	AgentPullSecrets     Names    `envconfig:"AZP_AGENT_IMAGE_PULL_SECRETS" desc:"Names of pull Secrets in the agents' namespace, comma-separated"`
	AgentSource          string   `envconfig:"AZP_AGENT_SOURCE" default:"image" desc:"Where the agent program comes from: image (it is in there) or download (once per pod, from the service)"`
	AgentVersion         string   `envconfig:"AZP_AGENT_VERSION" desc:"Version of the agent to download; without it the newest that the service offers"`
	Registration         string   `envconfig:"AZP_REGISTRATION" default:"config" desc:"How agents come to be known to the pool, where their class does not say: config (from their pods, with the token in a Secret there) or jit (by the scaler; no pod has the token)"`
	AgentTokenSecret     string   `envconfig:"AZP_AGENT_TOKEN_SECRET" default:"azp-token" desc:"Secret in the agents' namespace that holds the token with which pods register and remove agents; made by an administrator, or by a scaler that signs in by Microsoft Entra"`
	AgentTokenKey        string   `envconfig:"AZP_AGENT_TOKEN_SECRET_KEY" default:"token" desc:"Key of the token in that Secret"`
	AgentCAConfigMap     string   `envconfig:"AZP_AGENT_CA_CONFIGMAP" desc:"ConfigMap in the agents' namespace with a certificate authority under ca.crt for the pods to trust"`
	CallbackURL          string   `envconfig:"AZP_CALLBACK_URL" desc:"Where pods reach this scaler's HTTP port, such as http://azp-scaler.azp-scaler:8080; with jit, a build then begins only when its agent can be given no second one"`
	AgentProxyURL        string   `envconfig:"AZP_AGENT_PROXY_URL" desc:"Proxy on the agents' way to Azure DevOps, such as http://proxy.example:3128; what builds themselves reach is not changed by it"`
	AgentProxySecret     string   `envconfig:"AZP_AGENT_PROXY_SECRET" desc:"Secret in the agents' namespace with the keys username and password, for a proxy that wants to be told; builds can read it"`
	AgentNoProxy         string   `envconfig:"AZP_AGENT_NO_PROXY" desc:"What agents reach without that proxy, comma-separated: hosts such as tfs.example.com, domains such as .example.com, IPv4 addresses, each with a port or without"`
	CPURequest           Quantity `envconfig:"AZP_AGENT_CPU_REQUEST" default:"500m" desc:"CPU that a build asks for"`
	CPULimit             Quantity `envconfig:"AZP_AGENT_CPU_LIMIT" desc:"CPU that a build may use at most"`
	MemoryRequest        Quantity `envconfig:"AZP_AGENT_MEMORY_REQUEST" default:"1Gi" desc:"Memory that a build asks for"`
	MemoryLimit          Quantity `envconfig:"AZP_AGENT_MEMORY_LIMIT" desc:"Memory that a build may use at most"`

	RoleBindings     RoleBindings `envconfig:"AZP_ROLE_BINDINGS" desc:"What each build may do, comma-separated: namespace Role/name or namespace ClusterRole/name, such as shop ClusterRole/edit"`
	Capabilities     Capabilities `envconfig:"AZP_CAPABILITIES" desc:"What the image offers beyond what every agent has, comma-separated: name or name=value"`
	TargetNamespaces Names        `envconfig:"AZP_TARGET_NAMESPACES" desc:"Further namespaces that builds were given rights in, comma-separated: swept for what a crash left of classes that are gone"`

	MinIdle       Count    `envconfig:"AZP_MIN_IDLE" default:"0" desc:"Agents of the built-in class to keep waiting beyond need, in each pool"`
	MaxAgents     Count    `envconfig:"AZP_MAX_AGENTS" default:"100" desc:"Agents at most at once, in each pool"`
	MaxCreations  Count    `envconfig:"AZP_MAX_CREATIONS" default:"250" desc:"Jobs made at most in one cycle, in each pool"`
	ParallelJobs  Switch   `envconfig:"AZP_RESPECT_PARALLEL_JOBS" default:"true" desc:"Make no more agents than the organisation has parallel jobs, where the service tells how many"`
	PollBusy      Duration `envconfig:"AZP_POLL_BUSY" default:"2s" desc:"Between polls while something waits or starts"`
	PollIdle      Duration `envconfig:"AZP_POLL_IDLE" default:"10s" desc:"Between polls otherwise"`
	IdleLimit     Duration `envconfig:"AZP_IDLE_LIMIT" default:"60s" desc:"How long an agent that nothing needs may wait for a build"`
	MaxIdleAge    Duration `envconfig:"AZP_MAX_IDLE_AGE" default:"24h" desc:"How old an idle agent may grow before it is replaced"`
	StartupLimit  Duration `envconfig:"AZP_STARTUP_LIMIT" default:"10m" desc:"From the pod's scheduling until the agent waits for a build"`
	ConfigLimit   Duration `envconfig:"AZP_CONFIGURE_LIMIT" default:"2m" desc:"For registering one agent"`
	GracePeriod   Duration `envconfig:"AZP_GRACE_PERIOD" default:"1h" desc:"What a running build gets when its pod is told to stop; all but a minute of it"`
	JobTTL        Duration `envconfig:"AZP_JOB_TTL" default:"1h" desc:"How long a finished Job stays to be looked at; at least twice the longest back-off, as its failures are counted from it"`
	BackoffMin    Duration `envconfig:"AZP_BACKOFF_MIN" default:"10s" desc:"Wait after a first agent that failed before its build"`
	BackoffMax    Duration `envconfig:"AZP_BACKOFF_MAX" default:"10m" desc:"Longest such wait; it doubles from failure to failure"`
	SweepInterval Duration `envconfig:"AZP_SWEEP_INTERVAL" default:"60s" desc:"Between sweeps for what a crash has left"`
	SweepGrace    Duration `envconfig:"AZP_SWEEP_GRACE" default:"2m" desc:"How old a leftover must be to be swept"`

	LeaderElection Switch `envconfig:"AZP_LEADER_ELECTION" default:"true" desc:"Have one of several replicas work and the others stand by, by a Lease in the agents' namespace"`
	Replica        string `envconfig:"AZP_REPLICA" desc:"What this replica is called in the election; without it the host's name with the number of the process"`

	Listen    string `envconfig:"AZP_LISTEN" default:":8080" desc:"Address of /metrics, /healthz and /readyz, and of the calls of pods"`
	LogLevel  Level  `envconfig:"AZP_LOG_LEVEL" default:"info" desc:"debug, info, warn or error; of the scaler and of the entrypoint in its pods"`
	LogFormat string `envconfig:"AZP_LOG_FORMAT" default:"json" desc:"json or text, of both"`
}

// maxGrace is far above every build and far below where seconds overflow.
const maxGrace = 7 * 24 * time.Hour

// Validate tells everything that is wrong, each with the variable's name, its
// value and what to do; never a secret's value. It asks no server.
func (c Config) Validate() error {
	v := &validator{}
	c.validateService(v)
	c.validateAgents(v)
	c.validateLimits(v)
	v.oneOf("AZP_LOG_FORMAT", c.LogFormat, "json", "text")
	v.parsed("AZP_LOG_LEVEL", c.LogLevel.problem)
	v.parsed("AZP_LEADER_ELECTION", c.LeaderElection.problem)
	if c.Listen == "" {
		v.add("AZP_LISTEN", "is empty: want an address such as :8080")
	}
	// The limits are checked in no order.
	slices.SortStableFunc(v.problems, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(v.problems...)
}

func (c Config) validateService(v *validator) {
	v.required("AZP_URL", c.URL, "the organisation's address, such as https://dev.azure.com/contoso")
	if c.URL != "" {
		if why := organisationProblem(c.URL); why != "" {
			v.add("AZP_URL", fmt.Sprintf("%q %s", withoutUser(c.URL), why))
		}
	}
	v.required("AZP_POOL", strings.Join(c.Pools, ""), "the name of an agent pool, as in Organisation settings, Agent pools")
	for i, pool := range c.Pools {
		if slices.ContainsFunc(c.Pools[:i], func(other string) bool { return strings.EqualFold(other, pool) }) {
			v.add("AZP_POOL", fmt.Sprintf("names %q twice: the service does not tell apart names by case", pool))
		}
	}
	c.validateSignIn(v)
	if c.CAFile != "" {
		v.readable("AZP_CA_FILE", c.CAFile)
	}
	if err := c.proxy().Validate(); err != nil {
		v.add("HTTPS_PROXY", "and what goes with it: "+strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	for name, path := range map[string]string{"AZP_PROXY_USERNAME_FILE": c.ProxyUsernameFile, "AZP_PROXY_PASSWORD_FILE": c.ProxyPasswordFile} {
		if path != "" {
			v.readable(name, path)
		}
	}
}

// proxy is the scaler's own way to the service.
func (c Config) proxy() azuredevops.Proxy {
	return azuredevops.Proxy{
		HTTPS: c.HTTPSProxy, HTTP: c.HTTPProxy, NoProxy: c.NoProxy,
		UsernameFile: c.ProxyUsernameFile, PasswordFile: c.ProxyPasswordFile,
	}
}

func (c Config) validateAgents(v *validator) {
	v.required("AZP_NAMESPACE", c.Namespace, "the namespace that the agents' Jobs are to run in")
	if c.Namespace != "" {
		v.label("AZP_NAMESPACE", c.Namespace)
	}
	v.label("AZP_RELEASE", c.Release)
	if strings.ContainsAny(c.AgentImage, " \t\n") {
		v.add("AZP_AGENT_IMAGE", fmt.Sprintf("%q has blanks: want one image reference", c.AgentImage))
	}
	v.oneOf("AZP_AGENT_IMAGE_PULL_POLICY", c.AgentImagePullPolicy, "Always", "IfNotPresent", "Never")
	v.oneOf("AZP_AGENT_SOURCE", c.AgentSource, "image", "download")
	v.oneOf("AZP_REGISTRATION", c.Registration, "config", "jit")
	v.object("AZP_AGENT_TOKEN_SECRET", c.AgentTokenSecret)
	if len(validation.IsConfigMapKey(c.AgentTokenKey)) > 0 {
		v.add("AZP_AGENT_TOKEN_SECRET_KEY", fmt.Sprintf("%q is no key of a Secret", c.AgentTokenKey))
	}
	if c.AgentCAConfigMap != "" {
		v.object("AZP_AGENT_CA_CONFIGMAP", c.AgentCAConfigMap)
	}
	c.validateAgentProxy(v)
	for _, name := range c.AgentPullSecrets {
		v.object("AZP_AGENT_IMAGE_PULL_SECRETS", name)
	}
	v.parsed("AZP_AGENT_CPU_REQUEST", c.CPURequest.problem)
	v.parsed("AZP_AGENT_CPU_LIMIT", c.CPULimit.problem)
	v.parsed("AZP_AGENT_MEMORY_REQUEST", c.MemoryRequest.problem)
	v.parsed("AZP_AGENT_MEMORY_LIMIT", c.MemoryLimit.problem)
	v.parsed("AZP_ROLE_BINDINGS", c.RoleBindings.problems...)
	for _, binding := range c.RoleBindings.List {
		if binding.Namespace == c.Namespace {
			v.add("AZP_ROLE_BINDINGS", fmt.Sprintf("%q gives builds a role in the agents' own namespace, where it could read the pool's token: deploy into another namespace", binding))
		}
		if len(validation.IsDNS1123Label(binding.Namespace)) > 0 {
			v.add("AZP_ROLE_BINDINGS", fmt.Sprintf("%q names no valid namespace", binding))
		}
	}
	v.parsed("AZP_CAPABILITIES", c.Capabilities.problems...)
	for _, namespace := range c.TargetNamespaces {
		v.label("AZP_TARGET_NAMESPACES", namespace)
		if namespace == c.Namespace {
			v.add("AZP_TARGET_NAMESPACES", fmt.Sprintf("%q is the agents' own namespace", namespace))
		}
	}
}

func (c Config) validateAgentProxy(v *validator) {
	if problem := agentjob.CallbackProblem(c.CallbackURL); problem != "" {
		v.add("AZP_CALLBACK_URL", fmt.Sprintf("%q %s", withoutUser(c.CallbackURL), problem))
	}
	if c.AgentProxyURL != "" {
		if err := azuredevops.CheckAgentProxy(c.AgentProxyURL); err != nil {
			v.add("AZP_AGENT_PROXY_URL", err.Error())
		}
	}
	if _, err := azuredevops.BypassPatterns(c.AgentNoProxy); err != nil {
		v.add("AZP_AGENT_NO_PROXY", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	if c.AgentProxySecret == "" {
		return
	}
	v.object("AZP_AGENT_PROXY_SECRET", c.AgentProxySecret)
	if c.AgentProxyURL == "" {
		v.add("AZP_AGENT_PROXY_SECRET", "is set, and AZP_AGENT_PROXY_URL is not: it is for a proxy")
	}
	if c.AgentProxySecret == c.AgentTokenSecret {
		v.add("AZP_AGENT_PROXY_SECRET", fmt.Sprintf("%q is also AZP_AGENT_TOKEN_SECRET: builds can read the proxy's Secret, so it must not be the token's", c.AgentProxySecret))
	}
}

func (c Config) validateLimits(v *validator) {
	for name, count := range map[string]Count{"AZP_MAX_AGENTS": c.MaxAgents, "AZP_MAX_CREATIONS": c.MaxCreations} {
		v.parsed(name, count.problem)
		if count.problem == "" && count.N < 1 {
			v.add(name, fmt.Sprintf("%d is not above zero", count.N))
		}
	}
	v.parsed("AZP_MIN_IDLE", c.MinIdle.problem)
	if c.MinIdle.N < 0 || (c.MaxAgents.N > 0 && c.MinIdle.N > c.MaxAgents.N) {
		v.add("AZP_MIN_IDLE", fmt.Sprintf("%d is out of bounds: want 0 to AZP_MAX_AGENTS (%d)", c.MinIdle.N, c.MaxAgents.N))
	}
	v.parsed("AZP_RESPECT_PARALLEL_JOBS", c.ParallelJobs.problem)
	for name, bounds := range map[string]struct {
		value       Duration
		least, most time.Duration
	}{
		"AZP_POLL_BUSY":       {c.PollBusy, 500 * time.Millisecond, 5 * time.Minute},
		"AZP_POLL_IDLE":       {c.PollIdle, 500 * time.Millisecond, 10 * time.Minute},
		"AZP_IDLE_LIMIT":      {c.IdleLimit, time.Second, 24 * time.Hour},
		"AZP_MAX_IDLE_AGE":    {c.MaxIdleAge, time.Minute, 30 * 24 * time.Hour},
		"AZP_STARTUP_LIMIT":   {c.StartupLimit, 10 * time.Second, 24 * time.Hour},
		"AZP_CONFIGURE_LIMIT": {c.ConfigLimit, 5 * time.Second, time.Hour},
		"AZP_GRACE_PERIOD":    {c.GracePeriod, 2 * time.Minute, maxGrace},
		"AZP_JOB_TTL":         {c.JobTTL, time.Second, 30 * 24 * time.Hour},
		"AZP_BACKOFF_MIN":     {c.BackoffMin, time.Second, time.Hour},
		"AZP_BACKOFF_MAX":     {c.BackoffMax, time.Second, 24 * time.Hour},
		"AZP_SWEEP_INTERVAL":  {c.SweepInterval, time.Second, 24 * time.Hour},
		"AZP_SWEEP_GRACE":     {c.SweepGrace, time.Second, 24 * time.Hour},
	} {
		v.parsed(name, bounds.value.problem)
		if value := bounds.value.Duration; bounds.value.problem == "" && (value < bounds.least || value > bounds.most) {
			v.add(name, fmt.Sprintf("%v is out of bounds: want %v to %v", value, bounds.least, bounds.most))
		}
	}
	if c.PollIdle.Duration > 0 && c.PollBusy.Duration > c.PollIdle.Duration {
		v.add("AZP_POLL_BUSY", fmt.Sprintf("%v is longer than AZP_POLL_IDLE (%v): want it to be the shorter one", c.PollBusy.Duration, c.PollIdle.Duration))
	}
	if c.BackoffMax.Duration > 0 && c.BackoffMin.Duration > c.BackoffMax.Duration {
		v.add("AZP_BACKOFF_MIN", fmt.Sprintf("%v is longer than AZP_BACKOFF_MAX (%v)", c.BackoffMin.Duration, c.BackoffMax.Duration))
	}
}

// organisationProblem tells what is wrong with the address of an organisation.
func organisationProblem(address string) string {
	u, err := url.Parse(address)
	switch {
	case err != nil:
		return "is no URL: want one such as https://dev.azure.com/contoso"
	case u.Scheme != "https" && u.Scheme != "http":
		return "has no scheme https: want an address such as https://dev.azure.com/contoso"
	case u.Host == "":
		return "has no host: want an address such as https://dev.azure.com/contoso"
	case u.User != nil:
		return "carries a user name or password: take it out, the token has a variable of its own"
	case u.RawQuery != "" || u.Fragment != "":
		return "has a query or a fragment: want the organisation's address alone"
	case strings.Trim(u.Path, "/") == "" && !strings.HasSuffix(u.Hostname(), ".visualstudio.com"):
		return "names no organisation: append it, as in https://dev.azure.com/contoso"
	}
	return ""
}

// withoutUser keeps a password that stands in an address out of an error.
func withoutUser(address string) string {
	if _, rest, found := strings.Cut(address, "@"); found {
		return "…@" + rest
	}
	return address
}

// validator gathers what is wrong.
type validator struct{ problems []error }

func (v *validator) add(variable, problem string) {
	v.problems = append(v.problems, errors.New(variable+" "+problem))
}

func (v *validator) parsed(variable string, problems ...string) {
	for _, problem := range problems {
		if problem != "" {
			v.add(variable, problem)
		}
	}
}

func (v *validator) required(variable, value, want string) {
	if strings.TrimSpace(value) == "" {
		v.add(variable, "is not set: want "+want)
	}
}

func (v *validator) oneOf(variable, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		v.add(variable, fmt.Sprintf("%q is none of %s", value, strings.Join(allowed, ", ")))
	}
}

func (v *validator) label(variable, value string) {
	if problems := validation.IsDNS1123Label(value); len(problems) > 0 {
		v.add(variable, fmt.Sprintf("%q is no valid name: %s", value, problems[0]))
	}
}

func (v *validator) object(variable, value string) {
	if problems := validation.IsDNS1123Subdomain(value); len(problems) > 0 {
		v.add(variable, fmt.Sprintf("%q is no name of an object: %s", value, problems[0]))
	}
}

func (v *validator) readable(variable, path string) {
	file, err := os.Open(path)
	if err != nil {
		v.add(variable, fmt.Sprintf("names a file that can't be read: %v", err))
		return
	}
	_ = file.Close() // Nothing was written.
}
