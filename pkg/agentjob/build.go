package agentjob

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// Build makes the n-th Job for a request: the class's template with what we set
// laid over it. The Job is suspended, so that the build's ServiceAccount and
// rights are there before its pod. failures is the number of failed Jobs in a row
// before this one. The template is not changed.
//
// The error names everything in the template that would break a promise: a
// container that shares processes with those that hold the credential, the
// credential's Secret in reach of the build, names that are ours.
func Build(s Settings, class agentpool.AgentClass, template batchv1.JobTemplateSpec, request agentpool.JobRequest, n, failures int) (*batchv1.Job, error) {
	if err := check(s, class, template, request, n, failures); err != nil {
		return nil, err
	}
	template = *template.DeepCopy()
	class.Registration = cmp.Or(class.Registration, agentpool.RegistrationConfig)
	b := builder{
		settings: s,
		class:    class,
		name:     JobName(s.Identity.Instance, s.Identity.Pool.ID, request.ID, n),
		grace:    cmp.Or(class.GracePeriod, DefaultGracePeriod),
	}
	labels := map[string]string{
		LabelManagedBy: ManagedBy,
		LabelName:      AgentName,
		LabelInstance:  s.Identity.Instance,
		LabelClass:     class.Name,
		LabelPoolID:    strconv.Itoa(s.Identity.Pool.ID),
		LabelRequestID: strconv.FormatInt(request.ID, 10),
		LabelAttempt:   strconv.Itoa(n),
	}
	annotations, err := b.annotations(request, failures)
	if err != nil {
		return nil, err
	}
	job := &batchv1.Job{
		TypeMeta: metav1.TypeMeta{APIVersion: batchv1.SchemeGroupVersion.String(), Kind: "Job"},
		ObjectMeta: metav1.ObjectMeta{
			Name:        b.name,
			Namespace:   s.Identity.Namespace,
			Labels:      merge(foreign(template.Labels), labels),
			Annotations: merge(foreign(template.Annotations), annotations),
		},
		Spec: template.Spec,
	}
	b.limitJob(&job.Spec)
	pod := &job.Spec.Template
	pod.ObjectMeta = metav1.ObjectMeta{
		Labels: merge(foreign(pod.Labels), labels),
		// An autoscaler that moves pods about must not end a build to save a node.
		Annotations: merge(foreign(pod.Annotations), map[string]string{
			"cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
			"karpenter.sh/do-not-disrupt":                    "true",
		}),
	}
	b.overlay(&pod.Spec)
	return job, nil
}

// builder holds what the steps of one Build share.
type builder struct {
	settings Settings
	class    agentpool.AgentClass
	name     string
	grace    time.Duration
}

// limitJob makes the Job run one pod once. What a template could set to have it
// run again, or elsewhere, would run a build's agent twice.
func (b *builder) limitJob(spec *batchv1.JobSpec) {
	spec.Parallelism = new(int32(1))
	spec.Completions = new(int32(1))
	spec.BackoffLimit = new(int32(0))
	spec.PodReplacementPolicy = new(batchv1.Failed)
	spec.Suspend = new(true)
	spec.TTLSecondsAfterFinished = new(seconds(b.settings.TTL))
	// A deadline would count the time that the agent waits for its build.
	spec.ActiveDeadlineSeconds = nil
	spec.Template.Spec.ActiveDeadlineSeconds = nil
	spec.PodFailurePolicy = nil
	spec.SuccessPolicy = nil
	spec.BackoffLimitPerIndex = nil
	spec.MaxFailedIndexes = nil
	spec.CompletionMode = nil
	spec.Selector = nil
	spec.ManualSelector = nil
	spec.ManagedBy = nil
}

