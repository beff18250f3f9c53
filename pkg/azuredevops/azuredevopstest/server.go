package azuredevopstest

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
)

// Server is the stand-in service. It is an http.Handler; all its methods are
// safe for concurrent use. Close ends it.
type Server struct {
	opts    Options
	audit   *auditLog
	faults  *faultSet
	routes  []route
	control *http.ServeMux
	hostID  uuid.UUID
	started time.Time

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	packages packageStore

	mu       sync.Mutex
	random   randomness
	closed   bool
	settings settings
	tokens   map[string]Token
	pools    map[int]*pool
	requests map[int64]*request
	sessions map[uuid.UUID]*session
	grants   map[string]grant
	clients  map[uuid.UUID]*agent
	plans    map[uuid.UUID]*request
	jobs     map[string]*request
	idle     chan struct{} // closed and replaced whenever a request ends

	nextPool, nextAgent int
	nextRequest         int64
	servers             []*http.Server
}

// randomness is all that is drawn from the seed. Each use has its own source,
// so that the number of requests someone sends, which depends on time, does not
// change what is assigned to whom.
type randomness struct {
	// assign decides who gets what.
	assign *rand.Rand
	// requests and agents decide the gaps between ids.
	requests, agents *rand.Rand
	// other is for what no outcome depends on: GUIDs, secrets, order of rows.
	other *rand.Rand
}

func newRandomness(seed uint64) randomness {
	source := func(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, stream)) }
	return randomness{assign: source(1), requests: source(2), agents: source(3), other: source(4)}
}

// settings are the options that can change while the service runs.
type settings struct {
	parallelJobs  int
	secondJob     bool
	signInFailure SignInFailure
}

// grant is an access token that an agent got for its signed assertion.
type grant struct {
	agent   *agent
	expires time.Time
}

// New starts a service. It does no network traffic; serve it with StartTLS or
// any server of your own. The error lists everything wrong with the options.
func New(opts Options) (*Server, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("start the fake Azure DevOps: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{
		opts:     opts,
		audit:    &auditLog{now: time.Now, out: opts.AuditLog},
		ctx:      ctx,
		cancel:   cancel,
		packages: newPackageStore(opts.Packages),
		random:   newRandomness(opts.Seed),
		settings: settings{
			parallelJobs:  opts.ParallelJobs,
			secondJob:     !opts.NoSecondJob,
			signInFailure: opts.SignInFailure,
		},
		tokens:      make(map[string]Token),
		pools:       make(map[int]*pool),
		requests:    make(map[int64]*request),
		sessions:    make(map[uuid.UUID]*session),
		grants:      make(map[string]grant),
		clients:     make(map[uuid.UUID]*agent),
		plans:       make(map[uuid.UUID]*request),
		jobs:        make(map[string]*request),
		idle:        make(chan struct{}),
		nextPool:    1,
		nextAgent:   1,
		nextRequest: 1,
	}
	s.hostID = s.newID()
	s.faults = newFaultSet(rand.New(rand.NewPCG(opts.Seed, 5)))
	for _, t := range opts.Tokens {
		s.tokens[t.Secret] = t.withDefaults()
	}
	// Numbers that start somewhere in the middle catch whoever counts on 1.
	s.nextPool += s.random.other.IntN(20)
	s.nextAgent += pastAgents + s.random.agents.IntN(200)
	s.nextRequest += int64(s.random.requests.IntN(2000))
	s.started = time.Now()
	s.routes = s.table()
	s.control = s.controlRoutes()
	s.audit.record(Event{Event: "server-started", By: byService, Detail: fmt.Sprintf("organisation %s, seed %d", opts.Organisation, opts.Seed)})
	s.wg.Go(s.run)
	return s, nil
}

// Close ends the tick, every long poll and the listeners of StartTLS, and
// waits for them. It may be called more than once.
func (s *Server) Close() {
	s.mu.Lock()
	servers := s.servers
	s.servers = nil
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	for _, server := range servers {
		// What is still running is cut off: a test double has nothing to save.
		_ = server.Close()
	}
	s.wg.Wait()
}

// AuditError returns the first error met in writing the audit log, or nil.
func (s *Server) AuditError() error { return s.audit.failure() }

// Events returns the audit log's events with a number above seq, without the
// ones named http.
func (s *Server) Events(seq uint64) []Event { return s.audit.after(seq) }

// run is the service's own activity. It ends with Close.
func (s *Server) run() {
	tick := time.NewTicker(s.opts.Tick)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
			s.mu.Lock()
			s.tick(time.Now())
			s.mu.Unlock()
		}
	}
}

// newID draws a GUID from the seed. The caller holds the mutex, or the server
// is not yet shared.
func (s *Server) newID() uuid.UUID {
	var id uuid.UUID
	for i := range id {
		id[i] = byte(s.random.other.UintN(256))
	}
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}

// newSecret draws a token from the seed: unguessable is not what a test double
// must be, repeatable is.
func (s *Server) newSecret(prefix string) string {
	return prefix + "-" + strings.ReplaceAll(s.newID().String()+s.newID().String(), "-", "")
}

// noise is a number that depends on the seed and on what is named, but not on
// the order of calls, so that a row looks the same each time it is read.
func (s *Server) noise(kind string, n int64) uint64 {
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%d/%s/%d", s.opts.Seed, kind, n)
	return h.Sum64()
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, controlPrefix) {
		s.serveControl(w, r)
		return
	}
	s.serveService(w, r)
}
