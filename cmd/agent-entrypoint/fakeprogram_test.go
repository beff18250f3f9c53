package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The test binary itself plays config.sh and Agent.Listener: shell wrappers in the
// agent root start it with one of these as first argument. It records how it was
// called and then follows a script, one command a line.
const (
	fakeConfig   = "fake-config"
	fakeListener = "fake-listener"
)

// callRecord is how a fake program was called.
type callRecord struct {
	Args []string
	Env  []string
	PID  int
}

// fakeMain runs a fake program. Its script is FILE.N for the Nth call, else FILE.
func fakeMain(name string, args []string) int {
	dir := os.Getenv("FAKE_RECORDS")
	n := 1
	for ; ; n++ {
		path := filepath.Join(dir, fmt.Sprintf("%s.%d.json", name, n))
		file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return complain(err)
		}
		if err := errors.Join(json.NewEncoder(file).Encode(callRecord{args, os.Environ(), os.Getpid()}), file.Close()); err != nil {
			return complain(err)
		}
		break
	}
	script, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("%s.script.%d", name, n)))
	if err != nil {
		script, err = os.ReadFile(filepath.Join(dir, name+".script"))
	}
	if err != nil {
		return complain(err)
	}
	f := &fakeProgram{dir: dir, args: args}
	f.handleInterrupt()
	scanner := bufio.NewScanner(bytes.NewReader(script))
	for scanner.Scan() {
		verb, rest, _ := strings.Cut(strings.TrimSpace(scanner.Text()), " ")
		if verb == "" {
			continue
		}
		code, done, err := f.do(verb, rest)
		if err != nil {
			return complain(err)
		}
		if done {
			return code
		}
	}
	return 0
}

func complain(err error) int {
	_, _ = fmt.Fprintln(os.Stderr, "fake program:", err)
	return 99
}

type fakeProgram struct {
	dir  string
	args []string
}

