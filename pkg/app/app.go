package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// App is a scaler that can be run once.
type App struct {
	config   Config
	log      *slog.Logger
	registry *prometheus.Registry
	metrics  *scaler.Metrics
	client   *azuredevops.Client
	kube     kubernetes.Interface
	listener net.Listener
	waiting  atomic.Pointer[string]
	loop     atomic.Pointer[scaler.Scaler]
}

// ErrConfiguration is wrapped by errors that only another configuration mends.
var ErrConfiguration = errors.New("bad configuration")

// New checks the configuration and makes the clients. It opens the HTTP port,
// and asks neither Azure DevOps nor the cluster anything.
func New(config Config, version string, log *slog.Logger) (*App, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("%w:\n%w", ErrConfiguration, err)
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	recorder, metrics := NewMetrics(registry)
	token := azuredevops.StaticToken(config.Token)
	if config.TokenFile != "" {
		token = azuredevops.FileToken(config.TokenFile)
	}
	client, err := azuredevops.New(azuredevops.Config{
		URL: config.URL, Token: token, CAFile: config.CAFile, UserAgent: "azp-scaler/" + version,
		Recorder: recorder, Logger: log,
	})
	if err != nil {
		return nil, fmt.Errorf("%w:\n%w", ErrConfiguration, err)
	}
	clientset, err := newClientset(config.Kubeconfig, version)
	if err != nil {
		return nil, fmt.Errorf("%w:\n%w", ErrConfiguration, err)
	}
	listener, err := net.Listen("tcp", config.Listen)
	if err != nil {
		return nil, fmt.Errorf("%w:\nAZP_LISTEN %q can't be listened on: %w", ErrConfiguration, config.Listen, err)
	}
	a := &App{
		config: config, log: log, registry: registry, metrics: metrics,
		client: client, kube: clientset, listener: listener,
	}
	a.wait("starting")
	return a, nil
}

// newClientset makes the client of the cluster. The limits suit bursts of a few
// hundred Jobs with five writes each; the API server's own fairness is what
// protects it.
func newClientset(kubeconfig, version string) (kubernetes.Interface, error) {
	var (
		config *rest.Config
		err    error
	)
	if kubeconfig == "" {
		if config, err = rest.InClusterConfig(); err != nil {
			return nil, fmt.Errorf("KUBECONFIG is not set and this is no pod of a cluster: %w", err)
		}
	} else if config, err = clientcmd.BuildConfigFromFlags("", kubeconfig); err != nil {
		return nil, fmt.Errorf("KUBECONFIG %q can't be used: %w", kubeconfig, err)
	}
	config.QPS, config.Burst = 100, 200
	config.UserAgent = "azp-scaler/" + version
	return kubernetes.NewForConfig(config)
}

// Addr is where the HTTP server listens.
func (a *App) Addr() string { return a.listener.Addr().String() }

// Run works until ctx ends and returns nil then. It returns an error for what
// waiting does not mend: a pool that does not exist, or a credential that is
// refused at the start.
func (a *App) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return serve(ctx, a.listener, handler(a.registry, a.alive, a.ready))
	})
	group.Go(func() error { return a.work(ctx) })
	err := group.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (a *App) work(ctx context.Context) error {
	pool, err := a.findPool(ctx)
	if err != nil {
		return err
	}
	a.wait("the cache of Jobs and pods is not filled yet")
	k, err := a.connect(pool)
	if err != nil {
		return err
	}
	loop := scaler.New(a.loopConfig(pool, k), service{a.client}, k, a.metrics, a.log, time.Now)
	a.loop.Store(loop)
	a.log.Info("scaling", "url", a.config.URL, "pool", pool.Name, "pool_id", pool.ID,
		"namespace", a.config.Namespace, "instance", k.settings.Identity.Instance)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return k.Run(ctx) })
	group.Go(func() error { return loop.Run(ctx) })
	return group.Wait()
}

