package app

import (
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	batchv1 "k8s.io/api/batch/v1"

	"github.com/azp-scaler/azp-scaler/pkg/agentclass"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// The reasons of Events about a class.
const (
	eventBroken = "BrokenClass"
	eventMended = "ClassMended"
)

// entry is one CronJob that is a class, read.
type entry struct {
	class   agentclass.Class
	cronJob *batchv1.CronJob
	problem string // Why it can't be used; empty when it can.
}

// readClasses reads the classes. fits says what keeps the pod of one from being made
// into Jobs.
func readClasses(cronJobs []*batchv1.CronJob, defaults agentclass.Defaults, fits func(agentclass.Class) error) []entry {
	entries := make([]entry, 0, len(cronJobs))
	for _, cronJob := range cronJobs {
		class, err := agentclass.Parse(cronJob, defaults)
		if err == nil {
			err = fits(class)
		}
		e := entry{class: class, cronJob: cronJob}
		if err != nil {
			e.problem = strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		entries = append(entries, e)
	}
	return entries
}

// offer is what there is for one pool.
type offer struct {
	usable map[string]agentclass.Class
	broken map[string]string
	// unused says that the class from the environment is not used, as there are others.
	unused bool
}

// offerTo gives the classes for a pool. As soon as one is there for it, usable or not,
// the one from the environment (nil where there is none) is not used: a class that is
// broken must not be replaced by another without a word.
func offerTo(pool string, entries []entry, builtin *agentclass.Class) offer {
	o := offer{usable: map[string]agentclass.Class{}, broken: map[string]string{}}
	for _, e := range entries {
		switch {
		case !e.class.Serves(pool):
		case e.problem != "":
			o.broken[e.class.Name] = e.problem
		default:
			o.usable[e.class.Name] = e.class
		}
	}
	if builtin == nil {
		return o
	}
	if o.unused = len(o.usable)+len(o.broken) > 0; !o.unused {
		o.usable[builtin.Name] = *builtin
	}
	return o
}

// classes gives the offer as the loop wants it.
func (o offer) classes() scaler.Classes {
	usable := make([]agentpool.AgentClass, 0, len(o.usable))
	for _, name := range slices.Sorted(maps.Keys(o.usable)) {
		usable = append(usable, o.usable[name].AgentClass)
	}
	return scaler.Classes{Usable: usable, Broken: o.broken}
}

// catalogue keeps what was read of the classes until one of them changes, and tells of
// each change once. It may be used by several loops at once.
type catalogue struct {
	source   func() []*batchv1.CronJob
	defaults agentclass.Defaults
	fits     func(agentclass.Class) error
	builtin  *agentclass.Class
	event    func(cronJob *batchv1.CronJob, warning bool, reason, message string)
	log      *slog.Logger

	mu      sync.Mutex
	key     string
	entries []entry
	offers  map[string]offer
}

// of gives what there is for a pool now. What it returns must not be changed.
func (c *catalogue) of(pool string) offer {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refresh()
	o, known := c.offers[pool]
	if !known {
		o = offerTo(pool, c.entries, c.builtin)
		c.offers[pool] = o
	}
	return o
}

// all gives every class that is there, whatever pool it is for.
func (c *catalogue) all() []entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refresh()
	return c.entries
}

// refresh reads the classes anew if one has changed.
func (c *catalogue) refresh() {
	cronJobs := c.source()
	var key strings.Builder
	for _, cronJob := range cronJobs {
		key.WriteString(string(cronJob.UID) + " " + cronJob.ResourceVersion + "\n")
	}
	if c.offers != nil && key.String() == c.key {
		return
	}
	before := c.entries
	c.key, c.entries, c.offers = key.String(), readClasses(cronJobs, c.defaults, c.fits), map[string]offer{}
	c.tell(before)
}

// tell says what is new about the classes.
func (c *catalogue) tell(before []entry) {
	old := map[string]entry{}
	for _, e := range before {
		old[e.class.Name] = e
	}
	for _, e := range c.entries {
		was, known := old[e.class.Name]
		delete(old, e.class.Name)
		log := c.log.With("class", e.class.Name)
		switch {
		case e.problem != "":
			if e.problem != was.problem {
				log.Error("a class of agent is broken and not used", "problem", e.problem)
				c.event(e.cronJob, true, eventBroken, e.problem)
			}
		case known && was.problem != "":
			log.Info("a class of agent is mended", "version", e.class.Version)
			c.event(e.cronJob, false, eventMended, "the class can be used again")
		case !known:
			log.Info("a class of agent is there", "version", e.class.Version, "pools", e.class.Pools)
		case was.class.Version != e.class.Version:
			log.Info("a class of agent has changed: Jobs made from now on are of the new version", "version", e.class.Version, "before", was.class.Version)
		}
	}
	for name := range old {
		c.log.Info("a class of agent is gone: its running builds go on", "class", name)
	}
}

// report puts an Event on the CronJob of a class. One from the environment has none.
func (c *catalogue) report(class string, warning bool, reason, message string) {
	for _, e := range c.all() {
		if e.class.Name == class {
			c.event(e.cronJob, warning, reason, message)
		}
	}
}

// without says why there is no class to serve a pool, or nothing.
func (o offer) without(pool string) string {
	if len(o.usable) > 0 {
		return ""
	}
	for _, name := range slices.Sorted(maps.Keys(o.broken)) {
		return "no class of agent for pool " + pool + " can be used; class " + name + ": " + o.broken[name]
	}
	return "there is no class of agent for pool " + pool + ": create one (docs/classes.md), or set AZP_AGENT_IMAGE for a built-in one"
}
