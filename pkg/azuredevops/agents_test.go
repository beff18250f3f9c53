package azuredevops

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

func TestAgents(t *testing.T) {
	t.Parallel()
	var query string
	c := newService(t, func(w http.ResponseWriter, r *http.Request) {
		query = r.URL.RawQuery
		answerJSON(w, 200, `{"count":6,"value":[
			{"id":1,"name":"a1","version":"4.248.0","status":"online","enabled":true,"createdOn":"2026-01-02T03:04:05Z","assignedRequest":{"requestId":77,"result":null}},
			{"id":2,"name":"a2","status":1,"enabled":false},
			{"id":3,"name":"a3","status":2,"assignedRequest":null,"createdOn":"x","systemCapabilities":{"Agent.OS":"Linux","odd":7},"userCapabilities":{"JAVA":"17"}},
			{"id":4},
			{"id":5,"name":"a5","assignedRequest":{}},
			{"id":"six","name":"a6"}]}`)
	})
	got, err := c.Agents(t.Context(), 5, AgentQuery{Capabilities: true})
	if err != nil {
		t.Fatal(err)
	}
	want := []agentpool.Agent{
		{ID: 1, Name: "a1", Version: "4.248.0", Online: true, Enabled: true, AssignedRequest: 77, CreatedOn: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)},
		{ID: 2, Name: "a2"},
		{ID: 3, Name: "a3", Online: true, Enabled: true, Capabilities: agentpool.Capabilities{"agent.os": "Linux", "odd": "", "java": "17"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if query != "includeAssignedRequest=true&includeCapabilities=true" {
		t.Errorf("asked with %s", query)
	}
}

func TestAgentByName(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		body string
		id   int
		kind error
		says string
	}{
		"one":                       {`{"count":1,"value":[{"id":3,"name":"AZP-a"}]}`, 3, nil, ""},
		"others beside it":          {`{"count":2,"value":[{"id":3,"name":"azp-a-2"},{"id":4,"name":"azp-a"}]}`, 4, nil, ""},
		"none":                      {emptyList, 0, ErrNotFound, `"azp-a" in pool 5`},
		"only others":               {`{"count":1,"value":[{"id":3,"name":"azp-a-2"}]}`, 0, ErrNotFound, "no agent has it"},
		"two":                       {`{"count":2,"value":[{"id":3,"name":"azp-a"},{"id":4,"name":"azp-A"}]}`, 0, ErrAmbiguous, "2 agents"},
		"one that cannot be read":   {`{"count":1,"value":[{"id":"3","name":"azp-a"}]}`, 0, ErrUnexpectedAnswer, "may be this agent"},
		"found beside a broken one": {`{"count":2,"value":[{"id":"3"},{"id":4,"name":"azp-a"}]}`, 4, nil, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newService(t, func(w http.ResponseWriter, r *http.Request) {
				if got := r.URL.Query().Get("agentName"); got != "azp-a" {
					t.Errorf("asked for %q", got)
				}
				answerJSON(w, 200, test.body)
			})
			got, err := c.AgentByName(t.Context(), 5, "azp-a")
			if !errors.Is(err, test.kind) || got.ID != test.id || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
	c := newService(t, func(http.ResponseWriter, *http.Request) { t.Error("asked for an agent without a name") })
	if _, err := c.AgentByName(t.Context(), 5, ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("no name: %v", err)
	}
}

func TestAgent(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]error{
		`{"id":7,"name":"a","status":"online","enabled":true,"assignedRequest":{"requestId":4}}`: nil,
		`{"id":7,"name":"a","assignedRequest":{}}`:                                               ErrUnexpectedAnswer,
		`{"id":8,"name":"a"}`: ErrUnexpectedAnswer,
		`{}`:                  ErrUnexpectedAnswer,
		`null`:                ErrUnexpectedAnswer,
		`{"id":7,`:            ErrUnexpectedAnswer,
		``:                    ErrUnexpectedAnswer,
	} {
		c := newService(t, func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, 200, body) })
		got, err := c.Agent(t.Context(), 5, 7)
		if !errors.Is(err, want) || want == nil && (got.AssignedRequest != 4 || !got.Online || !got.Enabled) {
			t.Errorf("%s: %+v, %v", body, got, err)
		}
	}
}

