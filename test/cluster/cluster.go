package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/azp-scaler/azp-scaler/test/cluster/internal/binaries"
	"github.com/azp-scaler/azp-scaler/test/cluster/internal/hostdeps"
	"github.com/azp-scaler/azp-scaler/test/cluster/internal/ledger"
	"github.com/azp-scaler/azp-scaler/test/cluster/internal/proc"
	"github.com/azp-scaler/azp-scaler/test/cluster/internal/progress"
)

const (
	// killLimit bounds the end of one killed process.
	killLimit = 20 * time.Second
	// tokenLifetime is that of a token in a kubeconfig: longer than any test.
	tokenLifetime = 24 * time.Hour
)

// Cluster is a running Kubernetes. Its methods may be called from several
// goroutines at once.
type Cluster struct {
	node     NodeKind
	dir      string
	logDir   string
	auditLog string
	report   *progress.Reporter
	programs binaries.Set
	record   *ledger.Ledger
	plane    controlPlane
	box      *box
	real     *realNode
	admin    *rest.Config
	client   kubernetes.Interface
	names    *nameServer // Nil where pods have none.

	mu        sync.Mutex
	processes []*proc.Process
	stopping  bool
	failure   error
	failed    chan struct{}
	watchers  sync.WaitGroup
}

// Ensure builds what Start would build and installs what it would install.
func Ensure(ctx context.Context, o Options) (Binaries, error) {
	kind, _, err := chooseNode(ctx, o.Node)
	if err != nil {
		return Binaries{}, err
	}
	set, _, err := prepare(ctx, o, kind, progress.New(o.Progress))
	return Binaries{set}, err
}

func prepare(ctx context.Context, o Options, kind NodeKind, report *progress.Reporter) (binaries.Set, string, error) {
	cache, err := cacheDir(o.CacheDir)
	if err != nil {
		return binaries.Set{}, "", err
	}
	module, err := toolModule(o.ToolModule)
	if err != nil {
		return binaries.Set{}, "", err
	}
	if kind == Real {
		err := hostdeps.Ensure(ctx, report,
			hostdeps.Need{Program: "ip", Package: "iproute2"},
			hostdeps.Need{Program: "nft", Package: "nftables"},
			hostdeps.Need{Program: "nsenter", Package: "util-linux"},
			hostdeps.Need{Program: "mount", Package: "mount"},
		)
		if err != nil {
			return binaries.Set{}, "", fmt.Errorf("preparing the real node: %w", err)
		}
	}
	set, err := binaries.Ensure(ctx, binaries.Options{Module: module, Cache: cache, Node: kind == Real, Report: report})
	if err != nil {
		return binaries.Set{}, "", fmt.Errorf("building the Kubernetes programs: %w", err)
	}
	return set, cache, nil
}

// CanBeReal tells why a real node is not possible here; nil where it is.
func CanBeReal(ctx context.Context) error { return canBox(ctx) }

// chooseNode settles what Auto means here; why says why it is not the real node.
func chooseNode(ctx context.Context, wanted NodeKind) (kind NodeKind, why string, err error) {
	switch wanted {
	case Simulated:
		return Simulated, "", nil
	case Real:
		if err := canBox(ctx); err != nil {
			return Real, "", fmt.Errorf("a real node is not possible here: %w: run as root, or ask for a simulated node", err)
		}
		return Real, "", nil
	case Auto:
		if err := canBox(ctx); err != nil {
			return Simulated, err.Error(), nil //nolint:nilerr // Not an error: the other kind is used, and why is said.
		}
		return Real, "", nil
	default:
		return wanted, "", fmt.Errorf("node kind %s: want Auto, Real or Simulated", wanted)
	}
}

