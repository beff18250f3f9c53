package azuredevopstest_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

// control calls the control API.
func (s *service) control(method, path string, body any) reply {
	return s.send(s.t.Context(), method, s.ep.Origin+"/_control/"+path, "Bearer remote", body)
}

// TestControlAPI drives a build from outside.
func TestControlAPI(t *testing.T) {
	s := start(t, azuredevopstest.Options{ControlToken: "remote"})
	if r := s.send(t.Context(), http.MethodGet, s.ep.Origin+"/_control/pools", "", nil); r.status != 401 {
		t.Fatalf("without the token: %d", r.status)
	}
	var pool struct {
		ID   int
		Name string
	}
	s.control("POST", "pools", map[string]any{"name": "remote"}).into(t, &pool)
	s.pool = pool.ID
	a := s.register("agent-1", nil)
	a.connect()
	var b azuredevopstest.BuildStatus
	s.control("POST", "builds", map[string]any{"pool": "remote", "name": "one", "steps": []string{"true"}, "env": map[string]string{"A": "b"}}).into(t, &b)
	if b.RequestID == 0 || b.Name != "one" || b.State == azuredevopstest.StateFinished {
		t.Fatalf("build %+v", b)
	}
	path := fmt.Sprintf("builds/%d", b.RequestID)
	if r := s.control("GET", path+"/wait?timeout=10ms", nil); r.status != 408 {
		t.Errorf("a wait that runs out: %d %s", r.status, r.body)
	}
	if r := s.control("GET", fmt.Sprintf("wait?poolId=%d&timeout=10ms", pool.ID), nil); r.status != 408 {
		t.Errorf("a wait for the pool that runs out: %d %s", r.status, r.body)
	}
	a.nextJob()
	waited := make(chan reply, 1)
	go func() { waited <- s.control("GET", path+"/wait?timeout=20s", nil) }()
	s.control("POST", fmt.Sprintf("builds/%d/cancel", b.RequestID), nil).into(t, &b)
	if m := a.next(); m.MessageType != "JobCancellation" {
		t.Fatalf("message %+v", m)
	}
	a.finish(b.RequestID, 3)
	(<-waited).into(t, &b)
	if b.Result != azuredevopstest.ResultCanceled {
		t.Errorf("waited for %+v", b)
	}
	if r := s.control("POST", path+"/cancel", nil); r.status != 409 {
		t.Errorf("cancel what is over: %d %s", r.status, r.body)
	}
	if r := s.control("GET", path+"/log", nil); r.status != 200 || r.header.Get("Content-Type") != "text/plain; charset=utf-8" {
		t.Errorf("log: %+v", r)
	}
	for _, tc := range []struct {
		method, path string
		body         any
		want         int
		says         string
	}{
		{"GET", "pools", nil, 200, `"name":"remote"`},
		{"GET", fmt.Sprintf("builds?poolId=%d", pool.ID), nil, 200, `"result":"canceled"`},
		{"GET", path, nil, 200, `"agentName":"agent-1"`},
		{"GET", "builds/77777777", nil, 404, "unknown"},
		{"GET", "builds/one", nil, 400, "use a number"},
		{"GET", "builds?poolId=x", nil, 400, "use a number"},
		{"GET", path + "/wait?timeout=x", nil, 400, "use a duration"},
		{"GET", "wait?poolId=x", nil, 400, "use a number"},
		{"GET", fmt.Sprintf("wait?poolId=%d", pool.ID), nil, 200, ""},
		{"GET", "wait?poolId=9999", nil, 404, "unknown"},
		{"GET", fmt.Sprintf("agents?poolId=%d", pool.ID), nil, 200, `"online":true`},
		{"POST", "builds", map[string]any{"pool": "nowhere"}, 404, "unknown"},
		{"POST", "builds", map[string]any{"pool": "remote", "demands": []string{"a -is b"}}, 422, "unknown operator"},
		{"POST", "builds", map[string]any{"poool": "remote"}, 400, "unknown field"},
		{"POST", "agents/update", map[string]any{"poolId": pool.ID, "agentId": a.ID, "version": "4.400.0"}, 200, ""},
		{"POST", "agents/update", map[string]any{"poolId": pool.ID, "agentId": 1, "version": "4.400.0"}, 404, ""},
		{"POST", "history", map[string]any{"poolId": pool.ID, "rows": 3}, 200, ""},
		{"POST", "faults", map[string]any{"kind": "status", "operation": "pools.list"}, 200, `"id":1`},
		{"POST", "faults", map[string]any{"kind": "nonsense"}, 422, "nonsense"},
		{"GET", "faults", nil, 200, `"operation":"pools.list"`},
		{"DELETE", "faults/1", nil, 200, ""},
		{"DELETE", "faults", nil, 200, ""},
		{"POST", "tokens", map[string]any{"secret": "new", "rights": 1}, 200, ""},
		{"POST", "tokens", map[string]any{"rights": 1}, 422, "Secret"},
		{"POST", "settings", map[string]any{"parallelJobs": 3, "secondJob": false, "signInFailure": 2}, 200, ""},
		{"GET", "audit?after=0", nil, 200, `"event":"request-cancel-requested"`},
		{"GET", "nothing", nil, 404, ""},
	} {
		if r := s.control(tc.method, tc.path, tc.body); r.err != nil || r.status != tc.want || !strings.Contains(r.body, tc.says) {
			t.Errorf("%s %s: %d %v %s, want %d and %q", tc.method, tc.path, r.status, r.err, r.body, tc.want, tc.says)
		}
	}
	if r := s.send(t.Context(), "GET", "/_apis/distributedtask/pools", basic("new"), nil); r.status != 200 {
		t.Errorf("the new token: %d", r.status)
	}
	if r := s.send(t.Context(), "GET", "/_apis/distributedtask/pools", basic("unknown"), nil); r.status != 401 {
		t.Errorf("the new answer to bad tokens: %d", r.status)
	}
}

