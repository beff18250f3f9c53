package azuredevops

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

const testToken = "pat-4711-secret"

// routesAnswer is what OPTIONS _apis answers, cut down to what is asked for here.
func routesAnswer() string {
	route := func(id, resource, template string) string {
		return fmt.Sprintf(`{"id":%q,"area":"distributedtask","resourceName":%q,"routeTemplate":%q,"resourceVersion":1,"minVersion":"1.0","maxVersion":"7.2","releasedVersion":"0.0"}`, id, resource, template)
	}
	all := []string{
		route(locationPools, "pools", "_apis/{area}/{resource}/{poolId}"),
		route(locationAgents, "agents", "_apis/{area}/pools/{poolId}/{resource}/{agentId}"),
		route(locationJobRequests, "jobrequests", "_apis/{area}/pools/{poolId}/{resource}/{requestId}"),
		route(locationPackages, "packages", "_apis/{area}/{resource}/{packageType}/{platform}/{version}"),
	}
	return fmt.Sprintf(`{"count":%d,"value":[%s]}`, len(all), strings.Join(all, ","))
}

// answerJSON writes an answer as the service does.
func answerJSON(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8; api-version=7.1-preview.1")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

// answerError writes an error as the service does.
func answerError(w http.ResponseWriter, status int, typeKey, message string) {
	body, _ := json.Marshal(map[string]any{"$id": "1", "innerException": nil, "message": message, "typeName": "Microsoft." + typeKey, "typeKey": typeKey, "errorCode": 0, "eventId": 3000})
	answerJSON(w, status, string(body))
}

// withRoutes answers the discovery of routes and leaves the rest to the handler.
func withRoutes(handler http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodOptions {
			answerJSON(w, http.StatusOK, "\ufeff"+routesAnswer())
			return
		}
		handler(w, r)
	}
}

// newService starts a server and gives a client of it that does not wait long
// between attempts.
func newService(t testing.TB, handler http.HandlerFunc, change ...func(*Config)) *Client {
	t.Helper()
	server := httptest.NewServer(withRoutes(handler))
	t.Cleanup(server.Close)
	return newClient(t, server.URL+"/Acme", change...)
}

func newClient(t testing.TB, url string, change ...func(*Config)) *Client {
	t.Helper()
	config := Config{URL: url, Token: StaticToken(testToken), BackOff: time.Millisecond, Timeout: 20 * time.Second}
	for _, f := range change {
		f(&config)
	}
	client, err := New(config)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	return client
}

// inMemory is a way to a handler without a network, so that a synctest bubble can
// tell that everybody waits.
type inMemory http.HandlerFunc

func (h inMemory) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	if r.Body == nil {
		r.Body = http.NoBody
	}
	w := httptest.NewRecorder()
	h(w, r)
	resp := w.Result()
	resp.Request = r
	return resp, nil
}

// inBubble gives a client of a handler without a network. The SDK remembers routes
// by URL for the whole process, so each test has its own.
func inBubble(t *testing.T, handler http.HandlerFunc, change ...func(*Config)) *Client {
	t.Helper()
	url := "https://azure.test/" + strings.NewReplacer("/", "-", " ", "-", "#", "-").Replace(t.Name())
	all := append([]func(*Config){func(c *Config) { c.Transport = inMemory(withRoutes(handler)) }}, change...)
	return newClient(t, url, all...)
}

// recording is a Recorder that remembers.
type recording struct {
	mu       sync.Mutex
	requests []string
	limits   []RateLimit
	waits    []time.Duration
}

func (r *recording) Request(operation, outcome string, _ time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, operation+" "+outcome)
}

func (r *recording) RateLimit(limit RateLimit) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.limits = append(r.limits, limit)
}

func (r *recording) Waited(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waits = append(r.waits, d)
}

func (r *recording) seen() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.requests...)
}

// flush sends what has been written.
func flush(t testing.TB, w http.ResponseWriter) {
	t.Helper()
	if err := http.NewResponseController(w).Flush(); err != nil {
		t.Errorf("flush: %v", err)
	}
}

// logTo gives a logger that writes to a buffer.
func logTo(buffer *bytes.Buffer) *slog.Logger {
	return slog.New(slog.NewTextHandler(buffer, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// poll gives what JobRequests visits.
func poll(ctx context.Context, c *Client) ([]agentpool.JobRequest, RequestStats, error) {
	var all []agentpool.JobRequest
	stats, err := c.JobRequests(ctx, 5, func(r agentpool.JobRequest) error {
		all = append(all, r)
		return nil
	})
	return all, stats, err
}
