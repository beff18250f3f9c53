package env

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/test/audit"
	"github.com/azp-scaler/azp-scaler/test/chart"
	"github.com/azp-scaler/azp-scaler/test/cluster"
)

// Chart has the scaler installed by the delivered chart, from images that are built from the
// delivered Dockerfiles and that the node pulls from a registry. It needs a real node.
type Chart struct {
	// Modest has somebody install it who has the ClusterRole admin in the three namespaces
	// and no other right; otherwise a cluster administrator does, with the delivered policy.
	Modest bool
	// Previous is a commit as whose chart and images the installation begins, until Upgrade;
	// empty is the repository as it is.
	Previous string
	// Commands are for a shell, and install it as documentation has it, in a directory that has
	// the repository's deploy, the token, and Values with what differs here in values.yaml.
	Commands string
	Values   map[string]any
}

// helmLimit is for one call of helm.
const helmLimit = 4 * time.Minute

// chartAgents are at most at once: whole containers, of which a machine with two processors
// can't start any number in time.
const chartAgents = 10

// installer is somebody who may install the chart, and nothing else.
const installer = "installer"

// release is what the chart makes of an installation.
type release struct {
	helm       string // Path.
	kubeconfig string // Of whoever installs it.
	values     map[string]any
	outages    []audit.Interval
	begun      time.Time // When the first command of those that install it was.
}

// startChart installs the chart, and what it needs.
func (e *Env) startChart(ctx context.Context, steps *steps) error {
	if e.Node() != cluster.Real {
		return errors.New("the chart's images are run by a real node alone: ask for cluster.Real")
	}
	if err := e.startRegistry(ctx); err != nil {
		return err
	}
	var sources string
	if err := steps.run("building and pushing the images", func() (err error) {
		sources, err = e.buildImages(ctx)
		return err
	}); err != nil {
		return err
	}
	return steps.run("installing the chart", func() error { return e.installChart(ctx, sources) })
}

// buildImages has the registry hold the images that are wanted.
func (e *Env) buildImages(ctx context.Context) (sources string, err error) {
	sources = e.built.root
	if previous := e.options.Chart.Previous; previous != "" {
		if sources, err = sourcesOf(ctx, e.built.root, previous, e.private); err != nil {
			return "", err
		}
		if err := e.pushImages(ctx, sources, previousTag); err != nil {
			return "", err
		}
	}
	return sources, e.pushImages(ctx, e.built.root, imageTag)
}

func (e *Env) pushImages(ctx context.Context, sources, tag string) error {
	builder, err := NewImageBuilder(ctx, sources, e.cluster.Binaries(), e.options.Progress)
	if err != nil {
		return err
	}
	scaler, err := builder.Scaler(ctx, false)
	if err != nil {
		return err
	}
	agent, err := builder.Agent(ctx, e.built.agentPackage)
	if err != nil {
		return err
	}
	return errors.Join(
		builder.Push(ctx, scaler, e.registry.address+"/scaler:"+tag),
		builder.Push(ctx, agent, e.registry.address+"/agent:"+tag),
	)
}

// installChart installs the chart, and before that makes what it wants to be there.
func (in *Installation) installChart(ctx context.Context, sources string) error {
	e := in.env
	down := time.Now()
	byHand := e.options.Chart.Commands != ""
	prepare := in.makeReady
	if byHand {
		prepare = in.makeTarget
	}
	if err := prepare(ctx); err != nil {
		return err
	}
	found, err := chart.Find()
	if err != nil {
		return err
	}
	in.release = &release{kubeconfig: e.AdminKubeconfig, values: merge(e.options.Chart.Values, in.chartValues())}
	if in.release.helm, err = found.Tool(ctx, "helm"); err != nil {
		return err
	}
	if err := in.prepareInstaller(ctx); err != nil {
		return err
	}
	tag := imageTag
	if e.options.Chart.Previous != "" {
		tag = previousTag
	}
	in.release.begun = time.Now()
	if byHand {
		err = in.follow(ctx, sources, tag)
	} else {
		err = in.rollOut(ctx, "install", sources, tag, nil)
	}
	in.Outage(down, time.Now())
	return err
}

