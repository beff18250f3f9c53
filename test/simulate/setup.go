package simulate

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// Setup is what a seed says of the pool, the cluster and the people. What happens in
// them then is thrown as it goes.
type Setup struct {
	Seed    uint64
	Builds  int
	Within  time.Duration // How long they are queued over.
	Config  scaler.Config
	Classes []agentpool.AgentClass
	Lag     time.Duration // The longest between a Job's change and its sight in a cache.
	Latency time.Duration // The longest way of a call that is not held up.
	Skew    time.Duration // By how much a scaler's clock may be wrong, either way.
	// Parallel is how many builds the service lets run at once; 0 is no limit.
	Parallel int
	// Tempting is how often an agent is claimed just while the loop is about something
	// with it.
	Tempting int
	Faults   Faults
}

// Faults are the kinds of trouble in a history. Each is there in some histories only, so
// that what one brings about is not hidden behind the others.
type Faults struct {
	Calls      bool // Calls fail, time out before or after they took effect, or lose their answers.
	Outages    bool // For a while all calls of a kind fail: the API server, the service, sign-in, throttling.
	Answers    bool // Answers about the queue are truncated, or have rows that can't be read.
	Quota      bool // Creations are refused.
	HalfMade   bool // Calls between the steps of one creation fail more often than others.
	Crashes    bool // Agents end before they have a build, or are killed with it.
	Forget     bool // Sidecars fail to remove registrations.
	Flicker    bool // Agents lose the service for a while.
	Second     bool // An agent that ends after its build may be given another.
	Slow       bool // Pods take minutes for a node or an image.
	Evictions  bool
	NodeLoss   bool
	Restarts   bool // Scalers end in order and start anew.
	Kills      bool // Scalers end at any point, with calls on their way.
	TwoLeaders bool
	Edits      bool // Classes get new versions and other caps.
}

// NewSetup draws what a seed says.
func NewSetup(seed uint64, builds int) Setup {
	d := dice{rand.New(rand.NewPCG(seed, 0))}
	s := Setup{
		Seed: seed, Builds: builds, Within: 30*time.Second + d.upTo(time.Duration(15*max(builds, 4))*time.Second),
		Lag:     pick(d, 300*time.Millisecond, 3*time.Second, 20*time.Second, 20*time.Second, 50*time.Second),
		Latency: pick(d, 100*time.Millisecond, time.Second, 4*time.Second),
		Skew:    pick(d, 0, 0, 2*time.Second, 20*time.Second),
		Faults:  newFaults(d), Config: newConfig(d),
		Tempting: max(0, d.IntN(builds+4)-3),
	}
	if d.oneIn(5) {
		s.Parallel = 1 + d.IntN(8)
	}
	warm := 0
	for i := range 1 + d.IntN(4) {
		class := newClass(d, i)
		warm += class.MinIdle
		s.Classes = append(s.Classes, class)
	}
	if d.oneIn(3) {
		s.Config.Limits.PoolAgents = max(1, warm) + d.IntN(10)
	}
	return s
}

func newFaults(d dice) Faults {
	if d.oneIn(8) {
		return Faults{} // Late, and otherwise well.
	}
	one := func(n int) bool { return d.oneIn(n) }
	return Faults{
		Calls: one(3), Outages: one(4), Answers: one(4), Quota: one(6), HalfMade: one(4), Crashes: one(4), Forget: one(4),
		Flicker: one(4), Second: one(3), Slow: one(4), Evictions: one(4), NodeLoss: one(5), Restarts: one(4), Kills: one(4),
		TwoLeaders: one(4), Edits: one(5),
	}
}

func newClass(d dice, i int) agentpool.AgentClass {
	claims := map[string]string{}
	for _, claim := range []string{"java", "node", "rust"} {
		if i > 0 && d.oneIn(2) {
			claims[claim] = ""
		}
	}
	class := agentpool.AgentClass{
		Name: fmt.Sprintf("class-%d", i), Version: "1", Claims: claims, Capabilities: agentpool.NewCapabilities(claims), Priority: d.IntN(2),
		Registration: pick(d, agentpool.RegistrationConfig, agentpool.RegistrationJIT),
	}
	if d.oneIn(3) {
		class.MinIdle = 1 + d.IntN(2)
	}
	if d.oneIn(3) {
		class.MaxAgents = max(1, class.MinIdle) + d.IntN(5)
	}
	return class
}

// newConfig is what package app sets by default, but for what seeds vary.
func newConfig(d dice) scaler.Config {
	c := scaler.Config{
		Pool:     agentpool.Pool{ID: poolID, Name: "k8s"},
		Instance: instance, PollBusy: 2 * time.Second, PollIdle: 10 * time.Second, AgentsEvery: time.Minute,
		SweepEvery: time.Minute, SweepGrace: 2 * time.Minute, CheckEvery: 5 * time.Minute, RecheckEvery: 10 * time.Second,
		AssumeLimit: 30 * time.Second, CallTimeout: 30 * time.Second, PollTimeout: time.Minute, Concurrency: 4,
		UseParallel: true, ParallelEvery: time.Minute,
		Limits: plan.Limits{
			PoolAgents: 100, HalfMadeLimit: 2 * time.Minute, BackoffMin: 10 * time.Second, BackoffMax: time.Minute, MismatchLimit: time.Minute,
			IdleLimit:         pick(d, 5*time.Second, 20*time.Second, time.Minute),
			StartupLimit:      pick(d, 10*time.Minute, 10*time.Minute, time.Minute),
			MaxIdleAge:        pick(d, longIdle, longIdle, 90*time.Second),
			CreationsPerCycle: pick(d, 250, 250, 2),
		},
	}
	// As package app has it: the time for one call, and for taking back what came of it.
	c.Limits.UnregisteredLimit = c.CallTimeout + takeBackLimit
	return c
}

const (
	poolID   = 7
	instance = "sim"
	// longIdle has no agent replaced for its age in a history.
	longIdle = 24 * time.Hour
)
