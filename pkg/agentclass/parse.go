package agentclass

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	batchv1 "k8s.io/api/batch/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// The bounds of what an annotation may say.
const (
	mostAgents   = 100_000
	mostPriority = 1_000_000
	leastGrace   = 2 * time.Minute
	mostGrace    = 7 * 24 * time.Hour
)

// Parse reads a class. The error tells everything that is wrong with it, each with
// the annotation or field, its value, and an example that is right. The class is
// then not to be used; its name and, as far as they can be read, its pools are set.
// What the pod itself must not be is for the package that builds Jobs to say.
func Parse(cronJob *batchv1.CronJob, defaults Defaults) (Class, error) {
	r := &reader{annotations: cronJob.Annotations}
	class := Class{
		AgentClass: agentpool.AgentClass{
			Name: cronJob.Name, Registration: cmp.Or(defaults.Registration, agentpool.RegistrationConfig), GracePeriod: defaults.GracePeriod,
		},
		Template: cronJob.Spec.JobTemplate,
	}
	if cronJob.Spec.Suspend == nil || !*cronJob.Spec.Suspend {
		r.add(`field spec.suspend is not true: Kubernetes would run the class as a CronJob: set "suspend: true"`)
	}
	r.unknown()
	class.Pools = r.pools()
	claims := r.capabilities()
	class.MaxAgents = r.number(AnnotationMaxAgents, 1, mostAgents)
	class.MinIdle = r.number(AnnotationMinIdle, 0, mostAgents)
	if class.MaxAgents > 0 && class.MinIdle > class.MaxAgents {
		r.wrong(AnnotationMinIdle, fmt.Sprintf("is more than %s, which is %d", AnnotationMaxAgents, class.MaxAgents))
	}
	class.Priority = r.number(AnnotationPriority, -mostPriority, mostPriority)
	class.RoleBindings = r.roleBindings(cronJob.Namespace)
	class.ServiceAccount = r.account(cronJob.Spec.JobTemplate.Spec.Template.Spec.ServiceAccountName)
	if way := r.registration(); way != "" {
		class.Registration = way
	}
	if grace := r.grace(); grace > 0 {
		class.GracePeriod = grace
	}
	pod := cronJob.Spec.JobTemplate.Spec.Template.Spec
	if _, err := architectureOf(pod); err != nil {
		r.add(err.Error())
	}
	if system := systemOf(pod); system != "" && system != "linux" {
		r.add(fmt.Sprintf("the pod asks for the operating system %q: agents run on linux alone", system))
	}
	if err := errors.Join(r.problems...); err != nil {
		return Class{AgentClass: agentpool.AgentClass{Name: class.Name}, Pools: class.Pools}, err
	}
	class.complete(claims, defaults)
	return class, nil
}

// reader reads annotations and gathers what is wrong with them.
type reader struct {
	annotations map[string]string
	problems    []error
}

func (r *reader) add(problem string) { r.problems = append(r.problems, errors.New(problem)) }

// wrong says what is wrong with the value of an annotation, and what would be right.
func (r *reader) wrong(name, why string) {
	r.item(name, strings.TrimSpace(r.annotations[name]), why)
}

// item says the same of a part of the value.
func (r *reader) item(name, value, why string) {
	example := ""
	for _, annotation := range Annotations() {
		if annotation.Name == name {
			example = annotation.Example
		}
	}
	r.add(fmt.Sprintf("annotation %s: %q %s: want such as %q", name, value, why, example))
}

// unknown finds annotations that look like ours and say nothing: most are misspelled.
func (r *reader) unknown() {
	for _, name := range slices.Sorted(maps.Keys(r.annotations)) {
		if !strings.HasPrefix(name, agentjob.Prefix) {
			continue
		}
		nearest, distance := "", len(name)
		known := false
		for _, annotation := range Annotations() {
			if d := editDistance(name, annotation.Name); d < distance {
				nearest, distance = annotation.Name, d
			}
			known = known || annotation.Name == name
		}
		if !known {
			r.add(fmt.Sprintf("annotation %s: %q has no meaning: want such as %s", name, r.annotations[name], nearest))
		}
	}
}

// editDistance counts the letters to add, drop or replace to make b of a.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

// lines splits a value at new lines and drops what is blank.
func lines(text string) []string {
	var list []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			list = append(list, line)
		}
	}
	return list
}

func (r *reader) pools() []string {
	text, given := r.annotations[AnnotationPools]
	if !given {
		return nil
	}
	var pools []string
	for _, name := range lines(strings.ReplaceAll(text, ",", "\n")) {
		if slices.ContainsFunc(pools, func(pool string) bool { return strings.EqualFold(pool, name) }) {
			r.item(AnnotationPools, name, "is named twice")
			continue
		}
		pools = append(pools, name)
	}
	if len(pools) == 0 {
		r.wrong(AnnotationPools, "names no pool: leave the annotation out to serve every pool")
	}
	return pools
}

