package e2e_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// TestChartUpgrade upgrades the chart and its images from their previous version, while builds
// run and others are queued: none is lost, and none gets a second agent.
func TestChartUpgrade(t *testing.T) {
	chartBuilds(t) // They are of no use here: the test takes as long as the other.
	registered(t, bothWays(), chartUpgrade)
}

func chartUpgrade(t *testing.T, way string) {
	previous, err := env.PreviousVersion(t.Context())
	if errors.Is(err, env.ErrNoHistory) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	s := newChartStage(t, way, env.Chart{Modest: way == fromPods, Previous: previous})
	gate := s.gate(t)
	builds := func(name string, number int) []env.Build {
		out := make([]env.Build, number)
		for i := range out {
			out[i] = env.Build{Name: fmt.Sprintf("%s-%d", name, i), Steps: []string{gate.Step()}}
		}
		return out
	}
	running := s.queue(t, builds("before", 6)...)
	waitArrived(t, gate, len(running))
	image := func() string {
		return s.kubectl(t, "get", "deployment/azp-scaler", "--namespace", env.ScalerNamespace, "--output", "jsonpath={.spec.template.spec.containers[0].image}")
	}
	before := image()
	// Of these some have an agent by then, and others do not.
	queued := s.queue(t, builds("meanwhile", 4)...)
	if err := s.Upgrade(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if after := image(); before == after {
		t.Errorf("the upgrade left the image at %s", after)
	}
	waitArrived(t, gate, len(running)+len(queued))
	gate.Open()
	later := s.queue(t, env.Build{Name: "after"})
	s.finish(t, append(append(running, queued...), later...)...)
	s.judgeChart(t)
}
