package env

import "time"

// The names of an installation, as the manifests and the documentation have them.
const (
	AgentsNamespace = "azp-agents"
	TargetNamespace = "shop"
	ScalerNamespace = "azp-scaler"
	ScalerAccount   = "azp-scaler"
	Pool            = "kubernetes"
	// AgentImage is built locally and never pulled.
	AgentImage = "azp-scaler.local/agent:env"
	// TokenSecret holds the token that pods sign in with.
	TokenSecret = "azp-token"
)

// The scaler's limits that suit a run of a minute, in the place of those that users
// have.
const (
	PollBusy  = time.Second
	PollIdle  = 2 * time.Second
	IdleLimit = 5 * time.Second
)

const (
	organisation = "acme"
	tokenKey     = "token"
	caConfigMap  = "azp-ca"
	caKey        = "ca.crt"
	targetRole   = "edit"
	// placeholderPrefix begins the names of the placeholder agents; what follows is
	// an instance, a class and a hash.
	placeholderPrefix = "azp-placeholder-"
	registrationJIT   = "jit"
)
