package app

import (
	"context"
	"fmt"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// kube is the cluster as the loop sees it: it knows how a class becomes a Job.
type kube struct {
	*cluster.Cluster
	settings agentjob.Settings
	classes  map[string]class
	now      func() time.Time
	// reportClass puts an Event on the CronJob of a class; nil where classes are none.
	reportClass func(class string, warning bool, reason, message string)
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

// Classes implements scaler.Cluster.
func (k kube) Classes() scaler.Classes {
	var classes scaler.Classes
	for _, of := range k.classes {
		classes.Usable = append(classes.Usable, of.AgentClass)
	}
	return classes
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
	k.RecordEvent(job, warning, reason, message)
}

// ReportClass implements scaler.Cluster.
func (k kube) ReportClass(class string, warning bool, reason, message string) {
	if k.reportClass != nil {
		k.reportClass(class, warning, reason, message)
	}
}

// Check implements scaler.Cluster.
func (k kube) Check(ctx context.Context) map[string]string {
	blocked := map[string]string{}
	for name := range k.classes {
		var texts []string
		for _, problem := range k.problems(ctx, name) {
			if problem.Fatal {
				texts = append(texts, problem.String())
			}
		}
		if len(texts) > 0 {
			blocked[name] = strings.Join(texts, "; ")
		}
	}
	return blocked
}

// problems tells what keeps a class from being served as it should.
func (k kube) problems(ctx context.Context, name string) []cluster.Problem {
	of := k.classes[name]
	// A request that does not exist: no Job is made of it.
	request := agentpool.JobRequest{ID: 1, PoolID: k.settings.Identity.Pool.ID}
	sample, err := agentjob.Build(k.settings, of.AgentClass, of.template, request, 0, 0)
	if err != nil {
		return []cluster.Problem{{
			What: err.Error(), Where: "class " + name, Remedy: "correct the class", Fatal: true, Reason: agentpool.ReasonInvalid,
		}}
	}
	installation := k.PreflightInstallation(ctx, cluster.Installation{
		TokenSecret: k.settings.TokenSecret, TokenKey: k.settings.TokenKey, CAConfigMap: k.settings.CAConfigMap,
	})
	return append(installation, k.PreflightClass(ctx, sample)...)
}
