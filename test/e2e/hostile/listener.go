package hostile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"sync"
	"time"

	"github.com/azp-scaler/azp-scaler/test/e2e/canary"
)

// largestReport bounds what a build may send.
const largestReport = 64 << 20

// hit is what a lure tells.
type hit struct {
	What string
	With string // Variables or headers, which may hold a secret.
}

// Listener is the build's other half, in the test: it gives out the plan, takes the
// report and lets the build end. At a second port it waits for whoever follows the spoilt
// files, for longer than the pod lives.
type Listener struct {
	set     *canary.Set
	servers []*http.Server
	done    sync.WaitGroup
	url     string
	trap    string

	plan    chan Plan
	reports chan Report
	release chan struct{}
	left    chan time.Time

	mu   sync.Mutex
	hits []string
}

// Listen starts a listener at a host that pods can reach. The set is what it looks for in
// what comes to the trap.
func Listen(host string, set *canary.Set) (*Listener, error) {
	l := &Listener{set: set, plan: make(chan Plan, 1), reports: make(chan Report, 1), release: make(chan struct{}), left: make(chan time.Time, 1)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /plan", l.givePlan)
	mux.HandleFunc("POST /report", l.takeReport)
	mux.HandleFunc("POST /hit", l.takeHit)
	mux.HandleFunc("GET /wait", l.wait)
	var err error
	if l.url, err = l.serve(host, mux); err == nil {
		l.trap, err = l.serve(host, http.HandlerFunc(l.spring))
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Listener) serve(host string, handler http.Handler) (string, error) {
	// A pod that is taken down may have no network left by which to close a connection.
	config := net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 5}}
	listener, err := config.Listen(context.Background(), "tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return "", fmt.Errorf("a listener for the hostile build: %w", err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: callLimit}
	l.servers = append(l.servers, server)
	l.done.Go(func() { _ = server.Serve(listener) }) // Close ends it.
	return "http://" + listener.Addr().String(), nil
}

// URL is where the build reports to.
func (l *Listener) URL() string { return l.url }

// Trap is where the spoilt files lead.
func (l *Listener) Trap() string { return l.trap }

// Give gives the build its plan; until then it waits.
func (l *Listener) Give(plan Plan) { l.plan <- plan }

// Report waits for the build's report. The build then waits for Release.
func (l *Listener) Report(ctx context.Context) (Report, error) {
	select {
	case report := <-l.reports:
		return report, nil
	case <-ctx.Done():
		return Report{}, fmt.Errorf("the hostile build has not reported: %w", ctx.Err())
	}
}

// Release lets the build end.
func (l *Listener) Release() { close(l.release) }

// Left waits until the listener in the pod is gone, and tells when that was.
func (l *Listener) Left(ctx context.Context) (time.Time, error) {
	select {
	case at := <-l.left:
		return at, nil
	case <-ctx.Done():
		return time.Time{}, fmt.Errorf("the listener in the pod has not ended, or never was there: %w", ctx.Err())
	}
}

// Hits are all who have followed the spoilt files, or run them.
func (l *Listener) Hits() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.hits)
}

// Close ends the listener.
func (l *Listener) Close() error {
	var failures []error
	for _, server := range l.servers {
		failures = append(failures, server.Close())
	}
	l.done.Wait()
	return errors.Join(failures...)
}

func (l *Listener) givePlan(w http.ResponseWriter, r *http.Request) {
	select {
	case plan := <-l.plan:
		_ = json.NewEncoder(w).Encode(plan) // A build that has gone shows by its report, which is missing.
	case <-r.Context().Done():
	}
}

func (l *Listener) takeReport(w http.ResponseWriter, r *http.Request) {
	var report Report
	if err := json.NewDecoder(io.LimitReader(r.Body, largestReport)).Decode(&report); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	l.reports <- report
	select {
	case <-l.release:
	case <-r.Context().Done():
	}
}

func (l *Listener) takeHit(w http.ResponseWriter, r *http.Request) {
	var h hit
	if err := json.NewDecoder(io.LimitReader(r.Body, largestReport)).Decode(&h); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	l.add(h.What, []byte(h.With))
}

func (l *Listener) spring(w http.ResponseWriter, r *http.Request) {
	text, err := httputil.DumpRequest(r, true)
	if err != nil {
		text = fmt.Append(nil, r.Header)
	}
	l.add(fmt.Sprintf("%s %s from %s at the trap", r.Method, r.URL.Path, r.RemoteAddr), text)
	// As the service asks for the credential.
	w.Header().Add("WWW-Authenticate", "Basic realm=\"elsewhere\"")
	w.Header().Add("WWW-Authenticate", "Bearer")
	http.Error(w, "", http.StatusUnauthorized)
}

func (l *Listener) add(what string, with []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hits = append(l.hits, fmt.Sprintf("%s, with %q", what, l.set.In(with)))
}

func (l *Listener) wait(w http.ResponseWriter, r *http.Request) {
	w.WriteHeader(http.StatusOK)
	if flusher, ok := w.(http.Flusher); ok {
		flusher.Flush()
	}
	<-r.Context().Done()
	select {
	case l.left <- time.Now():
	default:
	}
}
