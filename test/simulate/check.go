package simulate

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// Rule is something that must hold in every history.
type Rule string

// The rules. What breaks one of the first group is a duplicate, of the second a loss, of the
// third a leak.
const (
	RuleNeed   Rule = "no agent is made for which there is no need"
	RuleNumber Rule = "an agent too many is there only where something explains it"
	RuleCaps   Rule = "caps are held"
	RuleAgain  Rule = "nothing is ended that is known to have ended"

	RuleClaimed Rule = "no agent is ended that has a build"
	RuleSecond  Rule = "an agent with a build is soon disabled"
	RuleBuilds  Rule = "every build ends on an agent, or has a stated reason why not"
	RuleKilled  Rule = "a build is lost only with its agent's container"
	RuleKey     Rule = "no Job runs without the agent that it needs"

	RuleRights   Rule = "rights end soon after the build"
	RuleRegister Rule = "the registration of an agent that has ended goes soon"
	RuleLeft     Rule = "at rest there are the agents that are to wait, and nothing of any other"
	RuleQuiet    Rule = "at rest nothing is written"
)

// Rules lists every rule.
func Rules() []Rule { return slices.Concat(duplicates(), losses(), leaks()) }

func duplicates() []Rule { return []Rule{RuleNeed, RuleNumber, RuleCaps, RuleAgain} }

func losses() []Rule { return []Rule{RuleClaimed, RuleSecond, RuleBuilds, RuleKilled, RuleKey} }

func leaks() []Rule { return []Rule{RuleRights, RuleRegister, RuleLeft, RuleQuiet} }

// Violation is a rule that was broken, and how.
type Violation struct {
	Rule Rule
	At   time.Duration
	Text string
}

// String is one line.
func (v Violation) String() string {
	return fmt.Sprintf("%12.6f  %s: %s", v.At.Seconds(), v.Rule, v.Text)
}

// Verdict is what becomes of judging a history.
type Verdict struct {
	Violations []Violation
	// Settled is the last write before rest, counted from when the trouble ended.
	Settled time.Duration
}

// Counts gives how many rules were broken, by what that means for builds.
func (v Verdict) Counts() (duplicate, lost, leaked int) {
	for _, violation := range v.Violations {
		switch {
		case slices.Contains(duplicates(), violation.Rule):
			duplicate++
		case slices.Contains(losses(), violation.Rule):
			lost++
		default:
			leaked++
		}
	}
	return duplicate, lost, leaked
}

// reaction is by when a scaler does what its cache shows it to be due, while nothing fails:
// a pass over the Jobs that is under way, another one, and those before it in the line.
const reaction = time.Minute

// Check judges a history from its record alone.
func Check(h History) Verdict {
	c := &check{
		setup: h.Setup, builds: map[int64]*buildSeen{}, agents: map[string]*agentSeen{}, jobs: map[string]*jobSeen{},
		rights: map[string]time.Duration{}, scalers: map[string]*scalerSeen{},
	}
	for _, event := range h.Events {
		c.now = event.At
		c.take(event)
	}
	return c.verdict
}

// check is what the record says of the world so far.
type check struct {
	setup   Setup
	now     time.Duration
	verdict Verdict

	classes   []agentpool.AgentClass
	builds    map[int64]*buildSeen
	agents    map[string]*agentSeen // Those registered, by name.
	jobs      map[string]*jobSeen   // All that ever were, by UID.
	rights    map[string]time.Duration
	scalers   map[string]*scalerSeen
	disturbed time.Duration // When something last failed, or a scaler came or went.
	calm      time.Duration
	resting   bool
	reasons   int // For making a Job.
	made      int
}

type buildSeen struct {
	demands   []agentpool.Demand
	assigned  bool
	cancelled bool
	over      bool
	reason    string
}

type agentSeen struct {
	id       int
	uid      string // Of its Job.
	enabled  bool
	online   bool
	request  int64
	relieved time.Duration // When its last build was over.
}

