package azuredevopstest_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

func (s *service) inject(f azuredevopstest.Fault) int {
	s.t.Helper()
	id, err := s.srv.Inject(f)
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

// TestFaults strikes one query for job requests with each kind.
func TestFaults(t *testing.T) {
	valid := func(body string) bool {
		var list struct {
			Count int
			Value []json.RawMessage
		}
		return json.Unmarshal([]byte(body), &list) == nil && list.Count == len(list.Value)
	}
	for _, tc := range []struct {
		fault azuredevopstest.Fault
		check func(r reply, took time.Duration) bool
	}{
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultStatus}, func(r reply, _ time.Duration) bool { return r.status == 503 && strings.Contains(r.body, "TF400898") }},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultStatus, Status: 500}, func(r reply, _ time.Duration) bool { return r.status == 500 }},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultThrottle, RetryAfter: 7 * time.Second}, func(r reply, _ time.Duration) bool {
			return r.status == 429 && r.header.Get("Retry-After") == "7" && strings.Contains(r.body, "TF400733") && r.header.Get("X-RateLimit-Remaining") == "0"
		}},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultRetryAfter, RetryAfter: 2 * time.Second}, func(r reply, _ time.Duration) bool {
			return r.status == 200 && r.header.Get("Retry-After") == "2" && valid(r.body)
		}},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultRateHeaders}, func(r reply, _ time.Duration) bool {
			return r.status == 200 && r.header.Get("Retry-After") == "" && r.header.Get("X-RateLimit-Resource") != "" && r.header.Get("X-RateLimit-Reset") != ""
		}},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultTruncate}, func(r reply, _ time.Duration) bool {
			return r.err == nil && r.status == 200 && !json.Valid([]byte(r.body)) && len(r.body) > 0
		}},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultCut}, func(r reply, _ time.Duration) bool { return r.err != nil && r.status == 200 && len(r.body) > 0 }},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultSlowBody, Delay: 10 * time.Millisecond}, func(r reply, took time.Duration) bool {
			return r.status == 200 && valid(r.body) && took >= 70*time.Millisecond
		}},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultReset}, func(r reply, _ time.Duration) bool { return r.err != nil && r.status == 0 }},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultLostAnswer}, func(r reply, _ time.Duration) bool { return r.err != nil && r.status == 0 }},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultLatency, Delay: 30 * time.Millisecond}, func(r reply, took time.Duration) bool {
			return r.status == 200 && valid(r.body) && took >= 30*time.Millisecond
		}},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultHTML}, func(r reply, _ time.Duration) bool { return r.status == 200 && strings.Contains(r.body, "<html") }},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultSignIn203}, func(r reply, _ time.Duration) bool { return r.status == 203 && strings.Contains(r.body, "<html") }},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultSignIn302}, func(r reply, _ time.Duration) bool { return r.status == 302 && r.header.Get("Location") != "" }},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultSignIn401}, func(r reply, _ time.Duration) bool { return r.status == 401 && strings.Contains(r.body, "TF400813") }},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultMalformedRow}, func(r reply, _ time.Duration) bool {
			return r.status == 200 && valid(r.body) && strings.Count(r.body, `"jobId"`) == 4 && strings.HasPrefix(r.body, `{"count":5,`)
		}},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultCountMismatch}, func(r reply, _ time.Duration) bool {
			return r.status == 200 && json.Valid([]byte(r.body)) && !valid(r.body)
		}},
		{azuredevopstest.Fault{Kind: azuredevopstest.FaultWrongShape}, func(r reply, _ time.Duration) bool {
			return r.status == 200 && json.Valid([]byte(r.body)) && strings.HasPrefix(r.body, "[")
		}},
	} {
		t.Run(string(tc.fault.Kind), func(t *testing.T) {
			s := start(t, azuredevopstest.Options{})
			if err := s.srv.AddHistory(s.pool, 4); err != nil {
				t.Fatal(err)
			}
			tc.fault.Operation, tc.fault.Count, tc.fault.Skip = "jobrequests.list", 1, 1
			s.inject(tc.fault)
			list := func() (reply, time.Duration) {
				begin := time.Now()
				// A new connection, as the transport repeats a GET by itself when one
				// that it had used before breaks.
				s.http.CloseIdleConnections()
				return s.manage(http.MethodGet, s.poolPath("jobrequests"), nil), time.Since(begin)
			}
			healthy := func(when string) {
				if r, _ := list(); r.status != 200 || !valid(r.body) || r.header.Get("X-RateLimit-Resource") != "" {
					t.Fatalf("%s: %d %v %s", when, r.status, r.err, r.body)
				}
			}
			healthy("before")
			if r := s.manage(http.MethodGet, "/_apis/distributedtask/pools", nil); r.status != 200 {
				t.Fatalf("another operation: %d", r.status)
			}
			if r, took := list(); !tc.check(r, took) {
				t.Fatalf("%+v after %s", r, took)
			}
			healthy("after")
			if got := s.srv.Faults(); len(got) != 1 || got[0].Struck != 1 {
				t.Errorf("faults %+v", got)
			}
		})
	}
}

