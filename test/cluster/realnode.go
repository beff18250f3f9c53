package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/azp-scaler/azp-scaler/test/cluster/image"
	"github.com/azp-scaler/azp-scaler/test/cluster/internal/ledger"
)

const (
	realNodeName = "azp-node"
	podCIDR      = "10.244.0.0/16"
	pauseImage   = "localhost/azp-scaler/pause:1"
	maxPods      = 250

	containerdSocket = "/run/containerd/containerd.sock"
)

// realNode is the node in the box.
type realNode struct {
	box *box
	// dir is the cluster's directory on the machine; the node sees it as boxDir.
	dir    string
	binDir string
	// cgroup is the name of the cgroup below which all pods are.
	cgroup string
	// nameServer is the address that pods ask for names; empty where there is none.
	nameServer string
}

// writeFiles makes the node's configuration.
func (n realNode) writeFiles() error {
	kubelet, err := yaml.Marshal(n.kubeletConfig())
	if err != nil {
		return fmt.Errorf("encoding the kubelet's configuration: %w", err)
	}
	proxy, err := yaml.Marshal(n.proxyConfig())
	if err != nil {
		return fmt.Errorf("encoding kube-proxy's configuration: %w", err)
	}
	network, err := json.MarshalIndent(networkConfig(), "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the network's configuration: %w", err)
	}
	for _, dir := range []string{"cni", "log", "kubelet", "containerd"} {
		if err := os.MkdirAll(filepath.Join(n.dir, dir), 0o755); err != nil {
			return fmt.Errorf("making the node's directories: %w", err)
		}
	}
	for name, content := range map[string][]byte{
		"kubelet.yaml":         kubelet,
		"kube-proxy.yaml":      proxy,
		"cni/10-pods.conflist": network,
		"containerd.toml":      []byte(n.containerdConfig()),
		// What the cluster does not know, nobody does; the file must be there.
		"resolv.conf": []byte("# No name service beyond the cluster.\n"),
	} {
		if err := os.WriteFile(filepath.Join(n.dir, name), content, 0o600); err != nil {
			return fmt.Errorf("writing the node's configuration: %w", err)
		}
	}
	return nil
}

func (n realNode) containerdConfig() string {
	return fmt.Sprintf(`version = 4
root = '%[1]s/containerd'
state = '/run/containerd'
disabled_plugins = [
  'io.containerd.nri.v1.nri', 'io.containerd.internal.v1.opt', 'io.containerd.internal.v1.tracing',
  'io.containerd.snapshotter.v1.native', 'io.containerd.snapshotter.v1.blockfile', 'io.containerd.snapshotter.v1.erofs',
  'io.containerd.image-verifier.v1.bindir', 'io.containerd.differ.v1.erofs', 'io.containerd.mount-handler.v1.erofs',
]

[grpc]
  address = '%[2]s'

[metrics]
  address = ''

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '%[3]s'

[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = '%[1]s/%[6]s'

[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = 'io.containerd.runc.v2'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = '%[4]s'
      SystemdCgroup = false
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['%[5]s']
    conf_dir = '%[1]s/cni'
    use_internal_loopback = true

[plugins.'io.containerd.metadata.v1.bolt']
  no_sync = true
`, boxDir, containerdSocket, pauseImage, filepath.Join(n.binDir, "runc"), n.binDir, registriesDir)
}

// networkConfig is one bridge for all pods. Pods reach the machine at its end
// of the box's link, under the node's address, and nothing beyond.
func networkConfig() map[string]any {
	return map[string]any{
		"cniVersion": "1.0.0",
		"name":       "pods",
		"plugins": []any{map[string]any{
			"type": "bridge", "bridge": "pods0", "isDefaultGateway": true,
			"ipMasq": true, "ipMasqBackend": "nftables", "hairpinMode": true,
			"ipam": map[string]any{
				"type": "host-local", "dataDir": "/run/cni-addresses",
				"ranges": []any{[]any{map[string]any{"subnet": podCIDR}}},
			},
		}},
	}
}

func (n realNode) kubeletConfig() map[string]any {
	config := map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"address":                  "0.0.0.0",
		"authentication":           map[string]any{"anonymous": map[string]any{"enabled": false}, "webhook": map[string]any{"enabled": false}, "x509": map[string]any{"clientCAFile": boxDir + "/ca.crt"}},
		"authorization":            map[string]any{"mode": "AlwaysAllow"},
		"tlsCertFile":              boxDir + "/kubelet.crt",
		"tlsPrivateKeyFile":        boxDir + "/kubelet.key",
		"containerRuntimeEndpoint": "unix://" + containerdSocket,
		"cgroupDriver":             "cgroupfs",
		"cgroupRoot":               "/" + n.cgroup,
		"failCgroupV1":             false,
		"failSwapOn":               false,
		"makeIPTablesUtilChains":   false,
		"maxPods":                  maxPods,
		"oomScoreAdj":              0,
		"resolvConf":               boxDir + "/resolv.conf",
		"volumePluginDir":          boxDir + "/kubelet/plugins",
		// The runtime's events make the kubelet look at once, not at the next second.
		"featureGates":              map[string]any{"EventedPLEG": true},
		"serializeImagePulls":       false,
		"registryPullQPS":           0,
		"eventRecordQPS":            0,
		"kubeAPIQPS":                1000,
		"kubeAPIBurst":              2000,
		"syncFrequency":             "10s",
		"nodeStatusUpdateFrequency": "2s",
		// A disk that is nearly full is no reason to evict a test's pods.
		"evictionHard": map[string]any{
			"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
			"imagefs.available": "0%", "imagefs.inodesFree": "0%", "pid.available": "0%",
		},
		"imageGCHighThresholdPercent": 100,
		"imageGCLowThresholdPercent":  99,
	}
	// Without a name service a pod's own loopback refuses at once, where any other address
	// would make every look-up wait.
	config["clusterDNS"] = []any{cmp.Or(n.nameServer, loopback)}
	if n.nameServer != "" {
		config["clusterDomain"] = clusterDomain
	}
	return config
}

