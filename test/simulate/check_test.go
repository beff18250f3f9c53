package simulate_test

import (
	"slices"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/test/simulate"
)

const (
	theJob    = "azp-sim-7-1-0"
	theUID    = "uid-1"
	theScaler = "scaler-1"
)

// doctored is a history of one build, written by hand, an event a second.
type doctored struct {
	setup  simulate.Setup
	events []simulate.Event
}

// sound gives one in which all is well.
func sound() *doctored {
	setup := simulate.NewSetup(1, 1)
	setup.Skew, setup.Faults = 0, simulate.Faults{}
	setup.Config.Limits.PoolAgents, setup.Config.Limits.StartupLimit, setup.Config.Limits.MaxIdleAge = 100, time.Hour, time.Hour
	class := agentpool.AgentClass{Name: "default", Version: "1", Registration: agentpool.RegistrationConfig}
	ofJob := func(kind simulate.Kind, by string) simulate.Event {
		return simulate.Event{Kind: kind, By: by, Job: theJob, UID: theUID}
	}
	shown := func(stage string) simulate.Event {
		return simulate.Event{Kind: simulate.Shown, By: theScaler, Job: theJob, UID: theUID, Text: stage}
	}
	made := ofJob(simulate.Made, theScaler)
	made.Class, made.Request, made.Text = "default", 1, "1"
	ofBuild := func(kind simulate.Kind, text string) simulate.Event {
		return simulate.Event{Kind: kind, By: "service", Job: theJob, UID: theUID, Agent: 2, Request: 1, Text: text}
	}
	ended := ofJob(simulate.Ended, "pod")
	ended.Text = "built"
	d := &doctored{setup: setup, events: []simulate.Event{
		{Kind: simulate.Serves, Classes: []agentpool.AgentClass{class}},
		{Kind: simulate.Starts, By: theScaler},
		{Kind: simulate.Registered, By: theScaler, Job: agentjob.PlaceholderName("sim", "default", nil), Agent: 1},
		{Kind: simulate.Queued, By: "people", Request: 1},
		{Kind: simulate.Looks, By: theScaler},
		{Kind: simulate.Polled, By: theScaler, Requests: []int64{1}},
		{Kind: simulate.Writes, By: theScaler, Job: theJob, Text: "create"},
		made, ofJob(simulate.Granted, theScaler), ofJob(simulate.Runs, theScaler), ofJob(simulate.Learns, theScaler), shown("starting"),
		ofJob(simulate.Pod, "cluster"), ofJob(simulate.Scheduled, "cluster"),
		{Kind: simulate.Registered, By: "pod", Job: theJob, UID: theUID, Agent: 2},
		ofJob(simulate.Begun, "pod"),
		{Kind: simulate.Online, By: "service", Job: theJob, UID: theUID, Agent: 2},
		ofJob(simulate.Ready, "cluster"), shown("ready"), ofBuild(simulate.Assigned, ""), ofJob(simulate.Claimed, "cluster"), shown("claimed"),
		{Kind: simulate.Disabled, By: theScaler, Job: theJob, UID: theUID, Agent: 2},
		ofBuild(simulate.Finished, "done"),
		{Kind: simulate.Offline, By: "service", Job: theJob, UID: theUID, Agent: 2},
		ended, shown("finished"),
		ofJob(simulate.Revoked, theScaler),
		{Kind: simulate.Deregistered, By: "pod", Job: theJob, UID: theUID, Agent: 2},
		ofJob(simulate.Gone, "cluster"), shown("gone"),
		{Kind: simulate.Calm},
		{Kind: simulate.Rest},
		{Kind: simulate.End},
	}}
	for i := range d.events {
		d.events[i].At = 10*time.Minute + time.Duration(i)*time.Second
	}
	// Long before: a scaler that has just come is given time.
	d.events[0].At, d.events[1].At = time.Second, 2*time.Second
	return d
}

func (d *doctored) at(kind simulate.Kind) int {
	for i := len(d.events) - 1; i >= 0; i-- {
		if d.events[i].Kind == kind && (d.events[i].Job == "" || d.events[i].Job == theJob) {
			return i
		}
	}
	panic("there is no event " + string(kind))
}

