package env

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest/entratest"
)

// InstallEntra is Install for a scaler that signs in as an application of Microsoft Entra, whose
// tokens are good for the lifetime. It has the rights to keep the agents' token besides, and no
// administrator makes that.
func (e *Env) InstallEntra(ctx context.Context, suffix string, lifetime time.Duration, settings map[string]string) (*Installation, *entratest.Server, error) {
	fail := func(err error) (*Installation, *entratest.Server, error) {
		return nil, nil, fmt.Errorf("install %s with a sign-in by Entra: %w", suffix, err)
	}
	in := e.secondary(suffix)
	entra, err := entratest.New(entratest.Options{Lifetime: lifetime, OnToken: func(token entratest.Token) {
		// It can only be refused for having no secret.
		_ = e.Service.AddToken(azuredevopstest.Token{
			Secret: token.Secret, Identity: in.Name, Rights: azuredevopstest.RightsManage, Expires: token.Expires,
		})
	}})
	if err != nil {
		return fail(err)
	}
	e.entras = append(e.entras, entra)
	endpoint, err := entra.StartTLS("127.0.0.1:0")
	if err != nil {
		return fail(err)
	}
	client, proof := uuid.NewString(), uuid.NewString()
	if err := entra.Register(entratest.Application{ClientID: client, Secrets: []entratest.ClientSecret{{Value: proof}}}); err != nil {
		return fail(err)
	}
	proofFile, roots := filepath.Join(e.private, "client-secret-"+in.Name), filepath.Join(e.private, "roots-"+in.Name+".crt")
	if err := errors.Join(
		os.WriteFile(proofFile, []byte(proof), 0o600),
		os.WriteFile(roots, bytes.Join([][]byte{e.Service.CA, endpoint.CAPEM}, []byte("\n")), 0o600),
	); err != nil {
		return fail(err)
	}
	in.signIn = map[string]string{
		"AZP_AUTH": "client-secret", "AZP_TOKEN_FILE": "", "AZP_CA_FILE": roots,
		"AZURE_TENANT_ID": entratest.DefaultTenant, "AZURE_CLIENT_ID": client, "AZURE_CLIENT_SECRET_FILE": proofFile,
		"AZURE_AUTHORITY_HOST": endpoint.URL,
	}
	if err := e.add(ctx, in, settings); err != nil {
		return fail(err)
	}
	return in, entra, nil
}
