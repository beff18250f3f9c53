package azuredevops

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

const (
	managerToken = "pat-manager"
	readerToken  = "pat-reader"
)

// fakeService is a fake Azure DevOps with a pool, and what reaches it.
type fakeService struct {
	*azuredevopstest.Server
	endpoint azuredevopstest.Endpoint
	caFile   string
	pool     int
}

func startFake(t *testing.T, options azuredevopstest.Options) *fakeService {
	t.Helper()
	options.Tick = 5 * time.Millisecond
	options.Tokens = []azuredevopstest.Token{
		{Secret: managerToken, Identity: "manager", Rights: azuredevopstest.RightsManage},
		{Secret: readerToken, Identity: "reader", Rights: azuredevopstest.RightsRead},
		{Secret: "pat-nothing", Identity: "nobody"},
		{Secret: "pat-expired", Identity: "late", Rights: azuredevopstest.RightsManage, Expired: true},
		{Secret: "pat-blind", Identity: "blind", Rights: azuredevopstest.RightsManage, Pools: []string{"elsewhere"}},
	}
	server, err := azuredevopstest.New(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	endpoint, err := server.StartTLS("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	caFile := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(caFile, endpoint.CAPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	return &fakeService{Server: server, endpoint: endpoint, caFile: caFile, pool: server.CreatePool("ci")}
}

// client signs in with a token and trusts the fake's authority.
func (f *fakeService) client(t *testing.T, token string, change ...func(*Config)) *Client {
	t.Helper()
	return newClient(t, f.endpoint.URL, append([]func(*Config){func(c *Config) {
		c.Token, c.CAFile = StaticToken(Secret(token)), f.caFile
	}}, change...)...)
}

// requests polls the pool.
func (f *fakeService) requests(t *testing.T, c *Client) ([]agentpool.JobRequest, RequestStats, error) {
	t.Helper()
	var all []agentpool.JobRequest
	stats, err := c.JobRequests(t.Context(), f.pool, func(r agentpool.JobRequest) error {
		all = append(all, r)
		return nil
	})
	return all, stats, err
}

// plainHTTP speaks with the fake as an agent does.
func (f *fakeService) plainHTTP(t *testing.T) *http.Client {
	t.Helper()
	transport, err := NewTransport(f.caFile, Proxy{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

func TestAgainstFakeQueue(t *testing.T) {
	t.Parallel()
	for name, options := range map[string]azuredevopstest.Options{
		"plain":         {Seed: 1},
		"mark, numbers": {Seed: 2, BOM: true, NumericEnums: true, ParallelJobs: 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fake := startFake(t, options)
			c := fake.client(t, managerToken)
			if err := fake.AddHistory(fake.pool, 50_000); err != nil {
				t.Fatal(err)
			}
			pool, err := c.PoolByName(t.Context(), "CI")
			if err != nil || pool != (agentpool.Pool{ID: fake.pool, Name: "ci"}) {
				t.Fatalf("pool %+v, %v", pool, err)
			}
			if got, stats, err := fake.requests(t, c); err != nil || len(got) != 0 || stats != (RequestStats{}) {
				t.Errorf("empty queue: %+v, %+v, %v", got, stats, err)
			}
			// A build that no agent could run fails at once, so there must be one.
			agent := register(t, fake.plainHTTP(t), fake.endpoint.URL, fake.pool, "hand")
			var want []int64
			for i := range 5 {
				id, err := fake.Queue(azuredevopstest.Build{Pool: "ci", Name: fmt.Sprint("b", i), Steps: []string{"true"}, Demands: []string{"Agent.OS -equals linux"}})
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, id)
			}
			got, stats, err := fake.requests(t, c)
			if err != nil || stats != (RequestStats{Rows: 5}) {
				t.Fatalf("%+v, %v", stats, err)
			}
			var ids []int64
			for _, r := range got {
				ids = append(ids, r.ID)
				if r.State() != agentpool.RequestQueued || r.PoolID != fake.pool || r.QueueTime.IsZero() || len(r.UnknownDemands) != 0 ||
					!slices.Contains(r.Demands, agentpool.Demand{Name: "Agent.OS", Op: agentpool.Equals, Value: "linux"}) || time.Since(r.QueueTime).Abs() > time.Minute {
					t.Errorf("request %+v", r)
				}
				if !slices.ContainsFunc(r.Matched, func(a agentpool.AgentRef) bool { return a.ID == agent.id }) {
					t.Errorf("request without the agent it matches: %+v", r)
				}
			}
			if slices.Sort(ids); !slices.Equal(ids, want) {
				t.Errorf("requests %v, want %v", ids, want)
			}
			total, known, err := c.ParallelJobs(t.Context())
			if err != nil || known != (options.ParallelJobs > 0) || total != options.ParallelJobs {
				t.Errorf("parallel jobs %d, %t, %v", total, known, err)
			}
			all, err := c.Agents(t.Context(), fake.pool, AgentQuery{Capabilities: true})
			if err != nil || len(all) != 1 || all[0].Name != "hand" || !all[0].Enabled || all[0].Online || all[0].Capabilities["agent.os"] != "Linux" {
				t.Errorf("agents %+v, %v", all, err)
			}
		})
	}
}

// TestAgainstFakeQueueBeyondAPage asks for more unfinished requests than the service gives rows
// to whoever asks by page, newest first: an autoscaler that did saw nothing of the rest.
func TestAgainstFakeQueueBeyondAPage(t *testing.T) {
	t.Parallel()
	fake := startFake(t, azuredevopstest.Options{Seed: 4})
	if err := fake.AddHistory(fake.pool, 5_000); err != nil {
		t.Fatal(err)
	}
	register(t, fake.plainHTTP(t), fake.endpoint.URL, fake.pool, "hand")
	var want []int64
	for range 450 {
		id, err := fake.Queue(azuredevopstest.Build{Pool: "ci", Name: "b", Steps: []string{"true"}})
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, id)
	}
	rows, stats, err := fake.requests(t, fake.client(t, readerToken))
	if err != nil || stats != (RequestStats{Rows: len(want)}) {
		t.Fatalf("%+v, %v", stats, err)
	}
	got := make([]int64, 0, len(rows))
	for _, row := range rows {
		got = append(got, row.ID)
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("%d requests, and not the %d that are queued", len(got), len(want))
	}
}

// TestAgainstFakeHistory asks for requests that have left the queue.
func TestAgainstFakeHistory(t *testing.T) {
	t.Parallel()
	fake := startFake(t, azuredevopstest.Options{Seed: 3})
	c := fake.client(t, readerToken)
	register(t, fake.plainHTTP(t), fake.endpoint.URL, fake.pool, "hand")
	var ids []int64
	for range 3 {
		id, err := fake.Queue(azuredevopstest.Build{Pool: "ci", Name: "b", Steps: []string{"true"}})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	for _, id := range ids[:2] {
		if err := fake.Cancel(id); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []agentpool.RequestState{agentpool.RequestFinished, agentpool.RequestFinished, agentpool.RequestQueued} {
		if got, err := c.JobRequest(t.Context(), fake.pool, ids[i]); err != nil || got.ID != ids[i] || got.State() != want || got.Project == "" {
			t.Errorf("request %d: %+v, %v; want it %s", ids[i], got, err, want)
		}
	}
	if got, err := c.JobRequest(t.Context(), fake.pool, 987_654); !errors.Is(err, ErrNotFound) {
		t.Errorf("a request that there never was: %+v, %v", got, err)
	}
	for _, count := range []int{1, 10} {
		var finished []int64
		err := c.FinishedRequests(t.Context(), fake.pool, count, func(r agentpool.JobRequest) error {
			finished = append(finished, r.ID)
			return nil
		})
		slices.Sort(finished)
		if want := ids[max(0, 2-count):2]; err != nil || !slices.Equal(finished, want) {
			t.Errorf("of the last %d: %v, %v, want %v", count, finished, err, want)
		}
	}
}

// TestAgainstFakeWithdraw withdraws an agent in each state that it can be in.
func TestAgainstFakeWithdraw(t *testing.T) {
	t.Parallel()
	fake := startFake(t, azuredevopstest.Options{Seed: 3, NoSecondJob: true})
	c := fake.client(t, managerToken)
	withdraw := func(id int, want bool) {
		t.Helper()
		if got, err := c.Withdraw(t.Context(), fake.pool, id); err != nil || got != want {
			t.Errorf("withdraw: %t, %v; want %t", got, err, want)
		}
	}
	idle := register(t, fake.plainHTTP(t), fake.endpoint.URL, fake.pool, "idle")
	idle.connect()
	withdraw(idle.id, true)
	withdraw(idle.id, true) // It is gone, and that is as good.
	if _, err := c.Agent(t.Context(), fake.pool, idle.id); !errors.Is(err, ErrNotFound) {
		t.Errorf("the withdrawn agent: %v", err)
	}
	if _, err := c.AgentByName(t.Context(), fake.pool, "idle"); !errors.Is(err, ErrNotFound) {
		t.Errorf("the withdrawn agent by name: %v", err)
	}
	if err := c.DeleteAgent(t.Context(), fake.pool, idle.id); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted twice: %v", err)
	}

	hand := register(t, fake.plainHTTP(t), fake.endpoint.URL, fake.pool, "hand")
	hand.connect()
	id, err := fake.Queue(azuredevopstest.Build{Pool: "ci", Name: "b", Steps: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	message := hand.receive()
	agent, err := c.AgentByName(t.Context(), fake.pool, "HAND")
	if err != nil || agent.AssignedRequest != id || !agent.Online || !agent.Enabled {
		t.Fatalf("assigned agent: %+v, %v", agent, err)
	}
	if got, _, err := fake.requests(t, c); err != nil || len(got) != 1 || got[0].State() != agentpool.RequestAssigned || got[0].Reserved.ID != hand.id {
		t.Errorf("assigned request: %+v, %v", got, err)
	}
	withdraw(hand.id, false)
	if agent, err = c.Agent(t.Context(), fake.pool, hand.id); err != nil || agent.Enabled {
		t.Errorf("a refused agent stays disabled: %+v, %v", agent, err)
	}
	hand.accept(message)
	if got, _, err := fake.requests(t, c); err != nil || len(got) != 1 || got[0].State() != agentpool.RequestRunning || got[0].LockedUntil.IsZero() {
		t.Errorf("running request: %+v, %v", got, err)
	}
	withdraw(hand.id, false)
	if err := c.DeleteAgent(t.Context(), fake.pool, hand.id); !errors.Is(err, ErrAgentBusy) {
		t.Errorf("deleted while it runs: %v", err)
	}
}

func TestAgainstFakeSignIn(t *testing.T) {
	t.Parallel()
	fake := startFake(t, azuredevopstest.Options{Seed: 4})
	for _, failure := range []azuredevopstest.SignInFailure{azuredevopstest.SignInHTML, azuredevopstest.SignInRedirect, azuredevopstest.SignInDenied} {
		fake.SetSignInFailure(failure)
		if _, err := fake.client(t, "wrong").PoolByName(t.Context(), "ci"); !errors.Is(err, ErrAuthentication) {
			t.Errorf("wrong token, way %d: %v", failure, err)
		}
	}
	if _, err := fake.client(t, "pat-expired").PoolByName(t.Context(), "ci"); !errors.Is(err, ErrAuthentication) || !strings.Contains(err.Error(), "make a new one") {
		t.Errorf("expired: %v", err)
	}
	if _, err := fake.client(t, "pat-nothing").PoolByName(t.Context(), "ci"); !errors.Is(err, ErrAuthorization) {
		t.Errorf("no rights: %v", err)
	}
	if _, err := fake.client(t, "pat-blind").PoolByName(t.Context(), "ci"); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "visible: none") {
		t.Errorf("no pool to see: %v", err)
	}
	fake.CreatePool("tools")
	if _, err := fake.client(t, readerToken).PoolByName(t.Context(), "tool"); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), `"ci", "tools"`) {
		t.Errorf("unknown pool: %v", err)
	}
	fake.CreatePool("tools")
	if _, err := fake.client(t, readerToken).PoolByName(t.Context(), "tools"); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("two pools: %v", err)
	}
	agent := register(t, fake.plainHTTP(t), fake.endpoint.URL, fake.pool, "a")
	reader := fake.client(t, readerToken)
	if err := reader.DisableAgent(t.Context(), fake.pool, agent.id); !errors.Is(err, ErrAuthorization) {
		t.Errorf("reader disables: %v", err)
	}
	if err := reader.DeleteAgent(t.Context(), fake.pool, agent.id); !errors.Is(err, ErrAuthorization) {
		t.Errorf("reader deletes: %v", err)
	}
	other := newClient(t, fake.endpoint.Origin+"/nobody", func(c *Config) { c.Token, c.CAFile = StaticToken(managerToken), fake.caFile })
	if _, err := other.PoolByName(t.Context(), "ci"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("unknown organisation: %v", err)
	}
	if _, err := newClient(t, fake.endpoint.URL).PoolByName(t.Context(), "ci"); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "AZP_CA_FILE") {
		t.Errorf("unknown authority: %v", err)
	}
}