// without leaves events out.
func (d *doctored) without(kinds ...simulate.Kind) *doctored {
	for _, kind := range kinds {
		i := d.at(kind)
		d.events = slices.Delete(d.events, i, i+1)
	}
	return d
}

// then adds events after the last of a kind.
func (d *doctored) then(kind simulate.Kind, events ...simulate.Event) *doctored {
	i := d.at(kind)
	for n := range events {
		events[n].At = d.events[i].At + time.Duration(n+1)*time.Millisecond
	}
	d.events = slices.Insert(d.events, i+1, events...)
	return d
}

// late has the last event of a kind, and all that follow, happen two minutes later.
func (d *doctored) late(kind simulate.Kind) *doctored {
	for i := d.at(kind); i < len(d.events); i++ {
		d.events[i].At += 2 * time.Minute
	}
	return d
}

// with changes the last event of a kind.
func (d *doctored) with(kind simulate.Kind, change func(*simulate.Event)) *doctored {
	change(&d.events[d.at(kind)])
	return d
}

// jit has the scaler register the agent.
func (d *doctored) jit() *doctored {
	d.with(simulate.Serves, func(e *simulate.Event) { e.Classes[0].Registration = agentpool.RegistrationJIT })
	return d.with(simulate.Runs, func(e *simulate.Event) { e.Agent = 2 })
}

// another is a second Job for the build.
func another() []simulate.Event {
	name, uid := "azp-sim-7-1-1", "uid-2"
	return []simulate.Event{
		{Kind: simulate.Looks, By: theScaler},
		{Kind: simulate.Polled, By: theScaler, Requests: []int64{1}},
		{Kind: simulate.Made, By: theScaler, Job: name, UID: uid, Class: "default", Request: 1},
		{Kind: simulate.Learns, By: theScaler, Job: name, UID: uid},
		{Kind: simulate.Ended, By: "pod", Job: name, UID: uid, Text: "built"},
		{Kind: simulate.Gone, By: "cluster", Job: name, UID: uid},
	}
}

// earlier is something about an agent that is gone, of which no Job is known.
func earlier(kind simulate.Kind) simulate.Event {
	return simulate.Event{Kind: kind, By: "service", Job: theJob, UID: "uid-0", Agent: 9, Request: 1, Text: "abandoned"}
}

func by(scaler string, kind simulate.Kind) simulate.Event {
	return simulate.Event{Kind: kind, By: scaler, Job: theJob, UID: theUID, Agent: 2}
}

func write(what string) simulate.Event {
	return simulate.Event{Kind: simulate.Writes, By: theScaler, Job: theJob, UID: theUID, Text: what}
}

