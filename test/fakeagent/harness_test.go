package fakeagent_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/fakeagent"
)

// limit is how long anything may take before a test gives up on it.
const limit = 60 * time.Second

const (
	pat      = "s3cret-p4t-of-the-pool"
	poolName = "linux"
)

// raceAgents makes the agent's own programs look for data races, which takes several
// times as long: go test ./test/fakeagent -args -race-agents.
var raceAgents = flag.Bool("race-agents", false, "build the agent's programs with the race detector")

// tarball is built once for the whole test binary, and unpacked into template.
var tarball, template string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "fakeagent-test-")
		if err != nil {
			panic(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		if tarball, err = fakeagent.Build(ctx, dir, fakeagent.Options{Race: *raceAgents}); err != nil {
			panic(err)
		}
		template = filepath.Join(dir, "template")
		if err := os.Mkdir(template, 0o755); err != nil {
			panic(err)
		}
		if err := fakeagent.Unpack(tarball, template); err != nil {
			panic(err)
		}
		return m.Run()
	}())
}

// service is a fake organisation with one pool.
type service struct {
	*azuredevopstest.Server
	url    string
	caFile string
	pool   int
}

func newService(t *testing.T, options azuredevopstest.Options) *service {
	t.Helper()
	options.Tokens = append(options.Tokens,
		azuredevopstest.Token{Secret: pat, Identity: "manager", Rights: azuredevopstest.RightsManage},
		azuredevopstest.Token{Secret: "expired-token", Identity: "former", Expired: true},
		azuredevopstest.Token{Secret: "reader-token", Identity: "reader", Rights: azuredevopstest.RightsRead})
	if options.Tick == 0 {
		options.Tick = 20 * time.Millisecond
	}
	server, err := azuredevopstest.New(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	endpoint, err := server.StartTLS("127.0.0.1:0", hiddenName)
	if err != nil {
		t.Fatal(err)
	}
	caFile := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(caFile, endpoint.CAPEM, 0o644); err != nil {
		t.Fatal(err)
	}
	return &service{Server: server, url: endpoint.URL, caFile: caFile, pool: server.CreatePool(poolName)}
}

// queue queues a build of the given steps once the agent can take it.
func (s *service) queue(t *testing.T, build azuredevopstest.Build) int64 {
	t.Helper()
	build.PoolID = s.pool
	if build.Name == "" {
		build.Name = "Build it"
	}
	id, err := s.Queue(build)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (s *service) wait(t *testing.T, id int64) azuredevopstest.BuildStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	status, err := s.Wait(ctx, id)
	if err != nil {
		current, _ := s.Build(id)
		t.Fatalf("wait for build %d: %v; it is %+v", id, err, current)
	}
	return status
}

func (s *service) events(name string) []azuredevopstest.Event {
	var found []azuredevopstest.Event
	for _, event := range s.Events(0) {
		if event.Event == name {
			found = append(found, event)
		}
	}
	return found
}

func (s *service) waitEvent(t *testing.T, name string) {
	t.Helper()
	eventually(t, "the event "+name, func() bool { return len(s.events(name)) > 0 })
}

// agent is an unpacked agent root and what its processes are started with.
type agent struct {
	t       *testing.T
	service *service
	root    string
	env     []string
}

// newAgent unpacks an agent, with the faults of its root.
func newAgent(t *testing.T, s *service, faults ...string) *agent {
	t.Helper()
	a := &agent{t: t, service: s, root: t.TempDir()}
	a.unpack()
	a.faults(faults...)
	a.env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "AGENT_ALLOW_RUNASROOT=1",
		"SSL_CERT_FILE=" + s.caFile,
	}
	return a
}

// unpack gives the agent the files of the package. Its programs are links, which
// takes a fraction of the time.
func (a *agent) unpack() {
	a.t.Helper()
	err := filepath.WalkDir(template, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(template, path)
		if err != nil {
			return err
		}
		switch {
		case entry.IsDir():
			return os.MkdirAll(a.path(name), 0o755)
		case filepath.Dir(name) == "bin":
			return os.Link(path, a.path(name))
		default:
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(a.path(name), content, 0o755)
		}
	})
	if err != nil {
		a.t.Fatal(err)
	}
}

