package hostile

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/azp-scaler/azp-scaler/test/e2e/canary"
)

const secret = "pat-0123456789abcdef-hostile"

func newTestSearch(t *testing.T) *search {
	t.Helper()
	set := &canary.Set{}
	if err := set.Add("token", secret); err != nil {
		t.Fatal(err)
	}
	return newSearch(set, &Report{Pod: "azp-x-1-2-0-abcde", Job: "azp-x-1-2-0"})
}

// want fails the test unless the secret was found in one place.
func (s *search) want(t *testing.T, kind, where string) {
	t.Helper()
	if !slices.Contains(s.report.Findings, Finding{Kind: kind, Name: "token", Where: where}) {
		t.Errorf("found %+v, not the token in %s %s", s.report.Findings, kind, where)
	}
}

func TestSearchFindsATokenInTheEnvironment(t *testing.T) {
	t.Parallel()
	s := newTestSearch(t)
	s.environment([]string{"A=b", "B64=" + base64.StdEncoding.EncodeToString([]byte("user:"+secret))})
	s.want(t, InEnvironment, "B64")
	if len(s.report.Findings) != 1 || s.report.Looked[InEnvironment] != 2 {
		t.Errorf("the report is %+v", s.report)
	}
}

func TestSearchFindsATokenInAFileAndWaitsAtNone(t *testing.T) {
	t.Parallel()
	s := newTestSearch(t)
	dir := t.TempDir()
	deep := filepath.Join(dir, "a", "b")
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(deep, "x"), []byte(strings.Repeat("-", 1<<20)+secret), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "mkfifo", filepath.Join(dir, "pipe")).CombinedOutput(); err != nil {
		t.Fatalf("mkfifo: %v: %s", err, out)
	}
	s.files(InFile, dir)
	s.want(t, InFile, filepath.Join(deep, "x"))
}

func TestSearchFindsATokenInAnotherProcess(t *testing.T) {
	t.Parallel()
	s := newTestSearch(t)
	command := exec.CommandContext(t.Context(), "/bin/sh", "-c", "echo here; read end")
	command.Env = []string{"X=" + secret}
	end, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	said, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = end.Close()
		_ = command.Wait() // Its status says only that there was nothing to read.
	}()
	// Before it speaks it may still be this program.
	if _, err := said.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(procDir, strconv.Itoa(command.Process.Pid))
	s.process(dir)
	s.want(t, InProcess, filepath.Join(dir, "environ"))
	s.want(t, InMemory, dir) // The environment is in there as well.
}

func TestSearchFindsATokenAtAPort(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/metrics" {
			_, _ = fmt.Fprintf(w, "azp{token=%q} 1", secret)
		}
	}))
	defer server.Close()
	s := newTestSearch(t)
	address := strings.TrimPrefix(server.URL, "http://")
	// What else listens on this machine is none of the test's business.
	s.proc = onlyListening(t, address)
	s.network(t.Context(), []string{server.URL + "/other"})
	if !slices.Equal(s.report.Ports, []string{address}) {
		t.Fatalf("listening are %q, not %s", s.report.Ports, address)
	}
	s.want(t, InNetwork, server.URL+"/metrics")
}

// onlyListening makes a /proc in which one address of the loopback is listened at, beside
// a connection that is established.
func onlyListening(t *testing.T, address string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "self", "net")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	table := fmt.Sprintf("  sl  local_address rem_address   st\n   0: 0100007F:%04X 00000000:0000 0A\n   1: 0100007F:0001 0100007F:%04X 01\n", number, number)
	if err := os.WriteFile(filepath.Join(dir, "tcp"), []byte(table), 0o600); err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(filepath.Dir(dir))
}

func TestSearchFindsATokenInAnAnswerOfTheAPIServer(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer of-the-build" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		switch r.URL.Path {
		case "/api/v1/namespaces/a/secrets":
			_, _ = fmt.Fprintf(w, `{"data":{"token":%q}}`, base64.StdEncoding.EncodeToString([]byte(secret)))
		case "/pods/azp-x-1-2-0-abcde":
			w.WriteHeader(http.StatusForbidden)
			_, _ = fmt.Fprintf(w, "%s as %q", r.Method, r.Header.Get("Impersonate-User"))
		}
	}))
	defer server.Close()
	s := newTestSearch(t)
	s.ask(t.Context(), &account{server: server.URL, token: "of-the-build", client: server.Client()}, []Call{
		{Method: http.MethodGet, Path: "/api/v1/namespaces/a/secrets"}, {Method: http.MethodDelete, Path: "/pods/{pod}", As: "scaler", Keep: true},
	})
	s.want(t, InAPI, "GET /api/v1/namespaces/a/secrets")
	last := s.report.Answers[len(s.report.Answers)-1]
	if last.Code != http.StatusForbidden || last.Body != `DELETE as "scaler"` {
		t.Errorf("the second answer is %+v", last)
	}
}

