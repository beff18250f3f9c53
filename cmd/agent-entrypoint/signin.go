package main

import (
	"fmt"
	"log/slog"

	"github.com/azp-scaler/azp-scaler/pkg/agent"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/entra"
)

// signInVariables are the variables of a sign-in to Microsoft Entra that are not named as
// the entrypoint's own settings are. They have the names that the workload identity webhook
// gives them, so in a pod where builds have an identity of their own they are the builds'.
func signInVariables(method entra.Method) []string {
	names := []string{
		"AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_AUTHORITY_HOST",
		"AZURE_CLIENT_SECRET_FILE", "AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_CLIENT_CERTIFICATE_PASSWORD_FILE",
	}
	if method == entra.ManagedIdentity {
		// What hosting environments give to whoever is to have the identity.
		names = append(names, "IDENTITY_ENDPOINT", "IDENTITY_HEADER", "IDENTITY_SERVER_THUMBPRINT", "IMDS_ENDPOINT", "MSI_ENDPOINT", "MSI_SECRET")
	}
	return names
}

// signIn makes the source of tokens that the settings ask for. Run gets none of an
// identity: it needs no token, and would have to ask for one to know it.
func (c *configuration) signIn(step agent.Step, log *slog.Logger) error {
	method := c.entra.Method
	if method == "" {
		switch {
		case c.tokenFile != "":
			c.Token = azuredevops.FileToken(c.tokenFile)
		case c.token != "":
			c.Token = azuredevops.StaticToken(c.token)
		}
		return nil
	}
	c.Hidden = signInVariables(method)
	c.entra.CAFile, c.entra.Proxy, c.entra.Logger = c.CAFile, c.proxy, log
	// What follows says what is wrong, so that Validate need not ask for a token besides.
	c.Token = azuredevops.StaticToken("")
	if err := c.entra.Validate(); err != nil {
		return err
	}
	if c.token != "" || c.tokenFile != "" {
		return fmt.Errorf("AZP_TOKEN or AZP_TOKEN_FILE is set, but AZP_AUTH is %s: unset them, or set AZP_AUTH to pat", method)
	}
	switch {
	case step == agent.StepRun:
		c.Token = nil
		log.Warn("run needs no sign-in and should not have one: take AZP_AUTH and what goes with it from the agent's container", "auth", string(method))
		return nil
	case step == agent.StepAll && method == entra.ManagedIdentity:
		log.Warn("every build in this pod can get the tokens of this managed identity, for it can ask the same endpoint: " +
			"use it only where whoever may queue builds may have all that the identity may do")
	}
	source, err := entra.New(c.entra)
	if err != nil {
		return err
	}
	c.Token, c.scheme = source, azuredevops.SchemeBearer
	return nil
}