func (n realNode) proxyConfig() map[string]any {
	return map[string]any{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"mode":             "nftables",
		"clusterCIDR":      podCIDR,
		"hostnameOverride": realNodeName,
		"clientConnection": map[string]any{"kubeconfig": boxDir + "/kube-proxy.kubeconfig"},
		// The machine's limits stay as they are.
		"conntrack": map[string]any{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
	}
}

func (n realNode) containerd() component {
	return component{"containerd", []string{"--config=" + boxDir + "/containerd.toml", "--log-level=warn"}}
}

func (n realNode) kubelet() component {
	return component{"kubelet", []string{
		"--config=" + boxDir + "/kubelet.yaml", "--kubeconfig=" + boxDir + "/kubelet.kubeconfig",
		"--root-dir=" + boxDir + "/kubelet", "--cert-dir=" + boxDir + "/kubelet/pki",
		"--hostname-override=" + realNodeName, "--node-ip=" + n.box.inside, "--v=1",
	}}
}

func (n realNode) proxy() component {
	return component{"kube-proxy", []string{"--config=" + boxDir + "/kube-proxy.yaml"}}
}

// socket is the runtime's socket as it is reached from outside the box.
func (n realNode) socket() string {
	return fmt.Sprintf("/proc/%d/root%s", n.box.first.ID().PID, containerdSocket)
}

// importPause makes the image of the pods' process 1 and loads it.
func (n realNode) importPause(ctx context.Context) error {
	archive := filepath.Join(n.dir, "pause.tar")
	err := image.Write(ctx, archive, image.Spec{
		Ref:        pauseImage,
		Files:      []image.File{{Path: "/pause", Source: filepath.Join(n.binDir, "pause"), Mode: 0o755}},
		User:       "65535:65535",
		Entrypoint: []string{"/pause"},
	})
	if err != nil {
		return err
	}
	return n.load(ctx, archive)
}

// load imports an image archive into the node's runtime.
func (n realNode) load(ctx context.Context, archive string) error {
	in, err := os.Open(archive)
	if err != nil {
		return fmt.Errorf("loading an image: %w", err)
	}
	defer func() { _ = in.Close() }()
	cmd := n.box.command(ctx, filepath.Join(n.binDir, "ctr"), "--address", containerdSocket, "--namespace", "k8s.io", "images", "import", "--no-unpack=false", "-")
	cmd.Stdin = in
	if err := command(cmd); err != nil {
		return fmt.Errorf("loading the image archive %s into the node: %w", archive, err)
	}
	return nil
}

// makeCgroups makes the node's cgroup in every hierarchy of the machine.
func makeCgroups(name string, record *ledger.Ledger) error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("finding the machine's cgroup hierarchies: %w", err)
	}
	roots := cgroupMounts(string(text))
	if len(roots) == 0 {
		return errors.New("no cgroup hierarchy is mounted: mount one at /sys/fs/cgroup, or use a simulated node")
	}
	for _, root := range roots {
		dir := filepath.Join(root, name)
		if err := record.AddCgroup(dir); err != nil {
			return err
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("making the node's cgroup: %w", err)
		}
		if err := inheritCPUSet(root, dir); err != nil {
			return err
		}
	}
	return nil
}

// cgroupMounts reads the places of cgroup file systems, of either version, out
// of the text of /proc/self/mountinfo (proc(5)).
func cgroupMounts(mountinfo string) []string {
	var roots []string
	for line := range strings.Lines(mountinfo) {
		before, after, found := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if !found || len(fields) < 5 || len(kind) < 1 {
			continue
		}
		if kind[0] == "cgroup" || kind[0] == "cgroup2" {
			roots = append(roots, fields[4])
		}
	}
	return roots
}

// inheritCPUSet gives a new cgroup of version 1 its parent's processors and
// memory nodes: without, no process may enter it.
func inheritCPUSet(parent, child string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parent, file))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("reading the machine's cpuset: %w", err)
		}
		if strings.TrimSpace(string(value)) == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(child, file), value, 0o600); err != nil {
			return fmt.Errorf("setting the node's cpuset: %w", err)
		}
	}
	return nil
}

// binaryIn makes the path of a component's program.
func binaryIn(dir string, c component) string { return filepath.Join(dir, c.name) }

// outside makes a command that runs on the machine itself.
func outside(ctx context.Context, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"PATH=" + filepath.Dir(path) + ":/usr/local/bin:/usr/bin:/bin"}
	cmd.Dir = "/"
	return cmd
}
