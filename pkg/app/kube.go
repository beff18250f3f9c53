package app

import (
	"context"
	"fmt"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// kube is the cluster as the loop sees it: it knows how a class becomes a Job.
type kube struct {
	*cluster.Cluster
	settings agentjob.Settings
	classes  map[string]class
	now      func() time.Time
}

// class is a class of agent with the pod that realises it.
type class struct {
	agentpool.AgentClass
	template batchv1.JobTemplateSpec
}

// Create implements scaler.Cluster.
func (k kube) Create(ctx context.Context, c plan.Creation) (agentpool.AgentJob, error) {
	of, known := k.classes[c.Class]
	if !known {
		return agentpool.AgentJob{}, fmt.Errorf("there is no class %q any more", c.Class)
	}
	job, err := agentjob.Build(k.settings, of.AgentClass, of.template, c.Request, c.Attempt, c.Failures)
	if err != nil {
		return agentpool.AgentJob{}, err
	}
	return k.Ensure(ctx, job)
}

// Complete implements scaler.Cluster.
func (k kube) Complete(ctx context.Context, job agentpool.AgentJob) error {
	return k.Cluster.Complete(ctx, job.Name, job.UID)
}

// DeleteUnstarted implements scaler.Cluster.
func (k kube) DeleteUnstarted(ctx context.Context, job agentpool.AgentJob) (bool, error) {
	return k.Cluster.DeleteUnstarted(ctx, job.Name, job.UID)
}

// Delete implements scaler.Cluster.
func (k kube) Delete(ctx context.Context, job agentpool.AgentJob) error {
	return k.DeleteJob(ctx, job.Name, job.UID)
}

// Sweep implements scaler.Cluster.
func (k kube) Sweep(ctx context.Context, grace time.Duration) (map[string]int, error) {
	report, err := k.Cluster.Sweep(ctx, grace, k.now())
	return map[string]int{
		"rolebinding":    len(report.RoleBindings),
		"serviceaccount": len(report.ServiceAccounts),
	}, err
}

// Report implements scaler.Cluster.
func (k kube) Report(job agentpool.AgentJob, warning bool, reason, message string) {
	kind := corev1.EventTypeNormal
	if warning {
		kind = corev1.EventTypeWarning
	}
	ctx, cancel := context.WithTimeout(context.Background(), reportTimeout)
	defer cancel()
	k.RecordEvent(ctx, job, kind, reason, message)
}

// reportTimeout bounds an Event, which nothing waits for.
const reportTimeout = 5 * time.Second

// Check implements scaler.Cluster.
func (k kube) Check(ctx context.Context) map[string]string {
	blocked := map[string]string{}
	for name, of := range k.classes {
		sample, err := agentjob.Build(k.settings, of.AgentClass, of.template, agentpool.JobRequest{ID: 1, PoolID: k.settings.Identity.Pool.ID}, 0, 0)
		if err != nil {
			blocked[name] = err.Error()
			continue
		}
		var texts []string
		for _, problem := range k.Preflight(ctx, cluster.PreflightInput{
			Job: sample, RoleBindings: of.RoleBindings,
			TokenSecret: k.settings.TokenSecret, CAConfigMap: k.settings.CAConfigMap,
		}) {
			texts = append(texts, fmt.Sprintf("%s (%s): %s", problem.What, problem.Where, problem.Remedy))
		}
		if len(texts) > 0 {
			blocked[name] = strings.Join(texts, "; ")
		}
	}
	return blocked
}
