package entra_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"software.sslmate.com/src/go-pkcs12"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest/entratest"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/entra"
)

// TestErrors breaks everything that a sign-in needs, one at a time.
func TestErrors(t *testing.T) {
	t.Parallel()
	now := time.Now()
	key, certificate := pair(t, now.Add(-time.Hour), now.Add(time.Hour))
	otherKey, other := pair(t, now.Add(-time.Hour), now.Add(time.Hour))
	oldKey, old := pair(t, now.Add(-48*time.Hour), now.Add(-24*time.Hour))
	newKey, early := pair(t, now.Add(24*time.Hour), now.Add(48*time.Hour))
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pfx, err := pkcs12.Modern.Encode(key, certificate, nil, "right")
	if err != nil {
		t.Fatal(err)
	}
	const stranger = "99999999-2222-4333-8444-555555555555"
	for name, tc := range map[string]struct {
		method      entra.Method
		spoil       func(*world, *entra.Config)
		says        []string
		unavailable bool
	}{
		"no federated token": {
			method: entra.WorkloadIdentity, spoil: func(w *world, _ *entra.Config) { _ = os.Remove(w.path("token")) },
			says: []string{"AZURE_FEDERATED_TOKEN_FILE", "/token: no such file", "azure.workload.identity/use"},
		},
		"empty federated token": {
			method: entra.WorkloadIdentity, spoil: func(w *world, _ *entra.Config) { w.write("token", "\n") },
			says: []string{"AZURE_FEDERATED_TOKEN_FILE", "/token is empty"},
		},
		"no token at all": {
			method: entra.WorkloadIdentity, spoil: func(w *world, _ *entra.Config) { w.write("token", "hello") },
			says: []string{"/token holds no JSON web token"},
		},
		"federated token ended": {
			method: entra.WorkloadIdentity, spoil: func(w *world, _ *entra.Config) {
				w.write("token", w.federated(subject, exchangeTo, now.Add(-2*time.Hour)))
			},
			says: []string{"/token: the token has ended at " + now.Add(-time.Hour).UTC().Format("2006-01-02T15:04"), "projected volume"},
		},
		"federated token of the future": {
			method: entra.WorkloadIdentity, spoil: func(w *world, _ *entra.Config) {
				w.write("token", w.federated(subject, exchangeTo, now.Add(time.Hour)))
			},
			says: []string{"AADSTS700024", "clock"},
		},
		"another ServiceAccount": {
			method: entra.WorkloadIdentity, spoil: func(w *world, _ *entra.Config) {
				w.write("token", w.federated("system:serviceaccount:other:default", exchangeTo, now))
			},
			says: []string{
				"AADSTS700213", `issuer "` + issuerURL + `"`, `subject "system:serviceaccount:other:default"`, `audience "` + exchangeTo + `"`,
				"az identity federated-credential create", `--subject "system:serviceaccount:other:default"`, "az ad app federated-credential create --id " + clientID,
			},
		},
		"another audience": {
			method: entra.WorkloadIdentity, spoil: func(w *world, _ *entra.Config) {
				w.write("token", w.federated(subject, "https://kubernetes", now))
			},
			says: []string{"AADSTS700212", `audience "https://kubernetes"`, "federated-credential create"},
		},
		"another cluster": {
			method: entra.WorkloadIdentity, spoil: func(w *world, _ *entra.Config) {
				w.issuer, _ = entratest.NewIssuer("https://oidc.example.com/other/")
				w.write("token", w.federated(subject, exchangeTo, now))
			},
			says: []string{"AADSTS700211", `issuer "https://oidc.example.com/other/"`},
		},
		"no federated credential": {
			method: entra.WorkloadIdentity, spoil: func(w *world, _ *entra.Config) { w.register(entratest.Application{ClientID: clientID}) },
			says: []string{"AADSTS70021:", `issuer "` + issuerURL + `"`, `subject "` + subject + `"`, "federated-credential create"},
		},
		"a key of another cluster": {
			method: entra.WorkloadIdentity, spoil: func(w *world, _ *entra.Config) {
				w.issuer, _ = entratest.NewIssuer(issuerURL)
				w.write("token", w.federated(subject, exchangeTo, now))
			},
			says: []string{"AADSTS50013", issuerURL, "reached from the internet"},
		},
		"no secret file": {
			method: entra.ClientSecret, spoil: func(w *world, _ *entra.Config) { _ = os.Remove(w.path("secret")) },
			says: []string{"AZURE_CLIENT_SECRET_FILE", "/secret: no such file"},
		},
		"wrong secret": {
			method: entra.ClientSecret, spoil: func(w *world, _ *entra.Config) { w.write("secret", "wrong-secret-value") },
			says: []string{"AADSTS7000215", "/secret (AZURE_CLIENT_SECRET_FILE)", "az ad app credential reset --id " + clientID},
		},
		"expired secret": {
			method: entra.ClientSecret, spoil: func(w *world, _ *entra.Config) {
				w.register(entratest.Application{ClientID: clientID, Secrets: []entratest.ClientSecret{{Value: secretText, Expires: now.Add(-time.Hour)}}})
			},
			says: []string{"AADSTS7000222", "has expired", "az ad app credential reset"},
		},
		"wrong tenant": {
			method: entra.ClientSecret, spoil: func(_ *world, c *entra.Config) { c.TenantID = stranger },
			says: []string{"AADSTS90002", `AZURE_TENANT_ID is "` + stranger + `"`, "az account show"},
		},
		"tenant that is none": {
			method: entra.ClientSecret, spoil: func(_ *world, c *entra.Config) { c.TenantID = "contoso" },
			says: []string{"AADSTS900023", `AZURE_TENANT_ID is "contoso"`},
		},
		"no such application": {
			method: entra.ClientSecret, spoil: func(_ *world, c *entra.Config) { c.ClientID = stranger },
			says: []string{"AADSTS700016", `AZURE_CLIENT_ID is "` + stranger + `"`, "not the object id"},
		},
		"scope of another service": {
			method: entra.ClientSecret, spoil: func(_ *world, c *entra.Config) { c.Scope = stranger + "/.default" },
			says: []string{"AADSTS500011", "the scope is " + stranger, "AZP_AUTH_SCOPE"},
		},
		"no certificate file": {
			method: entra.ClientCertificate, spoil: func(w *world, _ *entra.Config) { _ = os.Remove(w.path("certificate")) },
			says: []string{"AZURE_CLIENT_CERTIFICATE_PATH", "/certificate: no such file"},
		},
		"unreadable certificate": {
			method: entra.ClientCertificate, spoil: func(w *world, _ *entra.Config) { w.write("certificate", "hello") },
			says: []string{"/certificate can't be used", "neither PEM nor PKCS#12"},
		},
		"certificate without key": {
			method: entra.ClientCertificate, spoil: func(w *world, _ *entra.Config) {
				w.write("certificate", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})))
			},
			says: []string{"/certificate can't be used", "no private key"},
		},
		"encrypted key": {
			method: entra.ClientCertificate, spoil: func(w *world, _ *entra.Config) {
				w.write("certificate", string(pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")})))
			},
			says: []string{"/certificate can't be used", "the key is encrypted", "openssl pkcs12"},
		},
		"key of another certificate": {
			method: entra.ClientCertificate, spoil: func(w *world, _ *entra.Config) { w.write("certificate", inPEM(t, otherKey, certificate)) },
			says: []string{"/certificate: no certificate in it belongs to the key"},
		},
		"no RSA key": {
			method: entra.ClientCertificate, spoil: func(w *world, _ *entra.Config) { w.write("certificate", inPEM(t, curve, certificate)) },
			says: []string{"/certificate: the key is not an RSA key"},
		},
		"expired certificate": {
			method: entra.ClientCertificate, spoil: func(w *world, _ *entra.Config) { w.write("certificate", inPEM(t, oldKey, old)) },
			says: []string{"/certificate: the certificate has expired at " + old.NotAfter.UTC().Format(time.RFC3339), "az ad app credential reset"},
		},
		"early certificate": {
			method: entra.ClientCertificate, spoil: func(w *world, _ *entra.Config) { w.write("certificate", inPEM(t, newKey, early)) },
			says: []string{"/certificate: the certificate is good from", "clock"},
		},
		"unknown certificate": {
			method: entra.ClientCertificate, spoil: func(w *world, _ *entra.Config) { w.write("certificate", inPEM(t, otherKey, other)) },
			says: []string{"AADSTS700027", "register the certificate in ", "/certificate (AZURE_CLIENT_CERTIFICATE_PATH)", "--cert @FILE"},
		},
		"wrong password": {
			method: entra.ClientCertificate, spoil: func(w *world, c *entra.Config) {
				w.write("certificate", string(pfx))
				c.CertificatePasswordFile = w.write("password", "wrong-password")
			},
			says: []string{"/certificate can't be used: the password is wrong", "AZURE_CLIENT_CERTIFICATE_PASSWORD_FILE"},
		},
		"no password file": {
			method: entra.ClientCertificate, spoil: func(w *world, c *entra.Config) { c.CertificatePasswordFile = w.path("nowhere") },
			says: []string{"AZURE_CLIENT_CERTIFICATE_PASSWORD_FILE", "/nowhere: no such file"},
		},
		"password for PEM": {
			method: entra.ClientCertificate, spoil: func(w *world, c *entra.Config) { c.CertificatePasswordFile = w.write("password", "x") },
			says: []string{"a PEM file has no password"},
		},
		"no metadata service": {
			method: entra.ManagedIdentity, unavailable: true, spoil: func(w *world, _ *entra.Config) { w.machine = closedAddress(t) },
			says: []string{"the managed identity endpoint 169.254.169.254 can't be reached", "machines of Azure only"},
		},
		"something else at its address": {
			method: entra.ManagedIdentity, unavailable: true, spoil: func(w *world, _ *entra.Config) {
				server := httptest.NewServer(http.NotFoundHandler())
				t.Cleanup(server.Close)
				w.machine = server.Listener.Addr().String()
			},
			says: []string{"the managed identity endpoint 169.254.169.254 answered with status 404", "machine of Azure"},
		},
		"identity of another machine": {
			method: entra.ManagedIdentity, spoil: func(_ *world, c *entra.Config) { c.ClientID = stranger },
			says: []string{"Identity not found", stranger + " (AZURE_CLIENT_ID) is not assigned"},
		},
		"several identities": {
			method: entra.ManagedIdentity, spoil: func(w *world, c *entra.Config) {
				w.register(entratest.Application{ClientID: stranger, Assigned: true})
				c.ClientID = ""
			},
			says: []string{"Multiple user assigned identities", "say by AZURE_CLIENT_ID"},
		},
		"Entra down": {
			method: entra.ClientSecret, unavailable: true, spoil: func(w *world, _ *entra.Config) { w.entra.SetOutage(http.StatusBadGateway) },
			says: []string{"answered with status 502", "it is tried again"},
		},
		"Entra not there": {
			method: entra.ClientSecret, unavailable: true, spoil: func(_ *world, c *entra.Config) { c.AuthorityHost = "https://" + closedAddress(t) },
			says: []string{"can't be reached", "AZURE_AUTHORITY_HOST"},
		},
		"a proxy's page": {
			method: entra.ClientSecret, unavailable: true, spoil: func(w *world, c *entra.Config) {
				server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					_, _ = w.Write([]byte("<html>Blocked by policy</html>"))
				}))
				t.Cleanup(server.Close)
				c.AuthorityHost = server.URL
				c.Transport = server.Client().Transport
			},
			says: []string{"is not Microsoft Entra's", "no proxy answers in its place"},
		},
		"authority not trusted": {
			method: entra.ClientSecret, unavailable: true, spoil: func(_ *world, c *entra.Config) { c.CAFile = "" },
			says: []string{"is not trusted", "AZP_CA_FILE"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, time.Hour)
			w.register(entratest.Application{
				ClientID: clientID, Assigned: true, Secrets: []entratest.ClientSecret{{Value: secretText}}, Certificates: []*x509.Certificate{certificate},
				Federated: []entratest.FederatedCredential{{Issuer: issuerURL, Subject: subject, Audience: exchangeTo}},
			})
			w.write("certificate", inPEM(t, key, certificate))
			c := w.config(tc.method)
			c.BackOff = 4 * time.Millisecond
			tc.spoil(w, &c)
			token, err := w.source(c).Token(t.Context())
			if err == nil || token != "" {
				t.Fatalf("it worked: %v", err)
			}
			for _, want := range append(tc.says, "sign in to Microsoft Entra by "+string(tc.method)) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("no %q in: %v", want, err)
				}
			}
			if strings.ContainsAny(err.Error(), "\n") || strings.Contains(err.Error(), "Trace ID") || strings.Count(err.Error(), "AADSTS7") > 1 {
				t.Errorf("not one line about one thing: %v", err)
			}
			if tc.unavailable != errors.Is(err, azuredevops.ErrUnavailable) || tc.unavailable == errors.Is(err, azuredevops.ErrAuthentication) {
				t.Errorf("unavailable is %t of %v", !tc.unavailable, err)
			}
			for _, secret := range []string{secretText, "wrong-secret-value", "wrong-password", "eyJ"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("%q is in: %v", secret, err)
				}
			}
			// The client says the same, and of the same kind.
			_, err = w.client(w.source(c)).PoolByName(t.Context(), "ci")
			if !strings.Contains(err.Error(), "no token to sign in with: sign in to Microsoft Entra by") || tc.unavailable != errors.Is(err, azuredevops.ErrUnavailable) {
				t.Errorf("of the client: %v", err)
			}
		})
	}
}

