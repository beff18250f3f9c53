package e2e_test

import (
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// entraAudience is what a token has to be for to be exchanged for one of Entra's.
const entraAudience = "api://AzureADTokenExchange"

// The names in deploy/kustomize/azure.
const (
	sharedAccount     = "azure-builds"
	identityNamespace = "azp-identity"
	identityAccount   = "azure"
)

// The limits after a build's end, its agent's own end included.
const (
	rightsLimit = 5 * time.Second
	tokenLimit  = 30 * time.Second
)

// TestAzureIdentity has builds get tokens that Entra would exchange, in both documented ways,
// with the delivered manifests, and checks them as Entra does.
func TestAzureIdentity(t *testing.T) {
	s := newStage(t, env.Options{Seed: seedOf(t), Classes: []env.Class{{Name: "general"}}, Scaler: quick(nil)})
	installWebhook(t, s.Env)
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: identityNamespace}}
	if _, err := s.Admin.CoreV1().Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for path, namespace := range map[string]string{"azure/account/serviceaccount.yaml": env.AgentsNamespace, "azure/token/identity/identity.yaml": identityNamespace} {
		if err := s.ApplyDelivered(t.Context(), path, namespace); err != nil {
			t.Fatal(err)
		}
	}
	shared := env.Class{
		Name: "shared", Variables: map[string]string{"azure": "shared"}, PodLabels: map[string]string{"azure.workload.identity/use": "true"},
		Annotations: map[string]string{"service-account": sharedAccount, "role-bindings": ""},
	}
	own := env.Class{
		Name: "own", Variables: map[string]string{"azure": "own"},
		Annotations: map[string]string{"role-bindings": identityNamespace + " Role/azure-token", "registration": "jit"},
	}
	s.StandingAccounts = map[string]string{shared.Name: env.AgentsNamespace + "/" + sharedAccount}
	s.apply(t, shared)
	s.apply(t, own)
	out, err := s.Scaler.Command(t.Context(), "check")
	if err != nil || !strings.Contains(out, "ok    class shared") || !strings.Contains(out, "ok    class own") {
		t.Errorf("scaler check: %v\n%s", err, out)
	}
	s.scenario(t, "builds run as one account", s.sharedIdentity)
	s.scenario(t, "each build requests a token with its own account", s.requestedIdentity)
	s.judge(t)
}

// sharedIdentity runs builds as the account that the identity trusts.
func (s *stage) sharedIdentity(t *testing.T) {
	accounts := s.accounts(t)
	build := env.Build{Demands: []string{"azure -equals shared"}, Steps: []string{
		`echo "user: $(kubectl auth whoami --output jsonpath='{.status.userInfo.username}')"`,
		`echo "token: $(cat "$AZURE_FEDERATED_TOKEN_FILE")"`,
	}}
	first, second := build, build
	first.Name, second.Name = "shared-1", "shared-2"
	queued := s.queue(t, first, second)
	s.finish(t, queued...)
	subject := "system:serviceaccount:" + env.AgentsNamespace + ":" + sharedAccount
	for _, build := range queued {
		if user := s.said(t, build, "user"); user != subject {
			t.Errorf("%s runs as %s", build.Name, user)
		}
		s.verify(t, s.said(t, build, "token"), subject, time.Hour)
	}
	if after := s.accounts(t); after != accounts {
		t.Errorf("the ServiceAccounts of the agents' namespace are %s, and were %s", after, accounts)
	}
}

