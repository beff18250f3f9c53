package env

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/term"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest/entratest"
	"github.com/azp-scaler/azp-scaler/test/cluster"
	"github.com/azp-scaler/azp-scaler/test/e2e/hostnode"
	"github.com/azp-scaler/azp-scaler/test/e2e/interpose"
	"github.com/azp-scaler/azp-scaler/test/forwardproxy"
)

// Options says how to set the system up. The zero value with a Dir is good.
type Options struct {
	// Dir receives binaries and logs, which stay. It is made if need be.
	Dir string
	// Seed decides everything that is drawn: the service's choices among agents
	// and its numbers.
	Seed uint64
	// Node is the kind of node.
	Node cluster.NodeKind
	// Progress receives a line for each step that takes time; nil is silence.
	Progress io.Writer
	// Scaler overrides or adds variables of the scaler's environment.
	Scaler map[string]string
	// Service are options of the fake service. Organisation, seed, audit log and
	// the pool's token are set here.
	Service azuredevopstest.Options
	// Registration is how agents come to be known to the pool, where their class does not
	// say: config (the default) or jit. With jit the pool's token is in no namespace.
	Registration string
	// Download has pods download the agent from the service, instead of finding
	// it in the image.
	Download bool
	// Chart has the scaler installed as users do, instead of run beside the cluster; nil is the
	// latter. Scaler, Download, Proxy, Interpose and Classes have no meaning then.
	Chart *Chart
	// Proxy has nobody reach the service but through a proxy that wants to be told a user and
	// password: the service has a name that only the proxy resolves.
	Proxy bool
	// AgentFaults are traps of the stand-in agent, as test/fakeagent names them.
	AgentFaults []string
	// Interpose is asked around each call to the service and each of the scaler to the API
	// server, and ends the connection there when it reports true; see test/e2e/interpose.
	// Env.Caller tells who calls. Nil has nobody stand between.
	Interpose interpose.Hook
	// ControllerManagerQPS is that of test/cluster; 0 is what users have.
	ControllerManagerQPS int
	// Classes are the classes of agent that are there from the start. Without any
	// there is the one that the scaler's environment makes.
	Classes []Class
}

// Env is a running system. The scaler is prepared, but not started: see
// Installation.StartScaler.
type Env struct {
	*Installation // The first one; Install adds others.

	Service *Service
	// Proxy is the way to the service, where the options want one, else nil. It tells the
	// scaler, ProxyUserScaler, from the agents, ProxyUserAgents.
	Proxy *forwardproxy.Proxy
	// Warm is how many agents each installation keeps waiting at most in this run,
	// for the auditor.
	Warm int
	// StandingAccounts are ServiceAccounts that builds run as and that are not made for
	// them, as namespace/name, by class, for the auditor.
	StandingAccounts map[string]string
	// Killed are the agents whose container the test has killed, and when, for the auditor.
	Killed map[string]time.Time
	// Admin has every right in the cluster; the scaler has not.
	Admin           kubernetes.Interface
	AdminKubeconfig string
	KubeAuditLog    string // Path.
	CAFile          string // The service's certificate authority, PEM.

	options       Options
	built         artefacts
	installations []*Installation
	foreign       []*Foreign
	entras        []*entratest.Server
	cluster       *cluster.Cluster
	config        *rest.Config
	node          *hostnode.Node // Nil where the node is real.
	private       string         // Directory of what must not stay; it goes with the cluster.
	dir           string         // Options.Dir, absolute.
	observer      *observer
	registry      *registry // Nil where nothing is pulled.
}

// The names of log files in Options.Dir.
const (
	serviceLogName = "service-audit.jsonl"
	kubeLogName    = "kubernetes-audit.jsonl"
	scalerLogName  = "scaler.log"
)

// Start sets the system up: cluster, images, service, and what an installation
// consists of. On error nothing is left running. Close must follow.
func Start(ctx context.Context, options Options) (*Env, error) {
	if options.Dir == "" {
		return nil, errors.New("set the system up: Options.Dir is not set: name a directory for binaries and logs")
	}
	dir, err := filepath.Abs(options.Dir)
	if err != nil {
		return nil, fmt.Errorf("set the system up: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("set the system up: %w", err)
	}
	e := &Env{KubeAuditLog: filepath.Join(dir, "audit", kubeLogName), options: options, dir: dir}
	e.Installation = e.primary(dir)
	e.installations = []*Installation{e.Installation}
	if err := e.start(ctx, options, dir); err != nil {
		// The caller's context may be what ended; Close has limits of its own.
		return nil, errors.Join(fmt.Errorf("set the system up: %w", err), e.Close(context.WithoutCancel(ctx)))
	}
	return e, nil
}

func (e *Env) start(ctx context.Context, options Options, dir string) error {
	steps := &steps{out: options.Progress}
	clusterOptions := cluster.Options{
		Node: options.Node, AuditLog: e.KubeAuditLog, ControllerManagerQPS: options.ControllerManagerQPS, Progress: options.Progress,
		NameService: options.Chart != nil, // The chart has pods call the scaler by its Service's name.
	}
	// Built first and alone: it takes minutes the first time, and both cores.
	if _, err := cluster.Ensure(ctx, clusterOptions); err != nil {
		return err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		e.cluster, err = cluster.Start(groupCtx, clusterOptions)
		return err
	})
	group.Go(func() (err error) {
		e.built, err = build(groupCtx, steps, dir, options)
		return err
	})
	if err := group.Wait(); err != nil {
		return err
	}
	if err := e.connect(); err != nil {
		return err
	}
	if err := e.startObserver(); err != nil {
		return err
	}
	if err := e.startService(dir, options); err != nil {
		return err
	}
	if options.Chart != nil {
		return e.startChart(ctx, steps)
	}
	if e.Node() == cluster.Real {
		if err := e.loadImage(ctx, steps, dir, options); err != nil {
			return err
		}
	}
	if err := steps.run("installing", func() error { return e.install(ctx, e.built.root) }); err != nil {
		return err
	}
	for _, class := range options.Classes {
		if err := e.Apply(ctx, class); err != nil {
			return err
		}
	}
	if e.Node() == cluster.Simulated {
		if err := steps.run("starting a node whose containers are processes", func() error { return e.startProcessNode(ctx, dir, options) }); err != nil {
			return err
		}
	}
	return e.prepareScaler(ctx, options.Scaler, options.Interpose)
}