// handleInterrupt does on INT what the file on-int says: ignore, or print lines and
// exit 0 as the agent does.
func (f *fakeProgram) handleInterrupt() {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		for s := range signals {
			file, err := os.OpenFile(filepath.Join(f.dir, "signals"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err == nil {
				_, _ = fmt.Fprintln(file, s)
				_ = file.Close()
			}
			answer, _ := os.ReadFile(filepath.Join(f.dir, "on-int"))
			if strings.TrimSpace(string(answer)) == "ignore" {
				continue
			}
			_, _ = os.Stdout.Write(answer)
			os.Exit(0)
		}
	}()
}

// stamped prints a line as the agent does.
func stamped(text string) {
	fmt.Printf("%s: %s\n", time.Now().UTC().Format("2006-01-02 15:04:05Z"), text)
}

func (f *fakeProgram) do(verb, rest string) (code int, done bool, err error) {
	switch verb {
	case "print":
		stamped(strings.ReplaceAll(rest, "$TOKEN", os.Getenv("VSTS_AGENT_INPUT_TOKEN")))
	case "exit":
		code, err := strconv.Atoi(rest)
		return code, true, err
	case "crash":
		return 0, true, syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "touch":
		return 0, false, os.WriteFile(filepath.Join(f.dir, rest), nil, 0o600)
	case "wait":
		// The test kills what is left of us at its end; this is the limit beyond that.
		for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if _, err := os.Stat(filepath.Join(f.dir, rest)); err == nil {
				return 0, false, nil
			}
		}
		return 0, false, fmt.Errorf("%s did not come", rest)
	case "child":
		// Holds the output open as long as it lives.
		cmd := exec.Command("sleep", "120")
		cmd.Stdout = os.Stdout
		if err := cmd.Start(); err != nil {
			return 0, false, err
		}
		return 0, false, os.WriteFile(filepath.Join(f.dir, "child"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600)
	case "update":
		// As the agent's script does: once the listener has ended, bin/ goes and comes back.
		cmd := exec.Command("sh", "-c", `while kill -0 $0 2>/dev/null; do sleep 0.02; done; mv bin bin.old; sleep 0.3; cp -r bin.old bin.new; mv bin.new bin`, strconv.Itoa(os.Getpid()))
		cmd.Stdout = os.Stdout
		return 0, false, cmd.Start()
	case "remove":
		return 0, false, os.RemoveAll(rest)
	case "register":
		return 0, false, f.register(rest)
	case "leak":
		if err := os.MkdirAll("_diag", 0o755); err != nil {
			return 0, false, err
		}
		return 0, false, errors.Join(
			os.WriteFile("_diag/leak.log", []byte("token "+os.Getenv("VSTS_AGENT_INPUT_TOKEN")+"\n"), 0o644),
			os.WriteFile("_diag/clean.log", []byte("nothing\n"), 0o644))
	default:
		return 0, false, fmt.Errorf("unknown command %q", verb)
	}
	return 0, false, nil
}

// flagValue gives what follows a flag of config.sh.
func (f *fakeProgram) flagValue(name string) string {
	for i, arg := range f.args {
		if arg == name && i+1 < len(f.args) {
			return f.args[i+1]
		}
	}
	return ""
}

// register adds the agent to the pool and writes the agent's files; the scheme of
// the credentials may be given, and "lost" leaves no files, as a crash would.
func (f *fakeProgram) register(how string) error {
	base := f.flagValue("--url")
	roots := x509.NewCertPool()
	pem, err := os.ReadFile(os.Getenv("VSTS_AGENT_INPUT_SSLCACERT"))
	if err != nil {
		return err
	}
	roots.AppendCertsFromPEM(pem)
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	call := func(method, path, body string, into any) error {
		req, err := http.NewRequest(method, base+path, strings.NewReader(body))
		if err != nil {
			return err
		}
		req.SetBasicAuth("", os.Getenv("VSTS_AGENT_INPUT_TOKEN"))
		req.Header.Set("Accept", "application/json;api-version=7.1-preview.1")
		req.Header.Set("Content-Type", "application/json")
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		content, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s %s: %s: %.300s", method, path, resp.Status, content)
		}
		return json.Unmarshal(content, into)
	}
	var pools struct{ Value []struct{ ID int } }
	if err := call(http.MethodGet, "/_apis/distributedtask/pools?poolName="+url.QueryEscape(f.flagValue("--pool")), "", &pools); err != nil || len(pools.Value) != 1 {
		return fmt.Errorf("pools %v: %w", pools, err)
	}
	pool := pools.Value[0].ID
	body := fmt.Sprintf(`{"name":%q,"version":"4.248.0","osDescription":"test","maxParallelism":1,"provisioningState":"Provisioned","systemCapabilities":{"Agent.Name":%q,"Agent.Version":"4.248.0"},"authorization":{"publicKey":{"exponent":"AQAB","modulus":%q}}}`,
		f.flagValue("--agent"), f.flagValue("--agent"), testModulus)
	var agent struct{ ID int }
	if err := call(http.MethodPost, fmt.Sprintf("/_apis/distributedtask/pools/%d/agents", pool), body, &agent); err != nil {
		return err
	}
	if how == "lost" {
		return nil
	}
	if how == "" {
		how = "OAuth"
	}
	files := map[string]string{
		".agent":                 fmt.Sprintf(`{"agentId":%d,"agentName":%q,"poolId":%d,"serverUrl":%q,"workFolder":"_work"}`, agent.ID, f.flagValue("--agent"), pool, base),
		".credentials":           fmt.Sprintf(`{"scheme":%q,"data":{"clientId":"c"}}`, how),
		".credentials_rsaparams": `{"d":"secret of the agent"}`,
	}
	for name, content := range files {
		if err := os.WriteFile(name, []byte("\ufeff"+content), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// testModulus is 256 bytes with the highest bit set, in base64: enough of a public
// key for an agent that never signs in.
const testModulus = "wcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBww=="