func TestHostOf(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"0100007F": "127.0.0.1", "00000000": "127.0.0.1", "0A01F40A": "10.244.1.10",
		"00000000000000000000000001000000": "::1", "00000000000000000000000000000000": "127.0.0.1", "x": "127.0.0.1",
	} {
		if got := hostOf(text); got != want {
			t.Errorf("%s is %s, want %s", text, got, want)
		}
	}
}

func TestSpoilAndPlant(t *testing.T) {
	t.Parallel()
	root, folder := t.TempDir(), t.TempDir()
	for name, text := range map[string]string{
		"run.sh": "real", "bin/Agent.Listener": "real", "_work/keep.sh": "mine", ".agent": "\ufeff{\"serverUrl\": \"https://dev.azure.com/acme\"}",
		".credentials": `{"data":{"authorizationUrl":"https://vstoken.example/x","clientId":"c"}}`,
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	report := &Report{}
	report.spoil(root, "lure", "http://elsewhere", "http://proxy")
	for name, want := range map[string]string{
		"run.sh": "lure", "bin/Agent.Listener": "lure", "_work/keep.sh": "mine", ".agent": "\ufeff{\"serverUrl\": \"http://elsewhere\"}",
		".credentials": `{"data":{"authorizationUrl":"http://elsewhere","clientId":"c"}}`, ".proxy": "http://proxy",
	} {
		if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v; want %q", name, got, err, want)
		}
	}
	report.plant([]string{folder, filepath.Join(root, "nowhere")})
	if !slices.Equal(report.Writable, []string{folder}) || len(report.Troubles) > 0 {
		t.Errorf("the report is %+v", report)
	}
	if to, err := os.Readlink(filepath.Join(folder, "claimed")); err != nil || to != tokenFile {
		t.Errorf("claimed leads to %q, %v", to, err)
	}
	if info, err := os.Lstat(filepath.Join(folder, "busy")); err != nil || info.Mode().Type() != os.ModeNamedPipe {
		t.Errorf("busy is %v, %v", info, err)
	}
}

// TestListenerTellsOfWhoComes: the other half of the build.
func TestListenerTellsOfWhoComes(t *testing.T) {
	t.Parallel()
	s := newTestSearch(t)
	listener, err := Listen("127.0.0.1", s.set)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := listener.Close(); err != nil {
			t.Error(err)
		}
	}()
	b := Build{Listener: listener.URL(), Host: "azp-x-1-2-0-abcde", Environ: []string{"VSTS_AGENT_INPUT_TOKEN=" + secret}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, listener.Trap()+"/_apis/connectionData", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.SetBasicAuth("VstsAgent", secret)
	response, err := direct().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusUnauthorized {
		t.Errorf("the trap answers %s", response.Status)
	}
	if err := b.Lure(t.Context(), []string{"/azp/agent/config.sh", "remove"}); err != nil {
		t.Fatal(err)
	}
	hits := strings.Join(listener.Hits(), "\n")
	for _, want := range []string{"GET /_apis/connectionData from", "config.sh remove run in azp-x-1-2-0-abcde", `with ["token"]`} {
		if !strings.Contains(hits, want) {
			t.Errorf("the hits are %s\nwithout %q", hits, want)
		}
	}
	if strings.Contains(hits, secret) {
		t.Error("they repeat the token")
	}
	listener.Give(Plan{Elsewhere: listener.Trap()})
	var plan Plan
	if err := b.exchange(t.Context(), "/plan", nil, &plan); err != nil || plan.Elsewhere != listener.Trap() {
		t.Errorf("the plan is %+v, %v", plan, err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- b.exchange(context.WithoutCancel(t.Context()), "/report", Report{Pod: "p", Account: "a"}, nil)
	}()
	report, err := listener.Report(t.Context())
	if err != nil || report.Account != "a" || strings.Contains(report.Redacted(), `"Account": "a"`) {
		t.Errorf("the report is %s, %v", report.Redacted(), err)
	}
	select {
	case err := <-ended:
		t.Errorf("the build has ended before it was let: %v", err)
	default:
	}
	listener.Release()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
