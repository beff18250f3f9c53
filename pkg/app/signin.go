package app

import (
	"log/slog"
	"slices"
	"strings"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/entra"
)

// authPAT is the value of AZP_AUTH for a personal access token.
const authPAT = "pat"

// validateSignIn checks the settings of the one way to sign in, and that there are none
// of another: which one holds must not depend on an order that nobody sees.
func (c Config) validateSignIn(v *validator) {
	methods := []string{authPAT}
	for _, method := range entra.Methods() {
		methods = append(methods, string(method))
	}
	switch {
	case !slices.Contains(methods, c.Auth):
		v.oneOf("AZP_AUTH", c.Auth, methods...)
	case c.Auth == authPAT:
		c.validateToken(v)
	default:
		for name, set := range map[string]bool{"AZP_TOKEN": c.Token != "", "AZP_TOKEN_FILE": c.TokenFile != ""} {
			if set {
				v.add(name, "is set, but AZP_AUTH is "+c.Auth+": unset it, or set AZP_AUTH to pat")
			}
		}
		if err := c.entra(nil).Validate(); err != nil {
			for line := range strings.Lines(err.Error()) {
				name, problem, _ := strings.Cut(strings.TrimSpace(line), " ")
				v.add(name, problem)
			}
		}
	}
}

// validateToken checks the settings of a personal access token.
func (c Config) validateToken(v *validator) {
	switch {
	case c.Token == "" && c.TokenFile == "":
		v.add("AZP_TOKEN_FILE", "is not set, and neither is AZP_TOKEN: put a personal access token with Agent Pools (read & manage) into a file and name it here, or sign in otherwise by AZP_AUTH")
	case c.Token != "" && c.TokenFile != "":
		v.add("AZP_TOKEN", "is set together with AZP_TOKEN_FILE: unset one of them, AZP_TOKEN rather")
	case c.TokenFile != "":
		v.readable("AZP_TOKEN_FILE", c.TokenFile)
	}
	for name, value := range map[string]string{"AZURE_CLIENT_SECRET_FILE": c.ClientSecretFile, "AZURE_CLIENT_CERTIFICATE_PATH": c.CertificatePath} {
		if value != "" {
			v.add(name, "is set, but AZP_AUTH is pat: set AZP_AUTH to the method that it is for, or unset it")
		}
	}
}

// entra is the configuration of a sign-in to Microsoft Entra.
func (c Config) entra(log *slog.Logger) entra.Config {
	return entra.Config{
		Method: entra.Method(c.Auth), TenantID: c.TenantID, ClientID: c.ClientID,
		FederatedTokenFile: c.FederatedTokenFile, ClientSecretFile: c.ClientSecretFile,
		CertificateFile: c.CertificatePath, CertificatePasswordFile: c.CertificatePasswordFile,
		AuthorityHost: c.AuthorityHost, Scope: c.AuthScope, CAFile: c.CAFile, Proxy: c.proxy(), Logger: log,
	}
}

// signIn makes the source of tokens and says how they are sent.
func (c Config) signIn(log *slog.Logger) (azuredevops.TokenSource, azuredevops.Scheme, error) {
	switch {
	case c.Auth != authPAT:
		source, err := entra.New(c.entra(log))
		if err != nil {
			return nil, "", err
		}
		return source, azuredevops.SchemeBearer, nil
	case c.TokenFile != "":
		return azuredevops.FileToken(c.TokenFile), azuredevops.SchemeBasic, nil
	default:
		return azuredevops.StaticToken(c.Token), azuredevops.SchemeBasic, nil
	}
}
