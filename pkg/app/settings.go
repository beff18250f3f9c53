package app

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// jobSettings is what the Jobs of every class are made with.
func jobSettings(c Config, pool agentpool.Pool) agentjob.Settings {
	s := agentjob.DefaultSettings()
	s.Identity = agentjob.Identity{
		Instance:  agentjob.InstanceID(c.URL, c.Pool, c.Namespace, c.Release),
		Namespace: c.Namespace, Pool: pool, URL: c.URL,
	}
	s.TokenSecret, s.TokenKey = c.AgentTokenSecret, c.AgentTokenKey
	s.CAConfigMap = c.AgentCAConfigMap
	s.AgentSource = agentjob.AgentSource(c.AgentSource)
	s.AgentVersion = c.AgentVersion
	s.TTL = c.JobTTL.Duration
	s.StartupLimit = c.StartupLimit.Duration
	s.ConfigureLimit = c.ConfigLimit.Duration
	s.LogFormat = c.LogFormat
	s.ServiceAccount.ImagePullSecrets = c.AgentPullSecrets
	return s
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
	callTimeout   = 30 * time.Second
	pollTimeout   = 3 * time.Minute
	concurrency   = 8
	parallelEvery = time.Minute
)

func (a *App) loopConfig(pool agentpool.Pool, k kube) scaler.Config {
	c := a.config
	config := scaler.Config{
		Pool: pool,
		Limits: plan.Limits{
			PoolAgents: c.MaxAgents.N, CreationsPerCycle: c.MaxCreations.N,
			IdleLimit: c.IdleLimit.Duration, MaxIdleAge: c.MaxIdleAge.Duration,
			StartupLimit: c.StartupLimit.Duration, HalfMadeLimit: halfMadeLimit,
			BackoffMin: c.BackoffMin.Duration, BackoffMax: c.BackoffMax.Duration,
		},
		Instance: k.settings.Identity.Instance,
		PollBusy: c.PollBusy.Duration, PollIdle: c.PollIdle.Duration,
		AgentsEvery: min(agentsEvery, c.SweepInterval.Duration), SweepEvery: c.SweepInterval.Duration, SweepGrace: c.SweepGrace.Duration,
		CheckEvery: checkEvery, RecheckEvery: recheckEvery, AssumeLimit: assumeLimit,
		CallTimeout: callTimeout, PollTimeout: pollTimeout, Concurrency: concurrency,
		UseParallel: c.ParallelJobs.On, ParallelEvery: parallelEvery,
	}
	return config
}
