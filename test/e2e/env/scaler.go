package env

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/azp-scaler/azp-scaler/test/audit"
	"github.com/azp-scaler/azp-scaler/test/e2e/process"
)

// Limits on waiting for the scaler.
const (
	readyLimit = 60 * time.Second
	stopLimit  = 30 * time.Second
	probeEvery = 100 * time.Millisecond
	// placeholderLimit is for the agents that stand in the pool for the classes.
	placeholderLimit = 60 * time.Second
	commandLimit     = 60 * time.Second
)

// Scaler is the scaler's process. Its methods may be called from one goroutine
// at a time, but Outages, URL and has from any.
type Scaler struct {
	binary  string
	host    string // Where it listens: pods call it, too.
	environ []string
	log     *os.File
	address string
	process *process.Process // Written with the mutex.

	mu      sync.Mutex
	outages []audit.Interval // The last one is open while the scaler is down.
}

// newScaler prepares the process; settings are its environment, and nothing of
// ours but PATH and HOME is added.
func newScaler(binary, host, logPath string, settings map[string]string) (*Scaler, error) {
	address, err := freeAddress(host)
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("the scaler's log: %w", err)
	}
	s := &Scaler{binary: binary, host: host, log: log, address: address, environ: []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Dir(binary), "AZP_LISTEN=" + address, "AZP_CALLBACK_URL=http://" + address,
	}}
	for name, value := range settings {
		s.environ = append(s.environ, name+"="+value)
	}
	slices.Sort(s.environ)
	s.outages = []audit.Interval{{From: time.Now()}}
	return s, nil
}

// another prepares a further process with the same settings, but for these.
func (s *Scaler) another(logPath string, settings map[string]string) (*Scaler, error) {
	all := map[string]string{}
	for _, variable := range s.environ {
		name, value, _ := strings.Cut(variable, "=")
		all[name] = value
	}
	for _, ours := range []string{"PATH", "HOME", "AZP_LISTEN", "AZP_CALLBACK_URL"} {
		delete(all, ours)
	}
	maps.Copy(all, settings)
	return newScaler(s.binary, s.host, logPath, all)
}

// Set changes a variable of the scaler's environment from its next start on, and
// gives a function that changes it back.
func (s *Scaler) Set(name, value string) (restore func()) {
	before := slices.Clone(s.environ)
	s.environ = slices.DeleteFunc(s.environ, func(variable string) bool { return strings.HasPrefix(variable, name+"=") })
	s.environ = append(s.environ, name+"="+value)
	return func() { s.environ = before }
}

// URL is where the scaler serves its metrics and health.
func (s *Scaler) URL() string { return "http://" + s.address }

// Start starts the scaler and returns without waiting for it to be ready.
func (s *Scaler) Start() error {
	if s.Running() {
		return errors.New("the scaler runs already")
	}
	command := exec.Command(s.binary)
	command.Env = s.environ
	command.Stdout, command.Stderr = s.log, s.log
	started, err := process.Start(command)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.process = started
	return nil
}

// Command runs the scaler's program with another command than the loop, and the
// same environment, and gives what it printed. An exit status other than 0 is an
// error, an *exec.ExitError.
func (s *Scaler) Command(ctx context.Context, arguments ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	command := exec.CommandContext(ctx, s.binary, arguments...)
	command.Env = s.environ
	var complaints strings.Builder
	command.Stderr = &complaints
	out, err := command.Output()
	if err != nil {
		return string(out), fmt.Errorf("scaler %s: %w: %s", strings.Join(arguments, " "), err, tail(complaints.String(), 2000))
	}
	return string(out), nil
}

// WaitReady waits until the scaler says that it is ready, and takes it as the one that
// does the work from then on.
func (s *Scaler) WaitReady(ctx context.Context) error {
	if err := s.WaitStandby(ctx); err != nil {
		return err
	}
	s.up(time.Now())
	return nil
}

// WaitStandby waits until the scaler says that it is ready, be it only to take over.
func (s *Scaler) WaitStandby(ctx context.Context) error {
	return s.wait(ctx, "ready", func(ctx context.Context, client *http.Client) error {
		_, err := probe(ctx, client, s.URL()+"/readyz")
		return err
	})
}

