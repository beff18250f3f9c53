package nodeclient_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

// understood is what client.js prints.
type understood struct {
	User     string
	Pools    []struct{ ID int }
	PoolByID string
	Added    struct {
		ID             int
		Name, ClientID string
		Enabled        bool
	}
	AddedTwice json.RawMessage
	Disabled   *bool
	Replaced   string
	Agents     []struct {
		Name, OS string
		Status   int
		Assigned int64
	}
	AgentsByName             []string
	Agent                    string
	Unfinished, Top, TopRest []row
	Request                  row
	Parallel                 int
	Packages                 []struct {
		Version struct{ Major, Minor, Patch int }
		Hash    string
	}
	Left     []string
	Stranger string
}

type row struct {
	ID      int64
	Result  *int
	Queued  bool
	Demands []string
}

// TestNodeClient runs the client's methods that scalers use.
func TestNodeClient(t *testing.T) {
	modules := install(t)
	tarball := filepath.Join(t.TempDir(), "agent.tar.gz")
	if err := os.WriteFile(tarball, []byte("an agent"), 0o600); err != nil {
		t.Fatal(err)
	}
	const history = 7
	srv, err := azuredevopstest.New(azuredevopstest.Options{
		Seed:         3,
		Tokens:       []azuredevopstest.Token{{Secret: "secret", Identity: "node", Rights: azuredevopstest.RightsManage}},
		Packages:     []azuredevopstest.AgentPackage{{Platform: "linux-x64", Version: "4.260.1", Path: tarball}},
		ParallelJobs: 4,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	ep, err := srv.StartTLS("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(ca, ep.CAPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	pool := srv.CreatePool("Node Builds")
	if err := srv.AddHistory(pool, history); err != nil {
		t.Fatal(err)
	}
	// Nobody is registered, so the first build fails at once and is finished.
	failed := queue(t, srv, pool, "npm")
	register(t, ep, pool, modules, ca)
	waiting := queue(t, srv, pool, "npm")

	got := run(t, modules, ca, ep.URL, "secret", "node builds")

	if got.User != "node" || len(got.Pools) != 1 || got.Pools[0].ID != pool || got.PoolByID != "Node Builds" {
		t.Errorf("sign-in and pools: %+v", got)
	}
	if got.Added.ID == 0 || got.Added.Name != "node-agent" || !got.Added.Enabled || got.Added.ClientID == "" {
		t.Errorf("added agent: %+v", got.Added)
	}
	var twice struct {
		Status  int
		Message string
	}
	if err := json.Unmarshal(got.AddedTwice, &twice); err != nil || twice.Status != 409 || twice.Message != fmt.Sprintf("Pool %d already contains an agent with name node-agent.", pool) {
		t.Errorf("added twice: %s", got.AddedTwice)
	}
	if got.Disabled == nil || *got.Disabled || got.Replaced != "4.261.0" || got.Agent != "yes" {
		t.Errorf("updated agent: disabled %v, replaced %q, capability %q", got.Disabled, got.Replaced, got.Agent)
	}
	if len(got.Agents) != 2 || !slices.Equal(got.AgentsByName, []string{"node-agent"}) {
		t.Errorf("agents: %+v, by name %v", got.Agents, got.AgentsByName)
	}
	for _, a := range got.Agents {
		if a.Status != 1 || a.OS != "Linux" {
			t.Errorf("agent %+v: want offline (1) on Linux", a)
		}
	}
	if len(got.Unfinished) != 1 || got.Unfinished[0].ID != waiting || !got.Unfinished[0].Queued || got.Unfinished[0].Result != nil ||
		!slices.Equal(got.Unfinished[0].Demands, []string{"npm", "Agent.Version -gtVersion 2.182.1"}) {
		t.Errorf("unfinished requests: %+v", got.Unfinished)
	}
	if len(got.Top) != 3 || !slices.ContainsFunc(got.Top, func(r row) bool { return r.ID == failed && r.Result != nil && *r.Result == 2 }) {
		t.Errorf("first page: %+v, want three rows with the failed %d", got.Top, failed)
	}
	if len(got.Top)+len(got.TopRest) != history+2 {
		t.Errorf("pages have %d and %d rows, want %d in all", len(got.Top), len(got.TopRest), history+2)
	}
	if got.Request.ID != waiting {
		t.Errorf("request by id: %+v", got.Request)
	}
	if got.Parallel != 4 || len(got.Packages) != 1 || got.Packages[0].Version.Patch != 1 || got.Packages[0].Hash == "" {
		t.Errorf("usage %d, packages %+v", got.Parallel, got.Packages)
	}
	if !slices.Equal(got.Left, []string{"standby"}) || got.Stranger != "kept out" {
		t.Errorf("left over %v, stranger %s", got.Left, got.Stranger)
	}
}

func queue(t *testing.T, srv *azuredevopstest.Server, pool int, demand string) int64 {
	t.Helper()
	id, err := srv.Queue(azuredevopstest.Build{PoolID: pool, Name: "build", Steps: []string{"true"}, Demands: []string{demand}})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// register adds an agent by the client, one that stays offline.
func register(t *testing.T, ep azuredevopstest.Endpoint, pool int, modules, ca string) {
	t.Helper()
	const script = `const azdev = require("azure-devops-node-api");
const [url, token, pool] = process.argv.slice(1);
new azdev.WebApi(url, azdev.getPersonalAccessTokenHandler(token)).getTaskAgentApi()
  .then((api) => api.addAgent({ name: "standby", version: "99.999.9", systemCapabilities: { "Agent.OS": "Linux", npm: "yes" } }, Number(pool)))
  .catch((err) => { console.error(err); process.exit(1); });`
	if out, err := node(t, modules, ca, "-e", script, ep.URL, "secret", fmt.Sprint(pool)); err != nil {
		t.Fatalf("register the agent: %v\n%s", err, out)
	}
}

func run(t *testing.T, modules, ca string, args ...string) understood {
	t.Helper()
	script, err := filepath.Abs("client.js")
	if err != nil {
		t.Fatal(err)
	}
	out, err := node(t, modules, ca, append([]string{script}, args...)...)
	if err != nil {
		t.Fatalf("run client.js: %v\n%s", err, out)
	}
	var got understood
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("client.js printed %q: %v", out, err)
	}
	return got
}

// node runs Node with the installed modules and returns its output, or what it
// complained of.
func node(t *testing.T, modules, ca string, args ...string) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", args...)
	cmd.Env = append(os.Environ(), "NODE_PATH="+modules, "NODE_EXTRA_CA_CERTS="+ca, "NODE_NO_WARNINGS=1")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stderr.Bytes(), err
	}
	return stdout.Bytes(), nil
}

// install puts the locked packages into the user's cache, once for each lock
// file, and returns the directory of modules.
func install(t *testing.T) string {
	t.Helper()
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%s is not installed: it is needed to try Microsoft's Node client. Install Node.js 18 or later with npm (Debian: apt-get install nodejs npm).", program)
		}
	}
	lock, err := os.ReadFile("package-lock.json")
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := os.ReadFile("package.json")
	if err != nil {
		t.Fatal(err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatalf("find the user's cache directory: %v: set HOME or XDG_CACHE_HOME", err)
	}
	dir := filepath.Join(cache, "azp-scaler", fmt.Sprintf("nodeclient-%x", sha256.Sum256(append(lock, manifest...)))[:32])
	modules := filepath.Join(dir, "node_modules")
	if _, err := os.Stat(modules); err == nil {
		return modules
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	// Made beside and renamed, so that an interrupted run leaves no half of it.
	fresh, err := os.MkdirTemp(filepath.Dir(dir), "nodeclient-new-") //nolint:usetesting // a test's directory may be on another file system
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(fresh) }()
	for name, content := range map[string][]byte{"package.json": manifest, "package-lock.json": lock} {
		if err := os.WriteFile(filepath.Join(fresh, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	cmd.Dir = fresh
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("npm ci of test/nodeclient: %v: is the npm registry reachable?\n%s", err, out)
	}
	if err := os.Rename(fresh, dir); err != nil && !errors.Is(err, os.ErrExist) {
		if _, statErr := os.Stat(modules); statErr != nil {
			t.Fatal(err)
		}
	}
	return modules
}
