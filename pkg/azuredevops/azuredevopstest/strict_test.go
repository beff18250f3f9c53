package azuredevopstest_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

// TestStrictness sends what the service would not take either.
func TestStrictness(t *testing.T) {
	s := start(t, azuredevopstest.Options{})
	agents := s.poolPath("agents")
	for _, tc := range []struct {
		name, method, path, accept, kind, body string
		want                                   int
		says                                   string
	}{
		{name: "no api-version on a write", method: "POST", path: agents, kind: "application/json", body: "{}", want: 400, says: "VssVersionNotSpecifiedException"},
		{name: "no api-version on a delete", method: "DELETE", path: agents + "/1", want: 400, says: "VssVersionNotSpecifiedException"},
		{name: "no api-version on a read", method: "GET", path: agents, want: 200},
		{name: "api-version of tomorrow", method: "GET", path: agents, accept: "application/json;api-version=9.0", want: 400, says: "VssVersionOutOfRangeException"},
		{name: "no version at all", method: "GET", path: agents, accept: "application/json;api-version=new", want: 400, says: "VssInvalidApiVersionException"},
		{name: "no content type", method: "POST", path: agents + "?api-version=7.1", body: "{}", want: 415},
		{name: "a form", method: "POST", path: agents + "?API-VERSION=7.1", kind: "application/x-www-form-urlencoded", body: "{}", want: 415},
		{name: "no JSON", method: "POST", path: agents + "?api-version=7.1", kind: "application/json", body: "{", want: 400},
		{name: "no body", method: "POST", path: agents + "?api-version=7.1", kind: "application/json", want: 400},
		{name: "another organisation", method: "GET", path: "/../other/_apis/distributedtask/pools", want: 404, says: "VS800075"},
		{name: "no such route", method: "GET", path: "/_apis/build/builds", want: 404, says: "controller for path"},
		{name: "no such method", method: "PUT", path: "/_apis/distributedtask/pools", want: 405, says: "does not support http method 'PUT'"},
		{name: "case of the path", method: "GET", path: "/_APIS/DistributedTask/Pools", want: 200},
		{name: "no such pool", method: "GET", path: "/_apis/distributedtask/pools/99999/agents", want: 404, says: "No agent pool found with identifier 99999."},
		{name: "no number", method: "GET", path: "/_apis/distributedtask/pools/builds/agents", want: 400},
		{name: "no such agent", method: "GET", path: agents + "/7", want: 404, says: "with identifier 7."},
		{name: "bad $top", method: "GET", path: s.poolPath("jobrequests?$top=many"), want: 400},
		{name: "bad token", method: "GET", path: s.poolPath("jobrequests?$top=3&continuationToken=x"), want: 400},
		{name: "bad count", method: "GET", path: s.poolPath("jobrequests?completedRequestCount=-1"), want: 400},
		{name: "bad agentIds", method: "GET", path: s.poolPath("jobrequests?agentIds=a"), want: 400},
		{name: "bad poolIds", method: "GET", path: "/_apis/distributedtask/pools?poolIds=a", want: 400},
		{name: "bad demands", method: "GET", path: agents + "?demands=a%20-is%20b", want: 400},
		{name: "no such request", method: "GET", path: s.poolPath("jobrequests/123456789"), want: 404, says: "TaskAgentJobNotFoundException"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			at := s.url + tc.path
			if rest, ok := strings.CutPrefix(tc.path, "/../"); ok {
				at = s.ep.Origin + "/" + rest
			}
			req := httptest.NewRequest(tc.method, at, strings.NewReader(tc.body))
			req.RequestURI = ""
			req.Header.Set("Authorization", basic(managePAT))
			if tc.accept != "" {
				req.Header.Set("Accept", tc.accept)
			}
			if tc.kind != "" {
				req.Header.Set("Content-Type", tc.kind)
			}
			r := s.do(req)
			if r.err != nil || r.status != tc.want || !strings.Contains(r.body, tc.says) {
				t.Fatalf("status %d, %v: %s; want %d and %q", r.status, r.err, r.body, tc.want, tc.says)
			}
			if tc.want >= 400 && (!strings.Contains(r.body, `"typeKey":"`) || !strings.Contains(r.body, `"innerException":null`)) {
				t.Errorf("not the service's form of an error: %s", r.body)
			}
		})
	}
}