// makeReady makes the namespaces and Secrets that are there before the chart.
func (in *Installation) makeReady(ctx context.Context) error {
	e := in.env
	if err := in.makeNamespaces(ctx, filepath.Join(e.built.root, "deploy", "kustomize")); err != nil {
		return err
	}
	token := in.agentToken()
	for _, namespace := range []string{in.ScalerNamespace, in.AgentsNamespace} {
		if namespace == in.AgentsNamespace && e.options.Registration == registrationJIT {
			continue // No pod has it.
		}
		token.Namespace = namespace
		if _, err := e.Admin.CoreV1().Secrets(namespace).Create(ctx, token, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("the pool's token: %w", err)
		}
	}
	return nil
}

// prepareInstaller makes somebody who may do no more than is needed, or has the policy watch
// over what a cluster administrator installs.
func (in *Installation) prepareInstaller(ctx context.Context) error {
	e := in.env
	if !e.options.Chart.Modest {
		_, err := e.RunKubectl(ctx, "apply", "-k", filepath.Join(e.built.root, "deploy", "kustomize", "policy"))
		return err
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: installer}}
	if _, err := e.Admin.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Create(ctx, account, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("who installs: %w", err)
	}
	for _, namespace := range []string{in.ScalerNamespace, in.AgentsNamespace, in.TargetNamespace} {
		binding := &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: installer},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "admin"},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: installer, Namespace: metav1.NamespaceDefault}},
		}
		if _, err := e.Admin.RbacV1().RoleBindings(namespace).Create(ctx, binding, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("who installs: %w", err)
		}
	}
	var err error
	in.release.kubeconfig, err = e.cluster.KubeconfigFor(ctx, metav1.NamespaceDefault, installer)
	return err
}

// chartValues are those of the documentation, with limits that suit a run of a minute.
func (in *Installation) chartValues() map[string]any {
	e := in.env
	mode := "bind"
	if e.options.Chart.Modest {
		mode = "hold"
	}
	way := e.options.Registration
	if way == "" {
		way = "config"
	}
	return map[string]any{
		"azureDevOps": map[string]any{"url": e.Service.URL, "pools": []string{Pool}},
		"ca":          map[string]any{"certificate": string(e.Service.CA)},
		"rbac":        map[string]any{"mode": mode},
		"agents": map[string]any{
			"namespace": in.AgentsNamespace, "registration": way,
			"resources": map[string]any{"requests": map[string]any{"cpu": agentCPU, "memory": agentMemory}},
		},
		"targetNamespaces": []any{map[string]any{"name": in.TargetNamespace, "roles": []any{map[string]any{"kind": "ClusterRole", "name": targetRole}}}},
		"scaler": map[string]any{
			"maxAgents": chartAgents, "jobTTL": "2s", "pollBusy": PollBusy.String(), "pollIdle": PollIdle.String(), "idleLimit": IdleLimit.String(),
			// A Job that ends while there is no scaler is gone before there is one again.
			"sweepInterval": "2s", "sweepGrace": "5s", "logLevel": "debug",
		},
	}
}

// rollOut installs or upgrades the release, with further values, and waits until it is ready.
func (in *Installation) rollOut(ctx context.Context, verb, sources, tag string, further map[string]any) error {
	values, err := in.valuesWith(tag, further)
	if err != nil {
		return err
	}
	_, err = in.helm(ctx, values, verb, in.Name, filepath.Join(sources, "deploy", "helm", "azp-scaler"), "--values", "-", "--wait", "--timeout", "2m")
	return err
}

// valuesWith gives the release's values, as JSON, with images and further ones.
func (in *Installation) valuesWith(tag string, further map[string]any) ([]byte, error) {
	images := map[string]any{
		"image":  map[string]any{"repository": scalerImage, "tag": tag},
		"agents": map[string]any{"image": map[string]any{"repository": agentImage, "tag": tag}},
	}
	in.release.values = merge(merge(in.release.values, images), further)
	values, err := json.Marshal(in.release.values)
	if err != nil {
		return nil, fmt.Errorf("the chart's values: %w", err)
	}
	return values, nil
}

