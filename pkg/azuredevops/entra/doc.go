// Package entra signs in to Azure DevOps as an identity of Microsoft Entra: a workload
// identity, a managed identity, or a service principal with a secret or a certificate.
//
// One method is used, the one that is configured. Nothing is tried in turn, so a
// failure names the one thing that has to be mended.
//
// The exchange itself is azidentity's. A renewal makes its credential anew, so that
// files are read again and nothing but [Source] keeps a token.
//
// All settings are passed to azidentity explicitly. What it and the libraries below it
// read from the environment all the same:
//
//   - AZURE_REGIONAL_AUTHORITY_NAME and MSAL_FORCE_REGION send token requests to a region's endpoint;
//   - AZURE_SDK_GO_LOGGING=all prints its requests, without their bodies, to standard error;
//   - for a managed identity IDENTITY_ENDPOINT, IDENTITY_HEADER, IDENTITY_SERVER_THUMBPRINT,
//     IMDS_ENDPOINT, MSI_ENDPOINT, MSI_SECRET and DEFAULT_IDENTITY_CLIENT_ID, by which
//     hosting environments such as App Service and Azure Arc say where their endpoint is;
//     without them it is the one of virtual machines, 169.254.169.254.
package entra
