package audit_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/azp-scaler/azp-scaler/test/audit"
)

func TestReadServiceLog(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		text  string
		count int
		fails string
	}{
		"pool by number":         {text: `{"seq":1,"time":"2026-01-02T03:04:05.6Z","event":"http","pool":3}` + "\n", count: 1},
		"pool by name":           {text: `{"seq":1,"time":"2026-01-02T03:04:05Z","event":"http","pool":"build"}` + "\n", count: 1},
		"no pool":                {text: `{"seq":1,"time":"2026-01-02T03:04:05Z","event":"http","pool":null}` + "\n\n", count: 1},
		"a line being written":   {text: `{"seq":1,"time":"2026-01-02T03:04:05Z","event":"http"}` + "\n" + `{"seq":2,"ti`, count: 1},
		"a broken line":          {text: `{"seq":1,"ti` + "\n", fails: "line 1"},
		"a pool that is neither": {text: `{"seq":1,"time":"2026-01-02T03:04:05Z","event":"http","pool":{}}` + "\n", fails: "neither a number nor a string"},
		"another log":            {text: `{"kind":"Event"}` + "\n", fails: "is this the log of the fake Azure DevOps"},
		"a very long line":       {text: `{"seq":1,"time":"2026-01-02T03:04:05Z","event":"http","detail":"` + strings.Repeat("x", 1<<20) + `"}` + "\n", count: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			events, err := audit.ReadServiceLog(strings.NewReader(test.text))
			checkRead(t, len(events), test.count, err, test.fails)
		})
	}
}

func TestReadKubeLog(t *testing.T) {
	t.Parallel()
	const head = `{"kind":"Event","apiVersion":"audit.k8s.io/v1","verb":"create","user":{"username":"u"},`
	for name, test := range map[string]struct {
		text  string
		count int
		fails string
	}{
		"a write":                         {text: head + `"stage":"ResponseComplete","objectRef":{"resource":"jobs"},"responseStatus":{"code":201}}` + "\n", count: 1},
		"an early stage says nothing yet": {text: head + `"stage":"RequestReceived","objectRef":{"resource":"jobs"}}` + "\n"},
		"a request on no object":          {text: head + `"stage":"ResponseComplete","responseStatus":{"code":200}}` + "\n"},
		"another log":                     {text: `{"seq":1,"time":"2026-01-02T03:04:05Z","event":"http"}` + "\n", fails: "not an audit event"},
		"a broken line":                   {text: "{\n", fails: "line 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			events, err := audit.ReadKubeLog(strings.NewReader(test.text))
			checkRead(t, len(events), test.count, err, test.fails)
		})
	}
}

func checkRead(t *testing.T, got, want int, err error, fails string) {
	t.Helper()
	switch {
	case fails == "" && err != nil:
		t.Fatal(err)
	case fails != "" && (err == nil || !strings.Contains(err.Error(), fails)):
		t.Fatalf("error is %v, want one with %q", err, fails)
	case fails == "" && got != want:
		t.Errorf("%d events, want %d", got, want)
	}
}

func TestListAgents(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, token, _ := r.BasicAuth()
		switch {
		case token != "secret":
			w.WriteHeader(http.StatusNonAuthoritativeInfo)
		case r.URL.Path == "/acme/_apis/distributedtask/pools/4/agents":
			_, _ = w.Write([]byte("\ufeff" + `{"count":1,"value":[{"id":12,"name":"a"}]}`))
		default:
			_, _ = w.Write([]byte("<html>"))
		}
	}))
	t.Cleanup(server.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	agents, err := audit.ListAgents(ctx, server.Client(), server.URL+"/acme/", "secret", 4)
	if err != nil || len(agents) != 1 || agents[0] != (audit.LiveAgent{Pool: "4", ID: 12, Name: "a"}) {
		t.Errorf("agents are %+v (%v)", agents, err)
	}
	if _, err := audit.ListAgents(ctx, server.Client(), server.URL+"/acme", "wrong", 4); err == nil || !strings.Contains(err.Error(), "203") || strings.Contains(err.Error(), "wrong") {
		t.Errorf("a refused token gives %v", err)
	}
	if _, err := audit.ListAgents(ctx, server.Client(), server.URL+"/acme", "secret", 5); err == nil || !strings.Contains(err.Error(), "not JSON") {
		t.Errorf("a page gives %v", err)
	}
}

