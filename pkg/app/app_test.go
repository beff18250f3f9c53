package app_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/app"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

// waitLimit is for what happens in well under a second on an idle machine.
const waitLimit = 20 * time.Second

// kubeconfigOf names an API server at which nobody answers: what is tested here
// comes before the cluster is asked.
func kubeconfigOf(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	const text = `{"apiVersion":"v1","kind":"Config","clusters":[{"name":"c","cluster":{"server":"http://127.0.0.1:1"}}],
"users":[{"name":"u","user":{}}],"contexts":[{"name":"x","context":{"cluster":"c","user":"u"}}],"current-context":"x"}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// service starts a fake Azure DevOps and gives the variables that lead to it.
func service(t *testing.T, options azuredevopstest.Options) (*azuredevopstest.Server, map[string]string) {
	t.Helper()
	options.Organisation = "acme"
	options.Tokens = append(options.Tokens, azuredevopstest.Token{Secret: "good-token", Rights: azuredevopstest.RightsManage})
	server, err := azuredevopstest.New(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	server.CreatePool("kubernetes")
	server.CreatePool("windows")
	endpoint, err := server.StartTLS("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(ca, endpoint.CAPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	return server, map[string]string{
		"AZP_URL": endpoint.URL, "AZP_POOL": "kubernetes", "AZP_CA_FILE": ca, "AZP_TOKEN": "good-token", "AZP_TOKEN_FILE": "",
		"AZP_LISTEN": "127.0.0.1:0", "KUBECONFIG": kubeconfigOf(t),
	}
}

func newApp(t *testing.T, variables map[string]string) *app.App {
	t.Helper()
	a, err := app.New(load(t, variables), "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Listen(); err != nil {
		t.Fatal(err)
	}
	return a
}

func TestWhatIsFatalAtTheStart(t *testing.T) {
	tests := map[string]struct {
		options azuredevopstest.Options
		change  func(*azuredevopstest.Server, map[string]string)
		want    []string
	}{
		"unknown pool": {
			change: func(_ *azuredevopstest.Server, v map[string]string) { v["AZP_POOL"] = "kubernetis" },
			want:   []string{`"kubernetis"`, "kubernetes", "windows"},
		},
		"two pools of that name": {
			change: func(s *azuredevopstest.Server, _ map[string]string) { s.CreatePool("kubernetes") },
			want:   []string{`"kubernetes"`, "2"},
		},
		"refused token, sign-in page": {
			change: func(_ *azuredevopstest.Server, v map[string]string) { v["AZP_TOKEN"] = "bad-token" },
			want:   []string{"203", "token"},
		},
		"refused token, redirect": {
			options: azuredevopstest.Options{SignInFailure: azuredevopstest.SignInRedirect},
			change:  func(_ *azuredevopstest.Server, v map[string]string) { v["AZP_TOKEN"] = "bad-token" },
			want:    []string{"token"},
		},
		"refused token, 401": {
			options: azuredevopstest.Options{SignInFailure: azuredevopstest.SignInDenied},
			change:  func(_ *azuredevopstest.Server, v map[string]string) { v["AZP_TOKEN"] = "bad-token" },
			want:    []string{"401", "token"},
		},
		"expired token": {
			options: azuredevopstest.Options{Tokens: []azuredevopstest.Token{{Secret: "old-token", Expired: true}}},
			change:  func(_ *azuredevopstest.Server, v map[string]string) { v["AZP_TOKEN"] = "old-token" },
			want:    []string{"expired"},
		},
		"missing rights": {
			options: azuredevopstest.Options{Tokens: []azuredevopstest.Token{{Secret: "weak-token", Rights: azuredevopstest.RightsNone}}},
			change:  func(_ *azuredevopstest.Server, v map[string]string) { v["AZP_TOKEN"] = "weak-token" },
			want:    []string{"403", "Agent Pools"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			server, variables := service(t, test.options)
			test.change(server, variables)
			ctx, cancel := context.WithTimeout(t.Context(), waitLimit)
			defer cancel()
			err := newApp(t, variables).Run(ctx)
			if err == nil {
				t.Fatal("it ran on")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q:\n%v", want, err)
				}
			}
			if strings.Contains(err.Error(), variables["AZP_TOKEN"]) {
				t.Errorf("the error gives the token away:\n%v", err)
			}
		})
	}
}

func TestUnreachableServiceIsWaitedFor(t *testing.T) {
	// A port that nobody has, for the service to come up at later.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	variables := map[string]string{
		"AZP_URL": "https://" + address + "/acme", "AZP_POOL": "kubernetes", "AZP_LISTEN": "127.0.0.1:0", "KUBECONFIG": kubeconfigOf(t),
	}
	a := newApp(t, variables)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	waitFor(t, a, done, "/readyz", http.StatusServiceUnavailable, "Azure DevOps can't be asked for the pool")
	waitFor(t, a, done, "/healthz", http.StatusOK, "ok")
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("told to stop while waiting, it ended with %v", err)
		}
	case <-time.After(waitLimit):
		t.Fatal("it does not stop while it waits")
	}
}

func TestReadinessSaysWhatIsMissing(t *testing.T) {
	_, variables := service(t, azuredevopstest.Options{})
	variables["AZP_LEADER_ELECTION"] = "false" // It would wait for its Lease first.
	a := newApp(t, variables)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	// The service is there and the cluster is not.
	waitFor(t, a, done, "/readyz", http.StatusServiceUnavailable, "the cache of Jobs and pods is not filled yet")
	waitFor(t, a, done, "/metrics", http.StatusOK, `azp_scaler_last_successful_poll_timestamp_seconds{pool="kubernetes"} 0`)
	waitFor(t, a, done, "/", http.StatusOK, "azp-scaler")
	cancel()
	if err := <-done; err != nil {
		t.Errorf("told to stop, it ended with %v", err)
	}
}

// waitFor asks until the answer has the status and the text.
func waitFor(t *testing.T, a *app.App, done <-chan error, path string, status int, text string) {
	t.Helper()
	var last string
	for deadline := time.Now().Add(waitLimit); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		response, err := http.Get("http://" + a.Addr() + path)
		if err != nil {
			last = err.Error()
			continue
		}
		body, err := io.ReadAll(response.Body)
		if err := errors.Join(err, response.Body.Close()); err != nil {
			last = err.Error()
			continue
		}
		last = response.Status + ": " + string(body)
		if response.StatusCode == status && strings.Contains(string(body), text) {
			return
		}
	}
	select {
	case err := <-done:
		t.Fatalf("it ended: %v", err)
	default:
	}
	t.Fatalf("%s never answered %d with %q, last: %s", path, status, text, last)
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	for name, test := range map[string]struct {
		variables map[string]string
		want      string
	}{
		"no URL":             {map[string]string{"AZP_URL": ""}, "AZP_URL"},
		"no kubeconfig":      {map[string]string{"KUBECONFIG": "/does/not/exist"}, `KUBECONFIG "/does/not/exist"`},
		"no pod":             {map[string]string{"KUBECONFIG": ""}, "KUBECONFIG is not set"},
		"address in use":     {map[string]string{"AZP_LISTEN": taken.Addr().String()}, "AZP_LISTEN"},
		"CA without content": {map[string]string{"AZP_CA_FILE": "/dev/null"}, "/dev/null"},
	} {
		t.Run(name, func(t *testing.T) {
			variables := map[string]string{"KUBECONFIG": kubeconfigOf(t), "AZP_LISTEN": "127.0.0.1:0"}
			for key, value := range test.variables {
				variables[key] = value
			}
			a, err := app.New(load(t, variables), "test", slog.New(slog.DiscardHandler))
			if err == nil {
				err = a.Listen()
			}
			if !errors.Is(err, app.ErrConfiguration) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("want a configuration error that names %s, got %v", test.want, err)
			}
		})
	}
}
