package azuredevops

import (
	"context"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"strconv"
)

// keyBytes is the size of an agent's public key, as the service takes it: RSA-2048.
const keyBytes = 256

// Registration is an agent to register, by whoever holds its key.
type Registration struct {
	Name string
	// Version of the agent program. The agent corrects it when it comes online, but
	// until then the service holds demands on it against this.
	Version      string
	Capabilities map[string]string
	PublicKey    *rsa.PublicKey // Of 2048 bits.
}

// Registered is what the service gives an agent to sign in with, besides its key. None of
// it is a secret.
type Registered struct {
	AgentID          int
	ClientID         string
	AuthorizationURL string
}

// RegisterAgent registers an agent with a key. It is sent once: a second try after an
// answer that was lost finds the name taken, which is ErrConflict, and the agent that has
// it is of no use, as the service tells its client id no more. Whatever the error, an agent
// of that name may be in the pool afterwards.
func (c *Client) RegisterAgent(ctx context.Context, poolID int, r Registration) (Registered, error) {
	fail := func(err error) (Registered, error) {
		return Registered{}, &Error{Op: OpAddAgent, Kind: ErrUnexpectedAnswer, Message: fmt.Sprintf("agent %q in pool %d", r.Name, poolID), Err: err}
	}
	if r.PublicKey == nil || r.PublicKey.Size() != keyBytes {
		return fail(errors.New("its key is not one of 2048 bits"))
	}
	body, err := json.Marshal(newAgent(r.Name, r.Version, "Linux", r.Capabilities, map[string]any{
		"publicKey": map[string]string{
			"exponent": base64.StdEncoding.EncodeToString(big.NewInt(int64(r.PublicKey.E)).Bytes()),
			"modulus":  base64.StdEncoding.EncodeToString(r.PublicKey.N.FillBytes(make([]byte, keyBytes))),
		},
	}))
	if err != nil {
		return fail(err)
	}
	answer, err := one[struct {
		ID            int    `json:"id"`
		Name          string `json:"name"`
		Authorization struct {
			ClientID         string `json:"clientId"`
			AuthorizationURL string `json:"authorizationUrl"`
		} `json:"authorization"`
	}](ctx, c, addAgent(call{op: OpAddAgent}, poolID, string(body)))
	switch {
	case err != nil:
		return Registered{}, err
	case answer.ID <= 0 || answer.Name != r.Name:
		return fail(fmt.Errorf("the answer is about agent %d %q", answer.ID, answer.Name))
	case answer.Authorization.ClientID == "" || answer.Authorization.AuthorizationURL == "":
		// Without these the agent would have to run with the pool's own credential.
		return fail(errors.New("the answer gives the agent no client id or authorization URL to sign in with"))
	}
	return Registered{
		AgentID: answer.ID, ClientID: answer.Authorization.ClientID, AuthorizationURL: answer.Authorization.AuthorizationURL,
	}, nil
}

// newAgent is the body that registers an agent; authorization may be nil.
func newAgent(name, version, system string, capabilities map[string]string, authorization any) map[string]any {
	all := maps.Clone(capabilities)
	if all == nil {
		all = map[string]string{}
	}
	all["Agent.Name"], all["Agent.Version"] = name, version
	body := map[string]any{
		"name": name, "version": version, "maxParallelism": 1, "provisioningState": "Provisioned",
		"osDescription": system, "systemCapabilities": all,
	}
	if authorization != nil {
		body["authorization"] = authorization
	}
	return body
}

// addAgent is the call that registers an agent.
func addAgent(c call, poolID int, body string) request {
	return request{
		call: c, method: http.MethodPost, location: locationAgents,
		route: map[string]string{"poolId": strconv.Itoa(poolID)}, body: body,
	}
}