// faults replaces the faults of the agent's root; the waits of jobs are always short.
func (a *agent) faults(list ...string) {
	a.t.Helper()
	list = append([]string{"no-worker-delay", "retry-interval=100ms"}, list...)
	if err := os.WriteFile(a.path("externals", "faults"), []byte(strings.Join(list, "\n")), 0o644); err != nil {
		a.t.Fatal(err)
	}
}

func (a *agent) path(elements ...string) string {
	return filepath.Join(append([]string{a.root}, elements...)...)
}

func (a *agent) read(elements ...string) string {
	a.t.Helper()
	content, err := os.ReadFile(a.path(elements...))
	if err != nil {
		a.t.Fatal(err)
	}
	return string(content)
}

func (a *agent) exists(elements ...string) bool {
	_, err := os.Stat(a.path(elements...))
	return err == nil
}

// start starts a program of the agent root.
func (a *agent) start(program string, args ...string) *process {
	a.t.Helper()
	return a.startWith(nil, program, args...)
}

func (a *agent) startWith(env []string, program string, args ...string) *process {
	a.t.Helper()
	p := &process{t: a.t, done: make(chan struct{})}
	p.cmd = exec.Command(a.path(program), args...)
	p.cmd.Dir = a.root
	p.cmd.Env = append(append([]string{}, a.env...), env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.WaitDelay = 10 * time.Second
	if err := p.cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait()
	}()
	a.t.Cleanup(func() {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
		if a.t.Failed() {
			a.t.Logf("%s said:\n%s", program, p.output.String())
			a.diag()
		}
	})
	return p
}

// diag shows the agent's own logs.
func (a *agent) diag() {
	logs, _ := filepath.Glob(a.path("_diag", "*.log"))
	for _, log := range logs {
		content, _ := os.ReadFile(log)
		a.t.Logf("%s:\n%s", filepath.Base(log), content)
	}
}

// configureArgs are the arguments of a good configure, the token apart.
func (a *agent) configureArgs(more ...string) []string {
	return append([]string{
		"--unattended", "--acceptTeeEula", "--url", a.service.url, "--auth", "PAT", "--pool", poolName, "--agent", "azp-one", "--work", "_work",
	}, more...)
}

func (a *agent) startConfigure(more ...string) *process {
	a.t.Helper()
	return a.startWith([]string{"VSTS_AGENT_INPUT_TOKEN=" + pat}, "config.sh", a.configureArgs(more...)...)
}

// configured configures the agent.
func (a *agent) configured() *agent {
	a.t.Helper()
	if code := a.startConfigure().wait(); code != 0 {
		a.t.Fatalf("configure ended with %d", code)
	}
	return a
}

// listen starts the listener with --once and waits until it listens.
func (a *agent) listen() *process {
	a.t.Helper()
	p := a.start("bin/Agent.Listener", "run", "--once")
	p.waitFor("Listening for Jobs")
	return p
}

// process is a program under way.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	output buffer
	done   chan struct{}
}

// wait gives the exit code, negative after a signal.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(limit):
		p.t.Fatalf("%s has not ended within %s", p.cmd.Path, limit)
	}
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() {
		return -int(status.Signal())
	}
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *process) waitFor(text string) {
	p.t.Helper()
	eventually(p.t, "the output "+text, func() bool {
		if strings.Contains(p.output.String(), text) {
			return true
		}
		if p.ended() {
			p.t.Fatalf("%s ended without saying %q", p.cmd.Path, text)
		}
		return false
	})
}

func (p *process) signal(signal syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatal(err)
	}
}

func (p *process) says(text string) {
	p.t.Helper()
	if !strings.Contains(p.output.String(), text) {
		p.t.Errorf("the output has no %q:\n%s", text, p.output.String())
	}
}

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", limit, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// gone tells whether the process whose id is in text has ended.
func gone(t *testing.T, text string) bool {
	t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		t.Fatal(err)
	}
	return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || zombie(pid)
}

// zombie tells whether a process has ended and nobody asked for its status, as
// happens to orphans where the first process does not care.
func zombie(pid int) bool {
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	return err == nil && strings.Contains(string(status), "State:\tZ")
}

// signalMask reads one of the signal masks of a process.
func signalMask(p *process, name string) uint64 {
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid), "status"))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(status), name+":\t")
	line, _, _ := strings.Cut(rest, "\n")
	mask, err := strconv.ParseUint(line, 16, 64)
	if err != nil {
		return 0
	}
	return mask
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	content, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, content, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
