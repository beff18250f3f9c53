// Command workload is what the pods of the cluster's tests run.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const account = "/var/run/secrets/kubernetes.io/serviceaccount/"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
}

// run does one thing after another: each argument is VERB or VERB=VALUE.
func run(args []string) error {
	for _, arg := range args {
		verb, value, _ := strings.Cut(arg, "=")
		if err := do(verb, value); err != nil {
			return fmt.Errorf("%s: %w", arg, err)
		}
	}
	return nil
}

func do(verb, value string) error {
	switch verb {
	case "say":
		fmt.Println(value)
		return nil
	case "write":
		return os.WriteFile(value, []byte("written"), 0o600)
	case "expect":
		_, err := os.Stat(value)
		return err
	case "refuse-write":
		if err := os.WriteFile(value, nil, 0o600); err == nil {
			return errors.New("the file could be written")
		}
		return nil
	case "status":
		return status(value)
	case "api":
		return api(value)
	case "reach":
		response, err := http.Get(value)
		if err != nil {
			return err
		}
		return response.Body.Close()
	case "serve":
		return serve(value)
	case "wait":
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		<-ctx.Done()
		return nil
	default:
		return errors.New("unknown verb")
	}
}

// status wants a line of /proc/self/status: KEY:VALUE.
func status(want string) error {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	key, value, _ := strings.Cut(want, ":")
	for line := range strings.Lines(string(text)) {
		if name, got, _ := strings.Cut(line, ":"); name == key {
			if fields := strings.Fields(got); len(fields) > 0 && fields[0] == value {
				return nil
			}
			return fmt.Errorf("is %q", strings.TrimSpace(got))
		}
	}
	return errors.New("no such line")
}

// api calls the API server through its Service address with the pod's own
// token: CODE:PATH.
func api(want string) error {
	code, path, _ := strings.Cut(want, ":")
	token, err := os.ReadFile(filepath.Join(account, "token"))
	if err != nil {
		return err
	}
	authority, err := os.ReadFile(filepath.Join(account, "ca.crt"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	request, err := http.NewRequest(http.MethodGet, "https://"+os.Getenv("KUBERNETES_SERVICE_HOST")+":"+os.Getenv("KUBERNETES_SERVICE_PORT")+path, nil)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+string(token))
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(response.Status, code) {
		return fmt.Errorf("%s: %s", response.Status, body)
	}
	return nil
}

// serve answers probes for the time given, or until TERM.
func serve(value string) error {
	limit, err := time.ParseDuration(value)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	server := http.Server{Addr: ":8080", ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNoContent)
	})}
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return server.Close()
	}
}