// TestEachRuleCanBeBroken shows that the checker finds what it is for: each history has one
// thing wrong with it.
func TestEachRuleCanBeBroken(t *testing.T) {
	few := func(d *doctored) *doctored {
		d.setup.Config.Limits.PoolAgents = 1
		return d
	}
	foreign := func(reasons ...simulate.Event) *doctored {
		demands := []agentpool.Demand{{Name: "gpu"}}
		return sound().then(simulate.Queued, append([]simulate.Event{{Kind: simulate.Queued, By: "people", Request: 2, Demands: demands}}, reasons...)...)
	}
	reason := simulate.Event{Kind: simulate.Reasons, By: theScaler, Request: 2, Text: "foreign-agent"}
	broken := map[simulate.Rule]int{}
	for name, tt := range map[string]struct {
		history *doctored
		want    []simulate.Rule
	}{
		"all is well":                       {history: sound()},
		"all is well, registered by scaler": {history: sound().jit()},
		"the build of an earlier agent of the name": {
			history: sound().then(simulate.Gone, earlier(simulate.Assigned), earlier(simulate.Finished)),
		},
		"a build that waits with a reason": {history: foreign(reason)},
		"a build that waits without one":   {history: foreign(), want: []simulate.Rule{simulate.RuleBuilds}},
		"a second agent while the first waits": {
			history: sound().then(simulate.Ready, another()...), want: []simulate.Rule{simulate.RuleNeed, simulate.RuleNumber},
		},
		"a second agent when the first has the build": {
			history: sound().then(simulate.Claimed, another()...), want: []simulate.Rule{simulate.RuleNumber},
		},
		"a second agent where there may be one": {
			history: few(sound()).then(simulate.Claimed, another()...), want: []simulate.Rule{simulate.RuleCaps, simulate.RuleNumber},
		},
		"a Job is ended twice": {
			history: sound().then(simulate.Ended, by(theScaler, simulate.Gone), write("delete")), want: []simulate.Rule{simulate.RuleAgain},
		},
		"a Job goes with its build": {
			history: sound().then(simulate.Claimed, by(theScaler, simulate.Gone)), want: []simulate.Rule{simulate.RuleClaimed},
		},
		"a registration goes with its build": {
			history: sound().then(simulate.Claimed, by(theScaler, simulate.Deregistered)), want: []simulate.Rule{simulate.RuleClaimed},
		},
		"an agent with a build stays enabled": {
			history: sound().without(simulate.Disabled).late(simulate.Finished), want: []simulate.Rule{simulate.RuleSecond},
		},
		"a build never ends": {history: sound().without(simulate.Finished), want: []simulate.Rule{simulate.RuleBuilds}},
		"a build ends without its agent": {
			history: sound().with(simulate.Finished, func(e *simulate.Event) { e.Text = "abandoned" }), want: []simulate.Rule{simulate.RuleKilled},
		},
		"a Job runs that has no agent": {
			history: sound().jit().with(simulate.Runs, func(e *simulate.Event) { e.Agent = 0 }), want: []simulate.Rule{simulate.RuleKey},
		},
		"rights outlast their build": {history: sound().late(simulate.Revoked), want: []simulate.Rule{simulate.RuleRights}},
		"a registration outlasts its build": {
			history: sound().jit().late(simulate.Deregistered), want: []simulate.Rule{simulate.RuleRegister},
		},
		"rights are left":         {history: sound().without(simulate.Revoked), want: []simulate.Rule{simulate.RuleLeft}},
		"a registration is left":  {history: sound().without(simulate.Deregistered), want: []simulate.Rule{simulate.RuleLeft}},
		"a Job is left":           {history: sound().without(simulate.Gone, simulate.Ended), want: []simulate.Rule{simulate.RuleLeft}},
		"no placeholder is there": {history: sound().with(simulate.Serves, func(e *simulate.Event) { e.Classes[0].Claims = map[string]string{"java": ""} }), want: []simulate.Rule{simulate.RuleLeft}},
		"no agent waits":          {history: sound().with(simulate.Serves, func(e *simulate.Event) { e.Classes[0].MinIdle = 1 }), want: []simulate.Rule{simulate.RuleLeft}},
		"something is written":    {history: sound().then(simulate.Rest, write("disable")), want: []simulate.Rule{simulate.RuleQuiet}},
	} {
		t.Run(name, func(t *testing.T) {
			verdict := simulate.Check(simulate.History{Setup: tt.history.setup, Events: tt.history.events})
			var got []simulate.Rule
			for _, violation := range verdict.Violations {
				got = append(got, violation.Rule)
			}
			for _, rule := range tt.want {
				broken[rule]++
				if !slices.Contains(got, rule) {
					t.Errorf("it is not said to break %q, but only %q", rule, got)
				}
			}
			if len(tt.want) == 0 && len(got) > 0 {
				t.Errorf("it is said to break %q", verdict.Violations)
			}
		})
	}
	for _, rule := range simulate.Rules() {
		if broken[rule] == 0 {
			t.Errorf("no history breaks %q", rule)
		}
	}
}

// TestTroubleExcusesWhatIsLate says that what is late while calls fail is no violation.
func TestTroubleExcusesWhatIsLate(t *testing.T) {
	d := sound().then(simulate.Ended, simulate.Event{Kind: simulate.Fault, By: theScaler, Text: "revoke: unavailable"}).late(simulate.Revoked)
	if verdict := simulate.Check(simulate.History{Setup: d.setup, Events: d.events}); len(verdict.Violations) > 0 {
		t.Errorf("it is said to break %q", verdict.Violations)
	}
}
