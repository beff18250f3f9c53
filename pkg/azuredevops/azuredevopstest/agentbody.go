package azuredevopstest

import (
	"crypto/rsa"
	"encoding/base64"
	"math/big"
	"strings"
)

// publicKey is an RSA key in base64, big-endian.
type publicKey struct {
	Exponent string `json:"exponent"`
	Modulus  string `json:"modulus"`
}

// rsa checks and converts a key.
func (k *publicKey) rsa() (*rsa.PublicKey, error) {
	modulus, err := base64.StdEncoding.DecodeString(k.Modulus)
	if err != nil || len(modulus) != 256 {
		return nil, badRequest("The modulus of the agent's public key must be 256 bytes in Base64.")
	}
	exponent, err := base64.StdEncoding.DecodeString(k.Exponent)
	if err != nil || len(exponent) == 0 || len(exponent) > 4 {
		return nil, badRequest("The exponent of the agent's public key must be 1 to 4 bytes in Base64.")
	}
	e := int(new(big.Int).SetBytes(exponent).Int64())
	if e < 3 || e%2 == 0 {
		return nil, badRequest("The exponent of the agent's public key must be an odd number from 3.")
	}
	return &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: e}, nil
}

// agentBody is an agent as callers send it. What is absent is nil.
type agentBody struct {
	ID                 *int              `json:"id"`
	Name               string            `json:"name"`
	Version            string            `json:"version"`
	OSDescription      string            `json:"osDescription"`
	Enabled            *bool             `json:"enabled"`
	MaxParallelism     int               `json:"maxParallelism"`
	ProvisioningState  string            `json:"provisioningState"`
	SystemCapabilities map[string]string `json:"systemCapabilities"`
	UserCapabilities   map[string]string `json:"userCapabilities"`
	Authorization      *struct {
		PublicKey *publicKey `json:"publicKey"`
	} `json:"authorization"`
}

// check validates a body that describes a whole agent and returns its key,
// which is nil for an agent that is never to connect.
func (b *agentBody) check() (*rsa.PublicKey, error) {
	switch {
	case strings.TrimSpace(b.Name) == "":
		return nil, badRequest("Value cannot be null or empty. Parameter name: agent.Name")
	case len(b.Name) > 64 || strings.ContainsAny(b.Name, `/\:*?"<>|;#$`):
		return nil, badRequest("The agent name '%s' is not valid: it must have at most 64 characters and none of / \\ : * ? \" < > | ; # $.", b.Name)
	case b.Version == "":
		return nil, badRequest("Value cannot be null or empty. Parameter name: agent.Version")
	case b.Authorization == nil || b.Authorization.PublicKey == nil:
		return nil, nil
	}
	return b.Authorization.PublicKey.rsa()
}
