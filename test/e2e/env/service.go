package env

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

// Service is the fake Azure DevOps with its one pool.
type Service struct {
	*azuredevopstest.Server
	URL      string // Of the organisation, as scaler and pods see it.
	PoolID   int
	Token    string // The pool's credential.
	CA       []byte // PEM.
	AuditLog string // Path.

	log    *os.File
	client *http.Client
	holder int64 // Id of the placeholder agent; 0 when there is none.
}

// startService starts the fake at an address that pods can reach. The options
// are those of the caller; sign-in, the audit log and defaults are set here.
func startService(host, auditPath string, options azuredevopstest.Options) (*Service, error) {
	log, err := os.OpenFile(auditPath, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("the service's audit log: %w", err)
	}
	s := &Service{Token: fmt.Sprintf("pat-%016x-manage", options.Seed^0x9e3779b97f4a7c15), AuditLog: auditPath, log: log}
	options.Organisation = organisation
	options.AuditLog = log
	options.Tokens = append(options.Tokens, azuredevopstest.Token{Secret: s.Token, Identity: "azp-scaler", Rights: azuredevopstest.RightsManage})
	if s.Server, err = azuredevopstest.New(options); err != nil {
		return nil, errors.Join(fmt.Errorf("the fake Azure DevOps: %w", err), log.Close())
	}
	endpoint, err := s.StartTLS(net.JoinHostPort(host, "0"), host)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the fake Azure DevOps: %w", err), s.close())
	}
	s.URL, s.CA = endpoint.URL, endpoint.CAPEM
	s.PoolID = s.CreatePool(Pool)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(s.CA) {
		return nil, errors.Join(errors.New("the fake Azure DevOps gave a certificate authority that does not parse"), s.close())
	}
	s.client = &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
	return s, nil
}

// AddPlaceholder registers an agent that is never online: while no agent is
// registered that satisfies a request's demands, the service fails the request
// at once instead of queueing it.
func (s *Service) AddPlaceholder(ctx context.Context) error {
	agent := map[string]any{
		"name": placeholderName, "version": "99.999.9", "osDescription": "placeholder, never online",
		"maxParallelism": 1, "provisioningState": "Provisioned",
		"systemCapabilities": map[string]string{"Agent.Name": placeholderName, "Agent.Version": "99.999.9", "Agent.OS": "Linux"},
	}
	var made struct {
		ID int64 `json:"id"`
	}
	if err := s.call(ctx, http.MethodPost, fmt.Sprintf("/_apis/distributedtask/pools/%d/agents", s.PoolID), agent, &made); err != nil {
		return fmt.Errorf("register the placeholder agent: %w", err)
	}
	s.holder = made.ID
	return nil
}

// RemovePlaceholder deletes the placeholder again.
func (s *Service) RemovePlaceholder(ctx context.Context) error {
	if s.holder == 0 {
		return nil
	}
	if err := s.call(ctx, http.MethodDelete, fmt.Sprintf("/_apis/distributedtask/pools/%d/agents/%d", s.PoolID, s.holder), nil, nil); err != nil {
		return fmt.Errorf("delete the placeholder agent: %w", err)
	}
	s.holder = 0
	return nil
}

// call sends one request to the organisation with the pool's credential.
func (s *Service) call(ctx context.Context, method, path string, body, answer any) error {
	var payload bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&payload).Encode(body); err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
	}
	request, err := http.NewRequestWithContext(ctx, method, s.URL+path+"?api-version=7.1-preview.1", &payload)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	request.SetBasicAuth("", s.Token)
	request.Header.Set("Accept", "application/json")
	request.Header.Set("Content-Type", "application/json")
	response, err := s.client.Do(request)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer func() { _ = response.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if response.StatusCode != http.StatusOK && response.StatusCode != http.StatusNoContent {
		return fmt.Errorf("%s %s answered %s: %.300s", method, path, response.Status, data)
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(bytes.TrimPrefix(data, []byte("\ufeff")), answer); err != nil {
		return fmt.Errorf("%s %s: the answer is not JSON: %w", method, path, err)
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
