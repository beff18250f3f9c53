package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

// patience is how long a test waits for what must come. It is far above what is
// needed, for the machine may be busy.
const patience = 60 * time.Second

// canary is the pool's token in every test: 52 characters as the service's own.
const canary = "c4n4ryc4n4ryc4n4ryc4n4ryc4n4ryc4n4ryc4n4ryc4n4ryc4n4"

// hiddenName is a name of the service that only a proxy resolves.
const hiddenName = "devops.test"

// entrypoint is the path of the real binary, built once.
var entrypoint string

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == fakeConfig || os.Args[1] == fakeListener) {
		os.Exit(fakeMain(os.Args[1], os.Args[2:]))
	}
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "entrypoint-*")
	if err != nil {
		return complain(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	// Some tests run it as other users.
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // A folder of programs.
		return complain(err)
	}
	entrypoint = filepath.Join(dir, "agent-entrypoint")
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	args := append([]string{"build", "-trimpath", "-o", entrypoint}, buildFlags()...)
	if out, err := exec.CommandContext(ctx, "go", append(args, ".")...).CombinedOutput(); err != nil { //nolint:gosec // The arguments are above.
		return complain(fmt.Errorf("building the entrypoint: %w: %s", err, out))
	}
	return m.Run()
}

// pod is the volumes, settings and service that the containers of a pod share.
type pod struct {
	t       *testing.T
	service *azuredevopstest.Server
	poolID  int
	url     string
	dir     string
	env     map[string]string
	// as is the user of the containers; nil is the test's own.
	as *syscall.Credential
}

// newPod makes a pod with fake programs in its image, and a service with one pool.
func newPod(t *testing.T) *pod {
	t.Helper()
	t.Parallel()
	return newPodWith(t, azuredevopstest.Options{})
}

func newPodWith(t *testing.T, options azuredevopstest.Options) *pod {
	t.Helper()
	options.Tokens = append(options.Tokens, azuredevopstest.Token{Secret: canary, Identity: "pool", Rights: azuredevopstest.RightsManage})
	service, err := azuredevopstest.New(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(service.Close)
	address, err := service.StartTLS("127.0.0.1:0", hiddenName)
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{t: t, service: service, poolID: service.CreatePool("pool"), url: address.URL, dir: t.TempDir()}
	p.write("token", canary+"\n")
	p.write("ca.crt", string(address.CAPEM))
	p.write("termination-log", "")
	for _, name := range []string{"root/bin", "handover", "registration", "verdict", "claimed", "records", "home", "tmp"} {
		p.must(os.MkdirAll(p.path(name), 0o755))
	}
	p.env = map[string]string{
		"PATH": os.Getenv("PATH"), "HOME": p.path("home"), "TMPDIR": p.path("tmp"), "AGENT_ALLOW_RUNASROOT": "1",
		"FAKE_RECORDS": p.path("records"), "VSO_AGENT_IGNORE": "SOMETHING",
		"AZP_URL": p.url, "AZP_POOL": "pool", "AZP_AGENT_NAME": "azp-test-1-1-0", "AZP_CA_FILE": p.path("ca.crt"),
		"AZP_AGENT_ROOT": p.path("root"), "AZP_HANDOVER_DIR": p.path("handover"), "AZP_REGISTRATION_DIR": p.path("registration"),
		"AZP_VERDICT_DIR": p.path("verdict"), "AZP_CLAIMED_DIR": p.path("claimed"), "AZP_TERMINATION_LOG": p.path("termination-log"),
		"AZP_PROBE_ADDRESS": "off", "AZP_LOG_LEVEL": "debug",
	}
	self, err := os.Executable()
	p.must(err)
	p.image(self)
	p.script("fake-config", "register")
	p.script("fake-listener", "print Listening for Jobs", "wait never")
	return p
}

// image puts fake programs into the agent root, which the given program plays.
func (p *pod) image(player string) {
	p.t.Helper()
	p.program("root/config.sh", fmt.Sprintf("#!/bin/sh\nexec %q %s \"$@\"\n", player, fakeConfig))
	p.program("root/bin/Agent.Listener", fmt.Sprintf("#!/bin/sh\nexec %q %s \"$@\"\n", player, fakeListener))
}

func (p *pod) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *pod) path(name string) string { return filepath.Join(p.dir, name) }

func (p *pod) write(name, content string) {
	p.t.Helper()
	p.must(os.WriteFile(p.path(name), []byte(content), 0o600))
}

func (p *pod) program(name, content string) {
	p.t.Helper()
	p.must(os.WriteFile(p.path(name), []byte(content), 0o755)) //nolint:gosec // A program.
}

func (p *pod) read(name string) string {
	p.t.Helper()
	content, err := os.ReadFile(p.path(name))
	p.must(err)
	return string(content)
}

func (p *pod) has(name string) bool {
	_, err := os.Lstat(p.path(name))
	return err == nil
}

// script sets what a fake program does; NAME.N is for its Nth call.
func (p *pod) script(name string, commands ...string) {
	p.t.Helper()
	program, call, numbered := strings.Cut(name, ".")
	file := program + ".script"
	if numbered {
		file += "." + call
	}
	p.write("records/"+file, strings.Join(commands, "\n")+"\n")
}

// touch lets a script go on that waits for a name.
func (p *pod) touch(name string) { p.t.Helper(); p.write("records/"+name, "") }

