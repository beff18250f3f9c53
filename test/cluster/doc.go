// Package cluster runs a real Kubernetes on this machine for tests and for the
// demonstration, and leaves nothing of it behind.
//
// The programs (etcd, the control plane, kubectl and, for the real node,
// containerd, runc, kubelet and kube-proxy) are built once from their Go modules,
// at the versions that the module in the directory tools names, and kept in the
// user's cache directory. No registry, no Docker and no download but from the Go
// module proxy and the distribution's package mirror is needed.
//
// There are two kinds of node. The real one needs root: all of Kubernetes runs in
// one box of network, mount and PID namespaces, so that ending one process ends
// every process, mount and network device of it. The simulated one needs no
// rights: the control plane is as real, but pods are moved through their life by
// KWOK, as their annotations say, and nothing runs in them (see Simulation).
//
// A cluster is tied to the process that started it. When that process dies, even
// by SIGKILL, the kernel ends the box and a small cleaner process removes files
// and cgroups; what a killed cleaner leaves, the next Start removes.
//
// Only Linux is supported.
package cluster
