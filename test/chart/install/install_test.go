// Package install_test has a real API server take what the chart renders, and installs it with helm as those would who
// may: a cluster administrator, and somebody with the ClusterRole admin in the namespaces concerned and nothing else.
package install_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/azp-scaler/azp-scaler/test/chart"
	kube "github.com/azp-scaler/azp-scaler/test/cluster"
)

// limit is how long one call of helm or kubectl may take.
const limit = 2 * time.Minute

// The control plane that all tests use, whose pods are simulated and end well, and what they work with.
var (
	shared *kube.Cluster
	admin  kubernetes.Interface
	dir    chart.Dir
	helm   string
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
		defer cancel()
		if err := start(ctx); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() {
			if err := shared.Stop(context.Background()); err != nil {
				fmt.Fprintln(os.Stderr, "stopping Kubernetes:", err)
			}
		}()
		admin = kubernetes.NewForConfigOrDie(shared.RESTConfig())
		return m.Run()
	}())
}

func start(ctx context.Context) error {
	var err error
	if dir, err = chart.Find(); err != nil {
		return err
	}
	if helm, err = dir.Tool(ctx, "helm"); err != nil {
		return err
	}
	if shared, err = kube.Start(ctx, kube.Options{Node: kube.Simulated, ControllerManagerQPS: 2000, Progress: os.Stderr}); err != nil {
		return fmt.Errorf("starting Kubernetes: %w", err)
	}
	return nil
}

// run runs a program with a kubeconfig and nothing of the surroundings, and gives all that it says.
func run(t *testing.T, kubeconfig, stdin, program string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	command := exec.CommandContext(ctx, program, args...)
	command.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig, "HELM_CACHE_HOME="+t.TempDir(), "HELM_CONFIG_HOME="+t.TempDir(), "HELM_DATA_HOME="+t.TempDir())
	command.Stdin = strings.NewReader(stdin)
	out, err := command.CombinedOutput()
	return string(out), err
}

// namespaces makes some, unless they are there, with the Pod Security level that the chart's pods keep to.
func namespaces(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		made := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted",
		}}}
		if _, err := admin.CoreV1().Namespaces().Create(t.Context(), made, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
}

// namespaceAdmin gives the kubeconfig of somebody who has the ClusterRole admin in the namespaces, and no other right.
func namespaceAdmin(t *testing.T, names ...string) string {
	t.Helper()
	const people, installer = "people", "installer"
	namespaces(t, people)
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: installer}}
	if _, err := admin.CoreV1().ServiceAccounts(people).Create(t.Context(), account, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	for _, name := range names {
		binding := &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: installer},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "admin"},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: installer, Namespace: people}},
		}
		if _, err := admin.RbacV1().RoleBindings(name).Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	kubeconfig, err := shared.KubeconfigFor(t.Context(), people, installer)
	if err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}

// operatorModule has the definitions of ServiceMonitor, PodMonitor and PrometheusRule, as they are in clusters.
const operatorModule = "github.com/prometheus-operator/prometheus-operator@v0.85.0"

// definePrometheusOperator puts them into the cluster.
func definePrometheusOperator(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	download := exec.CommandContext(ctx, "go", "mod", "download", "-json", operatorModule)
	download.Dir = t.TempDir() // Outside of any module: it is a requirement of none.
	out, err := download.Output()
	var module struct{ Dir, Error string }
	if err := errors.Join(err, json.Unmarshal(out, &module)); err != nil {
		t.Fatalf("%v: %s", err, module.Error)
	}
	for _, kind := range []string{"servicemonitors", "podmonitors", "prometheusrules"} {
		file := filepath.Join(module.Dir, "example", "prometheus-operator-crd", "monitoring.coreos.com_"+kind+".yaml")
		if out, err := kubectl(t, "", "apply", "--server-side", "-f", file); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if out, err := kubectl(t, "", "wait", "--for=condition=Established", "--timeout=60s", "crd/"+kind+".monitoring.coreos.com"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
}

// kubectl runs it as cluster administrator.
func kubectl(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	return run(t, shared.AdminKubeconfig(), stdin, shared.Binaries().Kubectl(), args...)
}

// TestEveryVariantIsTaken has the API server look at all that each example renders, unknown fields and Pod Security
// included.
func TestEveryVariantIsTaken(t *testing.T) {
	definePrometheusOperator(t)
	namespaces(t, "azp", "azp-agents", "azp-builds", "shop", "web")
	// A pod is taken only where its account is.
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "azp-scaler"}}
	if _, err := admin.CoreV1().ServiceAccounts("azp").Create(t.Context(), account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	examples, err := dir.Examples()
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range examples {
		t.Run(name, func(t *testing.T) {
			for _, further := range [][]string{nil, {"--set", "rbac.mode=hold"}, {"--set", "serviceMonitor.enabled=false,podMonitor.enabled=true"}} {
				args := append([]string{"template", chart.Release, dir.Chart, "--namespace", chart.Namespace, "--values", "-"}, further...)
				manifests, err := chart.Helm(t.Context(), helm, values, args...)
				if err != nil {
					t.Fatal(err)
				}
				out, err := kubectl(t, string(manifests), "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
				if err != nil || strings.Contains(strings.ToLower(out), "warning") {
					t.Errorf("with %v: %v\n%s", further, err, out)
				}
			}
		})
	}
}

// installation is one release, in namespaces of its own.
type installation struct {
	kubeconfig string // Whose helm it is.
	namespace  string
	target     string
}

func (i installation) agents() string { return i.namespace + "-agents" }

// helm runs it on the release.
func (i installation) helm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return run(t, i.kubeconfig, "", helm, append(args, "--namespace", i.namespace)...)
}

// values are what is set beside the least.
func (i installation) values(mode string, further ...string) []string {
	set := append([]string{
		"rbac.mode=" + mode, "targetNamespaces[0].name=" + i.target,
		"targetNamespaces[0].roles[0].kind=ClusterRole", "targetNamespaces[0].roles[0].name=edit",
		// So the simulated node ends the pods of helm test and of the clean-up, and well.
		"podAnnotations." + strings.ReplaceAll(kube.SimulateFinishAfter, ".", `\.`) + "=500ms",
	}, further...)
	return []string{"--values", filepath.Join(dir.Chart, "ci", "minimal-values.yaml"), "--set", strings.Join(set, ",")}
}

// give tries to bind a ClusterRole in the target namespace as the scaler does for a build.
func (i installation) give(t *testing.T, role string) error {
	t.Helper()
	kubeconfig, err := shared.KubeconfigFor(t.Context(), i.namespace, chart.Release)
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	_, err = kubernetes.NewForConfigOrDie(config).RbacV1().RoleBindings(i.target).Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "build-" + role},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: "build", Namespace: i.agents()}},
	}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}

