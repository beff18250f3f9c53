package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	batchv1 "k8s.io/api/batch/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// App is a scaler that can be run once, or asked once.
type App struct {
	config    Config
	log       *slog.Logger
	registry  *prometheus.Registry
	metrics   Metrics
	client    *azuredevops.Client
	renewing  renewing // Nil where the token is not one that is renewed.
	keepEvery time.Duration
	patience  time.Duration // Of a cleanup with what fails.
	kube      kubernetes.Interface
	listener  net.Listener
	waiting   atomic.Pointer[string]
	loops     atomic.Pointer[[]loop]
	election  *election // Nil where there is none.
}

// loop is what works for one pool.
type loop struct {
	*scaler.Scaler
	kube kube
}

// ErrConfiguration is wrapped by errors that only another configuration mends.
var ErrConfiguration = errors.New("bad configuration")

// New checks the configuration and makes the clients. It asks neither Azure DevOps nor
// the cluster anything.
func New(config Config, version string, log *slog.Logger) (*App, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("%w:\n%w", ErrConfiguration, err)
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	metrics := NewMetrics(registry)
	token, scheme, err := config.signIn(log)
	if err != nil {
		return nil, fmt.Errorf("%w:\n%w", ErrConfiguration, err)
	}
	client, err := azuredevops.New(azuredevops.Config{
		URL: config.URL, Token: token, Scheme: scheme, CAFile: config.CAFile, Proxy: config.proxy(), UserAgent: "azp-scaler/" + version,
		Recorder: metrics.Recorder, Logger: log,
	})
	if err != nil {
		return nil, fmt.Errorf("%w:\n%w", ErrConfiguration, err)
	}
	clientset, err := newClientset(config.Kubeconfig, version)
	if err != nil {
		return nil, fmt.Errorf("%w:\n%w", ErrConfiguration, err)
	}
	a := &App{config: config, log: log, registry: registry, metrics: metrics, client: client, kube: clientset, keepEvery: keepEvery, patience: leavePatience}
	a.renewing, _ = token.(renewing)
	if config.LeaderElection.On {
		// With a client of its own, so that no burst of Jobs holds back a renewal.
		leases, err := newClientset(config.Kubeconfig, version)
		if err != nil {
			return nil, fmt.Errorf("%w:\n%w", ErrConfiguration, err)
		}
		if a.election, err = newElection(leases.CoordinationV1(), config, log); err != nil {
			return nil, fmt.Errorf("%w:\n%w", ErrConfiguration, err)
		}
	}
	a.wait("starting")
	return a, nil
}

// Listen opens the HTTP port, which Run serves.
func (a *App) Listen() error {
	listener, err := net.Listen("tcp", a.config.Listen)
	if err != nil {
		return fmt.Errorf("%w:\nAZP_LISTEN %q can't be listened on: %w", ErrConfiguration, a.config.Listen, err)
	}
	a.listener = listener
	return nil
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

// Run works until ctx ends and returns nil then. Listen has to come before it. It
// returns an error for what waiting does not mend: a pool that does not exist, or a
// credential that is refused at the start.
func (a *App) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return serve(ctx, a.listener, handler(a.registry, a.alive, a.ready, a.claimed))
	})
	group.Go(func() error { return a.work(ctx) })
	err := group.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// work has one loop for each pool, and one watch of the classes for all.
