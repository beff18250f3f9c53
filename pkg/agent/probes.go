package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// probes shows the state of the agent by HTTP: /started is 200 once it has been
// registered and listening, /ready while it waits for a build. Ready goes down when
// a build is claimed and never comes up again; it stays up while the agent updates
// itself or is being stopped, for the scaler takes "no longer ready" for a claim.
type probes struct {
	listening atomic.Bool
	claimed   atomic.Bool
}

// ServeHTTP answers the probes.
func (p *probes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var ok bool
	switch r.URL.Path {
	case "/started":
		ok = p.listening.Load()
	case "/ready":
		ok = p.listening.Load() && !p.claimed.Load()
	default:
		http.NotFound(w, r)
		return
	}
	if !ok {
		http.Error(w, "no", http.StatusServiceUnavailable)
		return
	}
	_, _ = fmt.Fprintln(w, "yes")
}

// serve answers the probes until the returned function is called.
func (p *probes) serve(ctx context.Context, address string, log *slog.Logger) (stop func(), err error) {
	if address == ProbesOff {
		return func() {}, nil
	}
	socket, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fail(ExitConfiguration, "probes: %w: set AZP_PROBE_ADDRESS to a free address", err)
	}
	server := &http.Server{
		Handler:           p,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      5 * time.Second,
		IdleTimeout:       10 * time.Second,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		// It always ends with an error; what it is for is over then.
		_ = server.Serve(socket)
	}()
	log.Info("answering probes", "address", socket.Addr().String())
	return func() {
		_ = server.Close()
		<-done
	}, nil
}
