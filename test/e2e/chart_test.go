package e2e_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/cluster"
	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// chartVariable says how many builds run through the chart in each way to register agents.
// Without it none do: it takes minutes.
const chartVariable = "CHART_BUILDS"

// fewestChartBuilds is what there is of each kind of build, and some more.
const fewestChartBuilds = 6

// chartBuilds reads the variable.
func chartBuilds(t *testing.T) int {
	t.Helper()
	text := os.Getenv(chartVariable)
	if text == "" {
		t.Skip(chartVariable + " is not set, as make test-chart sets it")
	}
	builds, err := strconv.Atoi(text)
	if err != nil || builds < fewestChartBuilds {
		t.Fatalf("%s=%q: want a number from %d on", chartVariable, text, fewestChartBuilds)
	}
	return builds
}

// newChartStage installs the chart from images of the delivered Dockerfiles. Agents lose a build
// whose lock they do not renew within seconds.
func newChartStage(t *testing.T, way string, chart env.Chart) *stage {
	t.Helper()
	needImages(t)
	e := startEnv(t, env.Options{
		Seed: seedOf(t), Node: cluster.Real, Registration: way, Chart: &chart,
		Service: azuredevopstest.Options{LockDuration: 10 * time.Second}, AgentFaults: []string{"renew-interval=2s"},
	})
	s := &stage{Env: e, jobs: record(t, e), way: way}
	if err := s.WaitPlaceholders(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestChart installs the chart with helm as users do, and has builds run from it: with jit as
// a cluster administrator, under the delivered policy; with config as somebody who has the
// ClusterRole admin in the three namespaces and nothing else.
func TestChart(t *testing.T) {
	builds := chartBuilds(t)
	registered(t, bothWays(), func(t *testing.T, way string) { chartRun(t, way, builds) })
}

func chartRun(t *testing.T, way string, builds int) {
	s := newChartStage(t, way, env.Chart{Modest: way == fromPods})
	if out, err := s.Helm(t.Context(), "test", "--logs"); err != nil || !strings.Contains(out, "azp-scaler-check") {
		t.Errorf("helm test: %v\n%s", err, out)
	}
	s.scenario(t, "builds run", func(t *testing.T) { s.workload(t, builds) })
	s.scenario(t, "people read the logs", s.logsOfABuild)
	s.upgradeTo(t, troubledClasses())
	s.scenario(t, "a build runs out of memory", s.greedyBuild)
	s.scenario(t, "an image does not exist", s.absentImage)
	s.scenario(t, "the node is drained", s.drainedNode)
	s.judgeChart(t)
}

// judgeChart has the auditor judge the run, and tells what the scaler was refused.
func (s *stage) judgeChart(t *testing.T) {
	t.Helper()
	s.judge(t)
	refused, err := s.Refused()
	if err != nil {
		t.Fatal(err)
	}
	for _, event := range refused {
		t.Errorf("the scaler was refused to %s %s %s/%s: %d", event.Verb, event.Resource, event.Namespace, event.Name, event.Code)
	}
}

// workload has as many builds as there is to be shown: one deploys with its own ServiceAccount,
// one fails and one is cancelled.
func (s *stage) workload(t *testing.T, builds int) {
	queued, err := s.Queue(t.Context(), env.Workload(s.Seed(), builds))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.WaitFinished(t.Context(), 5*time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(t.Context(), queued); err != nil {
		t.Error(err)
	}
}

// logsOfABuild reads what scaler and agent say with kubectl alone, while a build runs.
func (s *stage) logsOfABuild(t *testing.T) {
	gate := s.gate(t)
	build := s.queue(t, env.Build{Name: "talkative", Steps: []string{gate.Step()}})[0]
	waitArrived(t, gate, 1)
	agent := s.agentOf(t, build)
	says(t, "kubectl logs of the agent", s.kubectl(t, "logs", "--namespace", env.AgentsNamespace, "job/"+agent, "--container", "agent"), "Listening for Jobs", "Running job: talkative")
	says(t, "kubectl logs of the scaler", s.kubectl(t, "logs", "--namespace", env.ScalerNamespace, "deployment/azp-scaler"), agent, fmt.Sprint(build.RequestID))
	gate.Open()
	s.finish(t, build)
}

func (s *stage) kubectl(t *testing.T, arguments ...string) string {
	t.Helper()
	out, err := s.RunKubectl(t.Context(), arguments...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// troubledClasses are values of the chart, with classes for what goes wrong. With the last one,
// an agent is given up that has not started within seconds.
func troubledClasses() map[string]any {
	roles := []any{map[string]any{"namespace": env.TargetNamespace, "kind": "ClusterRole", "name": "edit"}}
	offers := func(name string, further map[string]any) map[string]any {
		class := map[string]any{"env": []any{map[string]any{"name": name, "value": "1"}}, "roleBindings": roles}
		for key, value := range further {
			class[key] = value
		}
		return class
	}
	memory := map[string]any{"cpu": "10m", "memory": "96Mi"}
	return map[string]any{
		"agents": map[string]any{"classes": map[string]any{
			"plain":  offers("plain", nil),
			"tight":  offers("tight", map[string]any{"resources": map[string]any{"requests": memory, "limits": map[string]any{"memory": "96Mi"}}}),
			"absent": offers("absent", map[string]any{"image": map[string]any{"tag": absentTag}}),
		}},
		"scaler": map[string]any{"startupLimit": "30s", "backoffMin": "1s"},
	}
}

// absentTag is that of an image which is pushed late.
const absentTag = "late"

// upgradeTo changes values of the chart.
func (s *stage) upgradeTo(t *testing.T, values map[string]any) {
	t.Helper()
	if err := s.Upgrade(t.Context(), values); err != nil {
		t.Fatal(err)
	}
	waitUntil(t.Context(), t, "the pool knows the new classes", func() (string, bool) {
		known := s.Service.Placeholders()
		// That of the class which is built in stays for a while, as docs/classes.md says.
		known = slices.DeleteFunc(known, func(name string) bool { return name == env.DefaultClass })
		return fmt.Sprint(known), slices.Equal(known, []string{"absent", "plain", "tight"})
	})
}

// chartMetric waits until the scaler in the cluster shows a line.
func (s *stage) chartMetric(t *testing.T, line string) {
	t.Helper()
	waitUntil(t.Context(), t, line, func() (string, bool) {
		body, err := s.RunKubectl(t.Context(), "get", "--raw", "/api/v1/namespaces/"+env.ScalerNamespace+"/services/azp-scaler:http/proxy/metrics")
		if err != nil {
			return err.Error(), false
		}
		name, _, _ := strings.Cut(line, "{")
		return grep(body, name), grep(body, line) != ""
	})
}

// explain asks the scaler in its pod why a build waits.
func (s *stage) explain(t *testing.T, build env.Queued) string {
	t.Helper()
	return s.kubectl(t, "exec", "--namespace", env.ScalerNamespace, "deployment/azp-scaler", "--", "scaler", "explain", fmt.Sprint(build.RequestID))
}

// greedyBuild has a build run out of memory, and tells the auditor of the agent that went with it.
func (s *stage) greedyBuild(t *testing.T) {
	status, begun := s.greedy(t, s.chartMetric)
	if status.Result == "abandoned" {
		s.Lose(status.AgentName, begun) // By the kernel, soon after, as the test wanted it.
	}
}

// absentImage has a class name an image that is not in the registry. That is told, and the agent
// is replaced after the limit for its start; once the image has been pushed the build runs.
func (s *stage) absentImage(t *testing.T) {
	image := strings.Replace(env.AgentImage, ":env", ":"+absentTag, 1)
	build := s.queue(t, env.Build{Name: "imageless", Demands: []string{"absent"}})[0]
	s.chartMetric(t, `azp_scaler_agents_held_up{class="absent",pool="kubernetes",reason="image-pull"} 1`)
	waitForEvent(t.Context(), t, s.Env, "image-pull", image)
	says(t, "scaler explain", s.explain(t, build), "image-pull")
	waitUntil(t.Context(), t, "the agent that can't start is replaced", func() (string, bool) {
		jobs := s.jobs.of(build.RequestID)
		return fmt.Sprintf("%+v", jobs), len(jobs) > 1
	})
	waitUntil(t.Context(), t, "the scaler tells why it has ended the first agent", func() (string, bool) {
		log := s.kubectl(t, "logs", "--namespace", env.ScalerNamespace, "deployment/azp-scaler")
		return "", strings.Contains(log, `"reason":"startup-limit"`)
	})
	if err := s.TagImage(t.Context(), env.AgentImage, image); err != nil {
		t.Fatal(err)
	}
	s.finish(t, build)
}

// drainedNode drains the only node, as somebody does before an upgrade of it, in the middle of a
// build: the build goes on to its end, on the agent that it has, while the scaler is gone.
func (s *stage) drainedNode(t *testing.T) {
	gate := s.gate(t)
	build := s.queue(t, env.Build{Name: "drained", Demands: []string{"plain"}, Steps: []string{gate.Step()}})[0]
	waitArrived(t, gate, 1)
	agent := s.agentOf(t, build)
	node := s.podOf(t, agent).Spec.NodeName
	begun := time.Now()
	drained := make(chan error, 1)
	go func() {
		_, err := s.RunKubectl(t.Context(), "drain", node, "--delete-emptydir-data", "--force", "--timeout=2m")
		drained <- err
	}()
	waitUntil(t.Context(), t, "the agent holds TERM back", func() (string, bool) {
		log, err := s.RunKubectl(t.Context(), "logs", "--namespace", env.AgentsNamespace, "job/"+agent, "--container", "agent")
		return fmt.Sprint(err, log), strings.Contains(log, "asked to stop")
	})
	gate.Open()
	if err := <-drained; err != nil {
		t.Error(err)
	}
	s.kubectl(t, "uncordon", node)
	s.kubectl(t, "rollout", "status", "--namespace", env.ScalerNamespace, "deployment/azp-scaler", "--timeout", "60s")
	s.Outage(begun, time.Now())
	behind := s.queue(t, env.Build{Name: "after-the-drain", Demands: []string{"plain"}})[0]
	s.finish(t, build, behind)
	if after := s.agentOf(t, build); after != agent || len(s.jobs.of(build.RequestID)) != 1 {
		t.Errorf("the build ran on %s, and another agent was made for it: %+v", after, s.jobs.of(build.RequestID))
	}
}
