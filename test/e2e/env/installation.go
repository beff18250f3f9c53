package env

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/audit"
	"github.com/azp-scaler/azp-scaler/test/e2e/interpose"
	"github.com/azp-scaler/azp-scaler/test/fakeagent"
)

// firstReplica is what the scaler's process is called in the leader election.
const firstReplica = "one"

// Installation is one scaler with what it needs: its namespaces, its account, and
// an identity of its own in the service. Several can serve one pool.
type Installation struct {
	// Name is the release, and begins the names of what is the installation's own.
	Name            string
	Scaler          *Scaler
	ScalerLog       string // Path.
	ScalerNamespace string
	AgentsNamespace string
	TargetNamespace string

	replicas []*Scaler // Beside Scaler.

	env    *Env
	token  string
	tokens int // How often it was replaced.
	// signIn are the settings of a sign-in otherwise than with the token: the scaler then
	// keeps what pods register with.
	signIn  map[string]string
	classes map[string]Class // Those that are there, by name.
	proxy   *interpose.Proxy
	release *release // Nil where the scaler is a process beside the cluster.
}

// primary is the installation that every Env has.
func (e *Env) primary(dir string) *Installation {
	return &Installation{
		Name: ScalerAccount, ScalerLog: filepath.Join(dir, scalerLogName), ScalerNamespace: ScalerNamespace, AgentsNamespace: AgentsNamespace,
		TargetNamespace: TargetNamespace, env: e, classes: map[string]Class{},
	}
}

// Install adds another installation on the same pool, in namespaces that end with
// its suffix. Settings override the scaler's environment. The scaler is prepared,
// but not started.
func (e *Env) Install(ctx context.Context, suffix string, settings map[string]string) (*Installation, error) {
	in := e.secondary(suffix)
	if err := errors.Join(e.Service.admit(in), e.add(ctx, in, settings)); err != nil {
		return nil, fmt.Errorf("install %s: %w", in.Name, err)
	}
	return in, nil
}

// secondary is another installation, of which nothing is there yet.
func (e *Env) secondary(suffix string) *Installation {
	return &Installation{
		Name: ScalerAccount + "-" + suffix, ScalerLog: filepath.Join(filepath.Dir(e.ScalerLog), ScalerAccount+"-"+suffix+".log"),
		ScalerNamespace: ScalerNamespace + "-" + suffix, AgentsNamespace: AgentsNamespace + "-" + suffix, TargetNamespace: TargetNamespace + "-" + suffix,
		env: e, classes: map[string]Class{},
	}
}

// add installs it and prepares its scaler.
func (e *Env) add(ctx context.Context, in *Installation, settings map[string]string) error {
	if err := in.install(ctx, e.built.root); err != nil {
		return err
	}
	if err := in.prepareScaler(ctx, settings, nil); err != nil {
		return err
	}
	e.installations = append(e.installations, in)
	return nil
}

// user is the name by which the API server knows the scaler.
func (in *Installation) user() string {
	return "system:serviceaccount:" + in.ScalerNamespace + ":" + ScalerAccount
}

// prepareScaler gives the scaler its settings: those of the documentation, with
// limits that suit a run of a minute.
func (in *Installation) prepareScaler(ctx context.Context, override map[string]string, hook interpose.Hook) error {
	e := in.env
	kubeconfig, err := e.cluster.KubeconfigFor(ctx, in.ScalerNamespace, ScalerAccount)
	if err != nil {
		return err
	}
	if hook != nil {
		direct := kubeconfig
		kubeconfig = filepath.Join(e.private, "kubeconfig-interposed")
		if in.proxy, err = interpose.Start(ServerKubernetes, direct, kubeconfig, hook); err != nil {
			return fmt.Errorf("stand between scaler and API server: %w", err)
		}
	}
	if err := in.writeToken(); err != nil {
		return fmt.Errorf("the pool's token: %w", err)
	}
	source := "image"
	if e.options.Download {
		source = "download"
	}
	settings := map[string]string{
		"AZP_URL": e.Service.URL, "AZP_POOL": Pool, "AZP_TOKEN_FILE": in.tokenFile(), "AZP_CA_FILE": e.CAFile,
		"KUBECONFIG": kubeconfig, "AZP_NAMESPACE": in.AgentsNamespace, "AZP_RELEASE": in.Name,
		"AZP_AGENT_IMAGE": AgentImage, "AZP_AGENT_IMAGE_PULL_POLICY": "Never", "AZP_AGENT_SOURCE": source,
		"AZP_AGENT_TOKEN_SECRET": TokenSecret, "AZP_AGENT_TOKEN_SECRET_KEY": tokenKey, "AZP_AGENT_CA_CONFIGMAP": caConfigMap,
		"AZP_AGENT_CPU_REQUEST": agentCPU, "AZP_AGENT_MEMORY_REQUEST": agentMemory,
		"AZP_ROLE_BINDINGS": in.TargetNamespace + " ClusterRole/" + targetRole,
		"AZP_JOB_TTL":       "2s", "AZP_POLL_BUSY": PollBusy.String(), "AZP_POLL_IDLE": PollIdle.String(), "AZP_IDLE_LIMIT": IdleLimit.String(),
		"AZP_LOG_FORMAT": "json", "AZP_LOG_LEVEL": "debug",
		// One that is started again finds the lease its own, as in a container.
		"AZP_REPLICA": firstReplica,
	}
	if e.options.Registration != "" {
		settings["AZP_REGISTRATION"] = e.options.Registration
	}
	if err := e.proxySettings(settings); err != nil {
		return err
	}
	maps.Copy(settings, in.signIn)
	maps.Copy(settings, override)
	// The log is of this run alone.
	if err := os.Remove(in.ScalerLog); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the last run's log: %w", err)
	}
	in.Scaler, err = newScaler(e.built.scaler, e.HostAddress(), in.ScalerLog, settings)
	return err
}