func (a *App) work(ctx context.Context) error {
	var pools []agentpool.Pool
	for _, name := range a.config.Pools {
		pool, err := a.findPool(ctx, name)
		if err != nil {
			return err
		}
		pools = append(pools, pool)
	}
	a.wait("the cache of Jobs and pods is not filled yet")
	var keeper *tokenKeeper // Set before the watch is run, which calls OnChange.
	watch, err := cluster.NewClasses(cluster.ClassesConfig{
		Client: a.kube, Namespace: a.config.Namespace, Logger: a.log, OnChange: func() {
			keeper.look()
			a.classesChanged()
		},
	})
	if err != nil {
		return err
	}
	catalogue := a.newCatalogue(watch.CronJobs, watch.RecordEvent, a.log)
	if keeper, err = a.newTokenKeeper(catalogue, pools); err != nil {
		return err
	}
	a.metrics.Classes.watch(catalogue, pools)
	var loops []loop
	for i, pool := range pools {
		k, err := a.connect(a.config.Pools[i], pool, catalogue, watch.Synced)
		if err != nil {
			return err
		}
		k.token = keeper
		config := loopConfig(a.config, k.settings)
		config.History, config.Mark = k.service, a.mark
		config.OtherPools = func() int { return a.runningBeside(pool) }
		loops = append(loops, loop{
			Scaler: scaler.New(config, k.service, k, a.metrics.Loop, a.log, time.Now),
			kube:   k,
		})
		a.log.Info("scaling", "url", a.config.URL, "pool", pool.Name, "pool_id", pool.ID,
			"namespace", a.config.Namespace, "instance", k.settings.Identity.Instance)
	}
	a.loops.Store(&loops)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return watch.Run(ctx) })
	if keeper != nil {
		group.Go(func() error { return keeper.run(ctx, watch.Synced) })
	}
	for _, l := range loops {
		// A replica that stands by has its caches filled.
		group.Go(func() error { return l.kube.Run(ctx) })
	}
	group.Go(func() error {
		if a.election == nil {
			return scale(ctx, loops)
		}
		return a.election.lead(ctx, func(ctx context.Context) error { return scale(ctx, loops) })
	})
	return group.Wait()
}

// scale runs the loops of all pools until ctx ends.
func scale(ctx context.Context, loops []loop) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range loops {
		group.Go(func() error { return l.Run(ctx) })
	}
	return group.Wait()
}

// newCatalogue makes the catalogue of what the source has. event may do nothing.
func (a *App) newCatalogue(source func() []*batchv1.CronJob, event func(*batchv1.CronJob, bool, string, string), log *slog.Logger) *catalogue {
	return &catalogue{
		source: source, defaults: classDefaults(a.config), fits: fits(a.config), builtin: builtin(a.config), event: event, log: log,
	}
}

// connect makes a loop's view of the cluster. It asks the cluster nothing. name is the
// pool's as it is configured.
func (a *App) connect(name string, pool agentpool.Pool, catalogue *catalogue, watched func() bool) (kube, error) {
	settings := jobSettings(a.config, name, pool)
	if err := settings.Validate(); err != nil {
		return kube{}, fmt.Errorf("%w:\n%w", ErrConfiguration, err)
	}
	k := kube{settings: settings, catalogue: catalogue, watched: watched, elects: a.election != nil, now: time.Now, service: service{a.client}}
	if a.renewing != nil {
		k.tokenOwner = tokenOwner(a.config)
	}
	k.packages = newPackages(a.client.Package, time.Now)
	var err error
	if k.Cluster, err = a.clusterOf(settings.Identity, catalogue); err != nil {
		return kube{}, err
	}
	k.accounts = newRecent(k.ServiceAccountTemplate, accountAge, time.Now)
	k.standing = newRecent(func(ctx context.Context, account string) ([]cluster.Problem, error) {
		return k.CheckStandingAccount(ctx, account, settings.TokenSecret)
	}, accountAge, time.Now)
	return k, nil
}

// clusterOf makes the view of what one pool has in the cluster.
func (a *App) clusterOf(of agentjob.Identity, catalogue *catalogue) (*cluster.Cluster, error) {
	return cluster.New(cluster.Config{
		Client: a.kube, Namespace: a.config.Namespace, Instance: of.Instance,
		TargetNamespaces: func() []string { return targetNamespaces(a.config, catalogue.of(of.Pool.Name)) },
		Logger:           a.log, Clock: time.Now, OnChange: func() { a.jobsChanged(of.Pool) },
	})
}