// follow runs the commands that install the chart, as somebody does who reads them.
func (in *Installation) follow(ctx context.Context, sources, tag string) error {
	ctx, cancel := context.WithTimeout(ctx, helmLimit)
	defer cancel()
	dir, programs := filepath.Join(in.env.private, "by-hand"), filepath.Join(in.env.private, "programs")
	values, err := in.valuesWith(tag, nil)
	if err := errors.Join(
		err, os.MkdirAll(dir, 0o700), os.MkdirAll(programs, 0o700),
		os.Symlink(filepath.Join(sources, "deploy"), filepath.Join(dir, "deploy")),
		os.Symlink(in.env.Kubectl(), filepath.Join(programs, "kubectl")), os.Symlink(in.release.helm, filepath.Join(programs, "helm")),
		os.WriteFile(filepath.Join(dir, "values.yaml"), values, 0o600), os.WriteFile(filepath.Join(dir, tokenKey), []byte(in.token), 0o600),
	); err != nil {
		return fmt.Errorf("what the commands need: %w", err)
	}
	command := exec.CommandContext(ctx, "bash", "-e", "-u", "-x", "-c", in.env.options.Chart.Commands)
	command.Dir = dir
	command.Env = in.helmEnvironment(programs + ":" + os.Getenv("PATH"))
	out, err := command.CombinedOutput()
	if in.env.options.Progress != nil {
		_, _ = in.env.options.Progress.Write(out) // For people alone.
	}
	if err != nil {
		return fmt.Errorf("the commands that install the chart: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// Begun is when the installation of the chart began.
func (in *Installation) Begun() time.Time { return in.release.begun }

// merge gives values with others laid over them.
func merge(values, over map[string]any) map[string]any {
	out := map[string]any{}
	maps.Copy(out, values)
	for name, value := range over {
		below, isMap := out[name].(map[string]any)
		if above, both := value.(map[string]any); both && isMap {
			value = merge(below, above)
		}
		out[name] = value
	}
	return out
}

// Upgrade upgrades the release to the chart and the images of this repository, with further
// values.
func (in *Installation) Upgrade(ctx context.Context, further map[string]any) error {
	return in.rollOut(ctx, "upgrade", in.env.built.root, imageTag, further)
}

// Helm runs helm on the release, as whoever has installed it, and gives all that it says.
func (in *Installation) Helm(ctx context.Context, verb string, arguments ...string) (string, error) {
	return in.helm(ctx, nil, append([]string{verb, in.Name}, arguments...)...)
}

func (in *Installation) helm(ctx context.Context, values []byte, arguments ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, helmLimit)
	defer cancel()
	command := exec.CommandContext(ctx, in.release.helm, append(arguments, "--namespace", in.ScalerNamespace)...)
	command.Env = in.helmEnvironment(os.Getenv("PATH"))
	command.Stdin = bytes.NewReader(values)
	out, err := command.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("helm %s: %w: %s", strings.Join(arguments[:2], " "), err, bytes.TrimSpace(out))
	}
	return string(out), nil
}

// helmEnvironment is that of whoever installs the release.
func (in *Installation) helmEnvironment(path string) []string {
	return []string{"PATH=" + path, "HOME=" + filepath.Join(in.env.private, "helm"), "KUBECONFIG=" + in.release.kubeconfig}
}

// Outage tells the auditor of a time in which the release's scaler did not work, as was to be.
func (in *Installation) Outage(from, to time.Time) {
	in.release.outages = append(in.release.outages, audit.Interval{From: from, To: to})
}

// uninstall takes the release away; the chart's hook has the scaler clean up before that.
func (in *Installation) uninstall(ctx context.Context) error {
	begun := time.Now()
	if _, err := in.Helm(ctx, "uninstall", "--wait", "--timeout", "3m"); err != nil {
		return err
	}
	in.Outage(begun, time.Now())
	return nil
}

// Refused gives the writes that the API server has refused to the scaler, by its rights or by a
// policy. What it may not read it only asks for, to say more.
func (e *Env) Refused() ([]audit.KubeEvent, error) {
	events, err := readLog(e.KubeAuditLog, audit.ReadKubeLog)
	if err != nil {
		return nil, fmt.Errorf("what the scaler was refused: %w", err)
	}
	return slices.DeleteFunc(events, func(event audit.KubeEvent) bool {
		refused := event.Code == http.StatusForbidden || event.Code == http.StatusUnprocessableEntity
		return !refused || event.User != e.user() || slices.Contains([]string{"get", "list", "watch"}, event.Verb)
	}), nil
}