// closedAddress is one at which nobody listens.
func closedAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	return listener.Addr().String()
}

// TestValidate names each setting that is missing or contradicts another.
func TestValidate(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		config entra.Config
		want   []string
	}{
		"no method": {entra.Config{Method: "magic"}, []string{`AZP_AUTH "magic" is unknown`}},
		"nothing for workload identity": {
			entra.Config{Method: entra.WorkloadIdentity},
			[]string{"AZURE_TENANT_ID is not set", "AZURE_CLIENT_ID is not set", "AZURE_FEDERATED_TOKEN_FILE is not set"},
		},
		"nothing for managed identity": {entra.Config{Method: entra.ManagedIdentity}, nil},
		"the webhook's variables for another method": {
			entra.Config{Method: entra.ManagedIdentity, TenantID: "a", ClientID: "b", FederatedTokenFile: "c", AuthorityHost: "https://login.microsoftonline.com/"}, nil,
		},
		"nothing for a secret": {
			entra.Config{Method: entra.ClientSecret, TenantID: "a", ClientID: "b"}, []string{"AZURE_CLIENT_SECRET_FILE is not set"},
		},
		"nothing for a certificate": {
			entra.Config{Method: entra.ClientCertificate, TenantID: "a", ClientID: "b", CertificatePasswordFile: "p"},
			[]string{"AZURE_CLIENT_CERTIFICATE_PATH is not set", "AZURE_CLIENT_CERTIFICATE_PASSWORD_FILE is set, but"},
		},
		"secret and certificate": {
			entra.Config{Method: entra.ClientSecret, TenantID: "a", ClientID: "b", ClientSecretFile: "c", CertificateFile: "d"},
			[]string{"AZURE_CLIENT_CERTIFICATE_PATH is set, but AZP_AUTH is client-secret"},
		},
		"addresses": {
			entra.Config{Method: entra.ManagedIdentity, TenantID: "a/b", AuthorityHost: "http://login", Scope: "vso.build"},
			[]string{`AZURE_TENANT_ID "a/b"`, `AZURE_AUTHORITY_HOST "http://login" is no https URL`, `AZP_AUTH_SCOPE "vso.build"`},
		},
		"authority with tenant":   {entra.Config{Method: entra.ManagedIdentity, AuthorityHost: "https://login/tenant"}, []string{"has more than a host"}},
		"authority with password": {entra.Config{Method: entra.ManagedIdentity, AuthorityHost: "https://u:hunter2@login/"}, []string{"has a user or password"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := tc.config.Validate()
			if (err == nil) != (tc.want == nil) {
				t.Fatalf("%v", err)
			}
			if err == nil {
				return
			}
			if lines := strings.Count(err.Error(), "\n") + 1; lines != len(tc.want) {
				t.Errorf("%d problems, want %d:\n%v", lines, len(tc.want), err)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("no %q in:\n%v", want, err)
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Error("a password is in the error")
			}
			if _, err := entra.New(tc.config); err == nil {
				t.Error("New took it")
			}
		})
	}
}
