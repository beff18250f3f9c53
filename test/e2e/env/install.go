package env

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// install makes what a user installs: the namespaces, the scaler's account with
// its rights from the delivered manifests, the token, if pods need it, and the certificate
// authority. The rest of the manifests is not applied: the scaler runs as a
// process beside the cluster, not as a Deployment in it.
func (in *Installation) install(ctx context.Context, root string) error {
	e := in.env
	manifests := filepath.Join(root, "deploy", "kustomize")
	if err := in.makeNamespaces(ctx, manifests); err != nil {
		return err
	}
	for file, namespace := range map[string]string{
		"base/scaler/serviceaccount.yaml": in.ScalerNamespace, "base/agents/rbac-agents.yaml": in.AgentsNamespace, "base/target/rbac-target.yaml": in.TargetNamespace,
	} {
		if err := in.apply(ctx, filepath.Join(manifests, file), "--namespace", namespace); err != nil {
			return err
		}
	}
	authority := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: caConfigMap}, Data: map[string]string{caKey: string(e.Service.CA)}}
	if _, err := e.Admin.CoreV1().ConfigMaps(in.AgentsNamespace).Create(ctx, authority, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("the service's certificate authority: %w", err)
	}
	if err := in.installProxy(ctx); err != nil {
		return err
	}
	switch {
	case e.options.Registration == registrationJIT:
		return nil // Nobody but the scaler signs in with it.
	case in.signIn != nil:
		return in.apply(ctx, filepath.Join(manifests, "agent-token", "rbac-agent-token.yaml"), "--namespace", in.AgentsNamespace)
	}
	if _, err := e.Admin.CoreV1().Secrets(in.AgentsNamespace).Create(ctx, in.agentToken(), metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("the pool's token: %w", err)
	}
	return nil
}

// makeNamespaces makes that which builds deploy to, and those of scaler and agents: from the
// manifest for the first installation, and like these for the others.
func (in *Installation) makeNamespaces(ctx context.Context, manifests string) error {
	if err := in.makeTarget(ctx); err != nil {
		return err
	}
	if in.ScalerNamespace == ScalerNamespace {
		return in.apply(ctx, filepath.Join(manifests, "namespaces.yaml"))
	}
	namespaces := in.env.Admin.CoreV1().Namespaces()
	for like, name := range map[string]string{ScalerNamespace: in.ScalerNamespace, AgentsNamespace: in.AgentsNamespace} {
		model, err := namespaces.Get(ctx, like, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("namespace %s: %w", like, err)
		}
		made := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: model.Labels}}
		delete(made.Labels, corev1.LabelMetadataName)
		if _, err := namespaces.Create(ctx, made, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("namespace %s: %w", name, err)
		}
	}
	return nil
}

// makeTarget makes the namespace that builds deploy to.
func (in *Installation) makeTarget(ctx context.Context) error {
	target := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: in.TargetNamespace}}
	if _, err := in.env.Admin.CoreV1().Namespaces().Create(ctx, target, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("namespace %s: %w", in.TargetNamespace, err)
	}
	return nil
}

// ApplyDelivered applies a manifest, by its path under deploy/kustomize, in a namespace, as
// an administrator.
func (in *Installation) ApplyDelivered(ctx context.Context, path, namespace string) error {
	return in.apply(ctx, filepath.Join(in.env.built.root, "deploy", "kustomize", filepath.FromSlash(path)), "--namespace", namespace)
}

// apply applies a delivered manifest as administrator, with the installation's own
// namespace of the scaler in it.
func (in *Installation) apply(ctx context.Context, path string, arguments ...string) error {
	manifest, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	reference := regexp.MustCompile(`(?m)^( *namespace: )` + regexp.QuoteMeta(ScalerNamespace) + `\b`)
	manifest = reference.ReplaceAll(manifest, []byte("${1}"+in.ScalerNamespace))
	if _, err := in.env.kubectl(ctx, manifest, append([]string{"apply", "-f", "-"}, arguments...)...); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// RunKubectl runs kubectl as cluster administrator and gives what it prints.
func (e *Env) RunKubectl(ctx context.Context, arguments ...string) (string, error) {
	return e.kubectl(ctx, nil, arguments...)
}

// kubectl is RunKubectl with something to read.
func (e *Env) kubectl(ctx context.Context, input []byte, arguments ...string) (string, error) {
	command := exec.CommandContext(ctx, e.Kubectl(), arguments...)
	command.Env = []string{"KUBECONFIG=" + e.AdminKubeconfig, "HOME=" + e.private, "PATH=" + os.Getenv("PATH")}
	var complaint bytes.Buffer
	command.Stdin, command.Stderr = bytes.NewReader(input), &complaint
	out, err := command.Output()
	if err != nil {
		return string(out), fmt.Errorf("kubectl %s: %w: %s", strings.Join(arguments, " "), err, bytes.TrimSpace(complaint.Bytes()))
	}
	return string(out), nil
}
