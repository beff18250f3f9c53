package app

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentclass"
	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// kube is the cluster as the loop of one pool sees it: it knows how a class becomes a
// Job.
type kube struct {
	*cluster.Cluster
	settings  agentjob.Settings
	catalogue *catalogue
	accounts  *recent[agentjob.ServiceAccountTemplate] // By the name that classes give.
	standing  *recent[[]cluster.Problem]               // What is not known of an account that builds run as, by its name.
	service   service
	packages  packages
	watched   func() bool // Whether the classes are known.
	elects    bool
	now       func() time.Time
	// tokenOwner is who keeps the token that pods register with, empty if an administrator does;
	// token is nil then, and where the scaler does not run.
	tokenOwner string
	token      *tokenKeeper
}

func (k kube) offer() offer { return k.catalogue.of(k.settings.Identity.Pool.Name) }

// Synced implements scaler.Cluster.
func (k kube) Synced() bool { return k.watched() && k.token.ready() && k.Cluster.Synced() }

// Classes implements scaler.Cluster.
func (k kube) Classes() scaler.Classes { return k.offer().classes() }

// Create implements scaler.Cluster.
func (k kube) Create(ctx context.Context, c plan.Creation) (agentpool.AgentJob, error) {
	class, known := k.offer().usable[c.Class]
	if !known {
		return agentpool.AgentJob{}, fmt.Errorf("there is no class %q any more", c.Class)
	}
	if class.Registration != agentpool.RegistrationJIT {
		if err := k.token.missing(); err != nil {
			return agentpool.AgentJob{}, err
		}
	}
	if _, err := k.checkAccount(ctx, class); err != nil {
		return agentpool.AgentJob{}, err
	}
	settings, err := k.settingsFor(ctx, class)
	if err != nil {
		return agentpool.AgentJob{}, err
	}
	jit := class.Registration == agentpool.RegistrationJIT
	if jit {
		if settings.Package, err = k.packages.of(ctx, settings, class); err != nil {
			return agentpool.AgentJob{}, &registrationError{agent: "of class " + class.Name, err: err}
		}
	}
	job, err := agentjob.Build(settings, class.AgentClass, class.Template, c.Request, c.Attempt, c.Failures)
	if err != nil {
		return agentpool.AgentJob{}, err
	}
	if !jit {
		return k.Ensure(ctx, job, nil)
	}
	made, err := k.Ensure(ctx, job, k.register(settings, class.AgentClass))
	if err != nil && made.UID != "" {
		return k.takeBack(ctx, made, err)
	}
	return made, err
}

// checkAccount looks whether builds of a class may run as the ServiceAccount that it names
// for them, if any, and gives what could not be found out.
func (k kube) checkAccount(ctx context.Context, class agentclass.Class) ([]cluster.Problem, error) {
	if class.ServiceAccount == "" {
		return nil, nil
	}
	return k.standing.get(ctx, class.ServiceAccount)
}

// settingsFor gives the settings for Jobs of a class: with what the ServiceAccount in its
// template, if there is one, passes on to the account of each build.
func (k kube) settingsFor(ctx context.Context, class agentclass.Class) (agentjob.Settings, error) {
	settings := k.settings
	if class.AccountTemplate == "" {
		return settings, nil
	}
	extra, err := k.accounts.get(ctx, class.AccountTemplate)
	if err != nil {
		return agentjob.Settings{}, err
	}
	settings.ServiceAccount = mergeAccounts(settings.ServiceAccount, extra)
	return settings, nil
}

// accountAge is how long what was read of a ServiceAccount that classes name holds.
const accountAge = 10 * time.Second

// mergeAccounts adds to what every account gets what that of the class has.
func mergeAccounts(every, class agentjob.ServiceAccountTemplate) agentjob.ServiceAccountTemplate {
	merged := agentjob.ServiceAccountTemplate{
		Labels: map[string]string{}, Annotations: map[string]string{},
		ImagePullSecrets: slices.Concat(every.ImagePullSecrets, class.ImagePullSecrets),
	}
	for _, one := range []agentjob.ServiceAccountTemplate{every, class} {
		maps.Copy(merged.Labels, one.Labels)
		maps.Copy(merged.Annotations, one.Annotations)
	}
	slices.Sort(merged.ImagePullSecrets)
	merged.ImagePullSecrets = slices.Compact(merged.ImagePullSecrets)
	return merged
}

// Complete implements scaler.Cluster.
func (k kube) Complete(ctx context.Context, job agentpool.AgentJob) error {
	if job.Registration != agentpool.RegistrationJIT {
		if err := k.token.missing(); err != nil {
			return err
		}
	}
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

// DeleteLeavingRights implements scaler.LeavingCluster.
func (k kube) DeleteLeavingRights(ctx context.Context, job agentpool.AgentJob) error {
	return k.DeleteJobLeavingRights(ctx, job.Name, job.UID)
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
	k.catalogue.report(class, warning, reason, message)
}

// Check implements scaler.Cluster. What is wrong with the installation keeps every
// class from being served.
func (k kube) Check(ctx context.Context) map[string]string {
	blocked := map[string]string{}
	classes := k.offer().usable
	if len(classes) == 0 {
		return blocked
	}
	installation := k.installationProblems(ctx)
	for name, class := range classes {
		var texts []string
		for _, problem := range slices.Concat(installation, k.classProblems(ctx, class)) {
			if problem.Fatal {
				texts = append(texts, problem.String())
			}
		}
		// Where something is in the way of the token as well, that has been told.
		if err := k.token.missing(); err != nil && class.Registration != agentpool.RegistrationJIT && len(texts) == 0 {
			texts = append(texts, err.Error())
		}
		if len(texts) > 0 {
			blocked[name] = strings.Join(texts, "; ")
		}
	}
	return blocked
}

// installationProblems tells what keeps every class from being served as it should.
func (k kube) installationProblems(ctx context.Context) []cluster.Problem {
	in := cluster.Installation{CAConfigMap: k.settings.CAConfigMap, Election: k.elects}
	for _, class := range k.offer().usable {
		if class.Registration != agentpool.RegistrationJIT {
			in.TokenSecret, in.TokenKey, in.TokenOwner = k.settings.TokenSecret, k.settings.TokenKey, k.tokenOwner
		}
	}
	return k.PreflightInstallation(ctx, in)
}

// classProblems tells what keeps one class from it.
func (k kube) classProblems(ctx context.Context, class agentclass.Class) []cluster.Problem {
	fatal := func(err error, remedy string) []cluster.Problem {
		reason := agentpool.ReasonInvalid
		var reasoned agentpool.ReasonedError
		if errors.As(err, &reasoned) {
			reason = reasoned.Reason()
		}
		return []cluster.Problem{{What: err.Error(), Where: "class " + class.Name, Remedy: remedy, Fatal: true, Reason: reason}}
	}
	doubts, err := k.checkAccount(ctx, class)
	if err != nil {
		return fatal(err, "see to the ServiceAccount that the class's annotation service-account names, or leave that out")
	}
	settings, err := k.settingsFor(ctx, class)
	if err != nil {
		return fatal(err, "see to the ServiceAccount that the class names, or take serviceAccountName out of it")
	}
	sample, err := sampleJob(settings, class)
	if err != nil {
		return fatal(err, "correct the class")
	}
	return slices.Concat(doubts, k.PreflightClass(ctx, sample))
}
