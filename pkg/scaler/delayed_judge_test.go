package scaler_test

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// reaction is by when an agent that the cache shows as claimed is disabled: a pass over
// the Jobs that is under way, another one, and what fails in between.
const reaction = time.Minute

// judge complains of a Job that goes while its agent has a build. The caller holds the lock.
func (w *world) judge(job agentpool.AgentJob) {
	agent := w.agents[job.Name]
	if request, occupied := w.requests[agent.AssignedRequest]; occupied {
		w.accuse("Job %s was ended while its agent had request %d (%s)", job.Name, request.ID, request.State())
	}
}

// judgeCaps complains of more agents than there may be. A Job whose creation was not
// answered is not known to the loop until the cache has shown it to a whole cycle.
func (w *world) judgeCaps(class string) {
	inPool, inClass := 0, 0
	for _, job := range w.jobs {
		if job.Finished() || time.Now().Before(w.lives[job.UID].unknown) {
			continue
		}
		inPool++
		if job.Class == class {
			inClass++
		}
	}
	if most := w.config.Limits.PoolAgents; inPool > most {
		w.accuse("there are %d agents, and may be %d", inPool, most)
	}
	for _, c := range w.classes.Usable {
		if c.Name == class && c.MaxAgents > 0 && inClass > c.MaxAgents {
			w.accuse("there are %d agents of class %s, and may be %d", inClass, class, c.MaxAgents)
		}
	}
}

// judgeNeed complains of a Job that is made though there are agents for all that the
// loop has found queued. Where agents differ, or are given up for other reasons, that
// can't be counted so simply. The caller holds the lock.
func (w *world) judgeNeed(name string) {
	if len(w.kinds) > 1 || w.changes || w.failing || w.ages() || w.config.Limits.StartupLimit < 10*time.Minute {
		return
	}
	able := 0
	for name, job := range w.jobs {
		agent, registered := w.agents[name]
		l := w.lives[job.UID]
		if !job.Finished() && !job.RanBuild && !l.over && !l.dying && !l.exiting && agent.AssignedRequest == 0 && (agent.Enabled || !registered) {
			able++
		}
	}
	if most := w.polled + w.kinds[0].MinIdle; able > most {
		w.accuse("with %s there are %d agents without a build, for %d that wait and %d queued builds", name, able, w.kinds[0].MinIdle, w.polled)
	}
}

// judgeRest says that exactly the agents are there that are to wait, and nothing of any
// other.
func (w *world) judgeRest(t *testing.T) {
	t.Helper()
	if w.ages() {
		return // There is no rest, as agents are being replaced all the time.
	}
	want, waiting, living := map[string]int{}, map[string]int{}, map[string]bool{}
	for _, c := range w.classes.Usable {
		if c.MinIdle > 0 {
			want[c.Name] = c.MinIdle
		}
	}
	for name, job := range w.jobs {
		if !job.Finished() {
			living[name] = true
		}
		if free(w.agents[name]) && job.Ready {
			waiting[job.Class]++
		}
	}
	for name := range w.ours() {
		if !living[name] {
			t.Errorf("%s is still registered", name)
		}
	}
	for name := range w.rights {
		if !living[name] {
			t.Errorf("%s still has rights", name)
		}
	}
	if diff := cmp.Diff(want, waiting); diff != "" || len(living) != total(want) {
		t.Errorf("agents that wait at rest (-want +got):\n%s\nof these Jobs: %v", diff, slices.Sorted(maps.Keys(living)))
	}
}

func total(of map[string]int) (sum int) {
	for _, n := range of {
		sum += n
	}
	return sum
}

// judgeNumber says that no more Jobs were made than there was reason to. A request or a
// place among the agents that wait is reason for one. It is reason for another when the
// first is no longer there for it: when another build took that agent, when it failed,
// when it was ended while it was wanted, or when it was made and the loop was not told.
func (w *world) judgeNumber(t *testing.T) {
	t.Helper()
	reasons := int(w.lastID)
	for _, c := range w.classes.Usable {
		reasons += c.MinIdle
		if w.ages() {
			reasons += c.MinIdle // The next one is there before the old one goes.
		}
	}
	for what, n := range w.seen {
		switch {
		case what == "a build went to an agent that was made for another", what == "an agent was ended that was still wanted",
			what == "the answer of a creation was lost", strings.HasPrefix(what, "an agent ended without a build"):
			reasons += n
		}
	}
	if len(w.created) > reasons {
		t.Errorf("%d Jobs were made, with reason for %d at most", len(w.created), reasons)
	}
}
