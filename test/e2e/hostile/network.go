package hostile

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	pageLimit = 2 * time.Second
	callLimit = 10 * time.Second
	// largestAnswer bounds what is looked at of one answer.
	largestAnswer = 8 << 20
	// accountDir is where Kubernetes puts an account's token.
	accountDir = "/var/run/secrets/kubernetes.io/serviceaccount"
)

// paths are those that programs are known to tell about themselves at.
func paths() []string {
	return []string{"/", "/metrics", "/healthz", "/readyz", "/started", "/ready", "/status", "/config", "/configz", "/pods", "/debug/pprof/", "/debug/pprof/cmdline?debug=1", "/debug/vars"}
}

// network looks at what every port of the pod, and some other pages, answer.
func (s *search) network(ctx context.Context, pages []string) {
	s.report.Ports = s.listening()
	var addresses []string
	for _, port := range s.report.Ports {
		for _, path := range paths() {
			addresses = append(addresses, "http://"+port+path)
		}
	}
	// Whose certificate it is does not matter to somebody who only looks.
	client := &http.Client{Timeout: pageLimit, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}} //nolint:gosec // As said.
	for _, address := range append(addresses, pages...) {
		s.page(ctx, client, address)
	}
}

func (s *search) page(ctx context.Context, client *http.Client, address string) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		s.report.Troubles = append(s.report.Troubles, err.Error())
		return
	}
	response, err := client.Do(request)
	if err != nil {
		return // Nobody there, or nobody who speaks HTTP.
	}
	defer func() { _ = response.Body.Close() }()
	names, _ := s.set.Read(io.LimitReader(response.Body, largestAnswer))
	s.found(InNetwork, address, append(names, s.set.In(fmt.Append(nil, response.Header))...))
}

// listening gives the addresses in the pod at which something listens, whichever of its
// containers that is in: they have one network. The format is that of proc_net_tcp.
func (s *search) listening() []string {
	const stateListen = "0A"
	var out []string
	for _, name := range []string{"tcp", "tcp6"} {
		file, err := os.Open(filepath.Join(s.proc, "self", "net", name))
		if err != nil {
			continue
		}
		lines := bufio.NewScanner(file)
		for lines.Scan() {
			fields := strings.Fields(lines.Text())
			if len(fields) < 4 || fields[3] != stateListen {
				continue
			}
			address, port, _ := strings.Cut(fields[1], ":")
			number, err := strconv.ParseUint(port, 16, 16)
			if err != nil {
				continue
			}
			out = append(out, net.JoinHostPort(hostOf(address), strconv.FormatUint(number, 10)))
		}
		_ = file.Close()
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// hostOf reads an address as the kernel prints it: words of 32 bits, each in the
// machine's order. Every address of the pod is reached by its loopback where it is bound
// to all.
func hostOf(text string) string {
	data, err := hex.DecodeString(text)
	if err != nil || len(data)%4 != 0 {
		return "127.0.0.1"
	}
	for i := 0; i < len(data); i += 4 {
		slices.Reverse(data[i : i+4])
	}
	ip := net.IP(data)
	if ip.IsUnspecified() {
		return "127.0.0.1"
	}
	return ip.String()
}

// account is the build's own way to the API server.
type account struct {
	server string
	token  string
	client *http.Client
}

// newAccount takes what Kubernetes gives to each container that wants it.
func newAccount(lookup func(string) (string, bool), dir string) (*account, error) {
	token, err := os.ReadFile(filepath.Join(dir, "token"))
	if err != nil {
		return nil, err
	}
	authority, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	host, _ := lookup("KUBERNETES_SERVICE_HOST")
	port, _ := lookup("KUBERNETES_SERVICE_PORT")
	return &account{
		server: "https://" + net.JoinHostPort(host, port), token: strings.TrimSpace(string(token)),
		client: &http.Client{Timeout: callLimit, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}},
	}, nil
}

// ask makes the calls of a plan and looks at what they are answered.
func (s *search) ask(ctx context.Context, with *account, calls []Call) {
	names := strings.NewReplacer("{pod}", s.report.Pod, "{job}", s.report.Job)
	for _, call := range calls {
		call.Path, call.Body = names.Replace(call.Path), names.Replace(call.Body)
		code, body, err := with.do(ctx, call)
		if err != nil {
			s.report.Troubles = append(s.report.Troubles, fmt.Sprintf("%s: %v", call, err))
			continue
		}
		s.found(InAPI, call.String(), s.set.In(body))
		answer := Answer{Call: call, Code: code}
		answer.Call.Body = ""
		if call.Keep {
			answer.Body = string(body)
		}
		s.report.Answers = append(s.report.Answers, answer)
	}
}

func (a *account) do(ctx context.Context, call Call) (code int, body []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, call.Method, a.server+call.Path, strings.NewReader(call.Body))
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("Authorization", "Bearer "+a.token)
	request.Header.Set("Content-Type", "application/json")
	if call.Method == http.MethodPatch {
		request.Header.Set("Content-Type", "application/merge-patch+json")
	}
	if call.As != "" {
		request.Header.Set("Impersonate-User", call.As)
	}
	response, err := a.client.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err = io.ReadAll(io.LimitReader(response.Body, largestAnswer))
	return response.StatusCode, body, err
}