// connect makes the loop's view of the cluster. It asks the cluster nothing.
func (a *App) connect(pool agentpool.Pool) (kube, error) {
	settings, classes, err := a.classes(pool)
	if err != nil {
		return kube{}, fmt.Errorf("%w:\n%w", ErrConfiguration, err)
	}
	var namespaces []string
	for _, binding := range a.config.RoleBindings.List {
		namespaces = append(namespaces, binding.Namespace)
	}
	c, err := cluster.New(cluster.Config{
		Client: a.kube, Namespace: a.config.Namespace, Instance: settings.Identity.Instance,
		TargetNamespaces: func() []string { return namespaces }, Logger: a.log, Clock: time.Now,
		// The cluster may tell of changes before there is a loop to tell.
		OnChange: a.changed,
	})
	if err != nil {
		return kube{}, err
	}
	return kube{Cluster: c, settings: settings, classes: classes, now: time.Now}, nil
}

func (a *App) changed() {
	if loop := a.loop.Load(); loop != nil {
		loop.Notify()
	}
}

// The waits of findPool between tries, which double.
const (
	poolRetryMin = time.Second
	poolRetryMax = 30 * time.Second
)

// findPool asks for the pool until the service answers. An answer that waiting
// does not change is an error.
func (a *App) findPool(ctx context.Context) (agentpool.Pool, error) {
	wait := poolRetryMin
	for {
		pool, err := a.client.PoolByName(ctx, a.config.Pool)
		if err == nil {
			return pool, nil
		}
		if ctx.Err() != nil {
			return agentpool.Pool{}, ctx.Err()
		}
		if !passing(err) {
			return agentpool.Pool{}, err
		}
		a.wait("Azure DevOps can't be asked for the pool: " + err.Error())
		a.log.Warn("Azure DevOps can't be asked for the pool, trying again", "retry_in", wait, "error", err)
		select {
		case <-ctx.Done():
			return agentpool.Pool{}, ctx.Err()
		case <-time.After(wait):
		}
		wait = min(2*wait, poolRetryMax)
	}
}

// passing reports whether an error of the service may go away by itself.
func passing(err error) bool {
	var throttled *azuredevops.ThrottledError
	return errors.Is(err, azuredevops.ErrUnavailable) || errors.Is(err, azuredevops.ErrUnexpectedAnswer) || errors.As(err, &throttled)
}

// classes gives the classes of agent: one, made from the environment.
func (a *App) classes(pool agentpool.Pool) (agentjob.Settings, map[string]class, error) {
	settings := jobSettings(a.config, pool)
	if err := settings.Validate(); err != nil {
		return agentjob.Settings{}, nil, err
	}
	capabilities := map[string]string{
		"Agent.OS": "Linux", "Agent.OSArchitecture": architecture(), "Agent.ComputerName": "",
		"Agent.HomeDirectory": settings.AgentRoot, "InteractiveSession": "False",
	}
	for name, value := range a.config.Capabilities.Pairs {
		capabilities[name] = value
	}
	return settings, map[string]class{
		defaultClass: {
			AgentClass: agentpool.AgentClass{
				Name: defaultClass, Capabilities: agentpool.NewCapabilities(capabilities),
				RoleBindings: a.config.RoleBindings.List, Registration: agentpool.RegistrationConfig,
				GracePeriod: a.config.GracePeriod.Duration,
			},
			template: agentjob.DefaultTemplate(defaultTemplate(a.config)),
		},
	}, nil
}

// defaultClass is the name of the class made from the environment.
const defaultClass = "default"

// architecture is how an agent calls the processor that the scaler runs on,
// which is taken for the agents' too.
func architecture() string {
	if runtime.GOARCH == "arm64" {
		return "ARM64"
	}
	return "X64"
}

func (a *App) wait(why string) { a.waiting.Store(&why) }

// alive says why the process should be started again, or nothing.
func (a *App) alive() string {
	if loop := a.loop.Load(); loop != nil {
		return loop.Stuck(time.Now())
	}
	return ""
}

// ready says why the scaler is not doing its work, or nothing.
func (a *App) ready() string {
	if loop := a.loop.Load(); loop != nil {
		return loop.NotReady(time.Now())
	}
	return *a.waiting.Load()
}
