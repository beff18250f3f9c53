package entratest

import (
	"crypto/subtle"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

const (
	maxBody       = 64 << 10
	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
)

// ServeHTTP answers one request to the authority.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	tenant, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch {
	case r.Method == http.MethodGet && rest == "v2.0/.well-known/openid-configuration":
		if s.failing(w, func(c *Counts) { c.Discovery++ }) {
			return
		}
		s.discovery(w, r, tenant)
	case r.Method == http.MethodPost && rest == "oauth2/v2.0/token":
		if s.failing(w, func(c *Counts) { c.Token++ }) {
			return
		}
		s.token(w, r, tenant)
	default:
		http.NotFound(w, r)
	}
}

// failing counts a request and answers it where there is an outage.
func (s *Server) failing(w http.ResponseWriter, count func(*Counts)) bool {
	s.mu.Lock()
	count(&s.counts)
	status := s.outage
	s.mu.Unlock()
	if status != 0 {
		http.Error(w, http.StatusText(status), status)
	}
	return status != 0
}

// checkTenant gives Entra's word for a tenant that is not there.
func (s *Server) checkTenant(tenant string) *refusal {
	switch {
	case strings.EqualFold(tenant, s.opts.Tenant):
		return nil
	case !strings.Contains(tenant, ".") && uuid.Validate(tenant) != nil:
		return refuse("invalid_request", 900023, "Specified tenant identifier '%s' is neither a valid DNS name, nor a valid external domain.", tenant)
	default:
		return refuse("invalid_tenant", 90002, "Tenant '%s' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud. Check with your subscription administrator, this may happen if there are no active subscriptions for the tenant.", tenant)
	}
}

// discovery answers where the tenant's endpoints are.
func (s *Server) discovery(w http.ResponseWriter, r *http.Request, tenant string) {
	if e := s.checkTenant(tenant); e != nil {
		e.write(w)
		return
	}
	base := "https://" + r.Host + "/" + tenant
	reply(w, http.StatusOK, map[string]any{
		"token_endpoint":                        base + "/oauth2/v2.0/token",
		"token_endpoint_auth_methods_supported": []string{"client_secret_post", "private_key_jwt", "client_secret_basic"},
		"jwks_uri":                              base + "/discovery/v2.0/keys",
		"issuer":                                base + "/v2.0",
		"authorization_endpoint":                base + "/oauth2/v2.0/authorize",
		"response_types_supported":              []string{"code", "id_token", "code id_token", "id_token token"},
	})
}

