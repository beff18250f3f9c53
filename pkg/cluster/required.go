package cluster

import (
	"slices"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// Right is one right that the scaler needs in a namespace.
type Right struct {
	Group    string // Empty for the core group.
	Resource string
	Names    []string // Empty for every name.
	Verbs    []string
	Why      string
}

// AgentsRights are those needed in the agents' namespace for whatever class. Both names
// may be empty. The token's Secret is read by its name alone, to tell before the first
// build that it or its key is missing.
func AgentsRights(tokenSecret, caConfigMap string) []Right {
	rights := []Right{
		{Group: "batch", Resource: "jobs", Verbs: []string{"get", "list", "watch", "create", "patch", "delete"}, Why: "one Job for each queued build; patch lets a suspended one run and marks one whose rights have ended"},
		{Group: "batch", Resource: "cronjobs", Verbs: []string{"list", "watch"}, Why: "the classes of agent: suspended CronJobs, of which the scaler never makes or changes one"},
		{Resource: "pods", Verbs: []string{"list", "watch", "delete"}, Why: "how far each agent is; delete ends one that has not started"},
		{Resource: "serviceaccounts", Verbs: []string{"get", "list", "create", "delete"}, Why: "one ServiceAccount for each build, taken away when it ends; list finds what a crash left"},
		{Resource: "events", Verbs: []string{"list", "watch", "create", "patch"}, Why: "why a pod does not start; what the scaler reports on a Job, where patch counts repeats"},
	}
	if tokenSecret != "" {
		rights = append(rights, Right{Resource: "secrets", Names: []string{tokenSecret}, Verbs: []string{"get"}, Why: "tells that the agents' token or its key is missing; not needed where every class registers its agents by `jit`"})
	}
	if caConfigMap != "" {
		rights = append(rights, Right{Resource: "configmaps", Names: []string{caConfigMap}, Verbs: []string{"get"}, Why: "tells that the CA certificate for the agents is missing"})
	}
	return rights
}

// JITRights are those needed in the agents' namespace besides, for classes whose agents
// the scaler registers.
func JITRights() []Right {
	return []Right{{Resource: "secrets", Verbs: []string{"create"}, Why: "one Secret for each build whose class says `jit`, with what its agent signs in with; it goes with the Job, and the scaler can't read it"}}
}

// TokenRights are those needed in the agents' namespace besides where the scaler keeps the
// token in that Secret for pods to register with. RBAC can't limit creation by name.
func TokenRights(tokenSecret string) []Right {
	return []Right{
		{Resource: "secrets", Verbs: []string{"create"}, Why: "makes the Secret of the agents' token, where it is not there"},
		{Resource: "secrets", Names: []string{tokenSecret}, Verbs: []string{"update", "delete"}, Why: "puts each new token there before the old one ends; `scaler cleanup` deletes it"},
	}
}

// StandingAccountRights are those needed in the agents' namespace besides, for classes whose
// builds run as a ServiceAccount that is not made for them. Nothing fails without them: then it
// goes unchecked what the account could read.
func StandingAccountRights() []Right {
	return []Right{{Group: "authorization.k8s.io", Resource: "localsubjectaccessreviews", Verbs: []string{"create"}, Why: "tells that the ServiceAccount that a class names for its builds could read the token; a question, which changes nothing; needed where a class names one"}}
}

// ElectionRights are those needed in the agents' namespace besides, unless the scaler runs
// without leader election. The Lease's name depends on the organisation and the pools.
func ElectionRights() []Right {
	return []Right{{Group: "coordination.k8s.io", Resource: "leases", Verbs: []string{"get", "create", "update"}, Why: "which of several replicas works; not needed with `AZP_LEADER_ELECTION=false`"}}
}

// TargetRights are those needed in one target namespace to give builds the
// bindings that lie in it. bind says that the roles are given by the verb bind;
// otherwise the scaler's ServiceAccount holds them itself.
func TargetRights(namespace string, bindings []agentpool.RoleBinding, bind bool) []Right {
	const group = "rbac.authorization.k8s.io"
	rights := []Right{{Group: group, Resource: "rolebindings", Verbs: []string{"get", "list", "create", "delete"}, Why: "one RoleBinding for each build and role, taken away when the build ends; list finds what a crash left"}}
	names := map[string][]string{}
	for _, binding := range bindings {
		if binding.Namespace == namespace && !slices.Contains(names[binding.Kind], binding.Name) {
			names[binding.Kind] = append(names[binding.Kind], binding.Name)
		}
	}
	for _, kind := range []string{"ClusterRole", "Role"} {
		if len(names[kind]) == 0 {
			continue
		}
		slices.Sort(names[kind])
		right := Right{Group: group, Resource: resourceOf(kind), Names: names[kind], Why: "gives builds this role and no other"}
		if bind {
			right.Verbs = []string{"bind"}
		}
		if kind == "Role" {
			// A ClusterRole can only be read with a right in the whole cluster.
			right.Verbs = append([]string{"get"}, right.Verbs...)
			right.Why += "; get tells that it is missing"
		}
		if len(right.Verbs) > 0 {
			rights = append(rights, right)
		}
	}
	return rights
}