// syncBuffer is a buffer that may be read while the log is written.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// TestAuditLog reads the log's lines as an auditor would.
func TestAuditLog(t *testing.T) {
	log := &syncBuffer{}
	s := start(t, azuredevopstest.Options{AuditLog: log})
	a := s.register("agent-1", nil)
	a.connect()
	s.send(t.Context(), "GET", "/_apis/distributedtask/pools?secret=hush", basic("wrong"), nil)
	a.close()
	s.manage("DELETE", s.poolPath("agents/"+itoa(a.ID)), nil)
	s.srv.Close()

	var last uint64
	seen := map[string]azuredevopstest.Event{}
	for lines := bufio.NewScanner(strings.NewReader(log.String())); lines.Scan(); {
		var e azuredevopstest.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("line %q: %v", lines.Text(), err)
		}
		if e.Seq != last+1 || e.Time.IsZero() || e.Time.Location() != time.UTC {
			t.Fatalf("after %d: %+v", last, e)
		}
		last = e.Seq
		if e.Event != "http" || e.Result == "203" {
			seen[e.Event] = e
		}
	}
	for _, want := range []string{"server-started", "pool-created", "agent-added", "token-issued", "session-created", "session-deleted", "agent-deleted"} {
		if _, ok := seen[want]; !ok {
			t.Errorf("no event %s in\n%s", want, log)
		}
	}
	if e := seen["agent-added"]; e.AgentID != a.ID || e.AgentName != "agent-1" || e.By != "manager" || e.Pool != s.pool {
		t.Errorf("event %+v", e)
	}
	if e := seen["http"]; e.By != "anonymous" || e.Detail != "GET /acme/_apis/distributedtask/pools" {
		t.Errorf("event %+v", e)
	}
	for _, secret := range []string{"hush", managePAT, strings.TrimPrefix(a.bearer, "Bearer ")} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log holds %q", secret)
		}
	}
	if err := s.srv.AuditError(); err != nil {
		t.Error(err)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestAuditLogThatCannotBeWritten(t *testing.T) {
	s := start(t, azuredevopstest.Options{AuditLog: brokenWriter{}})
	if err := s.srv.AuditError(); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("error %v", err)
	}
	if len(s.srv.Events(0)) == 0 {
		t.Error("the events in memory are gone too")
	}
}

// TestCloseEndsEverything closes a service with work under way and counts what
// is left running.
func TestCloseEndsEverything(t *testing.T) {
	before := runtime.NumGoroutine()
	s := start(t, azuredevopstest.Options{})
	a := s.register("agent-1", nil)
	a.connect()
	s.register("agent-2", map[string]string{"npm": "yes"})
	id := s.queue(azuredevopstest.Build{Name: "waits", Demands: []string{"npm"}})
	s.inject(azuredevopstest.Fault{Kind: azuredevopstest.FaultHang, Operation: "pools.list"})
	var running sync.WaitGroup
	running.Go(func() { a.poll(context.Background()) })
	running.Go(func() { s.manage("GET", "/_apis/distributedtask/pools", nil) })
	var waited, idle error
	running.Go(func() { _, waited = s.srv.Wait(context.Background(), id) })
	running.Go(func() { idle = s.srv.WaitIdle(context.Background(), s.pool) })
	await(t, "the poll is open", func() bool { return s.srv.Polls(s.pool) == 1 })
	await(t, "the hanging request is there", func() bool { return s.srv.Faults()[0].Struck == 1 })
	s.srv.Close()
	s.srv.Close()
	running.Wait()
	if waited == nil || idle == nil {
		t.Errorf("waits ended with %v and %v, want errors", waited, idle)
	}
	if _, err := s.srv.StartTLS("127.0.0.1:0"); err == nil {
		t.Error("a closed service serves")
	}
	s.http.CloseIdleConnections()
	await(t, "all goroutines have ended", func() bool { return runtime.NumGoroutine() <= before })
}

func TestWaitEndsWithItsContext(t *testing.T) {
	s := start(t, azuredevopstest.Options{})
	s.register("agent-1", nil)
	id := s.queue(azuredevopstest.Build{Name: "waits"})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.srv.Wait(ctx, id); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if err := s.srv.WaitIdle(ctx, s.pool); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "1 requests unfinished") {
		t.Errorf("error %v", err)
	}
	if _, err := s.srv.Wait(ctx, 1<<40); !errors.Is(err, azuredevopstest.ErrUnknown) {
		t.Errorf("error %v", err)
	}
}
