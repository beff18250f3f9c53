package env

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// install makes what a user installs: the namespaces, the scaler's account with
// its rights from the delivered manifests, the token and the certificate
// authority. The rest of the manifests is not applied: the scaler runs as a
// process beside the cluster, not as a Deployment in it.
func (e *Env) install(ctx context.Context, root string) error {
	manifests := filepath.Join(root, "deploy", "kustomize")
	if err := e.kubectl(ctx, "apply", "-f", filepath.Join(manifests, "namespaces.yaml")); err != nil {
		return err
	}
	target := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: TargetNamespace}}
	if _, err := e.Admin.CoreV1().Namespaces().Create(ctx, target, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("namespace %s: %w", TargetNamespace, err)
	}
	for file, namespace := range map[string]string{
		"base/scaler/serviceaccount.yaml": ScalerNamespace, "base/agents/rbac-agents.yaml": AgentsNamespace, "base/target/rbac-target.yaml": TargetNamespace,
	} {
		if err := e.kubectl(ctx, "apply", "--namespace", namespace, "-f", filepath.Join(manifests, file)); err != nil {
			return err
		}
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: tokenSecret}, StringData: map[string]string{tokenKey: e.Service.Token}}
	if _, err := e.Admin.CoreV1().Secrets(AgentsNamespace).Create(ctx, secret, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("the pool's token: %w", err)
	}
	authority := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: caConfigMap}, Data: map[string]string{caKey: string(e.Service.CA)}}
	if _, err := e.Admin.CoreV1().ConfigMaps(AgentsNamespace).Create(ctx, authority, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("the service's certificate authority: %w", err)
	}
	return nil
}

// kubectl runs the cluster's kubectl as administrator.
func (e *Env) kubectl(ctx context.Context, arguments ...string) error {
	command := exec.CommandContext(ctx, e.Kubectl(), arguments...)
	command.Env = []string{"KUBECONFIG=" + e.AdminKubeconfig, "HOME=" + e.private, "PATH=" + os.Getenv("PATH")}
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl %s: %w: %s", strings.Join(arguments, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
