package entra

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
)

const (
	// maxAnswer is far above a token's answer.
	maxAnswer = 1 << 20
	// metadataDialLimit is far above what the way to the own machine takes. Where there
	// is no such service, packets are mostly dropped.
	metadataDialLimit = 3 * time.Second
)

// authority gets tokens from Entra.
type authority struct{ config Config }

// metadataDialer opens connections to the machine's own metadata service.
func metadataDialer() func(context.Context, string, string) (net.Conn, error) {
	return (&net.Dialer{Timeout: metadataDialLimit}).DialContext
}

// fetch gets a token that nobody had before, as far as that is in our hands.
func (a authority) fetch(ctx context.Context) (grant, error) {
	proof, err := a.proof()
	if err != nil {
		return grant{}, err
	}
	x := &exchange{client: &http.Client{
		Transport: a.config.Transport,
		// A proof goes to the authority and nowhere else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	credential, err := a.credential(proof, x)
	if err != nil {
		return grant{}, a.refused("", oneLine(err.Error(), proof.hidden...), "check AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_AUTHORITY_HOST")
	}
	request := policy.TokenRequestOptions{Scopes: []string{a.config.Scope}}
	if a.config.Method == ManagedIdentity {
		// The library keeps the tokens of managed identities for the whole process, and
		// passes that store over where there are claims, which it does not send.
		request.Claims = "{}"
	}
	token, err := credential.GetToken(ctx, request)
	if err != nil {
		return grant{}, a.explain(x, proof, err)
	}
	if token.Token == "" || !time.Now().Before(token.ExpiresOn) {
		return grant{}, a.unavailable("the answer holds no token that is good now", "check this machine's clock")
	}
	return grant{token: azuredevops.Secret(token.Token), expires: token.ExpiresOn, refresh: token.RefreshOn}, nil
}

// credential makes azidentity's credential of the method.
func (a authority) credential(p proof, x *exchange) (azcore.TokenCredential, error) {
	c := a.config
	options := azcore.ClientOptions{
		Transport: x,
		Cloud:     cloud.Configuration{ActiveDirectoryAuthorityHost: c.AuthorityHost},
		// A short disturbance is not worth a failure; longer ones are the source's.
		Retry: policy.RetryOptions{
			MaxRetries: 2, RetryDelay: c.BackOff / 4, MaxRetryDelay: 2 * c.BackOff, TryTimeout: c.Timeout,
			StatusCodes: []int{
				http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
				http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
			},
		},
	}
	// The authority is a setting, and no answer of a third party makes it more to be
	// trusted. Without the question, login.microsoft.com need not be reachable either.
	const noDiscovery = true
	switch c.Method {
	case WorkloadIdentity:
		return azidentity.NewClientAssertionCredential(c.TenantID, c.ClientID, func(context.Context) (string, error) {
			return p.assertion, nil
		}, &azidentity.ClientAssertionCredentialOptions{ClientOptions: options, DisableInstanceDiscovery: noDiscovery})
	case ClientSecret:
		return azidentity.NewClientSecretCredential(c.TenantID, c.ClientID, p.secret,
			&azidentity.ClientSecretCredentialOptions{ClientOptions: options, DisableInstanceDiscovery: noDiscovery})
	case ClientCertificate:
		return azidentity.NewClientCertificateCredential(c.TenantID, c.ClientID, p.certificates, p.key,
			&azidentity.ClientCertificateCredentialOptions{ClientOptions: options, DisableInstanceDiscovery: noDiscovery})
	case ManagedIdentity:
		o := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: options}
		if c.ClientID != "" {
			o.ID = azidentity.ClientID(c.ClientID)
		}
		return azidentity.NewManagedIdentityCredential(o)
	default:
		return nil, fmt.Errorf("method %q is unknown", c.Method)
	}
}

// exchange is the way to the authority for one renewal. It keeps how the last request
// ended: the library's own errors name requests and bodies at length.
type exchange struct {
	client *http.Client

	err    error
	host   string
	status int
	body   []byte
}

// Do implements policy.Transporter.
func (x *exchange) Do(r *http.Request) (*http.Response, error) {
	x.host, x.err, x.status, x.body = r.URL.Host, nil, 0, nil
	resp, err := x.client.Do(r)
	if err != nil {
		x.err = err
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	err = errors.Join(err, resp.Body.Close())
	if err == nil && len(body) > maxAnswer {
		err = fmt.Errorf("the answer is over %d bytes long", maxAnswer)
	}
	if err != nil {
		x.err = err
		return nil, err
	}
	x.status, x.body = resp.StatusCode, body
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}
