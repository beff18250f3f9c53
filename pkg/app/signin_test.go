package app_test

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest/entratest"
)

// TestSignInByEntra starts the scaler as an identity of Entra, once with a secret that is
// refused, which is fatal as a refused token is.
func TestSignInByEntra(t *testing.T) {
	const client, secret = "11111111-2222-4333-8444-555555555555", "s3cr3t~value"
	server, variables := service(t, azuredevopstest.Options{})
	issuer, err := entratest.New(entratest.Options{OnToken: func(token entratest.Token) {
		if err := server.AddToken(azuredevopstest.Token{Secret: token.Secret, Rights: azuredevopstest.RightsManage, Expires: token.Expires}); err != nil {
			t.Error(err)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(issuer.Close)
	endpoint, err := issuer.StartTLS("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := issuer.Register(entratest.Application{ClientID: client, Secrets: []entratest.ClientSecret{{Value: secret}}}); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(variables["AZP_CA_FILE"])
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "secret")
	for path, content := range map[string]string{variables["AZP_CA_FILE"]: string(ca) + string(endpoint.CAPEM), file: "wrong~value"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, value := range map[string]string{
		"AZP_TOKEN": "", "AZP_AUTH": "client-secret", "AZURE_TENANT_ID": entratest.DefaultTenant, "AZURE_CLIENT_ID": client,
		"AZURE_CLIENT_SECRET_FILE": file, "AZURE_AUTHORITY_HOST": endpoint.URL,
		"AZP_LEADER_ELECTION": "false", // It would wait for its Lease first.
	} {
		variables[name] = value
	}
	ctx, cancel := context.WithTimeout(t.Context(), waitLimit)
	defer cancel()
	if err := newApp(t, variables).Run(ctx); err == nil || !strings.Contains(err.Error(), "AADSTS7000215") || strings.Contains(err.Error(), "wrong~value") {
		t.Errorf("with a wrong secret it ended with %v", err)
	}
	if err := os.WriteFile(file, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	a := newApp(t, variables)
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	// The service is there and the cluster is not.
	waitFor(t, a, done, "/readyz", http.StatusServiceUnavailable, "the cache of Jobs and pods is not filled yet")
	cancel()
	if err := <-done; err != nil {
		t.Errorf("told to stop, it ended with %v", err)
	}
}

func TestSignInSettings(t *testing.T) {
	identity := map[string]string{"AZURE_TENANT_ID": "72f988bf-0000-4000-8000-2d7cd011db47", "AZURE_CLIENT_ID": "11111111-2222-4333-8444-555555555555"}
	for name, tc := range map[string]struct {
		variables map[string]string
		identity  bool
		want      []string // Each a line of the error.
	}{
		"workload identity": {map[string]string{"AZP_AUTH": "workload-identity", "AZURE_FEDERATED_TOKEN_FILE": "/var/run/secrets/azure/tokens/azure-identity-token"}, true, nil},
		"managed identity":  {map[string]string{"AZP_AUTH": "managed-identity"}, false, nil},
		"client secret":     {map[string]string{"AZP_AUTH": "client-secret", "AZURE_CLIENT_SECRET_FILE": "/run/s"}, true, nil},
		"certificate":       {map[string]string{"AZP_AUTH": "client-certificate", "AZURE_CLIENT_CERTIFICATE_PATH": "/run/c", "AZURE_CLIENT_CERTIFICATE_PASSWORD_FILE": "/run/p"}, true, nil},
		"sovereign cloud": {map[string]string{
			"AZP_AUTH": "client-secret", "AZURE_CLIENT_SECRET_FILE": "/run/s", "AZURE_AUTHORITY_HOST": "https://login.microsoftonline.us/", "AZP_AUTH_SCOPE": "x/.default",
		}, true, nil},
		"unknown":              {map[string]string{"AZP_AUTH": "default"}, false, []string{`AZP_AUTH "default" is none of pat, workload-identity, managed-identity, client-secret, client-certificate`}},
		"no token":             {map[string]string{}, false, []string{"AZP_TOKEN_FILE is not set, and neither is AZP_TOKEN"}},
		"no identity":          {map[string]string{"AZP_AUTH": "client-secret", "AZURE_CLIENT_SECRET_FILE": "/run/s"}, false, []string{"AZURE_CLIENT_ID is not set, and AZP_AUTH=client-secret needs it", "AZURE_TENANT_ID is not set"}},
		"token and identity":   {map[string]string{"AZP_AUTH": "managed-identity", "AZP_TOKEN": "hunter2hunter2"}, false, []string{"AZP_TOKEN is set, but AZP_AUTH is managed-identity"}},
		"secret and no method": {map[string]string{"AZP_TOKEN": "hunter2hunter2", "AZURE_CLIENT_SECRET_FILE": "/run/s"}, true, []string{"AZURE_CLIENT_SECRET_FILE is set, but AZP_AUTH is pat"}},
		"two methods": {
			map[string]string{"AZP_AUTH": "client-secret", "AZURE_CLIENT_SECRET_FILE": "/run/s", "AZURE_CLIENT_CERTIFICATE_PATH": "/run/c"},
			true,
			[]string{"AZURE_CLIENT_CERTIFICATE_PATH is set, but AZP_AUTH is client-secret"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			variables := map[string]string{"AZP_TOKEN_FILE": ""}
			for _, more := range []map[string]string{tc.variables, identity} {
				for name, value := range more {
					if _, ours := tc.variables[name]; ours || tc.identity {
						variables[name] = value
					}
				}
			}
			err := load(t, variables).Validate()
			if err == nil {
				if tc.want != nil {
					t.Errorf("taken, want %q", tc.want)
				}
				return
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(tc.want) {
				t.Fatalf("%d problems, want %d:\n%v", len(lines), len(tc.want), err)
			}
			for i, want := range tc.want {
				if !strings.HasPrefix(lines[i], want) {
					t.Errorf("%q, want %q", lines[i], want)
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("a token is in the error: %v", err)
			}
		})
	}
}
