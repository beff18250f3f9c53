package azuredevopstest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

// TestCarefulAgentsLoseNothing runs many once-agents at a time that disable
// themselves while they work, among readers, and expects each build to end
// well. It is what the race detector is for.
func TestCarefulAgentsLoseNothing(t *testing.T) {
	s := start(t, azuredevopstest.Options{Seed: 8, ParallelJobs: 6})
	s.register("placeholder", nil)
	const builds = 40
	var ids []int64
	for i := range builds {
		ids = append(ids, s.queue(azuredevopstest.Build{Name: fmt.Sprintf("build-%d", i), Steps: []string{"true"}}))
	}
	var agents []*agent
	for i := range builds {
		agents = append(agents, s.register(fmt.Sprintf("azp-%d", i), nil))
	}
	for _, a := range agents {
		a.connect()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*limit)
	defer cancel()
	errs := make(chan error, builds)
	var working sync.WaitGroup
	for _, a := range agents {
		working.Go(func() { errs <- a.runOnce(ctx) })
	}
	reading, stop := context.WithCancel(ctx)
	var readers sync.WaitGroup
	for _, path := range []string{"jobrequests?completedRequestCount=0", "jobrequests?$top=7", "agents?includeCapabilities=true&includeAssignedRequest=true"} {
		readers.Go(func() {
			for reading.Err() == nil {
				if r := s.send(reading, http.MethodGet, s.poolPath(path), basic(readPAT), nil); r.err == nil && r.status != 200 {
					t.Errorf("%s: %d %s", path, r.status, r.body)
				}
			}
		})
	}
	if err := s.srv.WaitIdle(ctx, s.pool); err != nil {
		t.Error(err)
	}
	stop()
	readers.Wait()
	working.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	ran := map[string]bool{}
	for _, id := range ids {
		got := s.status(id)
		if got.Result != azuredevopstest.ResultSucceeded || ran[got.AgentName] {
			t.Errorf("build %+v", got)
		}
		ran[got.AgentName] = true
	}
}

// runOnce polls for a job, disables the agent, does the job and deletes the agent.
func (a *agent) runOnce(ctx context.Context) error {
	for {
		r := a.poll(ctx)
		if r.err != nil {
			return fmt.Errorf("%s: poll: %w", a.Name, r.err)
		}
		if r.status == http.StatusAccepted {
			continue
		}
		id, err := requestOf(r)
		if err != nil {
			return fmt.Errorf("%s: %w", a.Name, err)
		}
		path := a.s.poolPath("agents/" + itoa(a.ID))
		lock := a.s.poolPath(fmt.Sprintf("jobrequests/%d?lockToken=%s", id, uuid.Nil))
		for _, one := range []struct {
			what, method, path, auth string
			body                     any
		}{
			{"renew", http.MethodPatch, lock, a.bearer, map[string]any{"requestId": id}},
			{"disable", http.MethodPatch, path, basic(managePAT), map[string]any{"id": a.ID, "enabled": false}},
			{"finish", http.MethodPatch, lock, a.bearer, map[string]any{"requestId": id, "result": "succeeded"}},
			{"close", http.MethodDelete, a.s.poolPath("sessions/" + a.session), a.bearer, nil},
			{"delete", http.MethodDelete, path, basic(managePAT), nil},
		} {
			if r := a.s.send(ctx, one.method, one.path, one.auth, one.body); r.err != nil || r.status != http.StatusOK {
				return fmt.Errorf("%s: %s: %d %s %w", a.Name, one.what, r.status, r.body, r.err)
			}
		}
		return nil
	}
}

func requestOf(r reply) (int64, error) {
	var m message
	var j job
	if err := json.Unmarshal([]byte(r.body), &m); err != nil {
		return 0, fmt.Errorf("message %d %q: %w", r.status, r.body, err)
	}
	if err := json.Unmarshal([]byte(m.Body), &j); err != nil {
		return 0, fmt.Errorf("job %q: %w", m.Body, err)
	}
	return j.RequestID, nil
}
