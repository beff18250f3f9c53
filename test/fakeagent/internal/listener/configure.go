package listener

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/faults"
	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/root"
	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/wire"
)

// replacePause is the wait between two attempts to replace an agent.
const replacePause = time.Second

// inputs is what configure was told.
type inputs struct {
	url, token, pool, agent, work string
	replace                       bool
}

func (l *listener) configure(ctx context.Context) error {
	if l.Root.IsConfigured() {
		return errors.New("cannot configure the agent because it is already configured: to reconfigure it, run './config.sh remove' first")
	}
	if !l.Root.HasLicense() {
		return fmt.Errorf("could not find file '%s'", l.Root.Path("license.html"))
	}
	if !l.command.on(flagUnattended) {
		return errors.New("interactive configuration is not supported: give --unattended and every setting")
	}
	l.term.Section("End User License Agreements")
	l.term.Linef("TFVC repositories need the Team Explorer Everywhere licence, Git repositories do not.")
	l.term.Section("Connect")
	in, err := l.inputs()
	if err != nil {
		return err
	}
	if l.network, err = l.toldNetwork(); err != nil {
		return err
	}
	if err := sleep(ctx, l.faults.Duration(faults.SlowConfigure, 0)); err != nil {
		return err
	}
	l.term.Linef("Connecting to server ...")
	client, err := l.client(in.url, wire.PAT(in.token))
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err := client.Connect(ctx); err != nil {
		return fmt.Errorf("failed to connect to %s: %w", in.url, err)
	}
	if err := client.Discover(ctx); err != nil {
		return fmt.Errorf("failed to connect to %s: %w", in.url, err)
	}
	if l.faults.Has(faults.ConfigureFails) {
		return errors.New(l.faults.Text(faults.ConfigureFails))
	}
	if l.faults.Has(faults.ConfigureHangs) {
		l.hang()
	}
	l.term.Section("Register Agent")
	pool, err := findPool(ctx, client, in.pool)
	if err != nil {
		return err
	}
	key, err := l.Root.CreateKey()
	if err != nil {
		return err
	}
	agent, err := l.register(ctx, client, pool, in, key)
	if err != nil {
		return err
	}
	if l.faults.Has(faults.ConfigureFailsRegistered) {
		return errors.New("the connection was closed after the agent had been added")
	}
	if l.faults.Has(faults.ConfigureHangsRegistered) {
		l.hang()
	}
	if err := l.saveCredentials(agent, in); err != nil {
		return err
	}
	if err := l.testConnection(ctx, in.url); err != nil {
		return err
	}
	err = l.Root.SaveSettings(root.Settings{
		AcceptTeeEula: l.command.on(flagEula),
		AgentID:       agent.ID,
		AgentName:     agent.Name,
		PoolID:        pool.ID,
		PoolName:      pool.Name,
		ServerURL:     in.url,
		WorkFolder:    in.work,
	})
	if err != nil {
		return err
	}
	if err := l.saveNetwork(); err != nil {
		return err
	}
	l.term.Stampf("Settings Saved.")
	return nil
}

func (l *listener) inputs() (inputs, error) {
	var in inputs
	var err error
	if in.url, err = l.command.need(flagURL); err != nil {
		return in, err
	}
	address, err := url.Parse(in.url)
	if err != nil || !address.IsAbs() || address.Host == "" {
		return in, fmt.Errorf("%w: '%s' is not a server URL", invalid(flagURL), in.url)
	}
	if in.token, err = l.credentials(address); err != nil {
		return in, err
	}
	if in.pool, err = l.command.need(flagPool); err != nil {
		return in, err
	}
	in.agent = l.command.orElse(flagAgent, l.Host)
	in.work = l.command.orElse(flagWork, "_work")
	in.replace = l.command.on(flagReplace)
	return in, nil
}

// credentials gives the token for a server, under the conditions of the real agent.
func (l *listener) credentials(address *url.URL) (string, error) {
	auth, err := l.command.need(flagAuth)
	if err != nil {
		return "", err
	}
	if !strings.EqualFold(auth, root.SchemePAT) {
		return "", fmt.Errorf("%w: '%s' is not supported by the stand-in, only PAT is", invalid(flagAuth), auth)
	}
	token, err := l.command.need(flagToken)
	if err != nil {
		return "", err
	}
	if address.Scheme != "https" && !strings.EqualFold(l.Env[variableUnsafeBasic], "true") {
		return "", errors.New("basic authentication requires a secure connection to the server: use an https URL")
	}
	return token, nil
}

func findPool(ctx context.Context, client *wire.Client, name string) (wire.Pool, error) {
	pools, err := client.Pools(ctx, name)
	if err != nil {
		return wire.Pool{}, fmt.Errorf("failed to find the pool: %w", err)
	}
	if len(pools) == 0 {
		return wire.Pool{}, fmt.Errorf("agent pool not found: '%s'", name)
	}
	return pools[0], nil
}

