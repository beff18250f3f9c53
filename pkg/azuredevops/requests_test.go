package azuredevops

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

func TestJobRequests(t *testing.T) {
	t.Parallel()
	at := func(text string) time.Time {
		d, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	tests := map[string]struct {
		row  string
		want agentpool.JobRequest
	}{
		"all fields": {
			`{"requestId":9007199254740993,"poolId":5,"queueTime":"2026-01-02T03:04:05.1234567Z","assignTime":"2026-01-02T03:04:06Z","receiveTime":"2026-01-02T03:04:07.5Z",
			"lockedUntil":"2026-01-02T03:14:07.000001Z","demands":["npm","java -gtVersion 17","Agent.OS -equals Linux"],"reservedAgent":{"id":8,"name":"a8","version":"4.1.0","_links":{}},
			"matchedAgents":[{"id":8,"name":"a8"},{"id":9,"name":"a9","status":"online"}],"matchesAllAgentsInPool":true,"scopeId":"not a guid","planType":"Build","planId":7,"jobId":null,
			"definition":{"id":3,"name":"app","_links":{"web":{"href":"https://x/d"}}},"owner":{"id":44,"name":"20260102.1","_links":{"web":{"href":"https://x/r"}}},
			"data":{"ParallelismTag":"Private","IsScheduledKey":"False"},"priority":2,"agentSpecification":{"VmImage":"x"},"orchestrationId":"o"}`,
			agentpool.JobRequest{
				ID: 9007199254740993, PoolID: 5, QueueTime: at("2026-01-02T03:04:05.1234567Z"), AssignTime: at("2026-01-02T03:04:06Z"), ReceiveTime: at("2026-01-02T03:04:07.5Z"),
				LockedUntil: at("2026-01-02T03:14:07.000001Z"),
				Demands:     []agentpool.Demand{{Name: "npm"}, {Name: "java", Op: agentpool.AtLeast, Value: "17"}, {Name: "Agent.OS", Op: agentpool.Equals, Value: "Linux"}},
				Reserved:    agentpool.AgentRef{ID: 8, Name: "a8"}, Matched: []agentpool.AgentRef{{ID: 8, Name: "a8"}, {ID: 9, Name: "a9"}}, MatchesAll: true, Priority: 2,
				Definition: agentpool.Link{ID: 3, Name: "app", URL: "https://x/d"}, Run: agentpool.Link{ID: 44, Name: "20260102.1", URL: "https://x/r"}, Project: "not a guid", PlanType: "Build", ParallelJobs: "Private",
			},
		},
		"defaults left out":           {`{"requestId":1}`, agentpool.JobRequest{ID: 1, PoolID: 5}},
		"nulls":                       {`{"requestId":1,"assignTime":null,"result":null,"reservedAgent":null,"demands":null,"matchedAgents":null,"owner":null,"data":null}`, agentpool.JobRequest{ID: 1, PoolID: 5}},
		"empty times":                 {`{"requestId":1,"queueTime":"2026-01-02T03:04:05","assignTime":"0001-01-01T00:00:00","receiveTime":"0001-01-01T00:00:00Z"}`, agentpool.JobRequest{ID: 1, PoolID: 5, QueueTime: at("2026-01-02T03:04:05Z")}},
		"time with an offset":         {`{"requestId":1,"queueTime":"2026-01-02T03:04:05+01:00"}`, agentpool.JobRequest{ID: 1, PoolID: 5, QueueTime: at("2026-01-02T02:04:05Z")}},
		"result by name":              {`{"requestId":1,"result":"canceled"}`, agentpool.JobRequest{ID: 1, PoolID: 5, Result: "canceled"}},
		"result by number":            {`{"requestId":1,"result":0}`, agentpool.JobRequest{ID: 1, PoolID: 5, Result: "succeeded"}},
		"result of a newer service":   {`{"requestId":1,"result":17}`, agentpool.JobRequest{ID: 1, PoolID: 5, Result: "17"}},
		"demands not understood":      {`{"requestId":1,"demands":["npm","a -matches b",{"name":"x"},null,""]}`, agentpool.JobRequest{ID: 1, PoolID: 5, Demands: []agentpool.Demand{{Name: "npm"}}, UnknownDemands: []string{"a -matches b", `{"name":"x"}`, "null", ""}}},
		"odd in what is only shown":   {`{"requestId":1,"definition":"x","owner":[],"planType":3,"data":{"ParallelismTag":9},"priority":"high"}`, agentpool.JobRequest{ID: 1, PoolID: 5}},
		"reserved agent without name": {`{"requestId":1,"reservedAgent":{"id":8}}`, agentpool.JobRequest{ID: 1, PoolID: 5, Reserved: agentpool.AgentRef{ID: 8}}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newService(t, func(w http.ResponseWriter, _ *http.Request) {
				answerJSON(w, 200, "\ufeff"+`{"count":1,"value":[`+test.row+`]}`)
			})
			got, stats, err := poll(t.Context(), c)
			if err != nil || stats != (RequestStats{Rows: 1}) {
				t.Fatalf("%+v, %v", stats, err)
			}
			if diff := cmp.Diff([]agentpool.JobRequest{test.want}, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestMalformedRows mixes each kind of bad row with good ones: no good one is lost,
// each bad one is counted, and one line is logged until that changes.
func TestMalformedRows(t *testing.T) {
	t.Parallel()
	bad := []string{
		`null`, `7`, `"x"`, `[]`, `{}`, `{"requestId":0}`, `{"requestId":-3}`, `{"requestId":"one"}`, `{"requestId":1.5}`, `{"requestId":}`, `{"requestId":3,}`,
		`{"requestId":3,"queueTime":"yesterday"}`, `{"requestId":3,"assignTime":7}`, `{"requestId":3,"reservedAgent":"a"}`, `{"requestId":3,"reservedAgent":{}}`,
		`{"requestId":3,"demands":"npm"}`, `{"requestId":3,"result":{}}`, `{"requestId":3,"result":1.5}`, `{"requestId":3,"poolId":6}`, `{"requestId":3,"matchedAgents":{}}`,
		`{"requestId":99999999999999999999}`, `{"requestId":3,"x":"` + strings.Repeat("x", maxRow) + `"}`,
	}
	for i, row := range bad {
		t.Run(fmt.Sprintf("%d %.40s", i, row), func(t *testing.T) {
			t.Parallel()
			var log bytes.Buffer
			body := `{"count":3,"value":[{"requestId":1},` + row + `,{"requestId":2}]}`
			c := newService(t, func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, 200, body) }, func(c *Config) { c.Logger = logTo(&log) })
			for range 3 {
				got, stats, err := poll(t.Context(), c)
				if err != nil || stats != (RequestStats{Rows: 2, Malformed: 1}) || len(got) != 2 || got[0].ID != 1 || got[1].ID != 2 {
					t.Fatalf("%+v, %+v, %v", got, stats, err)
				}
			}
			if n := strings.Count(log.String(), "skipped malformed rows"); n != 1 {
				t.Errorf("logged %d times:\n%s", n, log.String())
			}
			body = emptyList
			if _, _, err := poll(t.Context(), c); err != nil || !strings.Contains(log.String(), "no malformed rows any more") {
				t.Errorf("%v, log:\n%s", err, log.String())
			}
		})
	}
}

// TestMalformedRowWithoutCount refuses an answer in which a row that is no JSON may
// hide others, since no count tells.
func TestMalformedRowWithoutCount(t *testing.T) {
	t.Parallel()
	for row, want := range map[string]error{`{"requestId":}`: ErrUnexpectedAnswer, `{"requestId":"x"}`: nil} {
		c := newService(t, func(w http.ResponseWriter, _ *http.Request) {
			answerJSON(w, 200, `{"value":[{"requestId":1},`+row+`]}`)
		})
		if _, _, err := poll(t.Context(), c); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", row, err, want)
		}
	}
}

func TestVisitorEndsTheReading(t *testing.T) {
	t.Parallel()
	c := newService(t, func(w http.ResponseWriter, _ *http.Request) {
		answerJSON(w, 200, `{"count":3,"value":[{"requestId":1},{"requestId":2},{"requestId":3}]}`)
	})
	enough := errors.New("enough")
	visited := 0
	_, err := c.JobRequests(t.Context(), 5, func(agentpool.JobRequest) error {
		if visited++; visited == 2 {
			return enough
		}
		return nil
	})
	if err != enough || visited != 2 { //nolint:errorlint // As it is, not wrapped.
		t.Errorf("%v after %d", err, visited)
	}
}

// FuzzRequestRow holds that no row makes the decoder panic, that a request it
// accepts has an id and the pool, and that none of its demands is lost.
func FuzzRequestRow(f *testing.F) {
	for _, seed := range []string{`{"requestId":1,"demands":["npm","x -equals y",7]}`, `{"requestId":1,"queueTime":"2026-01-02T03:04:05.1Z","result":3}`, `null`, `{"requestId":2,"reservedAgent":{"id":3}}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, row []byte) {
		r, err := newRequestDecoder(5).decode(row)
		if err != nil {
			if r.ID != 0 {
				t.Errorf("an error and a request: %+v", r)
			}
			return
		}
		if r.ID <= 0 || r.PoolID != 5 {
			t.Errorf("accepted %+v", r)
		}
		var wire wireRequest
		if json.Unmarshal(row, &wire) != nil || len(wire.Demands) != len(r.Demands)+len(r.UnknownDemands) {
			t.Errorf("demands of %s became %+v and %q", row, r.Demands, r.UnknownDemands)
		}
	})
}

// TestStateOfRows ties the rows that the service is known to answer to states.
func TestStateOfRows(t *testing.T) {
	t.Parallel()
	for row, want := range map[string]agentpool.RequestState{
		`{"requestId":1,"queueTime":"2026-01-02T03:04:05Z"}`:                                                                agentpool.RequestQueued,
		`{"requestId":1,"assignTime":"2026-01-02T03:04:05Z","reservedAgent":{"id":3,"name":"x"}}`:                           agentpool.RequestAssigned,
		`{"requestId":1,"assignTime":"2026-01-02T03:04:05Z","receiveTime":"2026-01-02T03:04:05Z","reservedAgent":{"id":3}}`: agentpool.RequestRunning,
		`{"requestId":1,"receiveTime":"2026-01-02T03:04:05Z","result":"failed"}`:                                            agentpool.RequestFinished,
		`{"requestId":1,"result":0}`: agentpool.RequestFinished,
		`{"requestId":1,"result":"canceled","assignTime":"0001-01-01T00:00:00"}`: agentpool.RequestFinished,
	} {
		r, err := newRequestDecoder(5).decode([]byte(row))
		if err != nil || r.State() != want {
			t.Errorf("%s is %v, want %v (%v)", row, r.State(), want, err)
		}
	}
}

// TestUnknownPool asks for a pool that is gone.
func TestUnknownPool(t *testing.T) {
	t.Parallel()
	c := newService(t, func(w http.ResponseWriter, _ *http.Request) {
		answerError(w, 404, "TaskAgentPoolNotFoundException", "No agent pool found with identifier 5.")
	})
	for name, run := range map[string]func(context.Context) error{
		"requests": func(ctx context.Context) error { _, _, err := poll(ctx, c); return err },
		"agents":   func(ctx context.Context) error { _, err := c.Agents(ctx, 5, AgentQuery{}); return err },
	} {
		var e *Error
		if err := run(t.Context()); !errors.Is(err, ErrNotFound) || !errors.As(err, &e) || e.TypeKey != "TaskAgentPoolNotFoundException" || e.Status != 404 {
			t.Errorf("%s: %v", name, err)
		}
	}
}