// live goes through the life of a release.
func (i installation) live(t *testing.T, mode string) {
	t.Helper()
	out, err := i.helm(t, append([]string{"install", chart.Release, dir.Chart}, i.values(mode, "agents.classes.java.minIdle=1")...)...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(out, "helm test "+chart.Release+" --namespace "+i.namespace) {
		t.Errorf("the notes do not name the next command:\n%s", out)
	}
	if err := i.give(t, "edit"); err != nil {
		t.Errorf("the scaler can't give builds their role: %v", err)
	}
	if err := i.give(t, "admin"); !apierrors.IsForbidden(err) {
		t.Errorf("the scaler can give builds more than their role: %v", err)
	}
	if out, err := i.helm(t, "test", chart.Release); err != nil {
		t.Errorf("helm test: %v\n%s", err, out)
	}
	if out, err := i.helm(t, append([]string{"upgrade", chart.Release, dir.Chart}, i.values(mode, "replicaCount=2", "agents.registration=jit")...)...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	deployment, err := admin.AppsV1().Deployments(i.namespace).Get(t.Context(), chart.Release, metav1.GetOptions{})
	if err != nil || *deployment.Spec.Replicas != 2 {
		t.Errorf("the upgrade did not reach the Deployment: %v", err)
	}
	if _, err := admin.BatchV1().CronJobs(i.agents()).Get(t.Context(), "java", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a class that is not among the values any more is still there: %v", err)
	}
	if out, err := i.helm(t, "uninstall", chart.Release, "--wait"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const kinds = "deployments,jobs,cronjobs,services,serviceaccounts,roles,rolebindings,configmaps,secrets,networkpolicies,poddisruptionbudgets"
	for _, namespace := range []string{i.namespace, i.agents(), i.target} {
		out, err := kubectl(t, "", "get", kinds, "--namespace", namespace, "--selector", "app.kubernetes.io/instance="+chart.Release, "--output", "name")
		if err != nil || strings.TrimSpace(out) != "" {
			t.Errorf("left in %s: %v\n%s", namespace, err, out)
		}
	}
}

// TestInstallByANamespaceAdmin who has the ClusterRole admin in three namespaces and nothing else: with hold everything
// works, and with bind the API server refuses.
func TestInstallByANamespaceAdmin(t *testing.T) {
	i := installation{namespace: "modest", target: "modest-shop"}
	namespaces(t, i.namespace, i.agents(), i.target)
	i.kubeconfig = namespaceAdmin(t, i.namespace, i.agents(), i.target)
	if out, err := i.helm(t, append([]string{"install", "refused", dir.Chart}, i.values("bind")...)...); err == nil || !strings.Contains(out, "bind") {
		t.Errorf("want bind to be refused to somebody who may not give it: %v\n%s", err, out)
	}
	if out, err := i.helm(t, "uninstall", "refused", "--no-hooks"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	i.live(t, "hold")
}

// TestInstallByAClusterAdministrator with bind: the scaler may give the role and does not hold it.
func TestInstallByAClusterAdministrator(t *testing.T) {
	i := installation{kubeconfig: shared.AdminKubeconfig(), namespace: "whole", target: "whole-shop"}
	namespaces(t, i.namespace, i.agents(), i.target)
	i.live(t, "bind")
}