// TestAgainstFakeFaults polls a queue of three through each of the fake's faults:
// the poll gives all three or an error of the right kind.
func TestAgainstFakeFaults(t *testing.T) {
	t.Parallel()
	fake := startFake(t, azuredevopstest.Options{Seed: 5})
	register(t, fake.plainHTTP(t), fake.endpoint.URL, fake.pool, "a")
	for range 3 {
		if _, err := fake.Queue(azuredevopstest.Build{Pool: "ci", Name: "b", Steps: []string{"true"}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		fault azuredevopstest.Fault
		once  error // When it strikes once; nil: the poll survives.
		many  error
		bad   bool // The row counts as malformed.
	}{
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultStatus, Status: 500}, nil, ErrUnavailable, false},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultStatus, Status: 502}, nil, ErrUnavailable, false},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultThrottle, RetryAfter: time.Second}, nil, &ThrottledError{}, false},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultRetryAfter, RetryAfter: time.Second}, nil, nil, false},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultRateHeaders}, nil, nil, false},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultTruncate}, ErrUnexpectedAnswer, ErrUnexpectedAnswer, false},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultCut}, ErrUnexpectedAnswer, ErrUnexpectedAnswer, false},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultSlowBody, Delay: time.Millisecond}, nil, nil, false},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultReset}, nil, ErrUnavailable, false},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultLostAnswer}, nil, ErrUnavailable, false},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultHang}, ErrUnavailable, ErrUnavailable, false},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultLatency, Delay: 10 * time.Millisecond}, nil, nil, false},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultHTML}, ErrAuthentication, ErrAuthentication, false},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultSignIn203}, ErrAuthentication, ErrAuthentication, false},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultSignIn302}, ErrAuthentication, ErrAuthentication, false},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultSignIn401}, ErrAuthentication, ErrAuthentication, false},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultMalformedRow}, nil, nil, true},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultCountMismatch}, ErrUnexpectedAnswer, ErrUnexpectedAnswer, false},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultWrongShape}, ErrUnexpectedAnswer, ErrUnexpectedAnswer, false},
	} {
		for count, want := range map[int]error{1: test.once, 0: test.many} {
			var throttled *ThrottledError
			t.Run(fmt.Sprintf("%s %d count %d", test.fault.Kind, test.fault.Status, count), func(t *testing.T) {
				c := fake.client(t, managerToken, func(c *Config) {
					c.LongestWait = 50 * time.Millisecond
					if test.fault.Kind == azuredevopstest.FaultHang {
						c.Timeout = 200 * time.Millisecond
					}
				})
				fault := test.fault
				fault.Operation, fault.Count = "jobrequests.list", count
				if _, err := fake.Inject(fault); err != nil {
					t.Fatal(err)
				}
				defer fake.ClearFaults()
				got, stats, err := fake.requests(t, c)
				switch {
				case errors.As(want, &throttled):
					if target := (*ThrottledError)(nil); !errors.As(err, &target) || target.RetryAfter != time.Second {
						t.Errorf("got %v", err)
					}
				case !errors.Is(err, want):
					t.Errorf("got %v, want %v", err, want)
				case want == nil && (len(got) != 3 || (stats.Malformed > 0) != test.bad):
					t.Errorf("%d requests, %+v", len(got), stats)
				}
			})
		}
	}
}

