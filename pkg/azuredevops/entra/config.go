package entra

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
)

// Method is how the identity proves that it is itself.
type Method string

// The methods.
const (
	// WorkloadIdentity shows a token that Kubernetes has made for the pod's ServiceAccount.
	WorkloadIdentity Method = "workload-identity"
	// ManagedIdentity asks the metadata service of the machine, or of the hosting
	// environment, which knows the identities that are assigned to it.
	ManagedIdentity Method = "managed-identity"
	// ClientSecret shows a password of a service principal.
	ClientSecret Method = "client-secret"
	// ClientCertificate signs with the key of a service principal's certificate.
	ClientCertificate Method = "client-certificate"
)

// Methods lists every method.
func Methods() []Method {
	return []Method{WorkloadIdentity, ManagedIdentity, ClientSecret, ClientCertificate}
}

// What holds where the configuration says nothing else.
const (
	// DefaultAuthorityHost is Microsoft Entra in the public cloud.
	DefaultAuthorityHost = "https://login.microsoftonline.com/"
	// DefaultScope asks for tokens for Azure DevOps, whose application id it has
	// (https://learn.microsoft.com/azure/devops/integrate/get-started/authentication/service-principal-managed-identity).
	DefaultScope = "499b84ac-1321-427f-aa17-267ca6975798/.default"
	// DefaultTimeout is for one renewal.
	DefaultTimeout = 30 * time.Second
	// DefaultBackOff is the first wait after a renewal that failed; it doubles.
	DefaultBackOff = time.Second
)

// Config says which identity signs in and how. Nothing is read from the environment,
// but for what the package's documentation lists.
type Config struct {
	Method   Method
	TenantID string // Not for ManagedIdentity.
	// ClientID is the application's or the identity's. With ManagedIdentity it may be
	// empty, which means the one identity that the machine has.
	ClientID string
	// FederatedTokenFile is for WorkloadIdentity.
	FederatedTokenFile string
	// ClientSecretFile is for ClientSecret.
	ClientSecretFile string
	// CertificateFile is for ClientCertificate: certificate and RSA key in one file, PEM
	// or PKCS#12. CertificatePasswordFile is for the latter and may be empty.
	CertificateFile         string
	CertificatePasswordFile string

	AuthorityHost string
	Scope         string
	// CAFile is a PEM file of further roots to trust beside the system's.
	CAFile string
	// Proxy is the way out of the network. A managed identity's endpoint is never asked
	// through it.
	Proxy azuredevops.Proxy

	Timeout time.Duration
	BackOff time.Duration
	Logger  *slog.Logger
	// Transport replaces the way to the network, proxy and TLS included; nil is what
	// azuredevops.NewTransport makes.
	Transport http.RoundTripper
}

// Validate tells everything that is missing or contradicts itself, with the names that
// the settings have in the environment.
func (c Config) Validate() error {
	var problems []error
	add := func(format string, a ...any) { problems = append(problems, fmt.Errorf(format, a...)) }
	if !slices.Contains(Methods(), c.Method) {
		add("AZP_AUTH %q is unknown: give pat or one of %s", c.Method, strings.Trim(fmt.Sprint(Methods()), "[]"))
		return errors.Join(problems...)
	}
	needed := func(variable, value, want string) {
		if value == "" {
			add("%s is not set, and AZP_AUTH=%s needs it: %s", variable, c.Method, want)
		}
	}
	if c.Method != ManagedIdentity {
		needed("AZURE_TENANT_ID", c.TenantID, "set it to the tenant of the identity, as az account show --query tenantId tells it")
		needed("AZURE_CLIENT_ID", c.ClientID, "set it to the identity's application (client) id")
	}
	for _, file := range []struct {
		variable, value, want string
		method                Method
	}{
		{
			"AZURE_FEDERATED_TOKEN_FILE", c.FederatedTokenFile,
			"the workload identity webhook sets it in pods with the label azure.workload.identity/use: \"true\"", WorkloadIdentity,
		},
		{"AZURE_CLIENT_SECRET_FILE", c.ClientSecretFile, "put the client secret's value into a file and name it here", ClientSecret},
		{"AZURE_CLIENT_CERTIFICATE_PATH", c.CertificateFile, "name the file with certificate and key, PEM or PKCS#12", ClientCertificate},
	} {
		switch {
		case file.method == c.Method:
			needed(file.variable, file.value, file.want)
		case file.value != "" && file.method != WorkloadIdentity:
			// The webhook sets its variable whatever the method.
			add("%s is set, but AZP_AUTH is %s: unset it, or set AZP_AUTH to %s", file.variable, c.Method, file.method)
		}
	}
	if c.CertificatePasswordFile != "" && c.CertificateFile == "" {
		add("AZURE_CLIENT_CERTIFICATE_PASSWORD_FILE is set, but AZURE_CLIENT_CERTIFICATE_PATH is not: set both or neither")
	}
	if strings.ContainsFunc(c.TenantID, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '.' && r != '-'
	}) {
		add("AZURE_TENANT_ID %q is neither an id nor a domain: give one such as 72f988bf-86f1-41af-91ab-2d7cd011db47", c.TenantID)
	}
	if why := authorityProblem(c.AuthorityHost); why != "" {
		add("AZURE_AUTHORITY_HOST %s: give one such as %s", why, DefaultAuthorityHost)
	}
	if c.Scope != "" && !strings.HasSuffix(c.Scope, "/.default") {
		add("AZP_AUTH_SCOPE %q does not end in /.default, and an identity that is no person takes no other: give one such as %s", c.Scope, DefaultScope)
	}
	return errors.Join(problems...)
}

// authorityProblem tells what is wrong with an authority's address.
func authorityProblem(address string) string {
	if address == "" {
		return ""
	}
	u, err := url.Parse(address)
	switch {
	case err != nil:
		return "is no URL"
	case u.User != nil:
		return "has a user or password before the @"
	case u.Scheme != "https" || u.Host == "":
		return fmt.Sprintf("%q is no https URL", address)
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return fmt.Sprintf("%q has more than a host, and the tenant is AZURE_TENANT_ID", address)
	default:
		return ""
	}
}

// New makes a source of tokens. It asks nobody anything and reads no file but CAFile.
func New(c Config) (*Source, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.AuthorityHost == "" {
		c.AuthorityHost = DefaultAuthorityHost
	}
	if c.Scope == "" {
		c.Scope = DefaultScope
	}
	if c.Timeout <= 0 {
		c.Timeout = DefaultTimeout
	}
	if c.BackOff <= 0 {
		c.BackOff = DefaultBackOff
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Transport == nil {
		transport, err := azuredevops.NewTransport(c.CAFile, c.Proxy)
		if err != nil {
			return nil, err
		}
		if c.Method == ManagedIdentity {
			// The metadata service is the machine's own: a proxy would ask for its own
			// identity, and the original refuses what comes through one.
			transport.Proxy = nil
			transport.DialContext = metadataDialer()
		}
		c.Transport = transport
	}
	about := fmt.Sprintf("Microsoft Entra by %s", c.Method)
	if c.ClientID != "" {
		about += " as " + c.ClientID
	}
	return newSource(about, authority{config: c}.fetch, c.Timeout, c.BackOff, c.Logger), nil
}

func newSource(about string, fetch func(context.Context) (grant, error), timeout, backOff time.Duration, log *slog.Logger) *Source {
	return &Source{about: about, fetch: fetch, timeout: timeout, backOff: backOff, log: log}
}
