package azuredevopstest_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

// TestDeleteIsTheTestForIdleness deletes an agent at each stage of its job.
func TestDeleteIsTheTestForIdleness(t *testing.T) {
	for _, tc := range []struct {
		name             string
		received, refuse bool
		status           int
	}{
		{"running", true, false, 400},
		{"assigned", false, false, 200},
		{"assigned, refusing", false, true, 400},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := start(t, azuredevopstest.Options{RefuseDeleteAssigned: tc.refuse, NoSecondJob: true})
			a := s.register("agent-1", nil)
			a.connect()
			id := s.queue(azuredevopstest.Build{Name: "build"})
			a.nextJob()
			if tc.received {
				a.renew(id)
			}
			var agent struct{ AssignedRequest struct{ RequestID int64 } }
			path := s.poolPath("agents/" + itoa(a.ID))
			s.manage(http.MethodGet, path+"?includeAssignedRequest=true", nil).into(t, &agent)
			if agent.AssignedRequest.RequestID != id {
				t.Fatalf("assigned %+v, want %d", agent, id)
			}
			r := s.manage(http.MethodDelete, path, nil)
			if r.status != tc.status {
				t.Fatalf("delete: %d %s", r.status, r.body)
			}
			if tc.status == 400 {
				if !strings.Contains(r.body, `Agent \"agent-1\" is running a job for pool \"builds\"`) || !strings.Contains(r.body, "TaskAgentJobStillRunningException") {
					t.Errorf("refusal: %s", r.body)
				}
				a.finish(id, 0)
				if r := s.manage(http.MethodDelete, path, nil); r.status != 200 {
					t.Errorf("delete afterwards: %d %s", r.status, r.body)
				}
				return
			}
			if got := s.status(id); got.Result != azuredevopstest.ResultAbandoned {
				t.Errorf("the build of a deleted agent: %+v", got)
			}
			if r := s.manage(http.MethodDelete, path, nil); r.status != 404 || !strings.Contains(r.body, fmt.Sprintf("No agent found for pool %d with identifier %d.", s.pool, a.ID)) {
				t.Errorf("delete again: %d %s", r.status, r.body)
			}
		})
	}
}

// TestDeletedAgentIsShutOut deletes an agent in the middle of a poll.
func TestDeletedAgentIsShutOut(t *testing.T) {
	s := start(t, azuredevopstest.Options{})
	a := s.register("agent-1", nil)
	a.connect()
	polled := make(chan reply, 1)
	go func() { polled <- a.poll(t.Context()) }()
	await(t, "the poll is open", func() bool { return s.srv.Polls(s.pool) == 1 })
	if r := s.manage(http.MethodDelete, s.poolPath("agents/"+itoa(a.ID)), nil); r.status != 200 {
		t.Fatalf("delete: %d %s", r.status, r.body)
	}
	if r := <-polled; r.status != 404 || !strings.Contains(r.body, "TaskAgentNotFoundException") {
		t.Errorf("the open poll: %d %s", r.status, r.body)
	}
	if r := a.poll(t.Context()); r.status != 203 {
		t.Errorf("the next poll: %d %s", r.status, r.body)
	}
	if r := a.exchange(a.claims(), jwt.SigningMethodRS256, a.key); r.status != 400 || !strings.Contains(r.body, "invalid_client") {
		t.Errorf("a new token: %d %s", r.status, r.body)
	}
}

// TestReplace takes a registration over, which ends the former owner's access.
func TestReplace(t *testing.T) {
	s := start(t, azuredevopstest.Options{})
	a := s.register("agent-1", nil)
	other := s.register("agent-2", nil)
	a.connect()
	body, _ := agentBody(t, "AGENT-1", nil)
	if r := s.manage(http.MethodPost, s.poolPath("agents"), body); r.status != 409 || !strings.Contains(r.body, "already contains an agent with name AGENT-1") {
		t.Errorf("a taken name: %d %s", r.status, r.body)
	}
	if r := s.manage(http.MethodPut, s.poolPath("agents/"+itoa(other.ID)), body); r.status != 409 {
		t.Errorf("replacing another by a taken name: %d %s", r.status, r.body)
	}
	var replaced struct {
		ID            int
		Authorization struct{ ClientID string }
	}
	s.manage(http.MethodPut, s.poolPath("agents/"+itoa(a.ID)), body).into(t, &replaced)
	if replaced.ID != a.ID || replaced.Authorization.ClientID == a.auth.ClientID {
		t.Errorf("replaced %+v, was %+v", replaced, a.auth)
	}
	if r := a.poll(t.Context()); r.status != 203 {
		t.Errorf("the former owner polls: %d", r.status)
	}
}

// TestUpdateRules sends renewals and results that make no sense.
func TestUpdateRules(t *testing.T) {
	s := start(t, azuredevopstest.Options{NoSecondJob: true})
	a := s.register("agent-1", nil)
	a.connect()
	id := s.queue(azuredevopstest.Build{Name: "build"})
	m, _ := a.nextJob()
	path := s.poolPath(fmt.Sprintf("jobrequests/%d", id))
	const zero = "?lockToken=00000000-0000-0000-0000-000000000000"
	for _, tc := range []struct {
		name, path string
		body       map[string]any
		want       int
	}{
		{"no lock token", path, map[string]any{"requestId": id}, 400},
		{"another lock token", path + "?lockToken=00000000-0000-0000-0000-000000000001", map[string]any{"requestId": id}, 409},
		{"another id", path + zero, map[string]any{"requestId": id + 1}, 400},
		{"no such result", path + zero, map[string]any{"requestId": id, "result": "great"}, 400},
		{"no such request", s.poolPath("jobrequests/987654321" + zero), map[string]any{}, 404},
	} {
		if r := a.send(http.MethodPatch, tc.path, tc.body); r.status != tc.want {
			t.Errorf("%s: %d %s, want %d", tc.name, r.status, r.body, tc.want)
		}
	}
	if r := a.deleteMessage(m.MessageID + 1); r.status != 404 {
		t.Errorf("delete a message that is not there: %d", r.status)
	}
	if r := a.update(id, map[string]any{"requestId": id, "finishTime": "2026-01-02T03:04:05Z"}); r.status != 200 || s.status(id).Result != azuredevopstest.ResultSucceeded {
		t.Errorf("a result that is the default is omitted: %d %s", r.status, r.body)
	}
	if r := a.send(http.MethodGet, s.poolPath("messages?sessionId=x"), nil); r.status != 400 {
		t.Errorf("no session id: %d", r.status)
	}
	if r := a.send(http.MethodPost, s.poolPath("sessions"), map[string]any{"agent": map[string]any{"id": a.ID}}); r.status != 400 {
		t.Errorf("no owner: %d", r.status)
	}
}
