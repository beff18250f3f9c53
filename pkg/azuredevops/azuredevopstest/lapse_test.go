package azuredevopstest_test

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

// bubble runs a test on fake time against a service with one connected agent.
func bubble(t *testing.T, opts azuredevopstest.Options, f func(t *testing.T, s *service, a *agent)) {
	t.Helper()
	if _, err := keyPair(); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		s := inProcess(t, opts)
		a := s.register("agent-1", nil)
		a.connect()
		f(t, s, a)
		s.srv.Close()
	})
}

func TestLockLapses(t *testing.T) {
	bubble(t, azuredevopstest.Options{LockDuration: 5 * time.Minute}, func(t *testing.T, s *service, a *agent) {
		id := s.queue(azuredevopstest.Build{Name: "long"})
		a.nextJob()
		for range 10 {
			if r := a.renew(id); r.status != 200 {
				t.Fatalf("renew: %d %s", r.status, r.body)
			}
			time.Sleep(4 * time.Minute)
		}
		if got := s.status(id); got.State != azuredevopstest.StateRunning {
			t.Fatalf("renewed for 40 minutes: %+v", got)
		}
		time.Sleep(2 * time.Minute)
		got := s.status(id)
		if got.Result != azuredevopstest.ResultAbandoned || !strings.Contains(got.Message, "We stopped hearing from agent agent-1") {
			t.Fatalf("after silence: %+v", got)
		}
		if r := a.renew(id); r.status != 409 || !strings.Contains(r.body, "TaskAgentJobTokenExpiredException") {
			t.Fatalf("renew when it is over: %d %s", r.status, r.body)
		}
		if r := a.finish(id, 0); r.status != 409 {
			t.Fatalf("finish when it is over: %d %s", r.status, r.body)
		}
	})
}

func TestReportedResultOutlivesTheListener(t *testing.T) {
	bubble(t, azuredevopstest.Options{}, func(t *testing.T, s *service, a *agent) {
		id := s.queue(azuredevopstest.Build{Name: "reported"})
		_, j := a.nextJob()
		a.renew(id)
		token := "Bearer " + j.Resources.Endpoints[0].Authorization.Parameters["AccessToken"]
		plan := "/" + j.Plan.ScopeIdentifier + "/_apis/distributedtask/hubs/build/plans/" + j.Plan.PlanID
		r := s.send(t.Context(), "POST", plan+"/events", token, map[string]any{"name": "JobCompleted", "jobId": j.JobID, "requestId": id, "result": 1})
		if r.status != 204 {
			t.Fatalf("event: %d %s", r.status, r.body)
		}
		time.Sleep(6 * time.Minute)
		if got := s.status(id); got.Result != azuredevopstest.ResultSucceededWithIssues {
			t.Fatalf("status %+v", got)
		}
		// The worker may still write its last lines, but not for ever.
		if r := s.send(t.Context(), "POST", plan+"/logs", token, map[string]any{"path": "x"}); r.status != 201 {
			t.Fatalf("late log: %d %s", r.status, r.body)
		}
		time.Sleep(10 * time.Minute)
		if r := s.send(t.Context(), "POST", plan+"/logs", token, map[string]any{"path": "x"}); r.status != 203 {
			t.Fatalf("much too late: %d %s", r.status, r.body)
		}
	})
}

func TestNeverReceived(t *testing.T) {
	bubble(t, azuredevopstest.Options{ReceiveTimeout: time.Minute}, func(t *testing.T, s *service, a *agent) {
		id := s.queue(azuredevopstest.Build{Name: "ignored"})
		s.awaitState(id, azuredevopstest.StateAssigned)
		time.Sleep(50 * time.Second)
		if got := s.status(id); got.State != azuredevopstest.StateAssigned {
			t.Fatalf("before the limit: %+v", got)
		}
		time.Sleep(15 * time.Second)
		if got := s.status(id); got.Result != azuredevopstest.ResultAbandoned {
			t.Fatalf("after the limit: %+v", got)
		}
		if got := s.srv.Agents(s.pool)[0]; got.RequestID != 0 {
			t.Fatalf("the agent still holds it: %+v", got)
		}
		if r := a.poll(t.Context()); r.status != 202 {
			t.Fatalf("the message is still there: %d %s", r.status, r.body)
		}
	})
}

