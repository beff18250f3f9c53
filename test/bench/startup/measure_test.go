package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/azp-scaler/azp-scaler/test/audit"
	"github.com/azp-scaler/azp-scaler/test/cluster"
)

const (
	agent = "azp-abcdefgh-1-42-1"
	user  = "system:serviceaccount:azp-scaler:azp-scaler"
)

func at(seconds float64) time.Time {
	return time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC).Add(time.Duration(seconds * float64(time.Second)))
}

// sample is the log of one build in the middle of others.
func sample() logs {
	kube := func(seconds float64, user, verb, group, resource, name string, code int) audit.KubeEvent {
		return audit.KubeEvent{User: user, Verb: verb, Group: group, Resource: resource, Name: name, Code: code, Time: at(seconds - 0.1), Done: at(seconds)}
	}
	http := func(seconds float64, by, detail string) audit.ServiceEvent {
		return audit.ServiceEvent{Event: "http", Time: at(seconds), By: by, Detail: detail}
	}
	pools := "/acme/_apis/distributedtask/pools/1"
	return logs{
		scalerUser: user, scaler: "azp-scaler", pods: podIdentity,
		kube: []audit.KubeEvent{
			kube(9, user, "create", "batch", "jobs", "azp-abcdefgh-1-4-1", 201),
			kube(10, user, "create", "batch", "jobs", agent, 201),
			kube(10.1, user, "create", "", "serviceaccounts", agent, 201),
			kube(10.2, user, "create", "rbac.authorization.k8s.io", "rolebindings", agent+"-2", 201),
			kube(10.3, user, "create", "", "secrets", agent, 409),
			kube(10.5, user, "patch", "batch", "jobs", agent, 200),
			kube(10.6, user, "watch", "batch", "jobs", agent, 200),
			kube(10.6, user, "create", "authorization.k8s.io", "selfsubjectaccessreviews", "", 201),
			kube(11, "system:node:n", "patch", "", "pods", agent+"-x7k2p", 200),
			kube(12, "system:serviceaccount:azp-agents:"+agent, "get", "apps", "deployments", "storefront", 200),
			kube(13, "system:serviceaccount:kube-system:job-controller", "update", "batch", "jobs", agent, 200),
			kube(14, user, "patch", "batch", "jobs", agent, 200),
			kube(15, user, "delete", "", "serviceaccounts", agent, 200),
		},
		service: []audit.ServiceEvent{
			{Event: "session-created", Time: at(3), AgentName: "azp-abcdefgh-1-4-1"},
			{Event: "session-created", Time: at(12.5), AgentName: agent},
			{Event: "session-created", Time: at(12.9), AgentName: agent},
			http(8, "azp-scaler", "POST "+pools+"/agents"),
			http(10.4, "azp-scaler", "POST "+pools+"/agents"),
			http(10.5, "azp-scaler", "GET "+pools+"/jobrequests"),
			http(10.5, "azp-scaler", "GET /acme/_apis/distributedtask/resourceusage"),
			http(10.6, "azp-scaler", "PATCH "+pools+"/jobrequests"),
			http(11, podIdentity, "POST "+pools+"/agents"),
			http(12, "anonymous", "POST /acme/_apis/oauth2/token"),
			http(12.4, "agent:"+agent, "POST "+pools+"/sessions"),
			http(13, "job:42", "PATCH /acme/timeline"),
			http(13, "administrator", "GET "+pools+"/agents"),
			http(21, "azp-scaler", "DELETE "+pools+"/agents/3"),
		},
	}
}

func TestMeasure(t *testing.T) {
	t.Parallel()
	got, err := sample().measure(span{mode: "jit", agent: agent, from: at(9.5), to: at(20)})
	if err != nil {
		t.Fatal(err)
	}
	want := Build{
		Mode: "jit", Agent: agent, JobToListening: 2.5, Letting: 0.5, Starting: 2,
		Calls: Calls{KubernetesScaler: 7, KubernetesKubelet: 1, KubernetesPod: 1, ServiceScaler: 2, ServiceRegistration: 1, ServiceAgent: 3},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the build (-want +got):\n%s", diff)
	}
}

func TestMeasureRefusesHalfALog(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*logs){
		"no Job":     func(l *logs) { l.kube = nil },
		"not let go": func(l *logs) { l.kube = l.kube[:5] },
		"no session": func(l *logs) { l.service = l.service[:1] },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := sample()
			spoil(&l)
			if got, err := l.measure(span{agent: agent, from: at(9.5), to: at(20)}); err == nil || !strings.Contains(err.Error(), agent) {
				t.Errorf("gives %+v and the error %v, which should name the agent", got, err)
			}
		})
	}
}

func TestSummarise(t *testing.T) {
	t.Parallel()
	builds := []Build{
		{Mode: "config", JobToListening: 5, Calls: Calls{ServiceScaler: 2, ServiceRegistration: 6}},
		{Mode: "jit", JobToListening: 2, Calls: Calls{ServiceScaler: 4}},
		{Mode: "jit", JobToListening: 3, Calls: Calls{ServiceScaler: 4}},
		{Mode: "config", JobToListening: 9, Calls: Calls{ServiceScaler: 2, ServiceRegistration: 6}},
		{Mode: "config", JobToListening: 4, Calls: Calls{ServiceScaler: 2, ServiceRegistration: 7}},
	}
	result := summarise(builds)
	if diff := cmp.Diff(Spread{Median: 5, Min: 4, Max: 9}, result.Figures["config"]["job_to_listening_seconds"]); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(Spread{Median: 2.5, Min: 2, Max: 3}, result.Figures["jit"]["job_to_listening_seconds"]); diff != "" {
		t.Errorf("jit (-want +got):\n%s", diff)
	}
	if got := result.Ratios["job_to_listening_seconds"]; got != 0.5 {
		t.Errorf("jit takes %g of the time of config, want 0.5", got)
	}
	if got, known := result.Ratios["kubernetes_calls_by_pod"]; known {
		t.Errorf("the ratio to nothing is %g", got)
	}
	for _, want := range []string{"5.00 (4.00 to 9.00)", "2.50 (2.00 to 3.00)", " 0.50\n", "8 (8 to 9)", "4 (4 to 4)"} {
		if !strings.Contains(result.table(), want) {
			t.Errorf("the table does not show %q:\n%s", want, result.table())
		}
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	from := func(values map[string]string) func(string) string {
		return func(name string) string { return values[name] }
	}
	got, err := parse(from(map[string]string{"BENCH_BUILDS": "7", "BENCH_SEED": "42", "BENCH_NODE": "simulated", "BENCH_OUT": "/tmp/x"}))
	if want := (settings{builds: 7, seed: 42, node: cluster.Simulated, out: "/tmp/x"}); err != nil || got != want {
		t.Errorf("settings are %+v (%v), want %+v", got, err, want)
	}
	if plain, err := parse(from(nil)); err != nil || plain.builds != defaultBuilds || plain.out != "out" || plain.seed == 0 {
		t.Errorf("the defaults are %+v (%v)", plain, err)
	}
	_, err = parse(from(map[string]string{"BENCH_BUILDS": "0", "BENCH_SEED": "-1", "BENCH_NODE": "moon"}))
	for _, name := range []string{"BENCH_BUILDS", "BENCH_SEED", "BENCH_NODE"} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("the error does not name %s: %v", name, err)
		}
	}
}