// AddReplica prepares a further process of the scaler, with its own log. Settings
// override the environment of the first.
func (in *Installation) AddReplica(name string, settings map[string]string) (*Scaler, error) {
	own := maps.Clone(settings)
	if own == nil {
		own = map[string]string{}
	}
	own["AZP_REPLICA"] = name
	replica, err := in.Scaler.another(strings.TrimSuffix(in.ScalerLog, ".log")+"-"+name+".log", own)
	if err != nil {
		return nil, fmt.Errorf("replica %s: %w", name, err)
	}
	in.replicas = append(in.replicas, replica)
	return replica, nil
}

// StartScaler starts the scaler, and waits until it is ready and the service knows
// each class, so that it queues what is demanded of them.
func (in *Installation) StartScaler(ctx context.Context) error {
	if err := in.Scaler.Start(); err != nil {
		return err
	}
	if err := in.Scaler.WaitReady(ctx); err != nil {
		return err
	}
	return in.WaitPlaceholders(ctx)
}

// Apply creates a class of agent, or changes it to this.
func (in *Installation) Apply(ctx context.Context, class Class) error {
	made := class.cronJob(in)
	classes := in.env.Admin.BatchV1().CronJobs(in.AgentsNamespace)
	in.classes[class.Name] = class
	_, err := classes.Create(ctx, made, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		_, err = classes.Update(ctx, made, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("class %s: %w", class.Name, err)
	}
	return nil
}

// Remove deletes classes of agent. One that is not there is no error.
func (in *Installation) Remove(ctx context.Context, names ...string) error {
	for _, name := range names {
		delete(in.classes, name)
		err := in.env.Admin.BatchV1().CronJobs(in.AgentsNamespace).Delete(ctx, name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("class %s: %w", name, err)
		}
	}
	return nil
}

// LeaveRegistration registers an agent as the installation's own, which never comes
// online: what is left where a pod goes before it has removed its registration.
func (in *Installation) LeaveRegistration(ctx context.Context, name string) error {
	agent := map[string]any{"name": name, "version": fakeagent.DefaultVersion, "maxParallelism": 1}
	if err := in.env.Service.call(ctx, in.token, http.MethodPost, "", agent); err != nil {
		return fmt.Errorf("leave agent %s: %w", name, err)
	}
	return nil
}

// WaitPlaceholders waits until the service knows an agent that offers what each
// class that can be used does, or one of the class that the environment makes where
// there is no other.
func (in *Installation) WaitPlaceholders(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, placeholderLimit)
	defer cancel()
	for {
		missing := in.missingPlaceholders()
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no placeholder agent for the classes %s: %w: see %s", strings.Join(missing, ", "), ctx.Err(), in.ScalerLog)
		case <-time.After(probeEvery):
		}
	}
}

// missingPlaceholders names the classes that no placeholder stands for as they are.
func (in *Installation) missingPlaceholders() []string {
	classes := slices.Collect(maps.Values(in.classes))
	if len(classes) == 0 {
		classes = []Class{{Name: DefaultClass}}
	}
	agents := in.env.Service.Agents(in.env.Service.PoolID)
	var missing []string
	for _, class := range classes {
		stands := func(agent azuredevopstest.AgentStatus) bool {
			name, placeholder := placeholderName(agent.Name)
			return placeholder && name == class.Name && class.offeredBy(agent.Capabilities)
		}
		if !class.Broken && !slices.ContainsFunc(agents, stands) {
			missing = append(missing, class.Name)
		}
	}
	slices.Sort(missing)
	return missing
}

// end stops the scaler and has it clean up, as an uninstall does.
func (in *Installation) end(ctx context.Context) error {
	if in.release != nil {
		return in.uninstall(ctx)
	}
	if err := in.keepPages(ctx); err != nil {
		return err
	}
	for _, scaler := range in.processes() {
		if err := scaler.Stop(ctx); err != nil {
			return err
		}
	}
	if out, err := in.Scaler.Command(ctx, "cleanup"); err != nil {
		return fmt.Errorf("scaler cleanup: %w\n%s", err, out)
	}
	return nil
}

// processes are those of the scaler.
func (in *Installation) processes() []*Scaler {
	if in.Scaler == nil {
		return nil
	}
	return append([]*Scaler{in.Scaler}, in.replicas...)
}

// outages are the times in which none of them worked.
func (in *Installation) outages() []audit.Interval {
	if in.release != nil {
		return in.release.outages
	}
	out := in.Scaler.Outages()
	for _, replica := range in.replicas {
		out = intersection(out, replica.Outages())
	}
	return out
}

func (in *Installation) close() error {
	var err error
	for _, scaler := range in.processes() {
		err = errors.Join(err, scaler.close())
	}
	if in.proxy != nil {
		in.proxy.Close()
	}
	return err
}

// admit gives an installation its token.
func (s *Service) admit(in *Installation) error {
	in.token = s.secret(in.Name)
	return s.AddToken(azuredevopstest.Token{Secret: in.token, Identity: in.Name, Rights: azuredevopstest.RightsManage})
}
