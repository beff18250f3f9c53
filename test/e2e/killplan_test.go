package e2e_test

import (
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/azp-scaler/azp-scaler/test/e2e/env"
	"github.com/azp-scaler/azp-scaler/test/e2e/interpose"
)

// ending is what becomes of a caller at a call.
type ending string

// The endings. But for the last, the caller is killed.
const (
	endBefore   ending = "before"   // The server has not seen the call.
	endSent     ending = "sent"     // It has done it, and the caller has no answer.
	endAnswered ending = "answered" // The caller has the answer.
	endLost     ending = "lost"     // The answer is lost, and the caller lives on.
)

// moment is where the call is held up for it.
func (e ending) moment() interpose.Moment {
	switch e {
	case endBefore:
		return interpose.Before
	case endAnswered:
		return interpose.Answered
	case endSent, endLost:
	}
	return interpose.Sent
}

// place is a call of a build's life.
type place struct {
	actor string // As env.Caller has it.
	kind  string // As interpose.Call has it.
	nth   int    // Among the actor's calls of the kind since the builds were queued, from 1.
}

// plan is one thing that is tried: what a scenario of builds does when a caller ends at a place.
type plan struct {
	way, scenario string
	ending        ending
	place         place
}

// String is the form in which a plan can be given to killPlan.
func (p plan) String() string {
	return fmt.Sprintf("%s %s %s %s %s %d", p.way, p.scenario, p.ending, p.place.actor, p.place.kind, p.place.nth)
}

// losesSession tells whether the service opens a session of which the agent program never learns.
// The service may give a build to that session, and abandons it when nobody takes it up; the agent
// program is refused another one for as long. Nobody but these two can do anything about it.
func (p plan) losesSession() bool {
	return p.ending == endLost && p.place.actor == agentActor && p.place.kind == "service POST pools/*/sessions"
}

// command replays the plan.
func (p plan) command() string {
	return fmt.Sprintf("%s='%s' go test ./test/e2e -count=1 -v -run '^TestKilledAtEachCall$'", killPlan, p)
}

// lot is a number that looks drawn, and follows from the plan and a seed.
func (p plan) lot(seed uint64) uint64 {
	hash := fnv.New64a()
	_, _ = fmt.Fprint(hash, p, " ", seed)
	return hash.Sum64()
}

// parsePlan reads what String wrote.
func parsePlan(text string) (plan, error) {
	fields := strings.Fields(text)
	if len(fields) != 8 {
		return plan{}, fmt.Errorf("plan %q: want way, scenario, ending, actor, three words for the call, and a number", text)
	}
	nth, err := strconv.Atoi(fields[7])
	if err != nil || nth < 1 {
		return plan{}, fmt.Errorf("plan %q: %q is no number from 1 on", text, fields[7])
	}
	p := plan{way: fields[0], scenario: fields[1], ending: ending(fields[2]), place: place{actor: fields[3], kind: strings.Join(fields[4:7], " "), nth: nth}}
	switch {
	case !slices.Contains(bothWays(), p.way):
		return plan{}, fmt.Errorf("plan %q: the way %q is none of %v", text, p.way, bothWays())
	case !slices.Contains(slices.Collect(maps.Keys(scenarios())), p.scenario):
		return plan{}, fmt.Errorf("plan %q: there is no scenario %q", text, p.scenario)
	case !slices.Contains([]ending{endBefore, endSent, endAnswered, endLost}, p.ending):
		return plan{}, fmt.Errorf("plan %q: there is no ending %q", text, p.ending)
	}
	return p, nil
}

// mostWrites is how many of the writes of one kind are told apart. One of the
// reads is like the other: all of them are made anew in each cycle.
const mostWrites = 3

// agentActor is the container in which the agent runs. Its calls are those of the agent program, and
// are the same whatever happened before.
const agentActor = "agent"

// plansOf makes the plans for the calls that were recorded of a scenario.
func plansOf(way, scenario string, recorded []place) []plan {
	var plans []plan
	for _, at := range recorded {
		method := strings.Fields(at.kind)[1]
		reads := slices.Contains([]string{"GET", "LIST", "WATCH", "OPTIONS"}, method)
		if reads && at.nth > 1 || at.nth > mostWrites || at.actor == agentActor && (scenario != scenarioPlain || at.nth > 1) {
			continue
		}
		for _, end := range []ending{endBefore, endSent, endAnswered, endLost} {
			plans = append(plans, plan{way: way, scenario: scenario, ending: end, place: at})
		}
	}
	return plans
}

func TestPlansAreReadAsWritten(t *testing.T) {
	t.Parallel()
	recorded := []place{
		{actor: env.ActorScaler, kind: "kubernetes PATCH jobs/*", nth: 2},
		{actor: "remove/preStop", kind: "service DELETE pools/*/agents/*", nth: 1},
		{actor: env.ActorScaler, kind: "kubernetes LIST jobs", nth: 2},
	}
	plans := plansOf(byScaler, scenarioPlain, recorded)
	if len(plans) != 8 {
		t.Errorf("%d plans, want 4 for each of two calls, and none for a second read: %v", len(plans), plans)
	}
	for _, want := range plans {
		if got, err := parsePlan(want.String()); err != nil || got != want {
			t.Errorf("%s is read as %v, %v", want, got, err)
		}
	}
	for _, text := range []string{
		"", "jit plain before scaler kubernetes PATCH jobs/* 0", "jot plain before scaler kubernetes PATCH jobs/* 1",
		"jit plane before scaler kubernetes PATCH jobs/* 1", "jit plain after scaler kubernetes PATCH jobs/* 1",
	} {
		if got, err := parsePlan(text); err == nil {
			t.Errorf("%q is read as %v", text, got)
		}
	}
}
