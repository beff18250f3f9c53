package entra

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"unicode"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
)

// maxMessage bounds what an error repeats of an answer.
const maxMessage = 500

// refused is an error that trying again does not mend.
func (a authority) refused(code, message, remedy string) *Error {
	return &Error{Method: a.config.Method, Code: code, Message: message, Remedy: remedy, kind: azuredevops.ErrAuthentication}
}

// unavailable is an error that may go away by itself.
func (a authority) unavailable(message, remedy string) *Error {
	return &Error{Method: a.config.Method, Message: message, Remedy: remedy, kind: azuredevops.ErrUnavailable}
}

// answer is the body of an error, of Entra (RFC 6749 §5.2) or of a metadata service.
type answer struct {
	Error       string `json:"error"`
	Description string `json:"error_description"`
	Codes       []int  `json:"error_codes"`
}

// explain makes an error of how the last request ended.
func (a authority) explain(x *exchange, p proof, err error) error {
	if x.host == "" {
		return a.refused("", oneLine(err.Error(), p.hidden...), "")
	}
	if x.err != nil || x.status == 0 {
		return a.unanswered(x, p, err)
	}
	var said answer
	_ = json.Unmarshal(x.body, &said) // What is no such body is told by its status.
	message := oneLine(said.Description, p.hidden...)
	switch {
	case x.status == http.StatusTooManyRequests || x.status == http.StatusRequestTimeout || x.status >= 500:
		return a.unavailable(strings.TrimSpace(fmt.Sprintf("%s answered with status %d %s", x.host, x.status, message)), "it is tried again")
	case a.config.Method == ManagedIdentity:
		return a.explainMetadata(x, said.Error, message)
	case x.status == http.StatusOK:
		return a.unavailable(fmt.Sprintf("the answer of %s is not Microsoft Entra's: %s", x.host, oneLine(err.Error(), p.hidden...)),
			"check AZURE_AUTHORITY_HOST, and that no proxy answers in its place")
	case message == "":
		return a.unavailable(fmt.Sprintf("%s answered with status %d and not in Microsoft Entra's words", x.host, x.status),
			"check AZURE_AUTHORITY_HOST, and that no proxy answers in its place")
	}
	code, message := splitCode(message)
	if code == "" && len(said.Codes) > 0 {
		code = fmt.Sprintf("AADSTS%d", said.Codes[0])
	}
	return a.refused(code, message, a.remedy(code, p))
}

// unanswered explains a request that got no answer.
func (a authority) unanswered(x *exchange, p proof, err error) error {
	cause := x.err
	if cause == nil {
		cause = err
	}
	var (
		unknown x509.UnknownAuthorityError
		host    x509.HostnameError
		invalid x509.CertificateInvalidError
		record  tls.RecordHeaderError
	)
	if errors.As(cause, &unknown) || errors.As(cause, &host) || errors.As(cause, &invalid) || errors.As(cause, &record) {
		return a.unavailable(fmt.Sprintf("the certificate of %s is not trusted: %s", x.host, oneLine(cause.Error(), p.hidden...)),
			"if it, or the proxy before it, has one of an authority of your own, give that authority's certificate (AZP_CA_FILE)")
	}
	why := oneLine(cause.Error(), p.hidden...)
	if errors.Is(cause, azuredevops.ErrProxy) {
		return a.unavailable(fmt.Sprintf("%s can't be reached: %s", x.host, why),
			"have the proxy let requests to "+x.host+" through, and give it the user and password that it wants (AZP_PROXY_USERNAME_FILE, AZP_PROXY_PASSWORD_FILE)")
	}
	if errors.Is(cause, context.DeadlineExceeded) || errors.Is(cause, context.Canceled) {
		why = "no answer within the time limit"
	}
	if a.config.Method == ManagedIdentity {
		return a.unavailable(fmt.Sprintf("the managed identity endpoint %s can't be reached: %s", x.host, why),
			"managed identities exist on machines of Azure only: assign one to the nodes, let no network policy keep the pod from the address, or use AZP_AUTH=workload-identity")
	}
	return a.unavailable(fmt.Sprintf("%s can't be reached: %s", x.host, why),
		"check AZURE_AUTHORITY_HOST, the name resolution, the proxy and the way out of the network; it is tried again")
}

// explainMetadata explains the word of a metadata service.
func (a authority) explainMetadata(x *exchange, name, message string) error {
	described := fmt.Sprintf("the managed identity endpoint %s answered with status %d: %s", x.host, x.status, strings.TrimSpace(name+" "+message))
	switch {
	case strings.Contains(message, "Identity not found"):
		if a.config.ClientID == "" {
			return a.refused("", described, "assign an identity to the nodes with az vmss identity assign")
		}
		return a.refused("", described, fmt.Sprintf("the identity with the client id %s (AZURE_CLIENT_ID) is not assigned to this machine: assign it to the nodes with az vmss identity assign, or correct the id", a.config.ClientID))
	case strings.Contains(message, "Multiple user assigned identities"):
		return a.refused("", described, "say by AZURE_CLIENT_ID which of the machine's identities is meant")
	case strings.Contains(message, "AADSTS500011"):
		return a.refused("AADSTS500011", described, a.remedy("AADSTS500011", proof{}))
	case x.status == http.StatusNotFound || x.status == http.StatusGone || message == "":
		return a.unavailable(described, "check that this is a machine of Azure, and that nothing else answers at that address; it is tried again")
	default:
		return a.refused("", described, "see https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token#error-handling")
	}
}

