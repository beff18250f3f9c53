// Package forwardproxy is a stand-in for an organisation's way out: a proxy that opens tunnels
// by CONNECT for those who sign in, resolves names that nobody else knows, and counts what goes
// through it.
package forwardproxy

import (
	"context"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Options says who may use the proxy, and what it knows.
type Options struct {
	// Address is what it listens on; empty is a free port of the loopback.
	Address string
	// Users are those who may use it, with their passwords. Without any it asks nobody.
	Users map[string]string
	// Hosts are names that only the proxy resolves, with the host that is behind each. Tunnels
	// elsewhere are refused.
	Hosts map[string]string
}

// Count is what went through the proxy for one user.
type Count struct {
	Tunnels int // That were opened.
	Bytes   int64
}

// Proxy is a running proxy.
type Proxy struct {
	options Options
	address string
	server  *http.Server
	end     context.CancelFunc
	ctx     context.Context // Of all tunnels.
	wg      sync.WaitGroup

	mu      sync.Mutex
	counts  map[string]Count
	refused map[int]int
}

// dialLimit is for reaching a server behind the proxy.
const dialLimit = 10 * time.Second

// Start starts a proxy. Close ends it.
func Start(options Options) (*Proxy, error) {
	if options.Address == "" {
		options.Address = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", options.Address)
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &Proxy{
		options: options, address: listener.Addr().String(), ctx: ctx, end: cancel,
		counts: map[string]Count{}, refused: map[int]int{},
	}
	p.server = &http.Server{
		Handler: http.HandlerFunc(p.serve), ReadHeaderTimeout: dialLimit,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	p.wg.Go(func() {
		// It always ends with an error, and always because of Close.
		_ = p.server.Serve(listener)
	})
	return p, nil
}

// URL is what clients take for their proxy.
func (p *Proxy) URL() string { return "http://" + p.address }

// Counts tells what went through for each user; the name is empty where nobody is asked.
func (p *Proxy) Counts() map[string]Count {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.counts)
}

// Refused tells how many requests were refused, by status.
func (p *Proxy) Refused() map[int]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.refused)
}

// Close ends the proxy and all tunnels.
func (p *Proxy) Close() {
	p.end()
	_ = p.server.Close()
	p.wg.Wait()
}

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request) {
	refuse := func(status int) {
		p.mu.Lock()
		p.refused[status]++
		p.mu.Unlock()
		http.Error(w, http.StatusText(status), status)
	}
	user, ok := p.user(r.Header.Get("Proxy-Authorization"))
	if !ok {
		w.Header().Set("Proxy-Authenticate", `Basic realm="way out"`)
		refuse(http.StatusProxyAuthRequired)
		return
	}
	if r.Method != http.MethodConnect {
		refuse(http.StatusMethodNotAllowed)
		return
	}
	name, port, err := net.SplitHostPort(r.Host)
	host, known := p.options.Hosts[strings.ToLower(name)]
	if err != nil || !known {
		refuse(http.StatusForbidden)
		return
	}
	target, err := (&net.Dialer{Timeout: dialLimit}).DialContext(r.Context(), "tcp", net.JoinHostPort(host, port))
	if err != nil {
		refuse(http.StatusBadGateway)
		return
	}
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		_ = target.Close()
		refuse(http.StatusInternalServerError)
		return
	}
	p.count(user, Count{Tunnels: 1})
	if _, err := io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		_ = errors.Join(client.Close(), target.Close()) // The client has gone away.
		return
	}
	p.wg.Go(func() { p.tunnel(user, client, buffered.Reader, target) })
}

// user tells who signs in.
func (p *Proxy) user(header string) (name string, ok bool) {
	if len(p.options.Users) == 0 {
		return "", true
	}
	encoded, ok := strings.CutPrefix(header, "Basic ")
	plain, err := base64.StdEncoding.DecodeString(encoded)
	name, password, colon := strings.Cut(string(plain), ":")
	if !ok || err != nil || !colon {
		return "", false
	}
	want, known := p.options.Users[name]
	return name, known && subtle.ConstantTimeCompare([]byte(want), []byte(password)) == 1
}

// tunnel copies both ways until either side ends or the proxy does.
func (p *Proxy) tunnel(user string, client net.Conn, fromClient io.Reader, target net.Conn) {
	// Both ends at once: half of a tunnel is of no use.
	end := sync.OnceFunc(func() { _ = errors.Join(client.Close(), target.Close()) })
	stop := context.AfterFunc(p.ctx, end)
	defer stop()
	copied := func(to io.Writer, from io.Reader) {
		defer end()
		n, _ := io.Copy(to, from) // An error is the end of the tunnel, as the end of the data is.
		p.count(user, Count{Bytes: n})
	}
	var both sync.WaitGroup
	both.Go(func() { copied(target, fromClient) })
	both.Go(func() { copied(client, target) })
	both.Wait()
}

func (p *Proxy) count(user string, more Count) {
	p.mu.Lock()
	defer p.mu.Unlock()
	have := p.counts[user]
	p.counts[user] = Count{Tunnels: have.Tunnels + more.Tunnels, Bytes: have.Bytes + more.Bytes}
}
