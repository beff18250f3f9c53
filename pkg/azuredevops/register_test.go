package azuredevops

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

// agentKey makes a key for an agent.
func agentKey(t *testing.T, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestAgainstFakeRegister registers an agent as the scaler does, signs in with its key
// alone, and shows that the key is worth nothing once the agent is out of the pool.
func TestAgainstFakeRegister(t *testing.T) {
	t.Parallel()
	fake := startFake(t, azuredevopstest.Options{Seed: 5})
	c := fake.client(t, managerToken)
	key := agentKey(t, 2048)
	r := Registration{Name: "azp-one", Version: "4.248.0", Capabilities: map[string]string{"Agent.OS": "Linux", "java": "17"}, PublicKey: &key.PublicKey}
	registered, err := c.RegisterAgent(t.Context(), fake.pool, r)
	if err != nil {
		t.Fatal(err)
	}
	agent, err := c.Agent(t.Context(), fake.pool, registered.AgentID)
	if err != nil || agent.Name != "azp-one" || agent.Online || !agent.Enabled || agent.Capabilities["java"] != "17" || agent.Capabilities["agent.name"] != "azp-one" || agent.Capabilities["agent.version"] != "4.248.0" {
		t.Fatalf("registered is %+v, %v", agent, err)
	}

	hand := newHandAgent(t, fake.plainHTTP(t), fake.endpoint.URL, fake.pool, registered.AgentID)
	if status := hand.signIn(key, registered.ClientID, registered.AuthorizationURL); status != http.StatusOK {
		t.Fatalf("the agent can't sign in: %d", status)
	}
	hand.connect()
	if agent, err = c.Agent(t.Context(), fake.pool, registered.AgentID); err != nil || !agent.Online {
		t.Errorf("it is not online: %+v, %v", agent, err)
	}

	if _, err := c.RegisterAgent(t.Context(), fake.pool, r); !errors.Is(err, ErrConflict) {
		t.Errorf("a second one of the name: %v", err)
	}
	if gone, err := c.Withdraw(t.Context(), fake.pool, registered.AgentID); err != nil || !gone {
		t.Fatalf("withdraw: %t, %v", gone, err)
	}
	if status := hand.signIn(key, registered.ClientID, registered.AuthorizationURL); status != http.StatusBadRequest {
		t.Errorf("the key of an agent that is gone still signs in: %d", status)
	}
	// Whoever takes the name next has another key, and this one is not good for it.
	if _, err := c.RegisterAgent(t.Context(), fake.pool, Registration{Name: r.Name, Version: r.Version, PublicKey: &agentKey(t, 2048).PublicKey}); err != nil {
		t.Fatal(err)
	}
	if status := hand.signIn(key, registered.ClientID, registered.AuthorizationURL); status != http.StatusBadRequest {
		t.Errorf("the key signs in as the next agent of the name: %d", status)
	}
}

func TestRegisterAgent(t *testing.T) {
	t.Parallel()
	key := agentKey(t, 2048)
	const whole = `{"id":7,"name":"a","authorization":{"clientId":"c","authorizationUrl":"https://x/oauth","publicKey":null}}`
	for name, test := range map[string]struct {
		answer string
		key    *rsa.PublicKey
		want   error
		says   string
	}{
		"registered":               {answer: whole, key: &key.PublicKey},
		"without a client id":      {answer: `{"id":7,"name":"a","authorization":{"authorizationUrl":"https://x"}}`, key: &key.PublicKey, want: ErrUnexpectedAnswer, says: "no client id"},
		"without an authorization": {answer: `{"id":7,"name":"a"}`, key: &key.PublicKey, want: ErrUnexpectedAnswer, says: "no client id"},
		"about another":            {answer: `{"id":7,"name":"b"}`, key: &key.PublicKey, want: ErrUnexpectedAnswer, says: `agent 7 "b"`},
		"without an id":            {answer: `{"name":"a"}`, key: &key.PublicKey, want: ErrUnexpectedAnswer, says: "agent 0"},
		"cut short":                {answer: `{"id":7,`, key: &key.PublicKey, want: ErrUnexpectedAnswer},
		"without a key":            {answer: whole, want: ErrUnexpectedAnswer, says: "2048 bits"},
		"with a longer key":        {answer: whole, key: &agentKey(t, 3072).PublicKey, want: ErrUnexpectedAnswer, says: "2048 bits"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var sent map[string]any
			tries := 0
			c := newService(t, func(w http.ResponseWriter, r *http.Request) {
				tries++
				body, _ := io.ReadAll(r.Body)
				if err := json.Unmarshal(body, &sent); err != nil {
					t.Error(err)
				}
				answerJSON(w, 200, test.answer)
			})
			got, err := c.RegisterAgent(t.Context(), 5, Registration{Name: "a", Version: "4.1.0", Capabilities: map[string]string{"npm": ""}, PublicKey: test.key})
			if !errors.Is(err, test.want) || (err != nil && !strings.Contains(err.Error(), test.says)) {
				t.Fatalf("%+v, %v", got, err)
			}
			if tries > 1 {
				t.Errorf("it was sent %d times", tries)
			}
			if err != nil {
				return
			}
			if want := (Registered{AgentID: 7, ClientID: "c", AuthorizationURL: "https://x/oauth"}); got != want {
				t.Errorf("got %+v", got)
			}
			if diff := cmp.Diff(map[string]any{"Agent.Name": "a", "Agent.Version": "4.1.0", "npm": ""}, sent["systemCapabilities"]); diff != "" {
				t.Errorf("capabilities (-want +got):\n%s", diff)
			}
		})
	}
}

// TestRegisteringIsNotRepeated says that an answer that is lost is told: a second try would
// only find the name taken, and the first one's key of no use.
func TestRegisteringIsNotRepeated(t *testing.T) {
	t.Parallel()
	key := agentKey(t, 2048)
	tries := 0
	c := newService(t, func(w http.ResponseWriter, _ *http.Request) {
		tries++
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	_, err := c.RegisterAgent(t.Context(), 5, Registration{Name: "a", Version: "4.1.0", PublicKey: &key.PublicKey})
	if !errors.Is(err, ErrUnavailable) || tries != 1 {
		t.Errorf("after %d tries: %v", tries, err)
	}
}
