package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// serverStop is how long requests under way get when the server stops.
const serverStop = 5 * time.Second

// handler serves what operators look at, and takes the calls of pods. Both checks answer
// 200 with "ok", or 503 with the reason.
func handler(gatherer prometheus.Gatherer, alive, ready func() string, claimed func(ctx context.Context, uid string) error) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", answer(alive))
	mux.HandleFunc("GET /readyz", answer(ready))
	mux.Handle("POST /agents/{uid}/claimed", claims(claimed))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		write(w, "azp-scaler\n/metrics /healthz /readyz\n")
	})
	return mux
}

// claims takes the calls of pods whose agent has claimed a build: 204 says that the agent is
// disabled, 404 that there is none, and 503 that it is worth another call.
func claims(claimed func(ctx context.Context, uid string) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := claimed(r.Context(), r.PathValue("uid"))
		switch {
		case err == nil:
			w.WriteHeader(http.StatusNoContent)
		case errors.Is(err, scaler.ErrUnknownJob):
			http.Error(w, err.Error(), http.StatusNotFound)
		default:
			// A pod runs a build, which is told no more than that: an error may name much.
			http.Error(w, "the agent could not be disabled", http.StatusServiceUnavailable)
		}
	}
}

func answer(problem func() string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if why := problem(); why != "" {
			w.WriteHeader(http.StatusServiceUnavailable)
			write(w, why+"\n")
			return
		}
		write(w, "ok\n")
	}
}

// write ignores that a client has gone: there is nobody left to tell.
func write(w io.Writer, text string) { _, _ = io.WriteString(w, text) }

// serve answers on the listener until ctx ends.
func serve(ctx context.Context, listener net.Listener, h http.Handler) error {
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serving HTTP on %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), serverStop)
	defer cancel()
	if err := server.Shutdown(stop); err != nil {
		// Somebody still reads; the process ends all the same.
		_ = server.Close()
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