func (e *Env) connect() error {
	e.AdminKubeconfig = e.cluster.AdminKubeconfig()
	e.private = filepath.Dir(e.AdminKubeconfig)
	e.config = e.cluster.RESTConfig()
	// A class says nothing of the restrictions that the scaler lays over it, and the
	// API server would warn of that on the standard error, in the middle of a table.
	quiet := rest.CopyConfig(e.config)
	quiet.WarningHandler = rest.NoWarnings{}
	var err error
	if e.Admin, err = kubernetes.NewForConfig(quiet); err != nil {
		return fmt.Errorf("client of the cluster: %w", err)
	}
	return nil
}

func (e *Env) startService(dir string, options Options) error {
	service := options.Service
	service.Seed = options.Seed
	if options.Interpose != nil {
		service.Around = func(next http.Handler) http.Handler {
			return interpose.Handler(ServerAzureDevOps, next, options.Interpose)
		}
	}
	service.Packages = append(service.Packages, e.built.agentPackage)
	var err error
	name := e.cluster.HostAddress()
	if options.Proxy {
		name = hiddenName
		if err := e.startProxy(); err != nil {
			return err
		}
	}
	if e.Service, err = startService(e.cluster.HostAddress(), name, filepath.Join(dir, serviceLogName), service); err != nil {
		return err
	}
	if err := e.Service.admit(e.Installation); err != nil {
		return err
	}
	e.CAFile = filepath.Join(e.private, "service-ca.crt")
	if err := os.WriteFile(e.CAFile, e.Service.CA, 0o600); err != nil {
		return fmt.Errorf("the service's certificate authority: %w", err)
	}
	return nil
}

// SignIn gives a client that has nothing but a token.
func (e *Env) SignIn(token string) (kubernetes.Interface, error) {
	config := rest.AnonymousClientConfig(e.config)
	config.BearerToken = token
	return kubernetes.NewForConfig(config)
}

// Node is the kind of node that pods run on.
func (e *Env) Node() cluster.NodeKind { return e.cluster.Node() }

// Kubectl is the path of the cluster's kubectl.
func (e *Env) Kubectl() string { return e.cluster.Binaries().Kubectl() }

// ServiceOrigin is the service's address without the organisation.
func (e *Env) ServiceOrigin() string { return strings.TrimSuffix(e.Service.URL, "/"+organisation) }

// HostAddress is where pods reach what listens on this machine.
func (e *Env) HostAddress() string { return e.cluster.HostAddress() }

// Seed decides everything that is drawn.
func (e *Env) Seed() uint64 { return e.options.Seed }

// Registration is how the agents come to be known to the pool.
func (e *Env) Registration() string { return e.options.Registration }

// As gives a client of the cluster that signs in with a token.
func (e *Env) As(token string) (kubernetes.Interface, error) {
	config := rest.AnonymousClientConfig(e.config)
	config.BearerToken = token
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("client of the cluster: %w", err)
	}
	return client, nil
}

// Close ends everything, and looks for secrets in what the run has shown and left. Logs
// stay.
func (e *Env) Close(ctx context.Context) error {
	var failures []error
	for _, in := range e.installations {
		failures = append(failures, in.keepPages(ctx), in.close())
	}
	if e.observer != nil {
		e.observer.stop()
		if e.Service != nil {
			failures = append(failures, (&steps{out: e.options.Progress}).run("looking for secrets in all that is left", e.sweep))
		}
		failures = append(failures, e.observer.close())
	}
	for _, agent := range e.foreign {
		failures = append(failures, agent.close())
	}
	if e.node != nil {
		failures = append(failures, e.node.Close(ctx))
	}
	// The cluster goes before the service: pods that lose the service would
	// only complain.
	if e.cluster != nil {
		failures = append(failures, e.cluster.Stop(ctx))
	}
	if e.registry != nil {
		failures = append(failures, e.registry.close())
	}
	if e.Proxy != nil {
		e.Proxy.Close()
	}
	for _, entra := range e.entras {
		entra.Close()
	}
	if e.Service != nil {
		failures = append(failures, e.Service.close())
	}
	return errors.Join(failures...)
}

// steps reports what takes time.
type steps struct{ out io.Writer }

// clearLine removes what stands in a terminal's line: the cluster, which starts
// at the same time, keeps a line there that it rewrites.
const clearLine = "\r\x1b[K"

// run does one step and says how long it took. Output goes on when the reader
// has gone away.
func (s *steps) run(what string, do func() error) error {
	begun := time.Now()
	err := do()
	if s.out != nil && err == nil {
		start := ""
		if file, ok := s.out.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
			start = clearLine
		}
		_, _ = fmt.Fprintf(s.out, "%s%s: %s\n", start, what, time.Since(begun).Round(100*time.Millisecond))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