// mark tells the agents' namespace of this cluster from every other: by its ServiceAccount
// default, which Kubernetes makes with it and which the scaler may read. Where there is none,
// nothing does.
func (a *App) mark(ctx context.Context) (string, error) {
	account, err := a.kube.CoreV1().ServiceAccounts(a.config.Namespace).Get(ctx, "default", metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err), apierrors.IsForbidden(err):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("the ServiceAccount %s/default can't be read: %w", a.config.Namespace, err)
	}
	return string(account.UID), nil
}

// targetNamespaces are those that builds of the pool have rights in now, or may have had
// in classes that are gone.
func targetNamespaces(config Config, o offer) []string {
	namespaces := slices.Clone(config.TargetNamespaces)
	for _, binding := range config.RoleBindings.List {
		namespaces = append(namespaces, binding.Namespace)
	}
	for _, class := range o.usable {
		for _, binding := range class.RoleBindings {
			namespaces = append(namespaces, binding.Namespace)
		}
	}
	slices.Sort(namespaces)
	return slices.Compact(namespaces)
}

// runningBeside counts the builds that run in all pools but one.
func (a *App) runningBeside(pool agentpool.Pool) int {
	n := 0
	for _, l := range a.running() {
		if l.kube.settings.Identity.Pool != pool {
			n += l.Running()
		}
	}
	return n
}

// jobsChanged tells the loop of a pool. The cluster may tell of changes before there is
// one.
func (a *App) jobsChanged(pool agentpool.Pool) {
	for _, l := range a.running() {
		if l.kube.settings.Identity.Pool == pool {
			l.Notify()
		}
	}
}

// claimed disables the agent of a Job that a pod tells of, in whichever pool that is.
func (a *App) claimed(ctx context.Context, uid string) error {
	for _, l := range a.running() {
		err := l.Claimed(ctx, uid)
		switch {
		case errors.Is(err, scaler.ErrUnknownJob):
			continue
		case err != nil:
			a.log.Debug("an agent whose pod says that it has a build can't be disabled; the pod will call again",
				"pool", l.kube.settings.Identity.Pool.Name, "job_uid", uid, "error", err)
		}
		return err
	}
	return scaler.ErrUnknownJob
}

// classesChanged has every loop look at the classes soon.
func (a *App) classesChanged() {
	for _, l := range a.running() {
		l.Wake()
	}
}

// running gives the loops, none before they are made.
func (a *App) running() []loop {
	if loops := a.loops.Load(); loops != nil {
		return *loops
	}
	return nil
}

// The waits of findPool between tries, which double.
const (
	poolRetryMin = time.Second
	poolRetryMax = 30 * time.Second
)

// findPool asks for a pool until the service answers. An answer that waiting
// does not change is an error.
func (a *App) findPool(ctx context.Context, name string) (agentpool.Pool, error) {
	wait := poolRetryMin
	for {
		pool, err := a.client.PoolByName(ctx, name)
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
		a.log.Warn("Azure DevOps can't be asked for the pool, trying again", "pool", name, "retry_in", wait, "error", err)
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

func (a *App) wait(why string) { a.waiting.Store(&why) }

// alive says why the process should be started again, or nothing.
func (a *App) alive() string {
	for _, l := range a.running() {
		if why := l.Stuck(time.Now()); why != "" {
			return why
		}
	}
	return ""
}

// ready says why the scaler is not doing its work, or nothing. A pool that is not served
// is not made good by one that is.
func (a *App) ready() string {
	loops := a.running()
	if len(loops) == 0 {
		return *a.waiting.Load()
	}
	standby := false
	if a.election != nil {
		if why := a.election.notReady(); why != "" {
			return why
		}
		standby = !a.election.leads()
	}
	for _, l := range loops {
		if why := l.NotReady(time.Now()); why != "" {
			return why
		}
		if l.Status().Standby && !standby {
			return "pool " + l.kube.settings.Identity.Pool.Name + " is about to be served"
		}
		if why := l.kube.offer().without(l.kube.settings.Identity.Pool.Name); why != "" {
			return why
		}
	}
	return ""
}