func (l *listener) register(ctx context.Context, client *wire.Client, pool wire.Pool, in inputs, key *rsa.PrivateKey) (wire.Agent, error) {
	l.term.Linef("Scanning for tool capabilities.")
	capabilities, err := l.capabilities(in.agent)
	if err != nil {
		return wire.Agent{}, err
	}
	wanted := wire.Agent{
		Name:               in.agent,
		Version:            l.release.Version,
		OSDescription:      "Linux " + kernel(),
		MaxParallelism:     1,
		ProvisioningState:  "Provisioned",
		SystemCapabilities: capabilities,
		Authorization: &wire.Authorization{PublicKey: &wire.PublicKey{
			Exponent: root.PublicExponent(&key.PublicKey),
			Modulus:  root.PublicModulus(&key.PublicKey),
		}},
	}
	l.term.Linef("Connecting to the server.")
	for {
		agent, err := l.registerOnce(ctx, client, pool, wanted, in.replace)
		if err == nil || !in.replace {
			return agent, err
		}
		// With --replace the real agent takes any error for one that goes away.
		l.term.Errorf("%v", err)
		l.term.Errorf("Failed to replace the agent. Try again or ctrl-c to quit")
		if err := sleep(ctx, replacePause); err != nil {
			return agent, err
		}
	}
}

func (l *listener) registerOnce(ctx context.Context, client *wire.Client, pool wire.Pool, wanted wire.Agent, replace bool) (wire.Agent, error) {
	if replace && l.faults.Has(faults.ReplaceLoop) {
		return wire.Agent{}, errors.New("the server answered 500 (Internal Server Error)")
	}
	same, err := client.Agents(ctx, pool.ID, wanted.Name)
	if err != nil {
		return wire.Agent{}, fmt.Errorf("failed to add the agent: %w", err)
	}
	taken := fmt.Errorf("pool %d already contains an agent with name %s", pool.ID, wanted.Name)
	if len(same) > 0 {
		if !replace {
			return wire.Agent{}, taken
		}
		wanted.ID = same[0].ID
		agent, err := client.ReplaceAgent(ctx, pool.ID, wanted)
		if err == nil {
			l.term.Linef("Successfully replaced the agent")
		}
		return agent, err
	}
	agent, err := client.AddAgent(ctx, pool.ID, wanted)
	if wire.IsConflict(err) {
		return wire.Agent{}, fmt.Errorf("%w: %w", taken, err)
	}
	if err != nil {
		return wire.Agent{}, fmt.Errorf("failed to add the agent: %w", err)
	}
	l.term.Linef("Successfully added the agent")
	return agent, nil
}

// saveCredentials keeps what run signs in with: the agent's own OAuth client where
// the service made one, and otherwise the token itself.
func (l *listener) saveCredentials(agent wire.Agent, in inputs) error {
	if a := agent.Authorization; a != nil && a.ClientID != "" && a.AuthorizationURL != "" {
		return l.Root.SaveCredentials(root.Credentials{Scheme: root.SchemeOAuth, Data: map[string]string{
			"clientId":         a.ClientID,
			"authorizationUrl": a.AuthorizationURL,
			"oauthEndpointUrl": a.AuthorizationURL,
		}})
	}
	return l.Root.SaveCredentials(root.Credentials{Scheme: root.SchemePAT, Data: map[string]string{"token": in.token}})
}

func (l *listener) testConnection(ctx context.Context, address string) error {
	l.term.Linef("Testing agent connection.")
	credential, err := l.ownCredential()
	if err != nil {
		return err
	}
	client, err := l.client(address, credential)
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err := client.Connect(ctx); err != nil {
		return fmt.Errorf("the agent cannot sign in with its own credential: %w", err)
	}
	return nil
}

// remove takes the registration and the files away; the files stay when the
// registration cannot be removed.
func (l *listener) remove(ctx context.Context) error {
	if !l.Root.IsConfigured() {
		l.term.Linef("Cannot connect to server, because config files are missing. Skipping removing agent from the server.")
		return nil
	}
	settings, err := l.Root.Settings()
	if err != nil {
		return err
	}
	address, err := url.Parse(settings.ServerURL)
	if err != nil {
		return fmt.Errorf("server URL of the configuration: %w", err)
	}
	token, err := l.credentials(address)
	if err != nil {
		return err
	}
	client, err := l.client(settings.ServerURL, wire.PAT(token))
	if err != nil {
		return err
	}
	defer client.Close()
	if err := l.unregister(ctx, client, settings); err != nil {
		l.term.Errorf("Failed: Removing agent from the server")
		return err
	}
	return l.Root.RemoveConfiguration(func(name string, existed bool) {
		if existed {
			l.term.Linef("Succeeded: Removing %s", name)
		} else {
			l.term.Linef("Does not exist. Skipping Removing %s", name)
		}
	})
}

func (l *listener) unregister(ctx context.Context, client *wire.Client, settings root.Settings) error {
	if _, err := client.Connect(ctx); err != nil {
		return err
	}
	if err := client.Discover(ctx); err != nil {
		return err
	}
	agents, err := client.Agents(ctx, settings.PoolID, settings.AgentName)
	if err != nil {
		return err
	}
	if len(agents) == 0 {
		l.term.Linef("Does not exist. Skipping Removing agent from the server")
		return nil
	}
	if err := client.DeleteAgent(ctx, settings.PoolID, settings.AgentID); err != nil && !wire.HasKey(err, wire.KeyAgentNotFound) {
		return err
	}
	l.term.Linef("Succeeded: Removing agent from the server")
	return nil
}
