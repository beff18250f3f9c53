package binaries

import "fmt"

// kubernetesVersion is what the components report about themselves. A test
// holds it equal to the tool module's requirement.
const kubernetesVersion = "1.37.2"

// target is one program to build.
type target struct {
	name string
	// pkg is built in the tool module; empty means the program whose source is
	// in source.
	pkg    string
	source string
	tags   string
	// kubernetes: stamp with the version, as the components' own builds do.
	kubernetes bool
	// cgo: needs a C compiler; everything else is linked statically without.
	cgo bool
	// node: only the real node needs it.
	node bool
}

// targets is the build recipe, the slowest first: the machine is the least
// likely to be busy with something else then, and people see at once what will
// take the time.
func targets() []target {
	const (
		k8s        = "k8s.io/kubernetes/cmd/"
		containerd = "github.com/containerd/containerd/v2/cmd/"
		cni        = "github.com/containernetworking/plugins/plugins/"
		noPlugins  = "no_btrfs no_zfs no_devmapper"
	)
	return []target{
		{name: "kube-apiserver", pkg: k8s + "kube-apiserver", kubernetes: true},
		{name: "kube-controller-manager", pkg: k8s + "kube-controller-manager", kubernetes: true},
		{name: "kube-scheduler", pkg: k8s + "kube-scheduler", kubernetes: true},
		{name: "kubectl", pkg: k8s + "kubectl", kubernetes: true},
		{name: "etcd", pkg: "go.etcd.io/etcd/server/v3"},
		{name: "kwok", pkg: "sigs.k8s.io/kwok/cmd/kwok"},
		{name: "crane", pkg: "github.com/google/go-containerregistry/cmd/crane"},
		{name: "kubelet", pkg: k8s + "kubelet", kubernetes: true, node: true},
		{name: "kube-proxy", pkg: k8s + "kube-proxy", kubernetes: true, node: true},
		{name: "containerd", pkg: containerd + "containerd", tags: noPlugins, node: true},
		{name: "containerd-shim-runc-v2", pkg: containerd + "containerd-shim-runc-v2", tags: noPlugins, node: true},
		{name: "ctr", pkg: containerd + "ctr", tags: noPlugins, node: true},
		{name: "runc", pkg: "github.com/opencontainers/runc", tags: "seccomp", cgo: true, node: true},
		{name: "bridge", pkg: cni + "main/bridge", node: true},
		{name: "loopback", pkg: cni + "main/loopback", node: true},
		{name: "host-local", pkg: cni + "ipam/host-local", node: true},
		{name: "pause", source: pauseFile, node: true},
	}
}

// arguments are those of the go command that builds t into directory out.
func (t target) arguments(out string) []string {
	flags := "-s -w"
	if t.kubernetes {
		const stamp = " -X k8s.io/component-base/version."
		var major, minor int
		// The version is a constant above; a test parses it.
		_, _ = fmt.Sscanf(kubernetesVersion, "%d.%d", &major, &minor)
		flags += fmt.Sprintf("%sgitVersion=v%s%sgitMajor=%d%sgitMinor=%d", stamp, kubernetesVersion, stamp, major, stamp, minor)
	}
	// Without -trimpath the packages' place on this machine is part of what the
	// build cache is keyed by, and builds from elsewhere compile all anew.
	args := []string{"build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags", flags, "-o", out}
	if t.tags != "" {
		args = append(args, "-tags", t.tags)
	}
	if t.pkg != "" {
		return append(args, t.pkg)
	}
	return append(args, t.source)
}

func (t target) environment() []string {
	cgo := "0"
	if t.cgo {
		cgo = "1"
	}
	// Flags and workspaces of the caller's must not change what is built, or
	// the cache key would not tell.
	return []string{"CGO_ENABLED=" + cgo, "GOFLAGS=", "GOWORK=off"}
}
