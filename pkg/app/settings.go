package app

import (
	"runtime"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/azp-scaler/azp-scaler/pkg/agentclass"
	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// jobSettings is what the Jobs of every class are made with. name is the pool's as it is
// configured: the id of the installation comes from it.
func jobSettings(c Config, name string, pool agentpool.Pool) agentjob.Settings {
	s := agentjob.DefaultSettings()
	s.Identity = agentjob.Identity{
		Instance:  agentjob.InstanceID(c.URL, name, c.Namespace, c.Release),
		Namespace: c.Namespace, Pool: pool, URL: c.URL,
	}
	s.TokenSecret, s.TokenKey = c.AgentTokenSecret, c.AgentTokenKey
	s.CAConfigMap = c.AgentCAConfigMap
	s.CallbackURL = c.CallbackURL
	s.ProxyURL, s.ProxySecret, s.NoProxy = c.AgentProxyURL, c.AgentProxySecret, c.AgentNoProxy
	s.AgentSource = agentjob.AgentSource(c.AgentSource)
	s.AgentVersion = c.AgentVersion
	s.TTL = c.JobTTL.Duration
	s.StartupLimit = c.StartupLimit.Duration
	s.ConfigureLimit = c.ConfigLimit.Duration
	s.LogLevel, s.LogFormat = strings.ToLower(c.LogLevel.String()), c.LogFormat
	s.ServiceAccount.ImagePullSecrets = c.AgentPullSecrets
	return s
}

// defaultClass is the name of the class made from the environment.
const defaultClass = "default"

// builtin is the class made from the environment, nil where there is no image for it.
func builtin(c Config) *agentclass.Class {
	if c.AgentImage == "" {
		return nil
	}
	class := agentclass.FromTemplate(defaultClass, agentjob.DefaultTemplate(defaultTemplate(c)),
		c.Capabilities.Pairs, c.RoleBindings.List, c.MinIdle.N, classDefaults(c))
	return &class
}

// classDefaults is what holds where a class says nothing.
func classDefaults(c Config) agentclass.Defaults {
	return agentclass.Defaults{
		Architecture: architecture(), AgentRoot: agentjob.DefaultAgentRoot, GracePeriod: c.GracePeriod.Duration,
		Registration: agentpool.Registration(c.Registration),
	}
}

// architecture is how an agent calls the processor that the scaler runs on,
// which is taken for the agents' too.
func architecture() string {
	if runtime.GOARCH == "arm64" {
		return "ARM64"
	}
	return "X64"
}

// sampleJob is a Job as it would be made for a class, of a request that does not exist.
func sampleJob(settings agentjob.Settings, class agentclass.Class) (*batchv1.Job, error) {
	request := agentpool.JobRequest{ID: 1, PoolID: settings.Identity.Pool.ID}
	// Which one it would be is not asked for the sake of a sample.
	settings.Package = agentjob.Package{Version: "0.0.0", URL: settings.Identity.URL, SHA256: strings.Repeat("0", 64)}
	return agentjob.Build(settings, class.AgentClass, class.Template, request, 0, 0)
}

// fits says what keeps Jobs of a class from being made, whatever pool they are for.
func fits(c Config) func(agentclass.Class) error {
	settings := jobSettings(c, "any", agentpool.Pool{ID: 1, Name: "any"})
	return func(class agentclass.Class) error {
		_, err := sampleJob(settings, class)
		return err
	}
}

// defaultTemplate is the pod of the class made from the environment.
func defaultTemplate(c Config) agentjob.DefaultClass {
	resources := corev1.ResourceRequirements{Requests: corev1.ResourceList{}, Limits: corev1.ResourceList{}}
	set := func(list corev1.ResourceList, name corev1.ResourceName, q Quantity) {
		if q.Quantity != nil {
			list[name] = *q.Quantity
		}
	}
	set(resources.Requests, corev1.ResourceCPU, c.CPURequest)
	set(resources.Requests, corev1.ResourceMemory, c.MemoryRequest)
	set(resources.Limits, corev1.ResourceCPU, c.CPULimit)
	set(resources.Limits, corev1.ResourceMemory, c.MemoryLimit)
	return agentjob.DefaultClass{
		Image: c.AgentImage, PullPolicy: corev1.PullPolicy(c.AgentImagePullPolicy),
		ImagePullSecrets: c.AgentPullSecrets, Resources: resources,
	}
}

// The loop's settings that nobody has to choose.
const (
	agentsEvery   = time.Minute
	checkEvery    = 5 * time.Minute
	recheckEvery  = 10 * time.Second
	assumeLimit   = 30 * time.Second
	halfMadeLimit = 2 * time.Minute
	// unregisteredLimit leaves whoever makes a Job the time that it has for it, and for
	// taking it back.
	unregisteredLimit = callTimeout + takeBackLimit
	callTimeout       = 30 * time.Second
	pollTimeout       = 3 * time.Minute
	concurrency       = 8
	parallelEvery     = time.Minute
	mismatchLimit     = time.Minute
)

func loopConfig(c Config, settings agentjob.Settings) scaler.Config {
	return scaler.Config{
		Pool: settings.Identity.Pool,
		Limits: plan.Limits{
			PoolAgents: c.MaxAgents.N, CreationsPerCycle: c.MaxCreations.N,
			IdleLimit: c.IdleLimit.Duration, MaxIdleAge: c.MaxIdleAge.Duration,
			StartupLimit: c.StartupLimit.Duration, HalfMadeLimit: halfMadeLimit, UnregisteredLimit: unregisteredLimit,
			MismatchLimit: mismatchLimit,
			BackoffMin:    c.BackoffMin.Duration, BackoffMax: c.BackoffMax.Duration,
		},
		Instance: settings.Identity.Instance,
		PollBusy: c.PollBusy.Duration, PollIdle: c.PollIdle.Duration,
		AgentsEvery: min(agentsEvery, c.SweepInterval.Duration), SweepEvery: c.SweepInterval.Duration, SweepGrace: c.SweepGrace.Duration,
		CheckEvery: checkEvery, RecheckEvery: recheckEvery, AssumeLimit: assumeLimit,
		CallTimeout: callTimeout, PollTimeout: pollTimeout, Concurrency: concurrency,
		UseParallel: c.ParallelJobs.On, ParallelEvery: parallelEvery,
	}
}
