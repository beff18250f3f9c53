package env

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

// Service is the fake Azure DevOps with its one pool.
type Service struct {
	*azuredevopstest.Server
	URL      string // Of the organisation, as scaler and pods see it.
	PoolID   int
	Token    string // Of an administrator of the pool; each installation has its own.
	CA       []byte // PEM.
	AuditLog string // Path.

	log    *os.File
	client *http.Client
	seed   uint64

	mu      sync.Mutex
	secrets map[string]string // Every token, by what it is told as.
}

// administrator is the identity of whoever may change everything in the pool.
const administrator = "administrator"

// startService starts the fake at an address that pods can reach, or that whoever can whom
// they go through, under a name of its own. The options are those of the caller; sign-in,
// the audit log and defaults are set here.
func startService(host, name, auditPath string, options azuredevopstest.Options) (*Service, error) {
	log, err := os.OpenFile(auditPath, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("the service's audit log: %w", err)
	}
	s := &Service{AuditLog: auditPath, log: log, seed: options.Seed, secrets: map[string]string{}}
	s.Token = s.secret(administrator)
	options.Organisation = organisation
	options.AuditLog = log
	options.Tokens = append(options.Tokens, azuredevopstest.Token{Secret: s.Token, Identity: administrator, Rights: azuredevopstest.RightsManage})
	if s.Server, err = azuredevopstest.New(options); err != nil {
		return nil, errors.Join(fmt.Errorf("the fake Azure DevOps: %w", err), log.Close())
	}
	endpoint, err := s.StartTLS(net.JoinHostPort(host, "0"), host, name)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the fake Azure DevOps: %w", err), s.close())
	}
	s.URL, s.CA = strings.Replace(endpoint.URL, "://"+host, "://"+name, 1), endpoint.CAPEM
	s.PoolID = s.CreatePool(Pool)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(s.CA) {
		return nil, errors.Join(errors.New("the fake Azure DevOps gave a certificate authority that does not parse"), s.close())
	}
	address := strings.TrimPrefix(endpoint.Origin, "https://")
	s.client = &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		// Whatever the name: the tests are on the inner side of a proxy.
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}}
	return s, nil
}

// secret makes up the token of an identity, and remembers it.
func (s *Service) secret(identity string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	// No token begins another one, so that none is found in another.
	hash := fnv.New64a()
	_, _ = fmt.Fprint(hash, s.seed, " ", identity)
	token := fmt.Sprintf("pat-%016x-%s", hash.Sum64(), identity)
	s.secrets[TokenName(identity)] = token
	return token
}

// TokenName is what the token of an identity is told as, where it is found.
func TokenName(identity string) string { return "token of " + identity }

// tokens are all that were made up so far.
func (s *Service) tokens() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.secrets)
}

// placeholderName takes a placeholder's name apart: instance, class and hash.
func placeholderName(name string) (class string, ok bool) {
	rest, ok := strings.CutPrefix(name, placeholderPrefix)
	first, last := strings.Index(rest, "-"), strings.LastIndex(rest, "-")
	if !ok || first < 0 || first == last {
		return "", false
	}
	return rest[first+1 : last], true
}

// Placeholders are the classes that have a placeholder agent in the pool.
func (s *Service) Placeholders() []string {
	var classes []string
	for _, agent := range s.Agents(s.PoolID) {
		if class, ok := placeholderName(agent.Name); ok {
			classes = append(classes, class)
		}
	}
	slices.Sort(classes)
	return slices.Compact(classes)
}

// Agent gives the registration of a name, where there is one.
func (s *Service) Agent(name string) (azuredevopstest.AgentStatus, bool) {
	for _, agent := range s.Agents(s.PoolID) {
		if agent.Name == name {
			return agent, true
		}
	}
	return azuredevopstest.AgentStatus{}, false
}

// RemoveAgent deletes a registration by hand, as an administrator of the pool.
func (s *Service) RemoveAgent(ctx context.Context, name string) error {
	agent, found := s.Agent(name)
	if !found {
		return nil
	}
	if err := s.call(ctx, s.Token, http.MethodDelete, fmt.Sprintf("/%d", agent.ID), nil); err != nil {
		return fmt.Errorf("delete agent %s: %w", name, err)
	}
	return nil
}

// call sends one request about the pool's agents to the organisation.
func (s *Service) call(ctx context.Context, token, method, path string, body any) error {
	path = fmt.Sprintf("/_apis/distributedtask/pools/%d/agents%s", s.PoolID, path)
	var sent bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&sent).Encode(body); err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
	}
	request, err := http.NewRequestWithContext(ctx, method, s.URL+path+"?api-version=7.1-preview.1", &sent)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	request.SetBasicAuth("", token)
	request.Header.Set("Accept", "application/json")
	request.Header.Set("Content-Type", "application/json")
	response, err := s.client.Do(request)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK && response.StatusCode != http.StatusNoContent {
		data, _ := io.ReadAll(io.LimitReader(response.Body, 300)) // The status says enough.
		return fmt.Errorf("%s %s answered %s: %s", method, path, response.Status, data)
	}
	return nil
}

func (s *Service) close() error {
	s.Close()
	if s.client != nil {
		s.client.CloseIdleConnections()
	}
	return errors.Join(s.AuditError(), s.log.Close())
}