// requestedIdentity has a build request tokens with the account that was made for it: of the
// one account that its role names and of no other, and not after its end.
func (s *stage) requestedIdentity(t *testing.T) {
	refused := func(account, namespace string) string {
		return fmt.Sprintf(`if answer=$(kubectl create token %s --namespace %s --audience %s 2>&1); then exit 1; fi; echo "$answer"; [[ $answer == *"is forbidden"* ]] || exit 2`,
			account, namespace, entraAudience)
	}
	queued := s.queue(t, env.Build{Name: "own", Demands: []string{"azure -equals own"}, Steps: []string{
		fmt.Sprintf(`echo "token: $(kubectl create token %s --namespace %s --audience %s --duration 10m)"`, identityAccount, identityNamespace, entraAudience),
		refused("default", identityNamespace),
		refused(sharedAccount, env.AgentsNamespace),
		`echo "account: $(cat /var/run/secrets/kubernetes.io/serviceaccount/token)"`,
	}})[0]
	s.finish(t, queued)
	ended := time.Now()
	s.verify(t, s.said(t, queued, "token"), "system:serviceaccount:"+identityNamespace+":"+identityAccount, 10*time.Minute)

	build, err := s.SignIn(s.said(t, queued, "account"))
	if err != nil {
		t.Fatal(err)
	}
	request := func() error {
		_, err := build.CoreV1().ServiceAccounts(identityNamespace).CreateToken(t.Context(), identityAccount, &authenticationv1.TokenRequest{
			Spec: authenticationv1.TokenRequestSpec{Audiences: []string{entraAudience}},
		}, metav1.CreateOptions{})
		return err
	}
	waitUntil(t.Context(), t, "the build may request no token any more", func() (string, bool) {
		err := request()
		return fmt.Sprint(err), apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err)
	})
	withoutRights := time.Since(ended)
	waitUntil(t.Context(), t, "the build's own token is refused", func() (string, bool) {
		err := request()
		return fmt.Sprint(err), apierrors.IsUnauthorized(err)
	})
	withoutToken := time.Since(ended)
	t.Logf("after the build's end it could request tokens for %s, and its own was taken for %s", withoutRights.Round(time.Millisecond), withoutToken.Round(time.Millisecond))
	if withoutRights > rightsLimit || withoutToken > tokenLimit {
		t.Errorf("want at most %s and %s", rightsLimit, tokenLimit)
	}
}

// accounts lists the ServiceAccounts of the agents' namespace with their UIDs and versions.
func (s *stage) accounts(t *testing.T) string {
	t.Helper()
	list, err := s.Admin.CoreV1().ServiceAccounts(env.AgentsNamespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, account := range list.Items {
		names = append(names, fmt.Sprintf("%s (%s, %s)", account.Name, account.UID, account.ResourceVersion))
	}
	return strings.Join(names, ", ")
}

// said finds what a build has written to its log under a name.
func (s *stage) said(t *testing.T, build env.Queued, name string) string {
	t.Helper()
	log, err := s.Service.Log(build.RequestID)
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(name + `: ([A-Za-z0-9_.:-]+)`).FindStringSubmatch(log)
	if match == nil {
		t.Fatalf("%s says no %s:\n%s", build.Name, name, log)
	}
	return match[1]
}

// verify checks a token as Entra does before it exchanges it: by the keys that the issuer
// publishes, for whom and by whom it is, and that it is of now. It also has to end in time.
func (s *stage) verify(t *testing.T, token, subject string, longest time.Duration) {
	t.Helper()
	var discovery struct {
		Issuer string `json:"issuer"`
	}
	s.published(t, "/.well-known/openid-configuration", &discovery)
	var claims jwt.RegisteredClaims
	_, err := jwt.ParseWithClaims(token, &claims, func(token *jwt.Token) (any, error) { return s.key(t, token.Header["kid"]) },
		jwt.WithValidMethods([]string{"RS256"}), jwt.WithIssuer(discovery.Issuer), jwt.WithAudience(entraAudience), jwt.WithSubject(subject),
		jwt.WithExpirationRequired(), jwt.WithIssuedAt())
	switch {
	case err != nil:
		t.Errorf("Entra would not take the token (%+v): %v", claims, err)
	case len(claims.Audience) != 1:
		t.Errorf("the token is for %v", claims.Audience)
	case claims.ExpiresAt.Sub(claims.IssuedAt.Time) > longest:
		t.Errorf("the token lives for %s, want at most %s", claims.ExpiresAt.Sub(claims.IssuedAt.Time), longest)
	}
}

// key gives a key that the API server publishes for tokens.
func (s *stage) key(t *testing.T, id any) (*rsa.PublicKey, error) {
	t.Helper()
	var set struct {
		Keys []struct {
			Kid string `json:"kid"`
			N   string `json:"n"`
			E   string `json:"e"`
		} `json:"keys"`
	}
	s.published(t, "/openid/v1/jwks", &set)
	for _, key := range set.Keys {
		if key.Kid != id {
			continue
		}
		modulus, err := base64.RawURLEncoding.DecodeString(key.N)
		if err != nil {
			return nil, err
		}
		exponent, err := base64.RawURLEncoding.DecodeString(key.E)
		if err != nil {
			return nil, err
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: int(new(big.Int).SetBytes(exponent).Int64())}, nil
	}
	return nil, fmt.Errorf("the issuer publishes no key %v", id)
}

// published reads one of the two documents by which the API server lets others check tokens.
func (s *stage) published(t *testing.T, path string, into any) {
	t.Helper()
	text, err := s.Admin.CoreV1().RESTClient().Get().AbsPath(path).DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatal(err)
	}
}
