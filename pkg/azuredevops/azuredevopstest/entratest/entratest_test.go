package entratest_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest/entratest"
)

const (
	client  = "11111111-2222-4333-8444-555555555555"
	scope   = entratest.AzureDevOps + "/.default"
	cluster = "https://oidc.example.com/"
	account = "system:serviceaccount:a:b"
)

// authority is a server with one application that has every kind of proof.
type authority struct {
	*entratest.Server
	t      *testing.T
	url    string
	http   *http.Client
	key    *rsa.PrivateKey
	print  string // Of the application's certificate.
	issuer *entratest.Issuer
	tokens []entratest.Token
}

func start(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	var err error
	if a.Server, err = entratest.New(entratest.Options{OnToken: func(token entratest.Token) { a.tokens = append(a.tokens, token) }}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	endpoint, err := a.StartTLS("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a.url = endpoint.URL
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(endpoint.CAPEM)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	t.Cleanup(transport.CloseIdleConnections)
	a.http = &http.Client{Transport: transport, Timeout: 20 * time.Second}
	if a.key, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(der)
	a.print = base64.RawURLEncoding.EncodeToString(sum[:])
	if a.issuer, err = entratest.NewIssuer(cluster); err != nil {
		t.Fatal(err)
	}
	a.Trust(a.issuer)
	if err := a.Register(entratest.Application{
		ClientID: client, Assigned: true, Certificates: []*x509.Certificate{certificate},
		Secrets:   []entratest.ClientSecret{{Value: "old", Expires: time.Now()}, {Value: "good"}},
		Federated: []entratest.FederatedCredential{{Issuer: cluster, Subject: account, Audience: "api://AzureADTokenExchange"}},
	}); err != nil {
		t.Fatal(err)
	}
	return a
}

// answer is what either endpoint says.
type answer struct {
	status      int
	Error       string `json:"error"`
	Description string `json:"error_description"`
	Codes       []int  `json:"error_codes"`
	Token       string `json:"access_token"`
	Kind        string `json:"token_type"`
	Life        any    `json:"expires_in"`
	Issuer      string `json:"issuer"`
}

func (a *authority) do(request *http.Request) answer {
	a.t.Helper()
	response, err := a.http.Do(request)
	if err != nil {
		a.t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	got := answer{status: response.StatusCode}
	if err := json.Unmarshal(body, &got); err != nil {
		got.Description = string(body)
	}
	return got
}

func (a *authority) post(tenant string, form url.Values) answer {
	a.t.Helper()
	request, err := http.NewRequestWithContext(a.t.Context(), http.MethodPost, a.url+"/"+tenant+"/oauth2/v2.0/token", strings.NewReader(form.Encode()))
	if err != nil {
		a.t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return a.do(request)
}

// assertion signs one with the application's key, spoiled.
func (a *authority) assertion(spoil func(*jwt.Token, *jwt.RegisteredClaims)) string {
	a.t.Helper()
	claims := &jwt.RegisteredClaims{
		Issuer: client, Subject: client, Audience: jwt.ClaimStrings{a.url + "/" + entratest.DefaultTenant + "/oauth2/v2.0/token"},
		NotBefore: jwt.NewNumericDate(time.Now()), ExpiresAt: jwt.NewNumericDate(time.Now().Add(10 * time.Minute)), ID: rand.Text(),
	}
	token := jwt.NewWithClaims(jwt.SigningMethodPS256, claims)
	token.Header["x5t#S256"] = a.print
	if spoil != nil {
		spoil(token, claims)
	}
	signed, err := token.SignedString(a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return signed
}

// body is a JWT without its signature, which is the rest.
func body(token string) string      { return token[:strings.LastIndex(token, ".")+1] }
func signature(token string) string { return strings.TrimPrefix(token, body(token)) }

// TestTokenEndpoint sends good and spoiled requests.
func TestTokenEndpoint(t *testing.T) {
	t.Parallel()
	a := start(t)
	federated := func(subject, audience string, from time.Time) string {
		token, err := a.issuer.Token(subject, audience, from, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	asserted := func(assertion string) url.Values {
		return url.Values{"client_secret": nil, "client_assertion": {assertion}, "client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}}
	}
	spoiled := func(spoil func(*jwt.Token, *jwt.RegisteredClaims)) url.Values { return asserted(a.assertion(spoil)) }
	const exchange = "api://AzureADTokenExchange"
	good := asserted(a.assertion(nil))
	unknown, err := entratest.NewIssuer(cluster)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := unknown.Token(account, exchange, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		tenant string
		change url.Values // A member without values is left out.
		status int
		code   int
	}{
		{name: "secret", status: 200},
		{name: "secret with the scopes of OpenID", change: url.Values{"scope": {scope + " openid offline_access profile"}}, status: 200},
		{name: "certificate", change: good, status: 200},
		{name: "federated", change: asserted(federated(account, exchange, time.Now())), status: 200},
		{name: "no grant type", change: url.Values{"grant_type": nil}, status: 400, code: 900144},
		{name: "other grant type", change: url.Values{"grant_type": {"password"}}, status: 400, code: 70003},
		{name: "no client", change: url.Values{"client_id": nil}, status: 400, code: 900144},
		{name: "unknown client", change: url.Values{"client_id": {"x"}}, status: 400, code: 700016},
		{name: "unknown tenant", tenant: "99999999-2222-4333-8444-555555555555", status: 400, code: 90002},
		{name: "tenant that is none", tenant: "common", status: 400, code: 900023},
		{name: "wrong secret", change: url.Values{"client_secret": {"bad"}}, status: 401, code: 7000215},
		{name: "expired secret", change: url.Values{"client_secret": {"old"}}, status: 401, code: 7000222},
		{name: "no proof", change: url.Values{"client_secret": nil}, status: 401, code: 7000218},
		{name: "two proofs", change: url.Values{"client_assertion": {"x"}}, status: 400, code: 90023},
		{name: "no scope", change: url.Values{"scope": nil}, status: 400, code: 1002012},
		{name: "a person's scope", change: url.Values{"scope": {entratest.AzureDevOps + "/user_impersonation"}}, status: 400, code: 1002012},
		{name: "two scopes", change: url.Values{"scope": {scope + " x/.default"}}, status: 400, code: 1002012},
		{name: "unknown service", change: url.Values{"scope": {"x/.default"}}, status: 400, code: 500011},
		{name: "no assertion type", change: url.Values{"client_secret": nil, "client_assertion": {a.assertion(nil)}}, status: 400, code: 90023},
		{name: "no JWT", change: asserted("x"), status: 400, code: 50027},
		{name: "assertion used before", change: good, status: 401, code: 70025},
		{name: "assertion without id", change: spoiled(func(_ *jwt.Token, c *jwt.RegisteredClaims) { c.ID = "" }), status: 401, code: 70025},
		{name: "unknown certificate", change: spoiled(func(token *jwt.Token, _ *jwt.RegisteredClaims) { token.Header["x5t#S256"] = "AAAA" }), status: 401, code: 700027},
		{name: "no thumbprint", change: spoiled(func(token *jwt.Token, _ *jwt.RegisteredClaims) { delete(token.Header, "x5t#S256") }), status: 401, code: 700027},
		{name: "assertion for elsewhere", change: spoiled(func(_ *jwt.Token, c *jwt.RegisteredClaims) { c.Audience[0] = "https://elsewhere" }), status: 401, code: 700023},
		{name: "assertion of another", change: spoiled(func(_ *jwt.Token, c *jwt.RegisteredClaims) { c.Subject = "x" }), status: 401, code: 700021},
		{name: "assertion ended", change: spoiled(func(_ *jwt.Token, c *jwt.RegisteredClaims) {
			c.ExpiresAt = jwt.NewNumericDate(time.Now().Add(-time.Second))
		}), status: 401, code: 700024},
		{name: "assertion without end", change: spoiled(func(_ *jwt.Token, c *jwt.RegisteredClaims) { c.ExpiresAt = nil }), status: 401, code: 700024},
		{name: "assertion for a week", change: spoiled(func(_ *jwt.Token, c *jwt.RegisteredClaims) {
			c.ExpiresAt = jwt.NewNumericDate(time.Now().AddDate(0, 0, 7))
		}), status: 401, code: 700024},
		{name: "another's signature", change: asserted(body(a.assertion(nil)) + signature(a.assertion(nil))), status: 401, code: 700027},
		{name: "another subject", change: asserted(federated("system:serviceaccount:a:c", exchange, time.Now())), status: 401, code: 700213},
		{name: "another audience", change: asserted(federated(account, "kubernetes", time.Now())), status: 401, code: 700212},
		{name: "federated token ended", change: asserted(federated(account, exchange, time.Now().Add(-2*time.Hour))), status: 401, code: 700024},
		{name: "federated token to come", change: asserted(federated(account, exchange, time.Now().Add(time.Hour))), status: 401, code: 700024},
		{name: "forged federated token", change: asserted(forged), status: 401, code: 50013},
	} {
		tenant := tc.tenant
		if tenant == "" {
			tenant = entratest.DefaultTenant
		}
		form := url.Values{"grant_type": {"client_credentials"}, "client_id": {client}, "client_secret": {"good"}, "scope": {scope}}
		for name, values := range tc.change {
			if form[name] = values; values == nil {
				form.Del(name)
			}
		}
		before := a.Counts().Issued
		got := a.post(tenant, form)
		if got.status != tc.status {
			t.Errorf("%s: status %d, want %d: %+v", tc.name, got.status, tc.status, got)
		}
		if tc.code == 0 {
			issued := a.tokens[len(a.tokens)-1]
			if got.Kind != "Bearer" || got.Token != issued.Secret || got.Life != 3600.0 || issued.ClientID != client || issued.Audience != entratest.AzureDevOps {
				t.Errorf("%s: %+v, %+v", tc.name, got, issued)
			}
		} else if len(got.Codes) != 1 || got.Codes[0] != tc.code || got.Error == "" || !strings.HasPrefix(got.Description, "AADSTS") || a.Counts().Issued != before {
			t.Errorf("%s: want code %d: %+v", tc.name, tc.code, got)
		}
	}
	if n := a.Counts().Token; n != 35 {
		t.Errorf("%d requests counted", n)
	}
	a.SetOutage(http.StatusServiceUnavailable)
	if got := a.post(entratest.DefaultTenant, url.Values{}); got.status != 503 {
		t.Errorf("in an outage: %+v", got)
	}
}

func TestDiscovery(t *testing.T) {
	t.Parallel()
	a := start(t)
	for tenant, want := range map[string]int{entratest.DefaultTenant: 200, "contoso.onmicrosoft.com": 400} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, a.url+"/"+tenant+"/v2.0/.well-known/openid-configuration", nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := a.do(request); got.status != want || (want == 200) != strings.HasPrefix(got.Issuer, a.url) {
			t.Errorf("%s: %+v", tenant, got)
		}
	}
}

// TestMetadata asks the machine's endpoint, well and badly.
func TestMetadata(t *testing.T) {
	t.Parallel()
	a := start(t)
	address, err := a.StartMetadata("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ask := func(ctx context.Context, path string, headers ...string) answer {
		t.Helper()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(headers); i += 2 {
			request.Header.Set(headers[i], headers[i+1])
		}
		return a.do(request)
	}
	const path = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=" + entratest.AzureDevOps
	first := ask(t.Context(), path, "Metadata", "true")
	if first.status != 200 || first.Token == "" || first.Life == nil {
		t.Fatalf("%+v", first)
	}
	if again := ask(t.Context(), path+"&client_id="+client, "Metadata", "true"); again.Token != first.Token {
		t.Errorf("another token within its life: %+v", again)
	}
	for _, tc := range []struct {
		path    string
		headers []string
		status  int
		says    string
	}{
		{path, nil, 400, "metadata header"},
		{path, []string{"Metadata", "true", "X-Forwarded-For", "10.0.0.1"}, 403, "X-Forwarded-For"},
		{path + "&client_id=x", []string{"Metadata", "true"}, 400, "Identity not found"},
		{"/metadata/identity/oauth2/token?resource=x", []string{"Metadata", "true"}, 400, "api-version"},
		{"/metadata/identity/oauth2/token?api-version=2018-02-01", []string{"Metadata", "true"}, 400, "audience"},
		{"/metadata/identity/oauth2/token?api-version=2018-02-01&resource=x", []string{"Metadata", "true"}, 400, "AADSTS500011"},
		{"/metadata/instance", []string{"Metadata", "true"}, 404, "not found"},
	} {
		if got := ask(t.Context(), tc.path, tc.headers...); got.status != tc.status || !strings.Contains(got.Description, tc.says) {
			t.Errorf("%s: %+v, want %d with %q", tc.path, got, tc.status, tc.says)
		}
	}
	if err := a.Register(entratest.Application{ClientID: "22222222-2222-4333-8444-555555555555", Assigned: true}); err != nil {
		t.Fatal(err)
	}
	if got := ask(t.Context(), path, "Metadata", "true"); got.status != 400 || !strings.Contains(got.Description, "Multiple user assigned") {
		t.Errorf("two identities: %+v", got)
	}
	if n := a.Counts(); n.Issued != 1 {
		t.Errorf("%+v", n)
	}
}

func TestRefusedOptions(t *testing.T) {
	t.Parallel()
	if _, err := entratest.New(entratest.Options{Lifetime: time.Millisecond}); err == nil {
		t.Error("a lifetime below a second was taken")
	}
	if err := start(t).Register(entratest.Application{ClientID: "azp"}); err == nil {
		t.Error("a client id that is no GUID was taken")
	}
}