type jobSeen struct {
	name, uid, by, class, version string
	registration                  agentpool.Registration
	request                       int64
	made, runs, scheduled, ready  time.Duration // Zero before.
	claimed, finished             time.Duration // As the first cache showed it.
	begun, ended, gone            bool
	doomed                        bool // Somebody has been about to end it, or it was away: no plan need count on it.
	answered                      bool // Its maker was told.
	killed                        bool
	removedBy                     string
}

type scalerSeen struct {
	stages  map[string]string // How far each Job is, as its cache shows, by UID.
	planned map[string]string // What they were when it looked.
	told    map[string]bool   // UIDs of the Jobs of which it did not learn from its cache.
	looked  time.Duration
	live    bool
	classes []agentpool.AgentClass
	polled  []int64
}

func (c *check) accuse(rule Rule, format string, args ...any) {
	c.verdict.Violations = append(c.verdict.Violations, Violation{Rule: rule, At: c.now, Text: fmt.Sprintf(format, args...)})
}

// undisturbed tells whether nothing has failed since then, nor just before.
func (c *check) undisturbed(since time.Duration) bool {
	return c.disturbed == 0 || c.disturbed < since-c.setup.Config.PollTimeout
}

func isScaler(by string) bool { return strings.HasPrefix(by, "scaler-") }

// take goes on by one event.
func (c *check) take(e Event) {
	switch e.Kind {
	case Queued, Cancelled, Assigned, Finished, Stopped:
		c.takeBuild(e)
	case Registered, Online, Offline, Disabled, Deregistered:
		c.takeAgent(e)
	case Made, Runs, Granted, Revoked, Pod, Scheduled, Begun, Ready, Claimed, Ended, PodDies, Cut, Gone:
		c.takeJob(e)
	case Starts, Stops, Crashes, Looks, Polled, Shown, Learns, Writes, Reasons:
		c.takeScaler(e)
	case Fault, Outage:
		c.disturbed = c.now
	case Serves:
		for _, class := range e.Classes {
			c.reasons += class.MinIdle // Agents that wait are replaced.
		}
		c.classes = e.Classes
	case Calm:
		c.calm = c.now
	case Rest:
		c.resting = true
		c.judgeRest()
	case End:
		c.judgeEnd()
	}
}

func (c *check) takeBuild(e Event) {
	build := c.builds[e.Request]
	if build == nil {
		build = &buildSeen{demands: e.Demands}
		c.builds[e.Request] = build
	}
	switch e.Kind {
	case Queued:
		c.reasons++
	case Cancelled:
		build.cancelled = true
	case Assigned:
		build.assigned = true
		if a := c.agent(e); a != nil {
			a.request = e.Request
		}
		if j := c.jobs[e.UID]; j != nil && j.request != e.Request {
			c.reasons++ // The service gave the build of this agent to another.
		}
	case Finished:
		build.over = true
		c.judgeFinished(e)
		if a := c.agent(e); a != nil && a.request == e.Request {
			a.request, a.relieved = 0, c.now
		}
	default:
	}
}

// judgeFinished says whether the agent should have been disabled by now, and whether the
// build may have ended as it did.
func (c *check) judgeFinished(e Event) {
	j, a := c.jobs[e.UID], c.agent(e)
	if j == nil {
		return
	}
	if e.Text == "abandoned" && !j.killed {
		c.accuse(RuleKilled, "build %d was abandoned, and the container of %s was not killed", e.Request, e.Job)
	}
	if a != nil && a.enabled && j.claimed > 0 && c.now-j.claimed > reaction && !j.killed && c.undisturbed(j.claimed) {
		c.accuse(RuleSecond, "%s is still enabled, though a cache shows since %v that it has a build", e.Job, c.now-j.claimed)
	}
}

// agent gives the registration that an event is about, while it is there.
func (c *check) agent(e Event) *agentSeen {
	if a := c.agents[e.Job]; a != nil && a.id == e.Agent {
		return a
	}
	return nil
}

// agentOf gives the registration of a Job, and of no other that has its name.
func (c *check) agentOf(j *jobSeen) *agentSeen {
	if a := c.agents[j.name]; a != nil && a.uid == j.uid {
		return a
	}
	return nil
}

