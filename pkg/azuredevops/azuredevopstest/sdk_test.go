package azuredevopstest_test

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/microsoft/azure-devops-go-api/azuredevops/v7"
	"github.com/microsoft/azure-devops-go-api/azuredevops/v7/location"
	"github.com/microsoft/azure-devops-go-api/azuredevops/v7/taskagent"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

// TestGoSDK runs Microsoft's Go client, unchanged, against the fake.
func TestGoSDK(t *testing.T) {
	s := start(t, azuredevopstest.Options{Seed: 5, Organisation: "Acme-Works"})
	ctx := t.Context()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.ep.CAPEM)
	timeout := limit
	connection := azuredevops.NewPatConnection(s.url, managePAT)
	connection.TlsConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	connection.Timeout = &timeout

	client, err := taskagent.NewClient(ctx, connection)
	if err != nil {
		t.Fatal(err)
	}
	name := "BUILDS"
	pools, err := client.GetAgentPools(ctx, taskagent.GetAgentPoolsArgs{PoolName: &name})
	if err != nil || len(*pools) != 1 || *(*pools)[0].Id != s.pool || *(*pools)[0].PoolType != taskagent.TaskAgentPoolTypeValues.Automation {
		t.Fatalf("pools %+v, %v", pools, err)
	}
	pool, err := client.GetAgentPool(ctx, taskagent.GetAgentPoolArgs{PoolId: &s.pool})
	if err != nil || *pool.Name != "builds" {
		t.Fatalf("pool %+v, %v", pool, err)
	}

	agentName, version, yes, no := "sdk-agent", "4.260.0", true, false
	capabilities := map[string]string{"npm": "yes"}
	body := &taskagent.TaskAgent{Name: &agentName, Version: &version, SystemCapabilities: &capabilities}
	added, err := client.AddAgent(ctx, taskagent.AddAgentArgs{PoolId: &s.pool, Agent: body})
	if err != nil {
		t.Fatal(err)
	}
	if *added.Id == 0 || !*added.Enabled || added.CreatedOn.Time.IsZero() || added.Authorization.ClientId == nil || *added.Authorization.AuthorizationUrl == "" {
		t.Fatalf("added %+v", added)
	}
	_, err = client.AddAgent(ctx, taskagent.AddAgentArgs{PoolId: &s.pool, Agent: body})
	wrapped := azuredevops.WrappedError{}
	if !errors.As(err, &wrapped) || *wrapped.StatusCode != http.StatusConflict || *wrapped.TypeKey != "TaskAgentExistsException" {
		t.Fatalf("second of a name: %v", err)
	}
	updated, err := client.UpdateAgent(ctx, taskagent.UpdateAgentArgs{PoolId: &s.pool, AgentId: added.Id, Agent: &taskagent.TaskAgent{Id: added.Id, Enabled: &no}})
	if err != nil || *updated.Enabled {
		t.Fatalf("disabled %+v, %v", updated, err)
	}
	newer := "4.261.0"
	body.Version = &newer
	replaced, err := client.ReplaceAgent(ctx, taskagent.ReplaceAgentArgs{PoolId: &s.pool, AgentId: added.Id, Agent: body})
	if err != nil || *replaced.Version != newer {
		t.Fatalf("replaced %+v, %v", replaced, err)
	}
	got, err := client.GetAgent(ctx, taskagent.GetAgentArgs{PoolId: &s.pool, AgentId: added.Id, IncludeCapabilities: &yes, IncludeAssignedRequest: &yes})
	if err != nil || (*got.SystemCapabilities)["npm"] != "yes" || *got.Status != taskagent.TaskAgentStatusValues.Offline || got.AssignedRequest != nil {
		t.Fatalf("agent %+v, %v", got, err)
	}
	agents, err := client.GetAgents(ctx, taskagent.GetAgentsArgs{PoolId: &s.pool, AgentName: &agentName})
	if err != nil || len(*agents) != 1 || (*agents)[0].SystemCapabilities != nil {
		t.Fatalf("agents %+v, %v", agents, err)
	}

	sdkRequests(t, s, connection)

	if err := client.DeleteAgent(ctx, taskagent.DeleteAgentArgs{PoolId: &s.pool, AgentId: added.Id}); err != nil {
		t.Fatal(err)
	}
	_, err = client.GetAgent(ctx, taskagent.GetAgentArgs{PoolId: &s.pool, AgentId: added.Id})
	if !errors.As(err, &wrapped) || *wrapped.StatusCode != http.StatusNotFound || *wrapped.TypeKey != "TaskAgentNotFoundException" {
		t.Fatalf("deleted agent: %v", err)
	}
	data, err := location.NewClient(ctx, connection).GetConnectionData(ctx, location.GetConnectionDataArgs{})
	if err != nil || *data.AuthenticatedUser.ProviderDisplayName != "manager" {
		t.Fatalf("connection data %+v, %v", data, err)
	}
}