// call gives how a fake program was called for the nth time.
func (p *pod) call(program string, n int) callRecord {
	p.t.Helper()
	var record callRecord
	p.must(json.Unmarshal([]byte(p.read(fmt.Sprintf("records/%s.%d.json", program, n))), &record))
	return record
}

// calls counts how often a fake program was called.
func (p *pod) calls(program string) int {
	n := 0
	for p.has(fmt.Sprintf("records/%s.%d.json", program, n+1)) {
		n++
	}
	return n
}

// eventually waits for a condition.
func (p *pod) eventually(what string, condition func() bool) {
	p.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if condition() {
			return
		}
	}
	p.t.Fatalf("waited %s in vain for: %s", patience, what)
}

// agents gives the names of the registered agents.
func (p *pod) agents() []string {
	var names []string
	for _, agent := range p.service.Agents(p.poolID) {
		names = append(names, agent.Name)
	}
	return names
}

// inject makes the service fail.
func (p *pod) inject(fault azuredevopstest.Fault) int {
	p.t.Helper()
	id, err := p.service.Inject(fault)
	p.must(err)
	return id
}

// container is one running entrypoint.
type container struct {
	p      *pod
	name   string
	cmd    *exec.Cmd
	stdout output
	stderr output
	exited chan struct{}
}

// output collects what a container prints.
type output struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buffer.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buffer.String()
}

// withToken mounts the token.
func withToken(p *pod) []string { return []string{"AZP_TOKEN_FILE=" + p.path("token")} }

// start starts a container: a subcommand, or none for "". Later variables win.
func (p *pod) start(step string, env ...string) *container {
	p.t.Helper()
	c := &container{p: p, name: step, exited: make(chan struct{})}
	var args []string
	if step != "" {
		args = strings.Fields(step)
	}
	c.cmd = exec.Command(entrypoint, args...) //nolint:gosec // Our own binary.
	for name, value := range p.env {
		c.cmd.Env = append(c.cmd.Env, name+"="+value)
	}
	c.cmd.Env = append(c.cmd.Env, env...)
	c.cmd.Dir = p.path("home")
	c.cmd.Stdout, c.cmd.Stderr = &c.stdout, &c.stderr
	c.cmd.WaitDelay = 5 * time.Second
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.as}
	p.must(c.cmd.Start())
	go func() {
		defer close(c.exited)
		_ = c.cmd.Wait()
	}()
	p.t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		<-c.exited
		// The listener is in a group of its own.
		for n := range p.calls("fake-listener") {
			_ = syscall.Kill(-p.call("fake-listener", n+1).PID, syscall.SIGKILL)
		}
		if p.t.Failed() {
			p.t.Logf("%q printed:\n%s\n%s", c.name, c.stdout.String(), c.stderr.String())
		}
	})
	return c
}

func (c *container) signal(s os.Signal) {
	c.p.t.Helper()
	c.p.must(c.cmd.Process.Signal(s))
}

// wait gives the exit code.
func (c *container) wait() int {
	c.p.t.Helper()
	select {
	case <-c.exited:
		return c.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		c.p.t.Fatalf("%q did not end within %s", c.name, patience)
		return -1
	}
}

func (c *container) ended() bool {
	select {
	case <-c.exited:
		return true
	default:
		return false
	}
}

// expect waits for the end and checks the exit code and that the last words hold the texts.
func (c *container) expect(code int, texts ...string) {
	c.p.t.Helper()
	if got := c.wait(); got != code {
		c.p.t.Errorf("%q ended with %d, want %d", c.name, got, code)
	}
	words := c.p.read("termination-log")
	for _, text := range append(texts, fmt.Sprintf("(exit %d)", code)) {
		if !strings.Contains(words, text) {
			c.p.t.Errorf("the last words of %q are %q, want %q in them", c.name, words, text)
		}
	}
}

// logged waits for a text in the container's log.
func (c *container) logged(text string) {
	c.p.t.Helper()
	c.p.eventually(fmt.Sprintf("%q in the log of %q", text, c.name), func() bool {
		return strings.Contains(c.stderr.String(), text) || strings.Contains(c.stdout.String(), text)
	})
}

// configured runs configure to its good end.
func (p *pod) configured() {
	p.t.Helper()
	p.start("configure", withToken(p)...).expect(0, "registered")
}

// listening starts run and waits until the listener listens.
func (p *pod) listening(env ...string) *container {
	p.t.Helper()
	c := p.start("run", env...)
	c.logged("Listening for Jobs")
	return c
}

// signals gives the signals that the fake listener got.
func (p *pod) signals() []string {
	if !p.has("records/signals") {
		return nil
	}
	return strings.Fields(p.read("records/signals"))
}

// findCanary looks for the token in every file below a folder.
func (p *pod) findCanary(folder string) []string {
	p.t.Helper()
	var found []string
	p.must(filepath.WalkDir(p.path(folder), func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		if bytes.Contains(content, []byte(canary)) {
			found = append(found, path)
		}
		return err
	}))
	return found
}

// probe asks a probe and gives the status, 0 if nobody answers.
func probe(address, path string) int {
	client := &http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get("http://" + address + path)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return resp.StatusCode
}

// freeAddress gives an address that was free a moment ago.
func freeAddress(t *testing.T) string {
	t.Helper()
	socket, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	return socket.Addr().String()
}

// alive reports whether a process is there and is no zombie.
func alive(pid int) bool {
	state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) || err != nil {
		return false
	}
	fields := strings.Fields(string(state[bytes.LastIndexByte(state, ')')+1:]))
	return !slices.Contains([]string{"Z", "X"}, fields[0])
}
