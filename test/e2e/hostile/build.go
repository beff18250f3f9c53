package hostile

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/azp-scaler/azp-scaler/test/e2e/canary"
)

// patience is how long a build waits for its plan and for the leave to end.
const patience = 3 * time.Minute

// Build is the program as a step of a build runs it.
type Build struct {
	Listener string // URL.
	Program  string // Of itself, where the containers of the image have it.
	Root     string // Of the agent program.
	Proxy    string // URL of the listener in the pod, where the agent would be led through.
	Environ  []string
	Lookup   func(string) (string, bool)
	Host     string
}

// Run does everything and returns when the listener lets the build end.
func (b Build) Run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var plan Plan
	if err := b.exchange(ctx, "/plan", nil, &plan); err != nil {
		return err
	}
	set, err := canary.NewSet(plan.Shapes)
	if err != nil {
		return err
	}
	report := &Report{Pod: b.Host, Job: jobOf(b.Host), Agent: map[string][]byte{}}
	// Another process of the build's own, whose memory and environment are to be found.
	stop, err := b.startDecoy(ctx)
	if err != nil {
		return err
	}
	defer stop()
	s := newSearch(set, report)
	s.environment(b.Environ)
	s.processes()
	s.files(InFile, "/")
	with, err := newAccount(b.Lookup, accountDir)
	if err != nil {
		report.Troubles = append(report.Troubles, err.Error())
	} else {
		report.Account = with.token
		s.ask(ctx, with, plan.Calls)
	}
	s.network(ctx, plan.Pages)
	for _, name := range AgentFiles() {
		if report.Agent[name], err = os.ReadFile(filepath.Join(b.Root, name)); err != nil {
			report.Troubles = append(report.Troubles, err.Error())
		}
	}
	lure := fmt.Sprintf("#!/bin/sh\nexec %s lure %s \"$0\" \"$@\"\n", b.Program, b.Listener)
	report.spoil(b.Root, lure, plan.Elsewhere, b.Proxy)
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		report.Troubles = append(report.Troubles, err.Error())
	}
	folders := mounts(string(mountinfo))
	report.plant(append(folders, "/tmp", "/var/tmp", "/run", "/run/azp"))
	for _, folder := range folders {
		if strings.HasPrefix(folder, "/run/azp/") && slices.Contains(report.Writable, folder) {
			report.fill(folder)
		}
	}
	return b.exchange(ctx, "/report", report, nil)
}

// startDecoy has a process of this program listen with the decoy in its environment.
func (b Build) startDecoy(ctx context.Context) (stop func(), err error) {
	command := exec.CommandContext(ctx, b.Program, "decoy", b.Listener)
	command.Env = b.Environ
	said, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		_ = command.Process.Kill() // It may be gone.
		_ = command.Wait()
	}
	// It says a word when it listens.
	if _, err := said.Read(make([]byte, 1)); err != nil {
		stop()
		return nil, fmt.Errorf("the decoy has not begun: %w", err)
	}
	return stop, nil
}

// exchange posts a body, or gets one where there is none to post.
func (b Build) exchange(ctx context.Context, path string, body, answer any) error {
	method, sent := http.MethodGet, []byte(nil)
	if body != nil {
		var err error
		if sent, err = json.Marshal(body); err != nil {
			return err
		}
		method = http.MethodPost
	}
	request, err := http.NewRequestWithContext(ctx, method, b.Listener+path, bytes.NewReader(sent))
	if err != nil {
		return err
	}
	response, err := direct().Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s answered %s", method, path, response.Status)
	}
	if answer == nil {
		return nil
	}
	return json.NewDecoder(response.Body).Decode(answer)
}

// direct goes through no proxy.
func direct() *http.Client { return &http.Client{Transport: &http.Transport{}} }

// Lure tells the listener that something spoilt was run, and by whom.
func (b Build) Lure(ctx context.Context, arguments []string) error {
	return b.hit(ctx, "spoilt program "+strings.Join(arguments, " ")+" run", b.Environ)
}

func (b Build) hit(ctx context.Context, what string, with []string) error {
	text, err := json.Marshal(hit{What: fmt.Sprintf("%s in %s by user %d", what, b.Host, os.Getuid()), With: strings.Join(with, "\n")})
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, b.Listener+"/hit", bytes.NewReader(text))
	if err != nil {
		return err
	}
	response, err := direct().Do(request)
	if err != nil {
		return err
	}
	return response.Body.Close()
}

// Wait listens in the pod, where the spoilt agent is led through, until it is killed. It
// tells of everybody who comes, and shows by an open request for how long it was there.
func (b Build) Wait(ctx context.Context, address string) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	server := &http.Server{ReadHeaderTimeout: pageLimit, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.UserAgent(), "Go-http-client") && r.Method == http.MethodGet {
			return // The search of this build looks at every port.
		}
		_ = b.hit(r.Context(), r.Method+" "+r.URL.String()+" at the listener in the pod", []string{fmt.Sprint(r.Header)}) // There is nobody to tell.
	})}
	go func() { _ = server.Serve(listener) }() // It ends with the process.
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, b.Listener+"/wait", nil)
	if err != nil {
		return err
	}
	response, err := direct().Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	_, err = io.Copy(io.Discard, response.Body)
	return err
}

// Decoy has in its environment what the search is to find, and serves it, until it is
// killed.
func (b Build) Decoy(ctx context.Context, address string) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	decoy := strings.Join(b.Environ, "\n")
	fmt.Println("listening")
	server := &http.Server{ReadHeaderTimeout: pageLimit, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, decoy)
	})}
	return server.Serve(listener)
}
