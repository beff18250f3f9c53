package main

import (
	"strings"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest/entratest"
)

const (
	identityOfPool = "11111111-2222-4333-8444-555555555555"
	clientSecret   = "canary-of-the-client-secret"
)

// withEntra gives the pod an Entra whose tokens the service takes, and gives the variables
// of a sign-in by client secret.
func (p *pod) withEntra() (*entratest.Server, []string) {
	p.t.Helper()
	server, err := entratest.New(entratest.Options{OnToken: func(token entratest.Token) {
		if err := p.service.AddToken(azuredevopstest.Token{
			Secret: token.Secret, Identity: "identity", Rights: azuredevopstest.RightsManage, Expires: token.Expires,
		}); err != nil {
			p.t.Error(err)
		}
	}})
	p.must(err)
	p.t.Cleanup(server.Close)
	endpoint, err := server.StartTLS("127.0.0.1:0")
	p.must(err)
	p.must(server.Register(entratest.Application{ClientID: identityOfPool, Secrets: []entratest.ClientSecret{{Value: clientSecret}}}))
	p.write("ca.crt", p.read("ca.crt")+string(endpoint.CAPEM))
	p.write("client-secret", clientSecret)
	return server, []string{
		"AZP_AUTH=client-secret", "AZURE_TENANT_ID=" + entratest.DefaultTenant, "AZURE_CLIENT_ID=" + identityOfPool,
		"AZURE_AUTHORITY_HOST=" + endpoint.URL, "AZURE_CLIENT_SECRET_FILE=" + p.path("client-secret"),
	}
}

// TestSignInByEntra runs a build in the all-in-one form as an identity of Entra, whose
// token the agent's config.sh takes for a personal access token.
func TestSignInByEntra(t *testing.T) {
	p := newStandInPod(t)
	server, env := p.withEntra()
	c := p.start("", env...)
	c.logged("Listening for Jobs")
	id := p.queue("env; cat .agent .credentials 2>/dev/null; true")
	if code := c.wait(); code != 0 {
		t.Errorf("ended with %d, want 0", code)
	}
	if status := p.result(id); status.Result != "succeeded" {
		t.Errorf("the build ended as %q: %s", status.Result, status.Message)
	}
	if got := p.agents(); len(got) > 0 {
		t.Errorf("still registered: %v", got)
	}
	if counts := server.Counts(); counts.Token != 1 {
		t.Errorf("asked %+v, want one token", counts)
	}
	for _, text := range []string{clientSecret, "eyJ"} {
		if strings.Contains(c.stdout.String()+c.stderr.String(), text) {
			t.Errorf("%q was printed", text)
		}
	}
}

// TestBuildSeesNoSignIn looks at what the agent program gets in each form.
func TestBuildSeesNoSignIn(t *testing.T) {
	p := newPod(t)
	_, env := p.withEntra()
	p.script("fake-listener", aBuild()...)
	p.touch("job")
	p.touch("end")
	p.start("", env...).expect(0, "the build ended")
	for program, n := range map[string]int{"fake-config": 1, "fake-listener": 1} {
		if got := strings.Join(p.call(program, n).Env, "\n"); strings.Contains(got, "AZURE_") || strings.Contains(got, "AZP_") {
			t.Errorf("the environment of %s has the entrypoint's sign-in:\n%s", program, got)
		}
	}
}

// TestBuildsOwnIdentity leaves alone what the webhook injects for builds.
func TestBuildsOwnIdentity(t *testing.T) {
	p := newPod(t)
	p.configured()
	p.script("fake-listener", aBuild()...)
	p.touch("job")
	p.touch("end")
	p.start("run", "AZURE_CLIENT_ID=of-the-build", "AZURE_FEDERATED_TOKEN_FILE=/var/run/secrets/azure/tokens/azure-identity-token").expect(0, "the build ended")
	if got := strings.Join(p.call("fake-listener", 1).Env, "\n"); !strings.Contains(got, "AZURE_CLIENT_ID=of-the-build") || !strings.Contains(got, "AZURE_FEDERATED_TOKEN_FILE=") {
		t.Errorf("the build has lost its identity:\n%s", got)
	}
}

func TestSignInRefused(t *testing.T) {
	p := newPod(t)
	_, env := p.withEntra()
	p.write("client-secret", "wrong-secret-value")
	c := p.start("configure", env...)
	c.expect(12, "AADSTS7000215", "AZURE_CLIENT_SECRET_FILE")
	if strings.Contains(c.stdout.String()+c.stderr.String(), "wrong-secret-value") {
		t.Error("the secret was printed")
	}
}

// TestSignInWaits has Entra down at the start, as the service may be.
func TestSignInWaits(t *testing.T) {
	p := newPod(t)
	server, env := p.withEntra()
	server.SetOutage(503)
	c := p.start("configure", env...)
	c.logged("status 503")
	server.SetOutage(0)
	c.expect(0, "is registered")
}

func TestSignInUnreachable(t *testing.T) {
	p := newPod(t)
	server, env := p.withEntra()
	server.SetOutage(503)
	p.start("configure", append(env, "AZP_CONFIGURE_LIMIT="+(2*time.Second).String())...).expect(13, "status 503")
}

func TestSignInSettings(t *testing.T) {
	p := newPod(t)
	_, env := p.withEntra()
	for name, tc := range map[string]struct {
		step string
		env  []string
		want []string
	}{
		"unknown":       {"configure", []string{"AZP_AUTH=default"}, []string{`AZP_AUTH "default" is unknown: give pat or one of workload-identity`}},
		"missing":       {"configure", []string{"AZP_AUTH=workload-identity"}, []string{"AZURE_TENANT_ID is not set", "AZURE_CLIENT_ID is not set", "AZURE_FEDERATED_TOKEN_FILE is not set"}},
		"token besides": {"configure", append(env, withToken(p)...), []string{"AZP_TOKEN_FILE is set, but AZP_AUTH is client-secret"}},
	} {
		c := p.start(tc.step, tc.env...)
		c.expect(11, tc.want...)
		if strings.Contains(c.stderr.String(), "neither AZP_TOKEN nor") {
			t.Errorf("%s: it asks for a token besides", name)
		}
	}
}

// TestSignInOfRun has the agent's container told what it should not have.
func TestSignInOfRun(t *testing.T) {
	p := newPod(t)
	server, env := p.withEntra()
	p.configured()
	before := server.Counts().Token
	p.script("fake-listener", aBuild()...)
	p.touch("job")
	p.touch("end")
	c := p.start("run", env...)
	c.expect(0, "the build ended")
	c.logged("run needs no sign-in")
	if got := strings.Join(p.call("fake-listener", 1).Env, "\n"); strings.Contains(got, "AZURE_") {
		t.Errorf("the listener's environment has the sign-in:\n%s", got)
	}
	if n := server.Counts().Token; n != before {
		t.Errorf("run asked for %d tokens", n-before)
	}
}

// TestManagedIdentityInABuildsPod says what it gives away.
func TestManagedIdentityInABuildsPod(t *testing.T) {
	p := newPod(t)
	// A hosting environment's endpoint, at which nobody is.
	c := p.start("", "AZP_AUTH=managed-identity", "IDENTITY_ENDPOINT=http://"+freeAddress(t)+"/token", "IDENTITY_HEADER=x", "AZP_CONFIGURE_LIMIT=2s")
	c.expect(13, "managed identity endpoint 127.0.0.1")
	c.logged("every build in this pod can get the tokens of this managed identity")
}
