package cluster

import (
	_ "embed" // For the audit policy.
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/azp-scaler/azp-scaler/test/cluster/internal/pki"
)

const (
	// serviceCIDR and the Service address of the API server in it exist only
	// inside the cluster.
	serviceCIDR       = "10.96.0.0/16"
	kubernetesService = "10.96.0.1"
	issuer            = "https://kubernetes.default.svc.cluster.local"
	// auditFileMegabytes keeps the audit log in one file: a reader that follows
	// it must not lose rows to rotation.
	auditFileMegabytes = "100000"
)

//go:embed audit-policy.yaml
var auditPolicy []byte

// component is one program of the cluster.
type component struct {
	name string
	args []string
}

// ports are those that the control plane listens on.
type ports struct {
	etcd, etcdPeer, api, controllerManager, scheduler int
}

// controlPlane describes a control plane before it runs.
type controlPlane struct {
	// dir is the cluster's directory as the components see it; write is the same
	// directory as we see it.
	dir, write string
	// address is where the API server listens, for clients inside and outside.
	address string
	ports   ports
	// loopback: the address is the machine's own, which can't be advertised.
	loopback bool
	auditLog string
	// managerQPS is 0 for the controller manager's default.
	managerQPS int
}

func (p controlPlane) url() string {
	return fmt.Sprintf("https://%s:%d", p.address, p.ports.api)
}

// identities are the users of the control plane: the file of each kubeconfig,
// the user's name and its groups.
func (p controlPlane) identities(nodeName string) map[string][]string {
	return map[string][]string{
		"admin":                   {"kubernetes-admin", "system:masters"},
		"kube-controller-manager": {"system:kube-controller-manager"},
		"kube-scheduler":          {"system:kube-scheduler"},
		"kube-proxy":              {"system:kube-proxy"},
		"kubelet":                 {"system:node:" + nodeName, "system:nodes"},
		"kwok":                    {"kwok", "system:masters"},
	}
}

// writeFiles makes certificates, keys, kubeconfigs and the audit policy.
// serverHosts are further addresses of the node's own server.
func (p controlPlane) writeFiles(nodeName string) error {
	authority, err := pki.NewAuthority("azp-scaler-test-cluster")
	if err != nil {
		return err
	}
	files := map[string][]byte{"ca.crt": authority.PEM, "audit-policy.yaml": auditPolicy}
	signing, err := pki.SigningKey()
	if err != nil {
		return err
	}
	files["sa.pub"], files["sa.key"] = signing.Cert, signing.Key
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(p.write, name), content, 0o600); err != nil {
			return fmt.Errorf("writing the cluster's files: %w", err)
		}
	}
	if err := p.writeServers(authority, nodeName); err != nil {
		return err
	}
	for name, subject := range p.identities(nodeName) {
		pair, err := authority.Client(subject[0], subject[1:]...)
		if err != nil {
			return err
		}
		user := &clientcmdapi.AuthInfo{ClientCertificateData: pair.Cert, ClientKeyData: pair.Key}
		if err := writeKubeconfig(filepath.Join(p.write, name+".kubeconfig"), p.url(), authority.PEM, user, "default"); err != nil {
			return err
		}
	}
	return nil
}

func (p controlPlane) writeServers(authority *pki.Authority, nodeName string) error {
	api, err := authority.Server("kube-apiserver", p.address, "127.0.0.1", kubernetesService, "localhost",
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
	if err != nil {
		return err
	}
	kubelet, err := authority.Server("system:node:"+nodeName, p.address, nodeName)
	if err != nil {
		return err
	}
	caller, err := authority.Client("kube-apiserver-kubelet-client", "system:masters")
	if err != nil {
		return err
	}
	for name, pair := range map[string]pki.Pair{"apiserver": api, "kubelet": kubelet, "kubelet-client": caller} {
		if err := pair.Write(filepath.Join(p.write, name)); err != nil {
			return err
		}
	}
	return nil
}

func writeKubeconfig(path, server string, authority []byte, user *clientcmdapi.AuthInfo, namespace string) error {
	const name = "azp-scaler-test"
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: authority}
	config.AuthInfos[name] = user
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name, Namespace: namespace}
	config.CurrentContext = name
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		return fmt.Errorf("writing a kubeconfig: %w", err)
	}
	return nil
}

func (p controlPlane) etcd() component {
	client := fmt.Sprintf("http://127.0.0.1:%d", p.ports.etcd)
	peer := fmt.Sprintf("http://127.0.0.1:%d", p.ports.etcdPeer)
	return component{"etcd", []string{
		"--data-dir=" + p.dir + "/etcd",
		"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer,
		"--initial-cluster=default=" + peer,
		"--quota-backend-bytes=8589934592", "--log-level=warn",
		// Nothing here is to survive a loss of power.
		"--unsafe-no-fsync",
	}}
}

func (p controlPlane) apiServer() component {
	args := []string{
		"--etcd-servers=" + fmt.Sprintf("http://127.0.0.1:%d", p.ports.etcd),
		"--bind-address=" + p.address, "--advertise-address=" + p.address,
		"--secure-port=" + strconv.Itoa(p.ports.api),
		"--tls-cert-file=" + p.dir + "/apiserver.crt", "--tls-private-key-file=" + p.dir + "/apiserver.key",
		"--client-ca-file=" + p.dir + "/ca.crt",
		"--requestheader-client-ca-file=" + p.dir + "/ca.crt", "--requestheader-allowed-names=none",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--service-account-issuer=" + issuer,
		"--service-account-key-file=" + p.dir + "/sa.pub", "--service-account-signing-key-file=" + p.dir + "/sa.key",
		"--service-cluster-ip-range=" + serviceCIDR,
		"--kubelet-client-certificate=" + p.dir + "/kubelet-client.crt", "--kubelet-client-key=" + p.dir + "/kubelet-client.key",
		"--kubelet-certificate-authority=" + p.dir + "/ca.crt", "--kubelet-preferred-address-types=InternalIP",
		"--allow-privileged=true", "--profiling=false",
	}
	if p.loopback {
		args = append(args, "--endpoint-reconciler-type=none")
	}
	if p.auditLog != "" {
		args = append(args, "--audit-policy-file="+p.dir+"/audit-policy.yaml",
			"--audit-log-path="+p.auditLog, "--audit-log-maxsize="+auditFileMegabytes, "--audit-log-mode=blocking")
	}
	return component{"kube-apiserver", args}
}

func (p controlPlane) controllerManager() component {
	config := p.dir + "/kube-controller-manager.kubeconfig"
	args := []string{
		"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
		"--service-account-private-key-file=" + p.dir + "/sa.key", "--root-ca-file=" + p.dir + "/ca.crt",
		"--use-service-account-credentials", "--leader-elect=false", "--profiling=false",
		"--bind-address=127.0.0.1", "--secure-port=" + strconv.Itoa(p.ports.controllerManager),
		"--cert-dir=" + p.dir + "/kube-controller-manager",
	}
	if p.managerQPS > 0 {
		rate := strconv.Itoa(p.managerQPS)
		args = append(args, "--kube-api-qps="+rate, "--kube-api-burst="+rate)
	}
	return component{"kube-controller-manager", args}
}

func (p controlPlane) scheduler() component {
	config := p.dir + "/kube-scheduler.kubeconfig"
	return component{"kube-scheduler", []string{
		"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
		"--leader-elect=false", "--profiling=false",
		"--bind-address=127.0.0.1", "--secure-port=" + strconv.Itoa(p.ports.scheduler),
		"--cert-dir=" + p.dir + "/kube-scheduler",
	}}
}
