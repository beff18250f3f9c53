package e2e_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// The scenarios, by name.
const (
	scenarioPlain     = "plain"     // A build.
	scenarioDeploy    = "deploy"    // One that needs its rights in the target namespace.
	scenarioCancelled = "cancelled" // One that is cancelled while its agent starts, which nobody needs then.
	scenarioCrashed   = "crashed"   // One whose first pod dies before the build.
	scenarioRestarted = "restarted" // One that is queued while the scaler starts.
)

// scene is a build and what happens around it.
type scene struct {
	build     env.Build
	allowed   []string               // Its results.
	begin     func() error           // Once, when it is queued; it does not wait.
	meanwhile func(env.Queued) error // Again and again until its end.
}

// scenarios are what calls are recorded of.
func scenarios() map[string]func(k *killing) scene {
	return map[string]func(k *killing) scene{
		scenarioPlain: func(*killing) scene { return succeeds(env.Build{Name: "plain", Steps: []string{stepDisabled}}) },
		scenarioDeploy: func(*killing) scene {
			return succeeds(env.Build{Name: "deploy", Steps: []string{
				"kubectl create configmap deployed --namespace " + env.TargetNamespace,
				"sleep 1",
				"kubectl delete configmap deployed --namespace " + env.TargetNamespace,
			}})
		},
		scenarioCancelled: cancelled,
		scenarioCrashed:   crashed,
		scenarioRestarted: func(k *killing) scene {
			again := succeeds(env.Build{Name: "restarted", Steps: []string{stepDisabled}})
			again.begin = func() error { return errors.Join(k.Kill(env.Caller{Actor: env.ActorScaler}), k.Scaler.Start()) }
			return again
		},
	}
}

func sortedScenarios() []string { return slices.Sorted(maps.Keys(scenarios())) }

// stepDisabled is that of a build during which its agent is surely disabled.
const stepDisabled = "sleep 2"

func succeeds(build env.Build) scene {
	build.Kind = env.KindPlain
	return scene{build: build, allowed: []string{azuredevopstest.ResultSucceeded}}
}

// cancelled cancels the build as soon as there is a Job for it. Where the scaler was killed by then,
// an agent may have it already.
func cancelled(k *killing) scene {
	done := false
	return scene{
		build:   env.Build{Name: "cancelled", Kind: env.KindPlain, Steps: []string{"sleep 20"}},
		allowed: []string{azuredevopstest.ResultCanceled},
		meanwhile: func(build env.Queued) error {
			if done || len(k.jobs.of(build.RequestID)) == 0 {
				return nil
			}
			done = true
			if err := k.Service.Cancel(build.RequestID); err != nil {
				return fmt.Errorf("cancel the build: %w", err)
			}
			return nil
		},
	}
}

// crashed kills the first process of the build's first pod.
func crashed(k *killing) scene {
	again := succeeds(env.Build{Name: "crashed", Steps: []string{stepDisabled}})
	done := false
	again.meanwhile = func(env.Queued) error {
		for _, container := range k.Containers() {
			if !done && container.Actor != removeActor {
				done = true
				return k.Kill(container)
			}
		}
		return nil
	}
	return again
}

// removeActor is the sidecar, which is restarted when it dies.
const removeActor = "remove"