// TestWithdraw plays the safe stop against every answer of each of its three steps.
func TestWithdraw(t *testing.T) {
	t.Parallel()
	ok := func(w http.ResponseWriter) { answerJSON(w, 200, `{"id":7,"name":"a","enabled":false}`) }
	gone := func(w http.ResponseWriter) {
		answerError(w, 404, "TaskAgentNotFoundException", "No agent found for pool 5 with identifier 7.")
	}
	busy := func(w http.ResponseWriter) {
		answerError(w, 400, "TaskAgentJobStillRunningException", `Agent "a" is running a job for pool "ci"`)
	}
	denied := func(w http.ResponseWriter) { answerError(w, 403, "AccessDeniedException", "no") }
	assigned := func(w http.ResponseWriter) {
		answerJSON(w, 200, `{"id":7,"name":"a","enabled":false,"assignedRequest":{"requestId":3}}`)
	}
	foreign404 := func(w http.ResponseWriter) { w.WriteHeader(404) }
	tests := map[string]struct {
		patch, get, remove func(http.ResponseWriter)
		withdrawn          bool
		kind               error
		steps              string
	}{
		"idle":                      {ok, ok, ok, true, nil, "PATCH GET DELETE"},
		"assigned":                  {ok, assigned, nil, false, nil, "PATCH GET"},
		"busy":                      {ok, ok, busy, false, nil, "PATCH GET DELETE"},
		"gone at once":              {gone, nil, nil, true, nil, "PATCH"},
		"gone after disabling":      {ok, gone, nil, true, nil, "PATCH GET"},
		"gone before the deletion":  {ok, ok, gone, true, nil, "PATCH GET DELETE"},
		"denied to disable":         {denied, nil, nil, false, ErrAuthorization, "PATCH"},
		"denied to read":            {ok, denied, nil, false, ErrAuthorization, "PATCH GET"},
		"denied to delete":          {ok, ok, denied, false, ErrAuthorization, "PATCH GET DELETE"},
		"404 that is not service's": {ok, ok, foreign404, false, ErrUnexpectedAnswer, "PATCH GET DELETE"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var steps []string
			c := newService(t, func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				steps = append(steps, r.Method)
				if r.URL.Path != "/Acme/_apis/distributedtask/pools/5/agents/7" {
					t.Errorf("asked for %s", r.URL)
				}
				switch r.Method {
				case http.MethodPatch:
					if body, _ := io.ReadAll(r.Body); string(body) != `{"id":7,"enabled":false}` || !strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
						t.Errorf("sent %s", body)
					}
					test.patch(w)
				case http.MethodGet:
					if r.URL.Query().Get("includeAssignedRequest") != "true" {
						t.Error("read without the assigned request")
					}
					test.get(w)
				default:
					test.remove(w)
				}
			})
			withdrawn, err := c.Withdraw(t.Context(), 5, 7)
			if withdrawn != test.withdrawn || !errors.Is(err, test.kind) || strings.Join(steps, " ") != test.steps {
				t.Errorf("%t, %v by %q", withdrawn, err, steps)
			}
		})
	}
}

func TestPoolByName(t *testing.T) {
	t.Parallel()
	all := `{"count":4,"value":[{"id":1,"name":"zoo"},{"id":2,"name":"Azure Pipelines","isHosted":true},{"id":5,"name":"CI pool"},{"id":6,"name":"bees"}]}`
	var many []string
	for i := range 50 {
		many = append(many, fmt.Sprintf(`{"id":%d,"name":"p%02d"}`, i+1, i))
	}
	tests := map[string]struct {
		name, named, all string
		id               int
		kind             error
		says             []string
	}{
		"one":                      {"ci pool", `{"count":1,"value":[{"id":5,"name":"CI pool"}]}`, "", 5, nil, nil},
		"filter by prefix":         {"CI", `{"count":1,"value":[{"id":5,"name":"CI pool"}]}`, all, 0, ErrNotFound, []string{`"CI" (AZP_POOL) does not exist`, `visible: "CI pool", "bees", "zoo"`}},
		"none":                     {"x", emptyList, all, 0, ErrNotFound, []string{`visible: "CI pool", "bees", "zoo"`, "Agent Pools (read)"}},
		"none, and none visible":   {"x", emptyList, emptyList, 0, ErrNotFound, []string{"visible: none"}},
		"many visible":             {"x", emptyList, `{"value":[` + strings.Join(many, ",") + `]}`, 0, ErrNotFound, []string{`"p29", and 20 more`}},
		"two":                      {"ci", `{"count":2,"value":[{"id":5,"name":"ci"},{"id":9,"name":"CI"}]}`, "", 0, ErrAmbiguous, []string{"2 pools", "5, 9"}},
		"Microsoft's":              {"Azure Pipelines", `{"count":1,"value":[{"id":2,"name":"Azure Pipelines","isHosted":true}]}`, "", 0, ErrNotFound, []string{"run by Microsoft"}},
		"no name":                  {" ", "", "", 0, ErrNotFound, []string{"has no name"}},
		"one that cannot be read":  {"ci", `{"count":1,"value":[{"id":"5","name":"ci"}]}`, "", 0, ErrUnexpectedAnswer, []string{"none of 1 pools"}},
		"nothing that makes sense": {"ci", `{}`, "", 0, ErrUnexpectedAnswer, []string{"no list"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newService(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Query().Get("poolName") != "" {
					answerJSON(w, 200, test.named)
				} else {
					answerJSON(w, 200, test.all)
				}
			})
			got, err := c.PoolByName(t.Context(), test.name)
			if !errors.Is(err, test.kind) || got.ID != test.id {
				t.Fatalf("%+v, %v", got, err)
			}
			for _, want := range test.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
		})
	}
}

func TestParallelJobs(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]struct {
		total int
		known bool
		kind  error
	}{
		`{"resourceLimit":{"totalCount":4,"resourceLimitsData":{}},"usedCount":2,"runningRequests":[]}`: {4, true, nil},
		`{"resourceLimit":{"totalCount":0}}`:    {0, true, nil},
		`{"resourceLimit":{"totalCount":null}}`: {0, false, nil},
		`{"resourceLimit":{}}`:                  {0, false, nil},
		`{"resourceLimit":null}`:                {0, false, nil},
		`{"resourceLimit":{"totalCount":-1}}`:   {0, false, nil},
		`{"resourceLimit":{"totalCount":"x"}}`:  {0, false, ErrUnexpectedAnswer},
		``:                                      {0, false, ErrUnexpectedAnswer},
	} {
		c := newService(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/Acme/_apis/distributedtask/resourceusage" || r.URL.Query().Get("parallelismTag") != "Private" || r.URL.Query().Get("poolIsHosted") != "false" {
				t.Errorf("asked for %s", r.URL)
			}
			answerJSON(w, 200, body)
		})
		total, known, err := c.ParallelJobs(t.Context())
		if total != want.total || known != want.known || !errors.Is(err, want.kind) {
			t.Errorf("%s: %d, %t, %v", body, total, known, err)
		}
	}
}