func TestFaultHang(t *testing.T) {
	s := start(t, azuredevopstest.Options{})
	id := s.inject(azuredevopstest.Fault{Kind: azuredevopstest.FaultHang, Operation: "pools.list", Identity: "manager"})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if r := s.send(ctx, http.MethodGet, "/_apis/distributedtask/pools", basic(managePAT), nil); !errors.Is(r.err, context.DeadlineExceeded) {
		t.Errorf("a hanging request: %+v", r)
	}
	if r := s.send(t.Context(), http.MethodGet, "/_apis/distributedtask/pools", basic(readPAT), nil); r.status != 200 {
		t.Errorf("another's request: %+v", r)
	}
	s.srv.RemoveFault(id)
	if r := s.manage(http.MethodGet, "/_apis/distributedtask/pools", nil); r.status != 200 {
		t.Errorf("afterwards: %+v", r)
	}
}

// TestLostAnswer registers an agent whose registration nobody hears of.
func TestLostAnswer(t *testing.T) {
	s := start(t, azuredevopstest.Options{})
	s.inject(azuredevopstest.Fault{Kind: azuredevopstest.FaultLostAnswer, Operation: "agents.add", Count: 1})
	body, _ := agentBody(t, "agent-1", nil)
	if r := s.manage(http.MethodPost, s.poolPath("agents"), body); r.err == nil {
		t.Fatalf("the answer came: %+v", r)
	}
	if r := s.manage(http.MethodPost, s.poolPath("agents"), body); r.status != 409 {
		t.Errorf("the name is not taken: %d %s", r.status, r.body)
	}
}

// TestFaultHangAnswer registers an agent for somebody who never hears of it.
func TestFaultHangAnswer(t *testing.T) {
	s := start(t, azuredevopstest.Options{})
	s.inject(azuredevopstest.Fault{Kind: azuredevopstest.FaultHangAnswer, Operation: "agents.add", Count: 1})
	body, _ := agentBody(t, "agent-1", nil)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if r := s.send(ctx, http.MethodPost, s.poolPath("agents"), basic(managePAT), body); !errors.Is(r.err, context.DeadlineExceeded) {
		t.Fatalf("an answer came: %+v", r)
	}
	if agents := s.srv.Agents(s.pool); len(agents) != 1 || agents[0].Name != "agent-1" {
		t.Errorf("registered are %+v, want the agent that was asked for", agents)
	}
}

func TestFaultProbability(t *testing.T) {
	s := start(t, azuredevopstest.Options{Seed: 6})
	s.inject(azuredevopstest.Fault{Kind: azuredevopstest.FaultStatus, Probability: 0.5})
	failed := 0
	const n = 60
	for range n {
		if s.manage(http.MethodGet, "/_apis/distributedtask/pools", nil).status == 503 {
			failed++
		}
	}
	if failed < n/5 || failed > n*4/5 {
		t.Errorf("%d of %d failed, want about half", failed, n)
	}
	s.srv.ClearFaults()
	if r := s.manage(http.MethodGet, "/_apis/distributedtask/pools", nil); r.status != 200 {
		t.Errorf("cleared: %d", r.status)
	}
	for _, bad := range []azuredevopstest.Fault{
		{Kind: "surprise"},
		{Kind: azuredevopstest.FaultReset, Operation: "pools.destroy"},
		{Kind: azuredevopstest.FaultReset, Probability: 2},
		{Kind: azuredevopstest.FaultStatus, Status: 200},
	} {
		if _, err := s.srv.Inject(bad); err == nil {
			t.Errorf("fault %+v was taken", bad)
		}
	}
}
