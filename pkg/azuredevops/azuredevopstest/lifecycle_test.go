package azuredevopstest_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

// TestOneBuild walks a build through an agent's whole life.
func TestOneBuild(t *testing.T) {
	s := start(t, azuredevopstest.Options{Seed: 1})
	a := s.register("agent-1", map[string]string{"npm": "/usr/bin/npm"})
	a.connect()
	id := s.queue(azuredevopstest.Build{
		Name: "compile", Steps: []string{"echo hello", "false"}, Demands: []string{"NPM"},
		Variables: map[string]string{"colour": "blue"}, Secrets: map[string]string{"word": "hush"}, Env: map[string]string{"HOME": "/root"},
	})
	m, j := a.nextJob()
	if j.RequestID != id || j.JobName != "compile" || len(j.Steps) != 2 || j.Steps[1].Inputs["script"] != "false" || j.Steps[0].Environment["HOME"] != "/root" {
		t.Fatalf("job %+v", j)
	}
	if !j.Variables["word"].IsSecret || j.Variables["colour"].Value != "blue" {
		t.Fatalf("variables %+v", j.Variables)
	}
	if got := s.status(id); got.State != azuredevopstest.StateAssigned || got.AgentName != a.Name {
		t.Fatalf("before renewal: %+v", got)
	}
	var renewed struct{ LockedUntil, ReceiveTime string }
	a.renew(id).into(t, &renewed)
	if renewed.LockedUntil == "" || renewed.ReceiveTime == "" {
		t.Fatalf("renewal: %+v", renewed)
	}
	if r := a.deleteMessage(m.MessageID); r.status != http.StatusOK {
		t.Fatalf("delete message: %d %s", r.status, r.body)
	}

	token := "Bearer " + j.Resources.Endpoints[0].Authorization.Parameters["AccessToken"]
	plan := "/" + j.Plan.ScopeIdentifier + "/_apis/distributedtask/hubs/build/plans/" + j.Plan.PlanID
	work := func(method, path string, body any) reply {
		return s.send(t.Context(), method, plan+path, token, body)
	}
	record := map[string]any{"count": 1, "value": []any{map[string]any{"id": j.Steps[0].ID, "name": "Step 1", "type": "Task", "state": "inProgress"}}}
	if r := work(http.MethodPatch, "/timelines/"+j.Timeline.ID+"/records", record); r.status != http.StatusOK {
		t.Fatalf("timeline: %d %s", r.status, r.body)
	}
	record = map[string]any{"count": 1, "value": []any{map[string]any{"id": j.Steps[0].ID, "state": 2, "result": 0}}}
	if r := work(http.MethodPatch, "/timelines/"+j.Timeline.ID+"/records", record); r.status != http.StatusOK {
		t.Fatalf("timeline: %d %s", r.status, r.body)
	}
	var log struct{ ID int }
	work(http.MethodPost, "/logs", map[string]any{"path": "logs/1"}).into(t, &log)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+plan+"/logs/1?api-version=7.1-preview", strings.NewReader("hello\n"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", token)
	req.Header.Set("Content-Type", "application/octet-stream")
	if r := s.do(req); r.status != http.StatusOK {
		t.Fatalf("log: %d %s", r.status, r.body)
	}
	if r := work(http.MethodPost, "/events", map[string]any{"name": "JobCompleted", "jobId": j.JobID, "requestId": id, "result": "failed"}); r.status != http.StatusNoContent {
		t.Fatalf("event: %d %s", r.status, r.body)
	}
	if got := s.status(id).State; got != azuredevopstest.StateRunning {
		t.Fatalf("after the event: %s, want the listener to finish it", got)
	}
	if r := a.finish(id, "Failed"); r.status != http.StatusOK {
		t.Fatalf("finish: %d %s", r.status, r.body)
	}
	if r := a.close(); r.status != http.StatusOK {
		t.Fatalf("close: %d %s", r.status, r.body)
	}

	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	got, err := s.srv.Wait(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if got.Result != azuredevopstest.ResultFailed || len(got.Steps) != 1 || got.Steps[0].State != "completed" || got.Steps[0].Result != "succeeded" || got.Steps[0].Name != "Step 1" {
		t.Fatalf("status %+v", got)
	}
	if text, err := s.srv.Log(id); err != nil || text != "hello\n" {
		t.Fatalf("log %q, %v", text, err)
	}
	if got := strings.Join(s.events(id), " "); got != "request-queued request-assigned request-received request-finished" {
		t.Fatalf("events %s", got)
	}
	if r := s.manage(http.MethodDelete, s.poolPath("agents/")+itoa(a.ID), nil); r.status != http.StatusOK {
		t.Fatalf("delete agent: %d %s", r.status, r.body)
	}
	if left := s.srv.Agents(s.pool); len(left) != 0 {
		t.Fatalf("left over: %+v", left)
	}
}
