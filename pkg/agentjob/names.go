package agentjob

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Prefix is what every label and annotation of ours begins with.
const Prefix = "azp-scaler.github.io/"

// The labels on the Job, its pod and its ServiceAccount. RoleBindings carry the
// first three, LabelJob and LabelJobUID.
const (
	LabelManagedBy = "app.kubernetes.io/managed-by"
	LabelName      = "app.kubernetes.io/name"
	LabelInstance  = Prefix + "instance"
	LabelClass     = Prefix + "class"
	LabelPoolID    = Prefix + "pool-id"
	LabelRequestID = Prefix + "request-id"
	LabelAttempt   = Prefix + "attempt"
	// LabelJob and LabelJobUID tie a right to the Job it was made for.
	LabelJob    = Prefix + "job"
	LabelJobUID = Prefix + "job-uid"
)

// The values of the labels that never vary.
const (
	ManagedBy = "azp-scaler"
	AgentName = "azp-agent"
)

// The annotations on the Job.
const (
	// AnnotationRoleBindings lists the rights of the build, one a line, in the
	// form that agentpool.ParseRoleBinding reads.
	AnnotationRoleBindings = Prefix + "role-bindings"
	// AnnotationFailures counts the failed Jobs in a row before this one.
	AnnotationFailures = Prefix + "failures"
	// AnnotationPool, AnnotationPipeline and AnnotationRunURL are for people.
	AnnotationPool     = Prefix + "pool"
	AnnotationPipeline = Prefix + "pipeline"
	AnnotationRunURL   = Prefix + "run-url"
	// AnnotationQueuedAt is when the request was queued, in RFC 3339.
	AnnotationQueuedAt = Prefix + "queued-at"
	// AnnotationServiceAccount holds what the build's own ServiceAccount gets besides
	// its name, as JSON.
	AnnotationServiceAccount = Prefix + "service-account"
	// AnnotationClassVersion is the version of the class that the Job was made from,
	// and AnnotationCapabilities what that claims, as JSON.
	AnnotationClassVersion = Prefix + "class-version"
	AnnotationCapabilities = Prefix + "capabilities"
	// AnnotationRightsEnded says when the build's rights were taken back, in RFC
	// 3339. It spares every later look at the same finished Job the same calls.
	AnnotationRightsEnded = Prefix + "rights-ended"
	// AnnotationRegistration says how the Job's agent comes to be known to the pool.
	AnnotationRegistration = Prefix + "registration"
	// AnnotationAgentID is the number that the agent was given in the pool, where the
	// scaler has registered it. A Job that is to have it and has not was left half-made.
	AnnotationAgentID = Prefix + "agent-id"
)

// AnnotationTokenEnds says when the token ends, in RFC 3339, that the scaler keeps for pods to
// register with. It is on their Secret.
const AnnotationTokenEnds = Prefix + "token-ends"

// CapabilityCluster is what placeholders carry of the cluster that they were registered from,
// so that two installations which share an id notice each other.
const CapabilityCluster = "azp-scaler.cluster"

// namePrefix begins the name of every Job, and so of every agent.
const namePrefix = "azp"

// instanceLength is in characters of five bits each: forty bits tell apart the
// installations on one pool.
const instanceLength = 8

// InstanceID derives the eight characters [a-z2-7] that tell this installation
// from every other one: from the organisation's URL, the pool, the agents'
// namespace and the release. Case and trailing slashes of URL and pool do not
// matter, as they do not matter to the service.
func InstanceID(orgURL, pool, namespace, release string) string {
	hash := sha256.New()
	for _, part := range []string{
		strings.ToLower(strings.TrimRight(strings.TrimSpace(orgURL), "/")),
		strings.ToLower(strings.TrimSpace(pool)),
		namespace,
		release,
	} {
		// The length keeps "a"+"bc" apart from "ab"+"c".
		_, _ = fmt.Fprintf(hash, "%d:%s", len(part), part)
	}
	id := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(hash.Sum(nil))
	return strings.ToLower(id[:instanceLength])
}

// JobName is the name of the n-th Job for a request, which is the agent's name
// in the pool too. It is a DNS label of at most 63 characters for every id that
// the service can give.
func JobName(instance string, poolID int, requestID int64, n int) string {
	return fmt.Sprintf("%s%d-%d-%d", NamePrefix(instance), poolID, requestID, n)
}

// NamePrefix begins the name of every Job, and so of every agent, of an instance.
func NamePrefix(instance string) string { return namePrefix + "-" + instance + "-" }

// ParseJobName takes a name of this instance apart. Only what JobName itself
// would have written is recognised.
func ParseJobName(instance, name string) (poolID int, requestID int64, n int, ok bool) {
	rest, found := strings.CutPrefix(name, NamePrefix(instance))
	if !found {
		return 0, 0, 0, false
	}
	fields := strings.Split(rest, "-")
	if len(fields) != 3 {
		return 0, 0, 0, false
	}
	poolID, errPool := strconv.Atoi(fields[0])
	requestID, errRequest := strconv.ParseInt(fields[1], 10, 64)
	n, errAttempt := strconv.Atoi(fields[2])
	if errPool != nil || errRequest != nil || errAttempt != nil || JobName(instance, poolID, requestID, n) != name {
		return 0, 0, 0, false
	}
	return poolID, requestID, n, true
}

// IsJobName reports whether a name is one that JobName gives, for whatever instance.
func IsJobName(name string) bool {
	_, rest, _ := strings.Cut(name, "-")
	instance, _, _ := strings.Cut(rest, "-")
	_, _, _, ok := ParseJobName(instance, name)
	return ok && len(instance) == instanceLength
}

// placeholderPrefix begins the name of every placeholder agent. No agent that runs
// builds has a name like it, so that neither is ever taken for the other.
const placeholderPrefix = "azp-placeholder-"

const (
	// placeholderClassLength keeps the name short enough for the service.
	placeholderClassLength = 30
	placeholderHashLength  = 6
)

// PlaceholderPrefix begins the names of the placeholder agents of an instance.
func PlaceholderPrefix(instance string) string { return placeholderPrefix + instance + "-" }

// PlaceholderName names the agent that stands in a pool for a class as long as
// none of its agents is registered. It changes with what the class claims, so that
// a new one can be there before the outdated one goes.
func PlaceholderName(instance, class string, claims map[string]string) string {
	hash := sha256.New()
	_, _ = fmt.Fprintf(hash, "%q", class)
	for _, name := range slices.Sorted(maps.Keys(claims)) {
		_, _ = fmt.Fprintf(hash, " %q=%q", name, claims[name])
	}
	id := strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(hash.Sum(nil)))
	return placeholderOf(instance, class) + id[:placeholderHashLength]
}

// IsPlaceholderOf reports whether an agent's name is that of a placeholder for the
// class, whatever the class claimed when it was registered.
func IsPlaceholderOf(instance, class, name string) bool {
	hash, found := strings.CutPrefix(name, placeholderOf(instance, class))
	return found && len(hash) == placeholderHashLength && !strings.Contains(hash, "-")
}

func placeholderOf(instance, class string) string {
	return PlaceholderPrefix(instance) + strings.TrimRight(class[:min(len(class), placeholderClassLength)], "-.") + "-"
}
