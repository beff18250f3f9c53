package env_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// TestWorkload checks what every workload must hold, whatever its seed.
func TestWorkload(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		seed, builds := rapid.Uint64().Draw(t, "seed"), rapid.IntRange(1, 60).Draw(t, "builds")
		workload := env.Workload(seed, builds)
		if diff := cmp.Diff(workload, env.Workload(seed, builds)); diff != "" {
			t.Fatalf("the same seed gives another workload: %s", diff)
		}
		if len(workload) != builds {
			t.Fatalf("%d builds, want %d", len(workload), builds)
		}
		kinds, names := map[env.Kind]int{}, map[string]bool{}
		for _, build := range workload {
			kinds[build.Kind]++
			names[build.Name] = true
			if build.QueueAfter < 0 || build.QueueAfter > 10*time.Second || len(build.Steps) == 0 {
				t.Errorf("build %+v is out of shape", build)
			}
			if (build.Kind == env.KindCancel) != (build.Want == "canceled") || (build.Kind == env.KindFail) != (build.Want == "failed") {
				t.Errorf("build %s of kind %s is to end %s", build.Name, build.Kind, build.Want)
			}
		}
		if len(names) != builds {
			t.Errorf("%d names for %d builds", len(names), builds)
		}
		want := map[env.Kind]int{env.KindPlain: builds}
		for i, kind := range []env.Kind{env.KindDeploy, env.KindFail, env.KindCancel} {
			if builds > i+1 {
				want[kind]++
				want[env.KindPlain]--
			}
		}
		if diff := cmp.Diff(want, kinds); diff != "" {
			t.Errorf("kinds: %s", diff)
		}
	})
}

// TestWorkloadOfClasses checks that classes change nothing but what builds demand,
// and that each is demanded.
func TestWorkloadOfClasses(t *testing.T) {
	t.Parallel()
	classes := []env.Class{{Name: "common"}, {Name: "rare", Demands: []string{"tool"}}, {Name: "rarest", Demands: []string{"tool", "other -equals 1"}}}
	rapid.Check(t, func(t *rapid.T) {
		seed, builds := rapid.Uint64().Draw(t, "seed"), rapid.IntRange(1, 60).Draw(t, "builds")
		workload := env.Workload(seed, builds, classes...)
		if diff := cmp.Diff(workload, env.Workload(seed, builds, classes...)); diff != "" {
			t.Fatalf("the same seed gives another workload: %s", diff)
		}
		demanded := map[string]int{}
		for i, plain := range env.Workload(seed, builds) {
			demanded[workload[i].Class]++
			for _, class := range classes {
				if class.Name == workload[i].Class {
					plain.Class, plain.Demands = class.Name, class.Demands
				}
			}
			if diff := cmp.Diff(plain, workload[i]); diff != "" || plain.Class == "" {
				t.Errorf("build %s is not one of a class: %s", plain.Name, diff)
			}
		}
		if want := min(builds, len(classes)); len(demanded) != want {
			t.Errorf("%d builds demand %v, want %d classes", builds, demanded, want)
		}
	})
}

func TestWorkloadDemandsEarlierClassesMore(t *testing.T) {
	t.Parallel()
	demanded := map[string]int{}
	for _, build := range env.Workload(1, 20, env.Class{Name: "common"}, env.Class{Name: "rare"}, env.Class{Name: "rarest"}) {
		demanded[build.Class]++
	}
	if diff := cmp.Diff(map[string]int{"common": 10, "rare": 5, "rarest": 5}, demanded); diff != "" {
		t.Errorf("builds by class: %s", diff)
	}
}

func TestWorkloadDiffersBySeed(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for seed := range uint64(10) {
		seen[fmt.Sprint(env.Workload(seed, 20))] = true
	}
	if len(seen) != 10 {
		t.Errorf("10 seeds give %d workloads", len(seen))
	}
}
