// Command audit reads the logs of a run, and what is live at its end, and says
// whether every build got exactly one agent and whether anything was left
// behind. It exits 0 if all is well, 1 if not, and 2 if it could not judge.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/azp-scaler/azp-scaler/test/audit"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	cancel()
	os.Exit(code)
}

// settings are the command's flags.
type settings struct {
	serviceLog, kubeLog, kubeconfig, url, tokenFile, caFile string
	scalerUsers, standingAgents, standingObjects            string
	placeholders, administrators, standingAccounts          string
	pool, warm                                              int
	cleanedUp                                               bool
	rightsLimit                                             time.Duration
	asJSON                                                  bool
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var s settings
	flags := flag.NewFlagSet("audit", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&s.serviceLog, "service-log", "", "audit log of the fake Azure DevOps (JSON lines)")
	flags.StringVar(&s.kubeLog, "kube-log", "", "audit log of the Kubernetes API server (JSON lines)")
	flags.StringVar(&s.kubeconfig, "kubeconfig", "", "kubeconfig of an administrator, to list what is live")
	flags.StringVar(&s.scalerUsers, "scaler-user", "", "user names of the scaler, comma-separated, such as system:serviceaccount:agents:azp-scaler")
	flags.StringVar(&s.standingAgents, "standing-agent", "", "names of agents that are no part of the run, comma-separated")
	flags.StringVar(&s.standingObjects, "standing-object", "", "objects of the installation as resource/namespace/name, comma-separated")
	flags.StringVar(&s.standingAccounts, "standing-account", "", "ServiceAccounts that builds share, as class=namespace/name, comma-separated")
	flags.StringVar(&s.placeholders, "placeholders", "azp-placeholder-", "how the names of the installation's placeholder agents begin")
	flags.BoolVar(&s.cleanedUp, "cleaned-up", false, "the installation was taken away, so that no placeholder may be left")
	flags.IntVar(&s.warm, "warm", 0, "how many agents each installation may keep waiting for builds")
	flags.StringVar(&s.administrators, "administrator", "", "identities that may change every registration, comma-separated")
	flags.StringVar(&s.url, "url", "", "address of the organisation, to cross-check registrations (optional)")
	flags.StringVar(&s.tokenFile, "token-file", "", "file with a personal access token for -url")
	flags.StringVar(&s.caFile, "ca-file", "", "root certificates for -url (PEM)")
	flags.IntVar(&s.pool, "pool", 0, "number of the pool for -url")
	flags.DurationVar(&s.rightsLimit, "rights-limit", 0, "how long after its agent's end a build may keep its rights (0: the default)")
	flags.BoolVar(&s.asJSON, "json", false, "write the report as JSON")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	report, err := judge(ctx, s)
	if err == nil {
		err = write(stdout, report, s.asJSON)
	}
	switch {
	case err != nil:
		_, _ = fmt.Fprintf(stderr, "audit: %v\n", err)
		return 2
	case !report.Clean():
		return 1
	default:
		return 0
	}
}

func judge(ctx context.Context, s settings) (audit.Report, error) {
	if s.serviceLog == "" || s.kubeLog == "" || s.kubeconfig == "" || s.scalerUsers == "" {
		return audit.Report{}, errors.New("-service-log, -kube-log, -kubeconfig and -scaler-user are needed")
	}
	accounts, err := pairs(s.standingAccounts)
	if err != nil {
		return audit.Report{}, fmt.Errorf("-standing-account: %w", err)
	}
	in, err := readLogs(s.serviceLog, s.kubeLog)
	if err != nil {
		return audit.Report{}, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", s.kubeconfig)
	if err != nil {
		return audit.Report{}, fmt.Errorf("kubeconfig %s: %w", s.kubeconfig, err)
	}
	if in.Objects, err = audit.ListObjects(ctx, config); err != nil {
		return audit.Report{}, err
	}
	if s.url != "" {
		if in.Agents, err = listAgents(ctx, s); err != nil {
			return audit.Report{}, err
		}
		in.AgentsListed = true
	}
	return audit.Judge(in, audit.Rules{
		ScalerUsers: split(s.scalerUsers), StandingAgents: split(s.standingAgents), StandingObjects: split(s.standingObjects), RightsLimit: s.rightsLimit,
		Placeholders: s.placeholders, CleanedUp: s.cleanedUp, Warm: s.warm, Administrators: split(s.administrators),
		StandingAccounts: accounts,
	}), nil
}

// pairs reads name=value, comma-separated.
func pairs(text string) (map[string]string, error) {
	named := map[string]string{}
	for _, pair := range split(text) {
		name, value, found := strings.Cut(pair, "=")
		if !found || name == "" || value == "" {
			return nil, fmt.Errorf("%q: want class=namespace/name", pair)
		}
		named[name] = value
	}
	return named, nil
}

func readLogs(servicePath, kubePath string) (audit.Input, error) {
	var in audit.Input
	service, err := os.Open(servicePath)
	if err != nil {
		return in, fmt.Errorf("service audit log: %w", err)
	}
	defer func() { _ = service.Close() }()
	if in.Service, err = audit.ReadServiceLog(service); err != nil {
		return in, err
	}
	kube, err := os.Open(kubePath)
	if err != nil {
		return in, fmt.Errorf("kubernetes audit log: %w", err)
	}
	defer func() { _ = kube.Close() }()
	in.Kube, err = audit.ReadKubeLog(kube)
	return in, err
}

func listAgents(ctx context.Context, s settings) ([]audit.LiveAgent, error) {
	if s.tokenFile == "" || s.pool == 0 {
		return nil, errors.New("-url needs -token-file and -pool")
	}
	token, err := os.ReadFile(s.tokenFile)
	if err != nil {
		return nil, fmt.Errorf("token file: %w", err)
	}
	transport := &http.Transport{}
	if s.caFile != "" {
		pem, err := os.ReadFile(s.caFile)
		if err != nil {
			return nil, fmt.Errorf("ca file: %w", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca file %s: holds no certificate in PEM form", s.caFile)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	client := &http.Client{Timeout: time.Minute, Transport: transport}
	return audit.ListAgents(ctx, client, s.url, strings.TrimSpace(string(token)), s.pool)
}

func write(w io.Writer, report audit.Report, asJSON bool) error {
	if !asJSON {
		return report.WriteText(w)
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(report); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func split(list string) []string {
	var out []string
	for word := range strings.SplitSeq(list, ",") {
		if word = strings.TrimSpace(word); word != "" {
			out = append(out, word)
		}
	}
	return out
}