// TestListObjects walks a small API: two kinds that can be listed, one of them
// in two pages, events and a subresource left out.
func TestListObjects(t *testing.T) {
	t.Parallel()
	pages := map[string]string{
		"/api":  `{"kind":"APIVersions","versions":["v1"]}`,
		"/apis": `{"kind":"APIGroupList","apiVersion":"v1","groups":[{"name":"batch","versions":[{"groupVersion":"batch/v1","version":"v1"}],"preferredVersion":{"groupVersion":"batch/v1","version":"v1"}}]}`,
		"/api/v1": `{"kind":"APIResourceList","groupVersion":"v1","resources":[{"name":"pods","namespaced":true,"kind":"Pod","verbs":["get","list"]},
			{"name":"pods/log","namespaced":true,"kind":"Pod","verbs":["get","list"]},{"name":"events","namespaced":true,"kind":"Event","verbs":["list"]},{"name":"bindings","namespaced":true,"kind":"Binding","verbs":["create"]}]}`,
		"/apis/batch/v1":       `{"kind":"APIResourceList","groupVersion":"batch/v1","resources":[{"name":"jobs","namespaced":true,"kind":"Job","verbs":["list"]}]}`,
		"/api/v1/pods?":        list("one", `,"continue":"more"`, `,"ownerReferences":[{"apiVersion":"batch/v1","kind":"Job","name":"j","uid":"u-j"}],"labels":{"l":"v"}`),
		"/api/v1/pods?more":    list("two", "", `,"deletionTimestamp":"2026-01-02T03:04:05Z"`),
		"/apis/batch/v1/jobs?": list("j", "", ""),
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Path
		if r.URL.Query().Has("limit") {
			path += "?" + r.URL.Query().Get("continue")
		}
		page, found := pages[path]
		if !found {
			http.Error(w, path, http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(page))
	}))
	t.Cleanup(server.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	objects, err := audit.ListObjects(ctx, &rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]string, 0, len(objects))
	for _, object := range objects {
		got = append(got, object.Group+"/"+object.Resource+"/"+object.Name)
	}
	if strings.Join(got, " ") != "/pods/one /pods/two batch/jobs/j" {
		t.Fatalf("objects are %v", got)
	}
	if one := objects[0]; one.UID != "uid-one" || one.Labels["l"] != "v" || len(one.OwnerUIDs) != 1 || one.OwnerUIDs[0] != "u-j" || one.Deleting {
		t.Errorf("the first pod is %+v", one)
	}
	if !objects[1].Deleting {
		t.Error("a pod that is being deleted does not say so")
	}
}

// TestListObjectsRefused checks that a kind that cannot be listed is an error:
// a leak could hide there.
func TestListObjectsRefused(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/api":
			_, _ = w.Write([]byte(`{"kind":"APIVersions","versions":["v1"]}`))
		case "/apis":
			_, _ = w.Write([]byte(`{"kind":"APIGroupList","apiVersion":"v1","groups":[]}`))
		case "/api/v1":
			_, _ = w.Write([]byte(`{"kind":"APIResourceList","groupVersion":"v1","resources":[{"name":"pods","namespaced":true,"kind":"Pod","verbs":["list"]}]}`))
		default:
			http.Error(w, "no", http.StatusForbidden)
		}
	}))
	t.Cleanup(server.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := audit.ListObjects(ctx, &rest.Config{Host: server.URL}); err == nil || !strings.Contains(err.Error(), "list pods") {
		t.Errorf("the error is %v", err)
	}
}

func list(name, listMeta, itemMeta string) string {
	return `{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"1"` + listMeta +
		`},"items":[{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"namespace":"agents","name":"` + name + `","uid":"uid-` + name + `"` + itemMeta + `}}]}`
}

// TestIndependence holds the auditor apart from what it judges.
func TestIndependence(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "go", "list", "-deps", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	const module = "github.com/azp-scaler/azp-scaler/"
	seen := 0
	for name := range strings.FieldsSeq(string(out)) {
		if rest, ours := strings.CutPrefix(name, module); ours {
			seen++
			if !strings.HasPrefix(rest, "test/audit") {
				t.Errorf("the auditor depends on %s", name)
			}
		}
	}
	if seen < 2 {
		t.Errorf("go list names %d packages of the auditor, so this test looked at nothing", seen)
	}
}