// sdkRequests sends what the SDK has a model for but no method.
func sdkRequests(t *testing.T, s *service, connection *azuredevops.Connection) {
	t.Helper()
	ctx := t.Context()
	id := s.queue(azuredevopstest.Build{Name: "sdk", Demands: []string{"npm"}})
	raw := connection.GetClientByUrl(connection.BaseUrl)
	requests := uuid.MustParse("fc825784-c92a-4299-9221-998a02d1b54f")
	resp, err := raw.Send(ctx, http.MethodGet, requests, "7.1-preview.1", map[string]string{"poolId": itoa(s.pool)}, map[string][]string{"completedRequestCount": {"0"}}, nil, "", "application/json", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var rows []taskagent.TaskAgentJobRequest
	if err := raw.UnmarshalCollectionBody(resp, &rows); err != nil {
		t.Fatal(err)
	}
	if len(rows) != 1 || *rows[0].RequestId != uint64(id) || rows[0].QueueTime.Time.IsZero() || time.Since(rows[0].QueueTime.Time) > time.Minute ||
		rows[0].Result != nil || len(*rows[0].MatchedAgents) != 1 || *rows[0].PoolId != s.pool || *rows[0].Definition.Name != "sdk" {
		t.Fatalf("rows %+v", rows)
	}
}

// TestPackages downloads an agent and compares its hash in each spelling.
func TestPackages(t *testing.T) {
	tarball := filepath.Join(t.TempDir(), "agent.tar.gz")
	if err := os.WriteFile(tarball, []byte("an agent"), 0o600); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for seed := range uint64(12) {
		s := start(t, azuredevopstest.Options{Seed: seed, Packages: []azuredevopstest.AgentPackage{
			{Platform: "linux-x64", Version: "4.259.0", Path: tarball},
			{Platform: "linux-x64", Version: "4.260.0", Path: tarball},
			{Platform: "linux-arm64", Version: "4.261.0", Path: tarball, WrongHash: true},
			{Platform: "linux-musl-x64", Version: "4.261.0", Path: filepath.Join(t.TempDir(), "gone")},
		}})
		checkPackages(t, s, seen)
	}
	if len(seen) != 3 {
		t.Errorf("%d spellings of the hash in 12 seeds, want 3: %v", len(seen), seen)
	}
}

func checkPackages(t *testing.T, s *service, seen map[string]bool) {
	t.Helper()
	var list struct {
		Count int
		Value []struct {
			Platform, DownloadURL, HashValue, Filename string
			Version                                    struct{ Major, Minor, Patch int }
		}
	}
	s.manage(http.MethodGet, "/_apis/distributedtask/packages/agent?platform=linux-x64&top=1", nil).into(t, &list)
	if list.Count != 1 || list.Value[0].Version.Minor != 260 {
		t.Fatalf("newest package: %+v", list)
	}
	p := list.Value[0]
	download := s.send(t.Context(), http.MethodGet, p.DownloadURL, "", nil)
	if download.err != nil || download.status != http.StatusOK || download.body != "an agent" {
		t.Fatalf("download %+v", download)
	}
	want := fmt.Sprintf("%x", sha256.Sum256([]byte(download.body)))
	if got := strings.ToLower(strings.ReplaceAll(p.HashValue, "-", "")); got != want {
		t.Fatalf("hash %s, want %s", got, want)
	}
	switch {
	case strings.Contains(p.HashValue, "-"):
		seen["dashes"] = true
	case p.HashValue == strings.ToUpper(p.HashValue):
		seen["upper"] = true
	default:
		seen["lower"] = true
	}
	s.manage(http.MethodGet, "/_apis/distributedtask/packages/agent/linux-x64?$top=5", nil).into(t, &list)
	if list.Count != 2 || list.Value[0].Version.Minor != 260 || list.Value[1].Version.Minor != 259 {
		t.Fatalf("both packages, newest first: %+v", list)
	}
	s.manage(http.MethodGet, "/_apis/distributedtask/packages/agent/linux-arm64", nil).into(t, &list)
	if got := strings.ToLower(strings.ReplaceAll(list.Value[0].HashValue, "-", "")); got == want || len(got) != len(want) {
		t.Fatalf("wrong hash %s", got)
	}
	if r := s.manage(http.MethodGet, "/_apis/distributedtask/packages/agent/linux-x64/4.1.0", nil); r.status != http.StatusNotFound {
		t.Fatalf("unknown version: %d %s", r.status, r.body)
	}
	if r := s.manage(http.MethodGet, "/_apis/distributedtask/packages/agent/linux-musl-x64", nil); r.status != http.StatusInternalServerError {
		t.Fatalf("package whose file is gone: %d %s", r.status, r.body)
	}
}