// Start runs a cluster and returns when it can run pods. On error nothing is
// left of it. Stop must follow.
//
// The context bounds the start only. The cluster ends with Stop, or with this
// process.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	report := progress.New(o.Progress)
	kind, why, err := chooseNode(ctx, o.Node)
	if err != nil {
		return nil, err
	}
	if why != "" {
		report.Line("simulated node: a real one is not possible here (%s)", why)
	}
	set, cache, err := prepare(ctx, o, kind, report)
	if err != nil {
		return nil, err
	}
	runs := filepath.Join(cache, "runs")
	if swept, err := ledger.Sweep(ctx, runs); err != nil {
		report.Line("cleaning up after an earlier run: %v", err)
	} else if swept > 0 {
		report.Line("cleaned up after %d earlier runs that were killed", swept)
	}
	record, err := ledger.Open(runs)
	if err != nil {
		return nil, err
	}
	c := &Cluster{node: kind, report: report, programs: set, record: record, failed: make(chan struct{})}
	limit := o.StartLimit
	if limit == 0 {
		limit = defaultStartLimit
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the cluster was not ready within %s", limit))
	defer cancel()
	end := report.Step("starting Kubernetes (%s node)", kind)
	err = c.start(ctx, o)
	end(err)
	if err != nil {
		// Not bounded by ctx, which may just have ended: Stop has limits of its own.
		return nil, errors.Join(fmt.Errorf("starting the cluster: %w", err), c.Stop(context.WithoutCancel(ctx)))
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context, o Options) error {
	if err := c.makeDirectories(o); err != nil {
		return err
	}
	if c.node == Real {
		return c.startReal(ctx, o)
	}
	return c.startSimulated(ctx, o)
}

func (c *Cluster) makeDirectories(o Options) error {
	if o.Dir != "" {
		if err := os.MkdirAll(o.Dir, 0o755); err != nil {
			return fmt.Errorf("making Options.Dir: %w", err)
		}
	}
	dir, err := os.MkdirTemp(o.Dir, "azp-cluster-")
	if err != nil {
		return fmt.Errorf("making the cluster's directory: %w", err)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return fmt.Errorf("finding the cluster's directory: %w", err)
	}
	if err := c.record.AddDirectory(dir); err != nil {
		return errors.Join(err, os.Remove(dir))
	}
	c.dir = dir
	c.logDir = filepath.Join(dir, "logs")
	if o.LogDir != "" {
		if c.logDir, err = filepath.Abs(o.LogDir); err != nil {
			return fmt.Errorf("finding Options.LogDir: %w", err)
		}
	}
	if err := os.MkdirAll(c.logDir, 0o755); err != nil {
		return fmt.Errorf("making the directory for logs: %w", err)
	}
	if o.AuditLog == "" {
		return nil
	}
	if c.auditLog, err = filepath.Abs(o.AuditLog); err != nil {
		return fmt.Errorf("finding Options.AuditLog: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(c.auditLog), 0o755); err != nil {
		return fmt.Errorf("making the directory for the audit log: %w", err)
	}
	// It belongs to this run alone.
	if err := os.WriteFile(c.auditLog, nil, 0o600); err != nil {
		return fmt.Errorf("making the audit log: %w", err)
	}
	return nil
}

func (c *Cluster) startReal(ctx context.Context, o Options) error {
	auditDir := ""
	if c.auditLog != "" {
		auditDir = filepath.Dir(c.auditLog)
	}
	n := &realNode{dir: c.dir, binDir: c.programs.Dir, cgroup: filepath.Base(c.dir)}
	if err := makeCgroups(n.cgroup, c.record); err != nil {
		return err
	}
	b, err := newBox(ctx, c.dir, auditDir, c.programs.Dir, c.record)
	if err != nil {
		return err
	}
	c.box, n.box, c.real = b, b, n
	c.own(b.first)
	if o.NameService {
		n.nameServer = b.host
	}
	if err := n.writeFiles(); err != nil {
		return err
	}
	c.plane = controlPlane{
		dir: boxDir, write: c.dir, address: b.inside, managerQPS: o.ControllerManagerQPS,
		// The box's ports are all its own.
		ports: ports{etcd: 2379, etcdPeer: 2380, api: 6443, controllerManager: 10257, scheduler: 10259},
	}
	if c.auditLog != "" {
		c.plane.auditLog = filepath.Join(boxAudit, filepath.Base(c.auditLog))
	}
	if err := c.plane.writeFiles(realNodeName); err != nil {
		return err
	}
	if err := c.launch(c.plane.etcd(), c.plane.apiServer(), n.containerd()); err != nil {
		return err
	}
	if err := c.connect(); err != nil {
		return err
	}
	if o.NameService {
		if c.names, err = serveNames(ctx, b.host, c.client); err != nil {
			return err
		}
	}
	if err := c.await(ctx, "containerd", func(ctx context.Context) error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", n.socket())
		if err != nil {
			return err
		}
		return conn.Close()
	}); err != nil {
		return err
	}
	if err := n.importPause(ctx); err != nil {
		return err
	}
	if err := c.awaitAPI(ctx); err != nil {
		return err
	}
	if err := c.launch(c.plane.controllerManager(), c.plane.scheduler(), n.kubelet(), n.proxy()); err != nil {
		return err
	}
	if err := c.awaitNodes(ctx, 1); err != nil {
		return err
	}
	return c.await(ctx, "kube-proxy", func(ctx context.Context) error {
		return get(ctx, fmt.Sprintf("http://%s:10256/healthz", b.inside))
	})
}

// connect makes the administrator's client.
func (c *Cluster) connect() error {
	config, err := clientcmd.BuildConfigFromFlags("", c.AdminKubeconfig())
	if err != nil {
		return fmt.Errorf("reading the administrator's kubeconfig: %w", err)
	}
	config.QPS, config.Burst = -1, -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("making the administrator's client: %w", err)
	}
	c.admin, c.client = config, client
	return nil
}