// WaitLeading waits until the scaler says that it leads.
func (s *Scaler) WaitLeading(ctx context.Context) error {
	err := s.wait(ctx, "leading", func(ctx context.Context, client *http.Client) error {
		metrics, err := probe(ctx, client, s.URL()+"/metrics")
		if err == nil && !strings.Contains(metrics, fmt.Sprintf("azp_scaler_leading{pool=%q} 1\n", Pool)) {
			err = errors.New("its metrics do not say that it leads")
		}
		return err
	})
	if err == nil {
		s.up(time.Now())
	}
	return err
}

// wait asks the scaler again and again, until the answer is no error.
func (s *Scaler) wait(ctx context.Context, what string, ask func(context.Context, *http.Client) error) error {
	if s.process == nil {
		return errors.New("the scaler was never started")
	}
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	return await(ctx, "the scaler", what, s.process, s.log, ask)
}

// Kill ends the scaler as a lost node does, without any warning.
func (s *Scaler) Kill() error {
	if !s.Running() {
		return nil
	}
	s.down(time.Now())
	return s.process.Kill()
}

// Stop asks the scaler to end and gives an error if it does not do so in time
// and with exit status 0.
func (s *Scaler) Stop(ctx context.Context) error {
	if s.process == nil {
		return nil
	}
	s.down(time.Now())
	// One that ended by itself has no end of its own to be asked for: its exit
	// status is what counts.
	if err := s.process.Stop(ctx, stopLimit); err != nil {
		return fmt.Errorf("the scaler's end: %w: see %s", err, s.log.Name())
	}
	return nil
}

// has tells whether the process has the socket open.
func (s *Scaler) has(socket process.Socket) bool {
	s.mu.Lock()
	running := s.process
	s.mu.Unlock()
	return running != nil && socket.HeldBy(running.PID())
}

// Running tells whether the process is there.
func (s *Scaler) Running() bool { return s.process != nil && s.process.Running() }

// Outages are the times in which the scaler was not there or not ready.
func (s *Scaler) Outages() []audit.Interval {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := slices.Clone(s.outages)
	if last := len(out) - 1; last >= 0 && out[last].To.IsZero() {
		out[last].To = time.Now()
	}
	return out
}

func (s *Scaler) down(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last := len(s.outages) - 1; last < 0 || !s.outages[last].To.IsZero() {
		s.outages = append(s.outages, audit.Interval{From: at})
	}
}

func (s *Scaler) up(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last := len(s.outages) - 1; last >= 0 && s.outages[last].To.IsZero() {
		s.outages[last].To = at
	}
}

// close ends the process, if it is still there, and its log.
func (s *Scaler) close() error { return errors.Join(s.Kill(), s.log.Close()) }

// await asks a process again and again, until the answer is no error: then it is what it was to be.
func await(ctx context.Context, who, what string, asked *process.Process, log *os.File, ask func(context.Context, *http.Client) error) error {
	client := &http.Client{Timeout: 5 * time.Second}
	for {
		last := ask(ctx, client)
		if last == nil {
			return nil
		}
		select {
		case <-asked.Done():
			return fmt.Errorf("%s ended before it was %s: %w: see %s", who, what, errors.Join(asked.Err(), last), log.Name())
		case <-ctx.Done():
			return fmt.Errorf("%s is not %s: %w: see %s", who, what, errors.Join(last, ctx.Err()), log.Name())
		case <-time.After(probeEvery):
		}
	}
}

// probe gives what an address answers with.
func probe(ctx context.Context, client *http.Client, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", fmt.Errorf("probe: %w", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return "", fmt.Errorf("probe: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("GET %s answered %s", url, response.Status)
	}
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return "", fmt.Errorf("GET %s: %w", url, err)
	}
	return string(text), nil
}

// freeAddress gives a loopback address that nobody listens on at the moment.
func freeAddress(host string) (string, error) {
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().String(), nil
}