func (c *check) takeAgent(e Event) {
	if e.Kind == Registered {
		c.agents[e.Job] = &agentSeen{id: e.Agent, uid: e.UID, enabled: true}
		return
	}
	a, j := c.agent(e), c.jobs[e.UID]
	if a == nil {
		return
	}
	switch e.Kind {
	case Online:
		a.online = true
	case Offline:
		a.online = false
	case Disabled:
		a.enabled = false
	case Deregistered:
		if isScaler(e.By) && a.request != 0 {
			c.accuse(RuleClaimed, "%s removed the registration of %s, which has build %d", e.By, e.Job, a.request)
		}
		c.judgeDeregistered(j, a)
		delete(c.agents, e.Job)
	default:
	}
	if j != nil && e.Kind != Online {
		j.doomed = true
	}
}

// judgeDeregistered complains of an agent that the scaler has registered and left in the pool
// for long after nothing has kept it there any more. What no Job shows is for the sweep.
func (c *check) judgeDeregistered(j *jobSeen, a *agentSeen) {
	if j == nil || j.finished == 0 || j.registration != agentpool.RegistrationJIT {
		return
	}
	since, within := max(j.finished, a.relieved), reaction
	if j.gone {
		within += c.setup.Config.SweepGrace + 2*c.setup.Config.AgentsEvery
	}
	if c.now-since > within && c.undisturbed(since) {
		c.accuse(RuleRegister, "that of %s went %v after a cache showed its end", j.name, c.now-since)
	}
}

func (c *check) takeJob(e Event) {
	j := c.jobs[e.UID]
	if e.Kind == Made {
		c.takeMade(e)
		return
	}
	if j == nil {
		return
	}
	switch e.Kind {
	case Runs:
		j.runs = c.now
		if j.registration == agentpool.RegistrationJIT && e.Agent == 0 {
			c.accuse(RuleKey, "%s runs, and its agent was never registered", e.Job)
		}
	case Granted:
		c.rights[e.UID] = c.now
	case Revoked:
		delete(c.rights, e.UID)
		if j.finished > 0 && c.now-j.finished > reaction && c.undisturbed(j.finished) {
			c.accuse(RuleRights, "those of %s went %v after a cache showed its end", e.Job, c.now-j.finished)
		}
	case Scheduled:
		j.scheduled = c.now
	case Begun:
		j.begun = true
	case Ready:
		j.ready = c.now
	case Ended:
		j.ended, j.doomed = true, true
		if e.Text != "built" {
			c.reasons++ // It failed, or left without a build.
		}
	case PodDies:
		j.doomed = true
	case Cut:
		j.doomed, j.killed = true, true
	case Gone:
		c.takeGone(e, j)
	default:
	}
}

func (c *check) takeGone(e Event, j *jobSeen) {
	a := c.agentOf(j)
	if isScaler(e.By) && a != nil && a.request != 0 {
		c.accuse(RuleClaimed, "%s ended %s, whose agent has build %d", e.By, j.name, a.request)
	}
	if build := c.builds[j.request]; isScaler(e.By) && !j.ended && (build == nil || !build.assigned && !build.cancelled) {
		c.reasons++ // It was given up while somebody waits for it.
	}
	j.gone, j.removedBy = true, e.By
}

func (c *check) takeMade(e Event) {
	j := &jobSeen{name: e.Job, uid: e.UID, by: e.By, class: e.Class, version: e.Text, request: e.Request, made: c.now}
	for _, class := range c.classes {
		if class.Name == e.Class {
			j.registration = class.Registration // No edit changes it.
		}
	}
	c.made++
	if s := c.scalers[e.By]; s != nil && !s.live {
		c.judgeCaps(s, j)
		c.judgeNeed(s, j)
	}
	c.jobs[e.UID] = j
	c.reasons++ // Until its maker is told of it, it may make another.
}