func TestCancelBeforeAnyAgentKnows(t *testing.T) {
	bubble(t, azuredevopstest.Options{}, func(t *testing.T, s *service, a *agent) {
		first := s.queue(azuredevopstest.Build{Name: "assigned"})
		s.awaitState(first, azuredevopstest.StateAssigned)
		second := s.queue(azuredevopstest.Build{Name: "queued"})
		for _, id := range []int64{second, first} {
			if err := s.srv.Cancel(id); err != nil {
				t.Fatal(err)
			}
			if got := s.status(id); got.Result != azuredevopstest.ResultCanceled || got.Received != (time.Time{}) {
				t.Fatalf("status %+v", got)
			}
			if err := s.srv.Cancel(id); err == nil {
				t.Fatal("cancelled twice")
			}
		}
		if r := a.poll(t.Context()); r.status != 202 {
			t.Fatalf("the agent heard of it: %d %s", r.status, r.body)
		}
		if err := s.srv.Cancel(1 << 40); err == nil {
			t.Fatal("cancelled what is not there")
		}
	})
}

func TestCancelWhileRunning(t *testing.T) {
	for _, obeys := range []bool{true, false} {
		bubble(t, azuredevopstest.Options{CancelTimeout: time.Minute, NoSecondJob: true}, func(t *testing.T, s *service, a *agent) {
			id := s.queue(azuredevopstest.Build{Name: "cancelled"})
			_, j := a.nextJob()
			a.renew(id)
			for range 2 {
				if err := s.srv.Cancel(id); err != nil {
					t.Fatal(err)
				}
			}
			m := a.next()
			var body struct{ JobID, Timeout string }
			if err := json.Unmarshal([]byte(m.Body), &body); err != nil || m.MessageType != "JobCancellation" || body.JobID != j.JobID || body.Timeout != "00:01:00" {
				t.Fatalf("message %+v, %v", m, err)
			}
			want := azuredevopstest.ResultAbandoned
			if obeys {
				want = azuredevopstest.ResultCanceled
				if r := a.finish(id, "canceled"); r.status != 200 {
					t.Fatalf("finish: %d %s", r.status, r.body)
				}
			}
			time.Sleep(50 * time.Second)
			a.renew(id)
			time.Sleep(15 * time.Second)
			if got := s.status(id); got.Result != want {
				t.Fatalf("obeys %t: %+v, want %s", obeys, got, want)
			}
			// Messages that nobody deleted are given out again.
			a.last = 0
			if r := a.poll(t.Context()); r.status != 200 {
				t.Fatalf("the first message is gone: %d", r.status)
			}
		})
	}
}

func TestOnlineAndExpiry(t *testing.T) {
	opts := azuredevopstest.Options{OnlineTimeout: time.Minute, SessionTimeout: 5 * time.Minute, MessageWait: 50 * time.Second}
	bubble(t, opts, func(t *testing.T, s *service, a *agent) {
		online := func() bool { return s.srv.Agents(s.pool)[0].Online }
		start := time.Now()
		if r := a.poll(t.Context()); r.status != 202 || time.Since(start) != 50*time.Second {
			t.Fatalf("empty poll: %d after %s", r.status, time.Since(start))
		}
		if !online() {
			t.Fatal("offline right after a poll")
		}
		if r := a.open(); r.status != 409 || !strings.Contains(r.body, "already has an active session for owner host-agent-1") {
			t.Fatalf("second session: %d %s", r.status, r.body)
		}
		time.Sleep(61 * time.Second)
		if online() {
			t.Fatal("online without a poll for a minute")
		}
		id := s.queue(azuredevopstest.Build{Name: "waits"})
		time.Sleep(time.Minute)
		if got := s.status(id); got.State != azuredevopstest.StateQueued {
			t.Fatalf("given to an agent that is offline: %+v", got)
		}
		time.Sleep(4 * time.Minute)
		if r := a.poll(t.Context()); r.status != 404 || !strings.Contains(r.body, "TaskAgentSessionExpiredException") {
			t.Fatalf("poll of an expired session: %d %s", r.status, r.body)
		}
		a.connect()
		if _, j := a.nextJob(); j.RequestID != id {
			t.Fatalf("got %d, want %d", j.RequestID, id)
		}
		time.Sleep(51 * time.Minute)
		if r := a.poll(t.Context()); r.status != 203 {
			t.Fatalf("an access token of 51 minutes ago: %d", r.status)
		}
	})
}