// TestAgentBodies sends agents that the service would not take.
func TestAgentBodies(t *testing.T) {
	s := start(t, azuredevopstest.Options{})
	for name, spoil := range map[string]func(map[string]any){
		"no name":          func(b map[string]any) { b["name"] = " " },
		"a bad name":       func(b map[string]any) { b["name"] = "a/b" },
		"too long a name":  func(b map[string]any) { b["name"] = strings.Repeat("a", 65) },
		"no version":       func(b map[string]any) { delete(b, "version") },
		"a short key":      func(b map[string]any) { b["authorization"] = key("AQAB", "AQAB") },
		"no exponent":      func(b map[string]any) { b["authorization"] = key("", strings.Repeat("A", 342)+"==") },
		"an even exponent": func(b map[string]any) { b["authorization"] = key("Ag==", strings.Repeat("B", 342)+"==") },
	} {
		body, _ := agentBody(t, "agent-1", nil)
		spoil(body)
		if r := s.manage(http.MethodPost, s.poolPath("agents"), body); r.status != 400 {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
	}
	a := s.register("agent-1", nil)
	for name, body := range map[string]map[string]any{
		"no id":      {"enabled": false},
		"another id": {"id": a.ID + 1, "enabled": false},
		"a bad type": {"id": a.ID, "enabled": "no"},
	} {
		if r := s.manage(http.MethodPatch, s.poolPath("agents/"+itoa(a.ID)), body); r.status != 400 {
			t.Errorf("PATCH with %s: %d %s", name, r.status, r.body)
		}
	}
}

func key(exponent, modulus string) map[string]any {
	return map[string]any{"publicKey": map[string]string{"exponent": exponent, "modulus": modulus}}
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]azuredevopstest.Options{
		"organisation": {Organisation: "a/b/c"},
		"tick":         {Tick: -1},
		"version":      {MinAgentVersion: "new"},
		"limit":        {ParallelJobs: -1},
		"token":        {Tokens: []azuredevopstest.Token{{Identity: "x"}}},
		"rights":       {Tokens: []azuredevopstest.Token{{Secret: "x", Rights: 9}}},
		"package":      {Packages: []azuredevopstest.AgentPackage{{Platform: "linux-x64", Version: "4", Path: "x"}}},
		"no package":   {Packages: []azuredevopstest.AgentPackage{{Version: "4.1.0"}}},
	} {
		if srv, err := azuredevopstest.New(o); err == nil {
			srv.Close()
			t.Errorf("%s: taken", name)
		}
	}
}

// TestDiscovery checks what clients find their way by.
func TestDiscovery(t *testing.T) {
	s := start(t, azuredevopstest.Options{})
	var locations struct {
		Value []struct{ ID, Area, RouteTemplate string }
	}
	s.manage(http.MethodOptions, "/_apis", nil).into(t, &locations)
	all := len(locations.Value)
	s.manage(http.MethodOptions, "/_apis/distributedtask", nil).into(t, &locations)
	if part := len(locations.Value); part == 0 || part >= all {
		t.Errorf("%d locations of the area, %d in all", part, all)
	}
	var area struct{ Name, LocationURL string }
	s.manage(http.MethodGet, "/_apis/resourceareas/A85B8835-c1a1-4aac-ae97-1c3d0ba72dbd", nil).into(t, &area)
	if area.Name != "distributedtask" || area.LocationURL != s.url+"/" {
		t.Errorf("area %+v", area)
	}
	if r := s.manage(http.MethodGet, "/_apis/resourceareas/00000000-0000-0000-0000-000000000000", nil); strings.TrimSpace(r.body) != "null" {
		t.Errorf("unknown area: %d %s", r.status, r.body)
	}
	type data struct {
		DeploymentType      string
		LocationServiceData struct{ ServiceDefinitions []struct{ Identifier string } }
	}
	var with, without data
	s.manage(http.MethodGet, "/_apis/connectionData?connectOptions=1&lastChangeId=-1", nil).into(t, &with)
	s.manage(http.MethodGet, "/_apis/connectionData?connectOptions=none", nil).into(t, &without)
	if with.DeploymentType != "hosted" || len(with.LocationServiceData.ServiceDefinitions) != all || len(without.LocationServiceData.ServiceDefinitions) != 0 {
		t.Errorf("connection data with %+v, without %+v", with, without)
	}
}

// TestPools looks pools up by name and ids.
func TestPools(t *testing.T) {
	s := start(t, azuredevopstest.Options{})
	twin := s.srv.CreatePool("BUILDS")
	s.srv.CreatePool("other")
	for query, want := range map[string]int{"": 3, "?poolName=builds": 2, "?poolName=build": 0, "?poolIds=" + itoa(twin): 1, "?poolName=Other": 1} {
		var got struct {
			Count int
			Value []struct{ Name string }
		}
		s.manage(http.MethodGet, "/_apis/distributedtask/pools"+query, nil).into(t, &got)
		if got.Count != want || len(got.Value) != want {
			t.Errorf("%q: %+v, want %d", query, got, want)
		}
	}
	if _, err := s.srv.Queue(azuredevopstest.Build{Pool: "builds"}); err == nil || !strings.Contains(err.Error(), "two of this name") {
		t.Errorf("queue by a name that two pools have: %v", err)
	}
	if _, err := s.srv.Queue(azuredevopstest.Build{Pool: "none"}); err == nil {
		t.Error("queued in a pool that is not there")
	}
}