// token is the token endpoint.
func (s *Server) token(w http.ResponseWriter, r *http.Request, tenant string) {
	if e := s.checkTenant(tenant); e != nil {
		e.write(w)
		return
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/x-www-form-urlencoded" {
		refuse("invalid_request", 900144, "The request body must contain the following parameter: 'grant_type'.").write(w)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	if err := r.ParseForm(); err != nil {
		refuse("invalid_request", 90014, "The request body is no form.").write(w)
		return
	}
	made, e := s.exchange(r.PostForm, "https://"+r.Host+"/"+tenant+"/oauth2/v2.0/token", time.Now())
	if e != nil {
		e.write(w)
		return
	}
	seconds := int(made.Expires.Sub(made.at) / time.Second)
	reply(w, http.StatusOK, map[string]any{
		"token_type": "Bearer", "expires_in": seconds, "ext_expires_in": seconds, "access_token": made.Secret,
	})
}

// exchange checks a request for a token and makes one.
func (s *Server) exchange(form url.Values, endpoint string, now time.Time) (issued, *refusal) {
	grant := form.Get("grant_type")
	switch {
	case grant == "":
		return issued{}, refuse("invalid_request", 900144, "The request body must contain the following parameter: 'grant_type'.")
	case grant != "client_credentials":
		return issued{}, refuse("unsupported_grant_type", 70003, "The app requested an unsupported grant type '%s'.", grant)
	}
	client := form.Get("client_id")
	if client == "" {
		return issued{}, refuse("invalid_request", 900144, "The request body must contain the following parameter: 'client_id'.")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	application, known := s.applications[strings.ToLower(client)]
	if !known {
		return issued{}, refuse("unauthorized_client", 700016, "Application with identifier '%s' was not found in the directory 'Contoso'. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. You may have sent your authentication request to the wrong tenant.", client)
	}
	if e := s.prove(application, form, endpoint, now); e != nil {
		return issued{}, e
	}
	audience, e := audienceOf(form.Get("scope"))
	if e != nil {
		return issued{}, e
	}
	return s.issue(application.ClientID, audience, now), nil
}

// prove checks that the caller is the application. The caller holds the mutex.
func (s *Server) prove(a Application, form url.Values, endpoint string, now time.Time) *refusal {
	secret, assertion := form.Get("client_secret"), form.Get("client_assertion")
	switch {
	case secret != "" && assertion != "":
		return refuse("invalid_request", 90023, "Both client_secret and client_assertion are present.")
	case secret != "":
		return proveSecret(a, secret, now)
	case assertion == "":
		return refuse("invalid_client", 7000218, "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.")
	case form.Get("client_assertion_type") != assertionType:
		return refuse("invalid_request", 90023, "client_assertion_type must be '%s'.", assertionType)
	default:
		return s.proveAssertion(a, assertion, endpoint, now)
	}
}

// proveSecret compares a client secret.
func proveSecret(a Application, secret string, now time.Time) *refusal {
	for _, known := range a.Secrets {
		if subtle.ConstantTimeCompare([]byte(known.Value), []byte(secret)) != 1 {
			continue
		}
		if !known.Expires.IsZero() && !now.Before(known.Expires) {
			return refuse("invalid_client", 7000222, "The provided client secret keys for app '%s' are expired. Visit the Azure portal to create new keys for your app: https://aka.ms/NewClientSecret, or consider using certificate credentials for added security: https://aka.ms/certCreds.", a.ClientID)
		}
		return nil
	}
	return refuse("invalid_client", 7000215, "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, for a secret added to app '%s'.", a.ClientID)
}

// audienceOf reads the scope: one resource with /.default, beside which clients may name
// the scopes of OpenID.
func audienceOf(scope string) (string, *refusal) {
	scopes := slices.DeleteFunc(strings.Fields(scope), func(one string) bool {
		return slices.Contains([]string{"openid", "profile", "offline_access", "email"}, one)
	})
	if len(scopes) != 1 || !strings.HasSuffix(scopes[0], "/.default") {
		return "", refuse("invalid_scope", 1002012, "The provided value for scope %s is not valid. Client credential flows must have a scope value with /.default suffixed to the resource identifier (application ID URI).", strings.Join(scopes, " "))
	}
	return checkResource(strings.TrimSuffix(scopes[0], "/.default"))
}

// checkResource tells whether there is such a service.
func checkResource(resource string) (string, *refusal) {
	if !strings.EqualFold(resource, AzureDevOps) {
		return "", refuse("invalid_resource", 500011, "The resource principal named %s was not found in the tenant named Contoso. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. You might have sent your authentication request to the wrong tenant.", resource)
	}
	return AzureDevOps, nil
}

// issue makes a token. The caller holds the mutex.
func (s *Server) issue(client, audience string, now time.Time) issued {
	made := issued{at: now, Token: Token{ClientID: client, Audience: audience, Expires: now.Add(s.lifetime.Truncate(time.Second))}}
	claims := jwt.MapClaims{
		"aud": audience, "iss": fmt.Sprintf("https://sts.windows.net/%s/", s.opts.Tenant), "tid": s.opts.Tenant,
		"iat": now.Unix(), "nbf": now.Unix(), "exp": made.Expires.Unix(),
		"appid": client, "oid": client, "sub": client, "idtyp": "app", "ver": "1.0", "uti": uuid.NewString(),
	}
	signed, err := jwt.NewWithClaims(jwt.SigningMethodES256, claims).SignedString(s.key)
	if err != nil {
		// A key of our own signs a few strings and numbers.
		panic(fmt.Sprintf("sign an access token: %v", err))
	}
	made.Secret = signed
	s.counts.Issued++
	if s.opts.OnToken != nil {
		s.opts.OnToken(made.Token)
	}
	return made
}