// Node is the kind of node that pods run on: Real or Simulated.
func (c *Cluster) Node() NodeKind { return c.node }

// AdminKubeconfig is the path of a kubeconfig with every right.
func (c *Cluster) AdminKubeconfig() string { return filepath.Join(c.dir, "admin.kubeconfig") }

// RESTConfig gives a configuration with every right and no client-side limit.
func (c *Cluster) RESTConfig() *rest.Config { return rest.CopyConfig(c.admin) }

// APIServer is the API server's URL, for clients on this machine. On the real
// node pods reach it too, though mostly through the Service address.
func (c *Cluster) APIServer() string { return c.plane.url() }

// HostAddress is the address at which pods reach a server of this machine. On
// the real node it is the machine's end of the box's link, so the server must
// listen there or on all addresses; on the simulated one it is 127.0.0.1.
func (c *Cluster) HostAddress() string {
	if c.box != nil {
		return c.box.host
	}
	return loopback
}

// AuditLogPath is the file of the audit log; empty if there is none.
func (c *Cluster) AuditLogPath() string { return c.auditLog }

// LogDir is the directory of the components' logs.
func (c *Cluster) LogDir() string { return c.logDir }

// Binaries names the built programs.
func (c *Cluster) Binaries() Binaries { return Binaries{c.programs} }

// KubeconfigFor makes a kubeconfig that signs in as a ServiceAccount, with a
// token that is good for a day, and returns its path. The file goes with the
// cluster.
func (c *Cluster) KubeconfigFor(ctx context.Context, namespace, serviceAccount string) (string, error) {
	seconds := int64(tokenLifetime / time.Second)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	answer, err := c.client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, serviceAccount, request, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("asking for a token of ServiceAccount %s/%s: %w", namespace, serviceAccount, err)
	}
	path := filepath.Join(c.dir, "kubeconfig-"+namespace+"-"+serviceAccount)
	user := &clientcmdapi.AuthInfo{Token: answer.Status.Token}
	if err := writeKubeconfig(path, c.plane.url(), c.admin.CAData, user, namespace); err != nil {
		return "", err
	}
	return path, nil
}

// LoadImage gives the node the image in an archive made by image.Write, or by
// another tool that writes OCI or Docker archives. On a simulated node it does
// nothing, because nothing is run there.
func (c *Cluster) LoadImage(ctx context.Context, archive string) error {
	if c.real == nil {
		return nil
	}
	return c.real.load(ctx, archive)
}

// UseRegistry has the node pull images whose names begin with a registry's name from an
// address that it reaches, by plain HTTP. On a simulated node it does nothing.
func (c *Cluster) UseRegistry(name, address string) error {
	if c.real == nil {
		return nil
	}
	return c.real.useRegistry(name, address)
}

// Binaries names the built programs by path.
type Binaries struct{ set binaries.Set }

// Kubectl is the path of kubectl.
func (b Binaries) Kubectl() string { return b.set.Path("kubectl") }

// Crane is the path of crane, which serves a registry and moves images.
func (b Binaries) Crane() string { return b.set.Path("crane") }
