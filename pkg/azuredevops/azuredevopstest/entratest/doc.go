// Package entratest is a stand-in for Microsoft Entra: the token endpoint, and the
// metadata endpoint from which the machines of Azure get the tokens of their managed
// identities. It is as strict as the originals, answers their errors with their codes,
// and counts what it is asked.
//
// What it does, and where the behaviour is described:
//
//   - GET /TENANT/v2.0/.well-known/openid-configuration (OpenID Connect Discovery 1.0)
//   - POST /TENANT/oauth2/v2.0/token with grant_type=client_credentials, and as the
//     client's proof a secret, an assertion signed with the key of a registered
//     certificate, or a token of a registered federated issuer
//     (https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow)
//   - GET /metadata/identity/oauth2/token, by [Server.Metadata]
//     (https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token)
//
// The codes are those of https://learn.microsoft.com/entra/identity-platform/reference-error-codes.
//
// It holds no code of the product and imports none.
package entratest
