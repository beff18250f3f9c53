package plan_test

import (
	"cmp"
	"flag"
	"os"
	"reflect"
	"slices"
	"strconv"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// check runs a property on as many cases as PLAN_CHECKS says.
func check(t *testing.T, property func(*rapid.T)) {
	t.Helper()
	checks := cmp.Or(os.Getenv("PLAN_CHECKS"), "5000")
	if testing.Short() {
		checks = "500"
	}
	if n, err := strconv.Atoi(checks); err != nil || n < 1 {
		t.Fatalf("PLAN_CHECKS is %q: want a number of cases, from 1", checks)
	}
	checkTimes(t, checks, property)
}

func checkTimes(t *testing.T, checks string, property func(*rapid.T)) {
	t.Helper()
	before := flag.Lookup("rapid.checks").Value.String()
	if err := flag.Set("rapid.checks", checks); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := flag.Set("rapid.checks", before); err != nil {
			t.Error(err)
		}
	}()
	rapid.Check(t, property)
}

// shuffled gives the same snapshot in another order.
func shuffled(t *rapid.T, s plan.Snapshot) plan.Snapshot {
	s.Requests = rapid.Permutation(s.Requests).Draw(t, "requests in another order")
	s.Jobs = rapid.Permutation(s.Jobs).Draw(t, "jobs in another order")
	s.Classes = rapid.Permutation(s.Classes).Draw(t, "classes in another order")
	s.Failures = rapid.Permutation(s.Failures).Draw(t, "failures in another order")
	return s
}

func TestPlanKnowsNoOrder(t *testing.T) {
	check(t, func(t *rapid.T) {
		s := draw{T: t}.snapshot()
		other := shuffled(t, s)
		requests, jobs := slices.Clone(other.Requests), slices.Clone(other.Jobs)
		want, got := plan.Make(s), plan.Make(other)
		if !reflect.DeepEqual(want, got) {
			t.Fatalf("another order, another plan (-first +shuffled):\n%s", gocmp.Diff(want, got))
		}
		if !reflect.DeepEqual(requests, other.Requests) || !reflect.DeepEqual(jobs, other.Jobs) {
			t.Fatalf("the snapshot was changed (-before +after):\n%s%s", gocmp.Diff(requests, other.Requests), gocmp.Diff(jobs, other.Jobs))
		}
	})
}

// TestPlanLeavesNothingOut says that each queued request is in exactly one place, and
// no other request in any.
func TestPlanLeavesNothingOut(t *testing.T) {
	check(t, func(t *rapid.T) {
		s := draw{T: t}.snapshot()
		p := plan.Make(s)
		want, got := map[int64]int{}, map[int64]int{}
		for _, r := range s.Requests {
			if r.State() == agentpool.RequestQueued {
				want[r.ID] = 1
			}
		}
		for _, c := range p.Create {
			if c.Request.ID != agentpool.WarmRequest {
				got[c.Request.ID]++
			}
		}
		for _, skip := range p.Skipped {
			got[skip.Request.ID]++
			if !slices.Contains(plan.SkipReasons(), skip.Reason) {
				t.Fatalf("request %d is skipped for %q, which is no reason", skip.Request.ID, skip.Reason)
			}
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Fatalf("how often requests are in the plan (-want +got):\n%s", diff)
		}
	})
}

// TestDrawnPoolsAreVaried says that the properties are asked of pools in which everything
// happens: every reason to skip a request and to end an agent, at every phase.
func TestDrawnPoolsAreVaried(t *testing.T) {
	seen := map[any]int{}
	checkTimes(t, "10000", func(t *rapid.T) {
		p := plan.Make(draw{T: t}.snapshot())
		for _, skip := range p.Skipped {
			seen[skip.Reason]++
		}
		for _, e := range p.End {
			seen[e.Reason]++
		}
		for _, c := range p.Create {
			seen["warm "+strconv.FormatBool(c.Request.ID == agentpool.WarmRequest)]++
		}
		for _, phases := range p.View.Agents {
			for phase, n := range phases {
				seen[phase] += n
			}
		}
	})
	want := []any{"warm true", "warm false"}
	for _, reason := range plan.SkipReasons() {
		want = append(want, reason)
	}
	for _, reason := range plan.EndReasons() {
		want = append(want, reason)
	}
	for _, phase := range agentpool.Phases() {
		want = append(want, phase)
	}
	for _, what := range want {
		if seen[what] == 0 {
			t.Errorf("%v was never seen", what)
		}
	}
	t.Logf("seen: %v", seen)
}
