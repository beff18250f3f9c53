package env

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"time"
)

// Kind says what a build of a workload is there to show.
type Kind string

// The kinds of builds.
const (
	KindPlain  Kind = "build"
	KindDeploy Kind = "deploy" // Deploys into the target namespace with its own ServiceAccount.
	KindFail   Kind = "fail"   // Ends with a failed step.
	KindCancel Kind = "cancel" // Cancelled while it is queued.
)

// Build is one build of a workload.
type Build struct {
	Name        string
	Kind        Kind
	Steps       []string
	Class       string // The one that the demands call for, where a workload has classes.
	Demands     []string
	Priority    int               // The service serves the higher one first.
	Variables   map[string]string // Of the build; fakeagent.faults among them are the stand-in's.
	QueueAfter  time.Duration     // From the workload's start.
	CancelAfter time.Duration     // From its own queueing; only for KindCancel.
	Want        string            // The result that the service must report.
}

// DeploymentName is what the deploying build makes in the target namespace.
const DeploymentName = "storefront"

// The shape of a workload.
const (
	shortestBuild  = 1 * time.Second
	longestBuild   = 6 * time.Second
	arrivalSpread  = 8 * time.Second
	longestPatient = 3 * time.Second // Before a build is cancelled: no agent can be there as early, but its Job can.
)

// Workload makes builds from a seed: of different lengths, half of them queued
// at once and the rest within some seconds; one deploys, one fails and one is
// cancelled while it is queued, as far as there are that many. Each build has the
// demands of one of the classes: every class gets some, as far as the builds go,
// and the earlier ones more. The same seed, number and classes give the same builds.
func Workload(seed uint64, builds int, classes ...Class) []Build {
	random := rand.New(rand.NewPCG(seed, uint64(builds)))
	// A small run shows what matters most: a build that works, then one that deploys.
	kinds := []Kind{KindDeploy, KindFail, KindCancel}
	kinds = kinds[:max(0, min(builds-1, len(kinds)))]
	place := random.Perm(builds)
	kindAt := map[int]Kind{}
	for i, kind := range kinds {
		kindAt[place[i]] = kind
	}
	out := make([]Build, builds)
	for i := range out {
		kind, special := kindAt[i]
		if !special {
			kind = KindPlain
		}
		build := Build{Name: fmt.Sprintf("%s-%02d", kind, i+1), Kind: kind, Want: "succeeded"}
		if random.IntN(2) == 0 {
			build.QueueAfter = time.Duration(random.Int64N(int64(arrivalSpread)))
		}
		length := shortestBuild + time.Duration(random.Int64N(int64(longestBuild-shortestBuild)))
		build.Steps = []string{
			fmt.Sprintf("echo building %s on \"$(hostname)\"", build.Name),
			fmt.Sprintf("sleep %.1f", length.Seconds()),
		}
		switch kind {
		case KindFail:
			build.Steps = append(build.Steps, "echo 'a test of this build fails' >&2; exit 3")
			build.Want = "failed"
		case KindCancel:
			// At the very start no agent is up yet, so it is cancelled while queued.
			build.QueueAfter = 0
			build.CancelAfter = time.Duration(random.Int64N(int64(longestPatient)))
			build.Want = "canceled"
		case KindDeploy:
			build.Steps = append(build.Steps, deploySteps()...)
		case KindPlain:
		}
		out[i] = build
	}
	share(random, out, classes)
	return out
}

// share gives each build the demands of a class: the first builds those of one
// class each, and of the others every second one those of the first class, every
// second one of the rest those of the second class, and so on.
func share(random *rand.Rand, builds []Build, classes []Class) {
	if len(classes) == 0 {
		return
	}
	for n, place := range random.Perm(len(builds)) {
		next := n
		if n >= len(classes) {
			next = min(bits.TrailingZeros(uint(n-len(classes)+1)), len(classes)-1)
		}
		builds[place].Class, builds[place].Demands = classes[next].Name, classes[next].Demands
	}
}

// deploySteps deploy with the rights of the build alone, and check that these
// rights end at the target namespace: the agents' namespace holds the token.
func deploySteps() []string {
	return []string{
		fmt.Sprintf("kubectl create deployment %s --namespace %s --image %s --replicas 1 -- sleep infinity", DeploymentName, TargetNamespace, AgentImage),
		fmt.Sprintf("kubectl rollout status deployment/%s --namespace %s --timeout 90s", DeploymentName, TargetNamespace),
		fmt.Sprintf("if kubectl get secrets --namespace %s; then echo 'a build can read the secrets of the agents' >&2; exit 1; fi", AgentsNamespace),
	}
}