// TestAgainstFakeLostAnswer deletes an agent although the answers are lost.
func TestAgainstFakeLostAnswer(t *testing.T) {
	t.Parallel()
	fake := startFake(t, azuredevopstest.Options{Seed: 6})
	agent := register(t, fake.plainHTTP(t), fake.endpoint.URL, fake.pool, "a")
	c := fake.client(t, managerToken)
	for _, operation := range []string{"agents.update", "agents.delete"} {
		if _, err := fake.Inject(azuredevopstest.Fault{Operation: operation, Kind: azuredevopstest.FaultLostAnswer, Count: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if gone, err := c.Withdraw(t.Context(), fake.pool, agent.id); err != nil || !gone || len(fake.Agents(fake.pool)) != 0 {
		t.Errorf("%t, %v, left %+v", gone, err, fake.Agents(fake.pool))
	}
}

func TestAgainstFakePackage(t *testing.T) {
	t.Parallel()
	tarball := filepath.Join(t.TempDir(), "agent.tar.gz")
	content := bytes.Repeat([]byte("agent"), 50_000)
	if err := os.WriteFile(tarball, content, 0o600); err != nil {
		t.Fatal(err)
	}
	fake := startFake(t, azuredevopstest.Options{Seed: 7, Packages: []azuredevopstest.AgentPackage{
		{Platform: "linux-x64", Version: "4.248.0", Path: tarball},
		{Platform: "linux-x64", Version: "4.240.1", Path: tarball},
		{Platform: "linux-arm64", Version: "4.248.0", Path: tarball, WrongHash: true},
	}})
	c := fake.client(t, readerToken)
	for version, want := range map[string]string{"": "4.248.0", "4.240.1": "4.240.1"} {
		p, err := c.Package(t.Context(), "linux-x64", version)
		if err != nil || p.Version != want {
			t.Fatalf("version %q: %+v, %v", version, p, err)
		}
		var file bytes.Buffer
		if err := c.Download(t.Context(), p, &file, nil); err != nil || !bytes.Equal(file.Bytes(), content) {
			t.Errorf("download of %d bytes: %v", file.Len(), err)
		}
	}
	if _, err := c.Package(t.Context(), "linux-x64", "9.9.9"); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown version: %v", err)
	}
	if _, err := c.Package(t.Context(), "plan9-mips", ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown platform: %v", err)
	}
	p, err := c.Package(t.Context(), "linux-arm64", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Download(t.Context(), p, &bytes.Buffer{}, nil); !errors.Is(err, ErrWrongHash) {
		t.Errorf("wrong hash: %v", err)
	}
}

// TestAgainstFakeCollection works with a collection of an Azure DevOps Server.
func TestAgainstFakeCollection(t *testing.T) {
	t.Parallel()
	fake := startFake(t, azuredevopstest.Options{Seed: 7, Organisation: "tfs/DefaultCollection"})
	c := fake.client(t, managerToken)
	if pool, err := c.PoolByName(t.Context(), "ci"); err != nil || pool.ID != fake.pool {
		t.Fatalf("pool %+v, %v", pool, err)
	}
	key := agentKey(t, 2048)
	registered, err := c.RegisterAgent(t.Context(), fake.pool, Registration{Name: "jit", Version: "4.248.0", PublicKey: &key.PublicKey})
	if err != nil || !strings.HasPrefix(registered.AuthorizationURL, fake.endpoint.URL+"/") {
		t.Fatalf("registered as %+v, %v", registered, err)
	}
	agent := newHandAgent(t, fake.plainHTTP(t), fake.endpoint.URL, fake.pool, registered.AgentID)
	if status := agent.signIn(key, registered.ClientID, registered.AuthorizationURL); status != http.StatusOK {
		t.Errorf("the agent can't sign in: %d", status)
	}
	if withdrawn, err := c.Withdraw(t.Context(), fake.pool, registered.AgentID); err != nil || !withdrawn {
		t.Errorf("withdraw: %t, %v", withdrawn, err)
	}
	elsewhere := fake.client(t, managerToken, func(c *Config) { c.URL = fake.endpoint.Origin + "/tfs/Other" })
	if _, err := elsewhere.PoolByName(t.Context(), "ci"); err == nil || !strings.Contains(err.Error(), "tfs/Other") {
		t.Errorf("of another collection: %v", err)
	}
}
