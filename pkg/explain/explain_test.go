package explain_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/explain"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

var update = flag.Bool("update", false, "write the expected texts anew")

func now() time.Time { return time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC) }

func class(name string, claims map[string]string) agentpool.AgentClass {
	return agentpool.AgentClass{Name: name, Version: "v1", Claims: claims, Capabilities: agentpool.NewCapabilities(claims)}
}

func request(id int64, pipeline string, waited time.Duration, demands ...string) agentpool.JobRequest {
	r := agentpool.JobRequest{ID: id, QueueTime: now().Add(-waited), Definition: agentpool.Link{Name: pipeline}}
	for _, text := range demands {
		demand, err := agentpool.ParseDemand(text)
		if err != nil {
			r.UnknownDemands = append(r.UnknownDemands, text)
			continue
		}
		r.Demands = append(r.Demands, demand)
	}
	return r
}

// busyPool has one of everything that there is to show.
func busyPool() explain.Pool {
	java := class("java", map[string]string{"java": "17", "maven": "3.9"})
	java.MaxAgents, java.Priority = 3, 5
	base := class("base", map[string]string{"Agent.OS": "Linux"})
	base.MinIdle = 2
	npm := class("npm", map[string]string{"npm": ""})
	running := request(1, "shop", time.Hour, "java")
	running.AssignTime, running.ReceiveTime = now(), now()
	running.Reserved = agentpool.AgentRef{ID: 5, Name: "azp-x-7-1-0"}
	foreign := request(9, "legacy", 3*time.Minute, "windows")
	foreign.Foreign = agentpool.AgentRef{ID: 6, Name: "static-vm"}
	s := plan.Snapshot{
		Now: now(), Pool: agentpool.Pool{ID: 7, Name: "linux"},
		Classes: []agentpool.AgentClass{java, base, npm},
		Broken:  map[string]string{"gpu": `annotation azp-scaler.github.io/max-agents: "many" is no whole number: want such as "20"`},
		Blocked: map[string]string{"npm": "namespace shop: the role edit does not exist"},
		Requests: []agentpool.JobRequest{
			running, request(2, "shop\tfront", 90*time.Second, "java -gtVersion 11", "Agent.Version -gtVersion 3.0"),
			request(3, "site", time.Minute, "npm"), request(4, "tool", time.Minute, "java", "npm", "gradle"),
			request(5, "odd", time.Second, "java 17"), request(6, "plain", 2*time.Second), request(7, "plain", time.Second), foreign,
		},
		Jobs: []agentpool.AgentJob{
			{Name: "azp-x-7-1-0", UID: "1", Class: "java", ClassVersion: "v1", Capabilities: java.Capabilities, RequestID: 1, PodName: "azp-x-7-1-0-abc", Started: true, RanBuild: true, CreatedAt: now().Add(-time.Hour)},
			{Name: "azp-x-7-6-0", UID: "2", Class: "base", ClassVersion: "v1", Capabilities: base.Capabilities, RequestID: 6, CreatedAt: now(), PodName: "azp-x-7-6-0-def", Reason: agentpool.ReasonUnschedulable, Message: "0/3 nodes are available"},
			{Name: "azp-x-7-99-0", UID: "3", Class: "old", ClassVersion: "v0", Capabilities: agentpool.NewCapabilities(map[string]string{"cobol": ""}), RequestID: 99, Started: true, Ready: true, ReadySince: now().Add(-time.Hour), CreatedAt: now().Add(-time.Hour)},
			{Name: "azp-x-7-98-0", UID: "4", Class: "java", ClassVersion: "v1", Capabilities: java.Capabilities, RequestID: 98, Suspended: true, CreatedAt: now()},
		},
		Offers: map[plan.ClassVersion]agentpool.Capabilities{
			{Class: "java", Version: "v1"}: agentpool.NewCapabilities(map[string]string{"java": "17", "git": "2"}),
		},
		Limits: plan.Limits{PoolAgents: 100, IdleLimit: time.Minute, MaxIdleAge: time.Hour, MismatchLimit: time.Minute},
	}
	return explain.Pool{Snapshot: s, Plan: plan.Make(s)}
}

// longQueue has many requests that wait for the same.
func longQueue() explain.Pool {
	base := class("base", nil)
	base.MaxAgents = 1
	s := plan.Snapshot{Now: now(), Pool: agentpool.Pool{ID: 8, Name: "other"}, Classes: []agentpool.AgentClass{base}}
	for id := range int64(30) {
		s.Requests = append(s.Requests, request(id+1, "nightly", time.Duration(60-id)*time.Second))
	}
	return explain.Pool{Snapshot: s, Plan: plan.Make(s)}
}

func idlePool() explain.Pool {
	s := plan.Snapshot{Now: now(), Pool: agentpool.Pool{ID: 9, Name: "quiet"}, Classes: []agentpool.AgentClass{class("base", nil)}}
	return explain.Pool{Snapshot: s, Plan: plan.Make(s)}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got), -update writes it anew:\n%s", name, diff)
	}
}

func TestWriteTable(t *testing.T) {
	var b bytes.Buffer
	if err := explain.WriteTable(&b, []explain.Pool{busyPool(), longQueue(), idlePool()}); err != nil {
		t.Fatal(err)
	}
	golden(t, "table.txt", b.String())
}

func TestWriteJSON(t *testing.T) {
	var b bytes.Buffer
	if err := explain.WriteJSON(&b, []explain.Pool{busyPool(), idlePool()}); err != nil {
		t.Fatal(err)
	}
	if !json.Valid(b.Bytes()) {
		t.Fatalf("this is no JSON:\n%s", b.String())
	}
	golden(t, "plan.json", b.String())
}

func TestWriteRequest(t *testing.T) {
	for _, id := range []int64{1, 2, 4, 5, 6, 9} {
		var b bytes.Buffer
		found, err := explain.WriteRequest(&b, []explain.Pool{idlePool(), busyPool()}, id)
		if err != nil || !found {
			t.Fatalf("request %d: found %v, %v", id, found, err)
		}
		golden(t, fmt.Sprintf("request-%d.txt", id), b.String())
	}
}

func TestWriteEveryRequest(t *testing.T) {
	var b bytes.Buffer
	if found, err := explain.WriteRequest(&b, []explain.Pool{busyPool(), longQueue()}, 0); err != nil || !found {
		t.Fatalf("found %v, %v", found, err)
	}
	if n := strings.Count(b.String(), "Request "); n != 7+30 {
		t.Errorf("want the 37 queued requests of both pools, got %d", n)
	}
	b.Reset()
	found, err := explain.WriteRequest(&b, []explain.Pool{idlePool()}, 0)
	if found || err != nil || b.String() != "No build is queued.\n" {
		t.Errorf("found %v, %v: %s", found, err, b.String())
	}
	if found, _ := explain.WriteRequest(&b, []explain.Pool{busyPool()}, 4711); found {
		t.Error("a request was found that is in no queue")
	}
}

// full is a disk without room.
type full struct{}

var errFull = errors.New("no space left on device")

func (full) Write([]byte) (int, error) { return 0, errFull }

func TestWhatCanNotBeWrittenIsAnError(t *testing.T) {
	pools := []explain.Pool{busyPool()}
	_, err := explain.WriteRequest(full{}, pools, 2)
	for name, err := range map[string]error{
		"table": explain.WriteTable(full{}, pools), "JSON": explain.WriteJSON(full{}, pools), "request": err,
	} {
		if !errors.Is(err, errFull) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
