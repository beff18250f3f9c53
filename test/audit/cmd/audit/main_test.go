package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/test/audit"
)

// files writes the evidence of a run in which one request was cancelled, and
// gives the flags that name it. The API server is empty.
func files(t *testing.T, serviceLog string) []string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/api":
			_, _ = w.Write([]byte(`{"kind":"APIVersions","versions":["v1"]}`))
		case "/apis":
			_, _ = w.Write([]byte(`{"kind":"APIGroupList","apiVersion":"v1","groups":[]}`))
		case "/api/v1":
			_, _ = w.Write([]byte(`{"kind":"APIResourceList","groupVersion":"v1","resources":[]}`))
		case "/acme/_apis/distributedtask/pools/3/agents":
			_, _ = w.Write([]byte(`{"count":0,"value":[]}`))
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	kubeconfig := write("kubeconfig", "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: \""+server.URL+"\"}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\ncurrent-context: c\nusers: [{name: u, user: {}}]\n")
	return []string{
		"-service-log", write("service", serviceLog), "-kube-log", write("kube", ""), "-kubeconfig", kubeconfig, "-scaler-user", "system:serviceaccount:a:b",
		"-url", server.URL + "/acme", "-token-file", write("token", "secret\n"), "-pool", "3",
	}
}

const (
	queued   = `{"seq":1,"time":"2026-01-02T03:04:05Z","event":"request-queued","pool":3,"requestId":1}` + "\n"
	canceled = `{"seq":2,"time":"2026-01-02T03:04:06Z","event":"request-canceled","pool":3,"requestId":1,"result":"canceled"}` + "\n"
)

func TestRun(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		log  string
		args func([]string) []string
		code int
		out  string
	}{
		"clean":                         {log: queued + canceled, out: "duplicates 0, lost 0, leaked 0"},
		"lost":                          {log: queued, code: 1, out: "lost: request 1"},
		"a log that is none":            {log: "{}\n", code: 2, out: "service audit log, line 1"},
		"no flags":                      {args: func([]string) []string { return nil }, code: 2, out: "-service-log, -kube-log, -kubeconfig and -scaler-user are needed"},
		"an unknown flag":               {args: func([]string) []string { return []string{"-nope"} }, code: 2, out: "-nope"},
		"a missing log":                 {args: func(args []string) []string { return append(args, "-kube-log", "/nonexistent/log") }, log: queued, code: 2, out: "/nonexistent/log"},
		"a missing kubeconfig":          {args: func(args []string) []string { return append(args, "-kubeconfig", "/nonexistent/config") }, log: queued, code: 2, out: "/nonexistent/config"},
		"a missing token":               {args: func(args []string) []string { return append(args, "-token-file", "/nonexistent/token") }, log: queued, code: 2, out: "token file"},
		"a pool without agents to list": {args: func(args []string) []string { return append(args, "-pool", "4") }, log: queued, code: 2, out: "list agents"},
		"a missing authority":           {args: func(args []string) []string { return append(args, "-ca-file", "/nonexistent/ca") }, log: queued, code: 2, out: "ca file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			args := files(t, test.log)
			if test.args != nil {
				args = test.args(args)
			}
			var stdout, stderr bytes.Buffer
			if code := run(ctx, args, &stdout, &stderr); code != test.code {
				t.Errorf("exit status is %d, want %d: %s%s", code, test.code, stdout.String(), stderr.String())
			}
			if text := stdout.String() + stderr.String(); !strings.Contains(text, test.out) {
				t.Errorf("the output has no %q:\n%s", test.out, text)
			}
		})
	}
}

func TestRunJSON(t *testing.T) {
	t.Parallel()
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), append(files(t, queued), "-json"), &stdout, &stderr); code != 1 {
		t.Fatalf("exit status is %d: %s", code, stderr.String())
	}
	var report audit.Report
	if err := json.Unmarshal(stdout.Bytes(), &report); err != nil || report.Builds != 1 || report.Lost != 1 || len(report.Findings) != 1 {
		t.Errorf("the report is %+v (%v)", report, err)
	}
}