func (r *reader) capabilities() map[string]string {
	claims, names := map[string]string{}, map[string]string{}
	for _, line := range lines(r.annotations[AnnotationCapabilities]) {
		name, value, _ := strings.Cut(line, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		folded := strings.ToLower(name)
		before, again := names[folded]
		switch {
		case name == "":
			r.item(AnnotationCapabilities, line, "has no name before the =")
		case strings.ContainsFunc(name, unicode.IsSpace):
			r.item(AnnotationCapabilities, line, "has a blank in its name: one capability a line")
		case folded == "agent.name" || folded == "agent.version":
			r.item(AnnotationCapabilities, line, "can't be claimed: each agent has its own")
		case again && claims[before] != value:
			r.item(AnnotationCapabilities, line, fmt.Sprintf("contradicts %q: names do not differ by case", before+"="+claims[before]))
		case again:
		default:
			claims[name], names[folded] = value, name
		}
	}
	return claims
}

// number gives 0 where there is none.
func (r *reader) number(name string, least, most int) int {
	text, given := r.annotations[name]
	if !given {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(text))
	switch {
	case err != nil:
		r.wrong(name, "is no whole number")
	case n < least || n > most:
		r.wrong(name, fmt.Sprintf("is out of bounds, which are %d and %d", least, most))
	default:
		return n
	}
	return 0
}

func (r *reader) roleBindings(namespace string) []agentpool.RoleBinding {
	var bindings []agentpool.RoleBinding
	for _, line := range lines(r.annotations[AnnotationRoleBindings]) {
		binding, err := agentpool.ParseRoleBinding(line)
		switch {
		case err != nil:
			r.add(fmt.Sprintf("annotation %s: %v", AnnotationRoleBindings, err))
		case len(validation.IsDNS1123Label(binding.Namespace)) > 0:
			r.item(AnnotationRoleBindings, line, fmt.Sprintf("names %q, which is no valid namespace", binding.Namespace))
		case binding.Namespace == namespace:
			r.item(AnnotationRoleBindings, line, "gives builds a role in the agents' own namespace, where it could read the pool's token: deploy into another namespace")
		case slices.Contains(bindings, binding):
			r.item(AnnotationRoleBindings, line, "is there twice")
		default:
			bindings = append(bindings, binding)
		}
	}
	return bindings
}

// defaultAccount is the ServiceAccount of every pod that names none.
const defaultAccount = "default"

// account gives the ServiceAccount that builds run as, or nothing where each gets one of its
// own. inTemplate is the one that the pod names.
func (r *reader) account(inTemplate string) string {
	text, given := r.annotations[AnnotationAccount]
	if !given {
		return ""
	}
	name := strings.TrimSpace(text)
	switch {
	case len(validation.IsDNS1123Subdomain(name)) > 0:
		r.wrong(AnnotationAccount, "is no name of a ServiceAccount")
	case name == defaultAccount:
		r.wrong(AnnotationAccount, "is the account of every pod in the namespace that names none, so that what it may do is not for these builds alone: make one for the class")
	case agentjob.IsJobName(name):
		r.wrong(AnnotationAccount, "is a name of the form that accounts of single builds have, which go with their build: choose another one")
	case inTemplate != "" && inTemplate != name:
		r.wrong(AnnotationAccount, fmt.Sprintf("is not what serviceAccountName in the job template says, %q: builds run as the account in the annotation, and none is made that could take after another: leave serviceAccountName out", inTemplate))
	case len(lines(r.annotations[AnnotationRoleBindings])) > 0:
		r.wrong(AnnotationAccount, fmt.Sprintf("can't be with %s: that gives rights to an account made for each build, and here none is made: bind roles to this account yourself, or leave one of the two out", AnnotationRoleBindings))
	}
	return name
}

// registration gives nothing where there is none.
func (r *reader) registration() agentpool.Registration {
	text, given := r.annotations[AnnotationRegistration]
	if !given {
		return ""
	}
	way := agentpool.Registration(strings.TrimSpace(text))
	if !slices.Contains(agentpool.Registrations(), way) {
		r.wrong(AnnotationRegistration, "is no way of registration, which are config and jit")
	}
	return way
}

// grace gives 0 where there is none.
func (r *reader) grace() time.Duration {
	text, given := r.annotations[AnnotationGracePeriod]
	if !given {
		return 0
	}
	grace, err := time.ParseDuration(strings.TrimSpace(text))
	switch {
	case err != nil:
		r.wrong(AnnotationGracePeriod, "is no duration with a unit")
	case grace < leastGrace || grace > mostGrace:
		r.wrong(AnnotationGracePeriod, fmt.Sprintf("is out of bounds, which are %v and %v", leastGrace, mostGrace))
	default:
		return grace
	}
	return 0
}