// remedy says what to do about a code of Entra's
// (https://learn.microsoft.com/entra/identity-platform/reference-error-codes).
func (a authority) remedy(code string, p proof) string {
	c := a.config
	switch code {
	case "AADSTS7000215":
		return fmt.Sprintf("the client secret in %s (AZURE_CLIENT_SECRET_FILE) is not one of application %s: put the secret's value there, not its id; "+
			"az ad app credential reset --id %s --append makes a new one; the file is read again", c.ClientSecretFile, c.ClientID, c.ClientID)
	case "AADSTS7000222":
		return fmt.Sprintf("the client secret in %s (AZURE_CLIENT_SECRET_FILE) has expired: make a new one with az ad app credential reset --id %s --append and put it there; "+
			"the file is read again", c.ClientSecretFile, c.ClientID)
	case "AADSTS70021", "AADSTS700211", "AADSTS700212", "AADSTS700213":
		return a.federatedRemedy(p.claims)
	case "AADSTS700024":
		return "check this machine's clock, and that the token or certificate has not ended"
	case "AADSTS50013", "AADSTS50166":
		return fmt.Sprintf("Microsoft Entra reads the keys of the cluster at the issuer %s: check that this address can be reached from the internet", p.claims.Issuer)
	case "AADSTS700027":
		return fmt.Sprintf("register the certificate in %s (AZURE_CLIENT_CERTIFICATE_PATH) for application %s: az ad app credential reset --id %s --append --cert @FILE, with the certificate alone in FILE",
			c.CertificateFile, c.ClientID, c.ClientID)
	case "AADSTS90002", "AADSTS900023":
		return fmt.Sprintf("AZURE_TENANT_ID is %q: set it to what az account show --query tenantId tells, and AZURE_AUTHORITY_HOST (%s) to that tenant's cloud", c.TenantID, c.AuthorityHost)
	case "AADSTS700016":
		return fmt.Sprintf("AZURE_CLIENT_ID is %q: set it to the application (client) id, not the object id, of an identity in tenant %s", c.ClientID, c.TenantID)
	case "AADSTS7000112", "AADSTS7000229":
		return fmt.Sprintf("enable the application, or make its service principal with az ad sp create --id %s", c.ClientID)
	case "AADSTS500011", "AADSTS70011", "AADSTS1002012":
		return fmt.Sprintf("the scope is %s: unset AZP_AUTH_SCOPE for Azure DevOps, and connect the organisation to this tenant once", c.Scope)
	case "AADSTS53003":
		return "a policy of Conditional Access for workload identities forbids it: have this cluster's addresses allowed"
	default:
		return "see https://login.microsoftonline.com/error?code=" + strings.TrimPrefix(code, "AADSTS")
	}
}

// federatedRemedy names what a federated credential has to say, and how to add one.
func (a authority) federatedRemedy(c federatedClaims) string {
	audience := strings.Join(c.Audience, ",")
	return fmt.Sprintf("the token in %s (AZURE_FEDERATED_TOKEN_FILE) has issuer %q, subject %q, audience %q, and %s has no federated credential with all three: "+
		"for a managed identity, add it with az identity federated-credential create --name azp-scaler --identity-name NAME --resource-group GROUP --issuer %q --subject %q --audiences %q; "+
		"for an application, with az ad app federated-credential create --id %s --parameters '{\"name\":\"azp-scaler\",\"issuer\":%q,\"subject\":%q,\"audiences\":[%q]}'; it holds after a minute or two",
		a.config.FederatedTokenFile, c.Issuer, c.Subject, audience, a.config.ClientID,
		c.Issuer, c.Subject, audience, a.config.ClientID, c.Issuer, c.Subject, audience)
}

// splitCode takes a message's code off. What follows the text are ids of this one
// request, with which the same error would look like another each time.
func splitCode(message string) (code, text string) {
	message, _, _ = strings.Cut(message, " Trace ID:")
	if match := regexp.MustCompile(`^(AADSTS\d+): `).FindStringSubmatch(message); match != nil {
		return match[1], strings.TrimRight(message[len(match[0]):], ". ")
	}
	return "", message
}

// oneLine makes a text fit for a log, without what must not be in it.
func oneLine(text string, hidden ...string) string {
	for _, secret := range hidden {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, azuredevops.Secret(secret).String())
		}
	}
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
	text = strings.TrimRight(text, ". ")
	if runes := []rune(text); len(runes) > maxMessage {
		text = string(runes[:maxMessage]) + "…"
	}
	return text
}