// annotations records what the rest of the build's objects are made from, and
// what people want to know.
func (b *builder) annotations(request agentpool.JobRequest, failures int) (map[string]string, error) {
	account, err := json.Marshal(b.settings.ServiceAccount)
	if err != nil {
		return nil, fmt.Errorf("class %q: record the ServiceAccount: %w", b.class.Name, err)
	}
	claims, err := json.Marshal(b.class.Capabilities)
	if err != nil {
		return nil, fmt.Errorf("class %q: record the capabilities: %w", b.class.Name, err)
	}
	if len(b.class.Capabilities) == 0 {
		claims = nil
	}
	if b.class.ServiceAccount != "" {
		account = nil
	}
	annotations := map[string]string{
		AnnotationRoleBindings:   bindingLines(b.class.RoleBindings),
		AnnotationServiceAccount: string(account),
		AnnotationClassVersion:   b.class.Version,
		AnnotationCapabilities:   string(claims),
		AnnotationFailures:       strconv.Itoa(failures),
		AnnotationRegistration:   string(b.class.Registration),
		AnnotationPool:           b.settings.Identity.Pool.Name,
		AnnotationPipeline:       request.Definition.Name,
		AnnotationRunURL:         request.Run.URL,
		AnnotationQueuedAt:       "",
	}
	if !request.QueueTime.IsZero() {
		annotations[AnnotationQueuedAt] = request.QueueTime.UTC().Format(time.RFC3339Nano)
	}
	maps.DeleteFunc(annotations, func(_, value string) bool { return value == "" })
	return annotations, nil
}

// bindingLines writes the rights one a line, each once, in the order given.
func bindingLines(bindings []agentpool.RoleBinding) string {
	var lines []string
	for _, binding := range bindings {
		if line := binding.String(); !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}

// check collects everything that is wrong with what the Job is to be made from.
func check(s Settings, class agentpool.AgentClass, template batchv1.JobTemplateSpec, request agentpool.JobRequest, n, failures int) error {
	wrong := []error{s.Validate()}
	bad := func(format string, args ...any) {
		wrong = append(wrong, fmt.Errorf("class %q: "+format, append([]any{class.Name}, args...)...))
	}
	if len(validation.IsDNS1123Subdomain(class.Name)) > 0 || len(validation.IsValidLabelValue(class.Name)) > 0 {
		bad("the name is not that of a Kubernetes object: want lower-case letters, digits and dashes")
	}
	if class.GracePeriod < 0 || (class.GracePeriod > 0 && class.GracePeriod < time.Second) {
		bad("grace period %s: want at least a second, or 0 for %s", class.GracePeriod, DefaultGracePeriod)
	}
	if request.ID < agentpool.WarmRequest || n < 0 || failures < 0 {
		bad("request %d, attempt %d, failures %d: none may be negative", request.ID, n, failures)
	}
	switch class.Registration {
	case "", agentpool.RegistrationConfig:
	case agentpool.RegistrationJIT:
		if s.AgentSource == SourceDownload {
			checkPackage(s.Package, bad)
		}
		checkInputs(template.Spec.Template.Spec, bad)
	default:
		bad("registration %q: want one of %v", class.Registration, agentpool.Registrations())
	}
	for _, binding := range class.RoleBindings {
		switch binding.Namespace {
		case s.Identity.Namespace:
			bad("role binding %q: the target namespace is the agents' own, where a right could reach the pool's credential: deploy into another one", binding)
		case "":
			bad("role binding %q: names no namespace", binding)
		}
	}
	if class.ServiceAccount != "" && len(class.RoleBindings) > 0 {
		bad("role binding %q: builds run as the ServiceAccount %q, and no account is made that it could be given to: bind the role to that account yourself", class.RoleBindings[0], class.ServiceAccount)
	}
	if IsJobName(class.ServiceAccount) {
		bad("ServiceAccount %q: the name is of the form that accounts of single builds have: choose another one", class.ServiceAccount)
	}
	checkPod(s, template.Spec.Template.Spec, bad)
	if class.Registration != agentpool.RegistrationJIT {
		checkApart(s, template.Spec.Template.Spec, bad)
	}
	return errors.Join(wrong...)
}

// foreign gives a template's labels or annotations without those that are ours to
// set: one that says that the rights have ended would keep them alive.
func foreign(theirs map[string]string) map[string]string {
	kept := maps.Clone(theirs)
	maps.DeleteFunc(kept, func(key, _ string) bool { return strings.HasPrefix(key, Prefix) })
	return kept
}

// merge gives both maps as one; ours win.
func merge(theirs, ours map[string]string) map[string]string {
	merged := make(map[string]string, len(theirs)+len(ours))
	maps.Copy(merged, theirs)
	maps.Copy(merged, ours)
	return merged
}

// seconds rounds a duration up, as the API counts in whole ones.
func seconds(d time.Duration) int32 {
	return int32(min((d+time.Second-1)/time.Second, 1<<31-1)) //nolint:gosec // Bounded on this line.
}