func (c *check) takeScaler(e Event) {
	s := c.scalers[e.By]
	if e.Kind == Starts || e.Kind == Stops || e.Kind == Crashes {
		c.disturbed = c.now
		if e.Kind == Starts {
			c.scalers[e.By] = &scalerSeen{stages: map[string]string{}, told: map[string]bool{}}
		}
		return
	}
	if s == nil {
		return
	}
	switch e.Kind {
	case Looks:
		s.looked, s.live, s.classes, s.planned = c.now, e.Text == "live", c.classes, maps.Clone(s.stages)
	case Polled:
		s.polled = e.Requests
	case Shown:
		c.takeShown(s, e)
	case Learns:
		s.told[e.UID] = true
		if j := c.jobs[e.UID]; j != nil && j.by == e.By && !j.answered {
			j.answered = true
			c.reasons--
		}
	case Writes:
		c.takeWrite(e)
	case Reasons:
		if build := c.builds[e.Request]; build != nil {
			build.reason = e.Text
		}
	default:
	}
}

func (c *check) takeShown(s *scalerSeen, e Event) {
	s.stages[e.UID] = e.Text
	j := c.jobs[e.UID]
	if j == nil {
		return
	}
	switch {
	case e.Text == "claimed" && j.claimed == 0:
		j.claimed = c.now
	case (e.Text == "finished" || e.Text == "gone") && j.finished == 0:
		j.finished = c.now
	}
}

func (c *check) takeWrite(e Event) {
	if c.resting {
		c.accuse(RuleQuiet, "%s: %s %s", e.By, e.Text, e.Job)
	} else if c.calm > 0 {
		c.verdict.Settled = c.now - c.calm
	}
	j := c.jobs[e.UID]
	if j == nil || e.Text != "delete" && e.Text != "delete unstarted" {
		return
	}
	j.doomed = true
	if j.gone && j.removedBy == e.By && c.undisturbed(j.made) {
		c.accuse(RuleAgain, "%s ends %s again", e.By, e.Job)
	}
}

// judgeRest says what is there that should not be, and what is not there that should.
func (c *check) judgeRest() {
	living, waiting := map[string]bool{}, map[string]int{}
	for _, j := range c.jobs {
		if j.gone || j.ended {
			continue
		}
		living[j.uid] = true
		if a := c.agentOf(j); a != nil && a.online && a.enabled && a.request == 0 && j.ready > 0 {
			waiting[j.class]++
		} else {
			c.accuse(RuleLeft, "the Job %s, whose agent does not wait", j.name)
		}
	}
	placeholders := map[string]bool{}
	for _, class := range c.classes {
		if waiting[class.Name] != class.MinIdle {
			c.accuse(RuleLeft, "of class %s %d agents wait, and %d should", class.Name, waiting[class.Name], class.MinIdle)
		}
		placeholders[agentjob.PlaceholderName(instance, class.Name, class.Claims)] = true
	}
	for _, name := range slices.Sorted(maps.Keys(c.agents)) {
		if !living[c.agents[name].uid] && !placeholders[name] {
			c.accuse(RuleLeft, "the registration of %s", name)
		}
		delete(placeholders, name)
	}
	for _, name := range slices.Sorted(maps.Keys(placeholders)) {
		c.accuse(RuleLeft, "the placeholder %s is not there", name)
	}
	for _, uid := range slices.Sorted(maps.Keys(c.rights)) {
		if !living[uid] {
			c.accuse(RuleLeft, "rights of %s", uid)
		}
	}
}

func (c *check) judgeEnd() {
	for _, id := range slices.Sorted(maps.Keys(c.builds)) {
		build := c.builds[id]
		if build.over || build.cancelled {
			continue
		}
		served := slices.ContainsFunc(c.classes, func(class agentpool.AgentClass) bool {
			_, lacks := class.Capabilities.Missing(build.demands)
			return !lacks
		})
		if served || build.reason == "" {
			c.accuse(RuleBuilds, "build %d has not ended; the last that was said of it is %q", id, build.reason)
		}
	}
	if c.made > c.reasons {
		c.accuse(RuleNumber, "%d Jobs were made, with reason for %d at most", c.made, c.reasons)
	}
}
