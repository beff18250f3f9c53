package scaler_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// chronicle is what the service remembers of the requests of a model.
type chronicle struct {
	*model
	over  map[int64]agentpool.JobRequest
	err   error
	asked int
}

func (c *chronicle) JobRequest(_ context.Context, _ int, id int64) (agentpool.JobRequest, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	request, found := c.over[id]
	if !found {
		request, found = c.requests[id]
	}
	return request, found, c.err
}

func (c *chronicle) FinishedRequests(_ context.Context, _, count int, visit func(agentpool.JobRequest) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	if c.err != nil {
		return c.err
	}
	ids := slices.Sorted(maps.Keys(c.over))
	for _, id := range ids[max(0, len(ids)-count):] {
		if err := visit(c.over[id]); err != nil {
			return err
		}
	}
	return nil
}

// end ends a build or a request that waits.
func (c *chronicle) end(id int64, result string) {
	c.with(func() {
		request := c.requests[id]
		request.Result, request.FinishTime = result, time.Now()
		c.over[id] = request
		delete(c.requests, id)
	})
}

// exit ends an agent.
func (c *chronicle) exit(name string) {
	c.with(func() {
		job := c.jobs[name]
		job.Ended, job.JobDone = time.Now(), true
		c.jobs[name] = job
		delete(c.agents, name)
	})
}

// chronicled runs a loop that writes a line for each build.
func chronicled(t *testing.T, m *model, change func(*scaler.Config), body func(t *testing.T, b *bench, c *chronicle)) {
	t.Helper()
	c := &chronicle{model: m, over: map[int64]agentpool.JobRequest{}}
	inLoop(t, m, func(config *scaler.Config) {
		config.History = c
		if change != nil {
			change(config)
		}
	}, func(t *testing.T, b *bench) { body(t, b, c) })
}

// told gives the lines of builds that have ended.
func (b *bench) told() []string {
	var lines []string
	for line := range strings.Lines(b.log.String()) {
		if strings.Contains(line, `msg="build ended"`) {
			lines = append(lines, line)
		}
	}
	return lines
}

func wantLines(t *testing.T, b *bench, wants ...string) {
	t.Helper()
	lines := b.told()
	if len(lines) != len(wants) {
		t.Fatalf("%d lines of builds, want %d:\n%s", len(lines), len(wants), strings.Join(lines, ""))
	}
	for i, want := range wants {
		for _, word := range strings.Fields(want) {
			if !strings.Contains(lines[i], word) {
				t.Errorf("%q is missing from line %d:\n%s", word, i, lines[i])
			}
		}
	}
}

func TestEachBuildHasOneLine(t *testing.T) {
	m := newModel(1, 2)
	chronicled(t, m, nil, func(t *testing.T, b *bench, c *chronicle) {
		after(20 * time.Second)
		b.claimBy(1, jobName(2, 0)) // Swapped.
		after(20 * time.Second)
		c.end(1, "succeeded")
		after(10 * time.Second)
		wantLines(t, b) // The agent still has to end.
		c.exit(jobName(2, 0))
		c.end(2, "canceled") // While it waits.
		after(10 * time.Minute)
		b.queue(3)
		after(20 * time.Second)
		wantLines(t, b,
			"request=1 job=azp-test-7-2-0 agent=azp-test-7-2-0 pod=azp-test-7-2-0-pod class=default result=succeeded wait_seconds=20 queued_at= assigned_at= started_at= finished_at=",
			"request=2 job=\"\" result=canceled")
		if c.asked != 2 {
			t.Errorf("%d calls for two builds", c.asked)
		}
	})
}

func TestABuildThatNoPollHasSeen(t *testing.T) {
	m := newModel(1)
	chronicled(t, m, func(c *scaler.Config) { c.PollBusy, c.PollIdle = time.Minute, time.Minute }, func(t *testing.T, b *bench, c *chronicle) {
		b.with(func() { m.requests[2] = agentpool.JobRequest{ID: 2, QueueTime: time.Now()} })
		b.claimBy(2, jobName(1, 0)) // Between two polls.
		c.end(2, "failed")
		c.exit(jobName(1, 0))
		after(5 * time.Minute)
		wantLines(t, b, "request=2 job=azp-test-7-1-0 result=failed")
	})
}

func TestManyBuildsAreAskedForAtOnce(t *testing.T) {
	m := newModel(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
	chronicled(t, m, nil, func(t *testing.T, b *bench, c *chronicle) {
		for id := range int64(10) {
			b.claimBy(id+1, jobName(id+1, 0))
		}
		after(5 * time.Second)
		for id := range int64(10) {
			c.end(id+1, "succeeded")
			c.exit(jobName(id+1, 0))
		}
		after(time.Minute)
		if lines := b.told(); len(lines) != 10 || c.asked != 1 {
			t.Errorf("%d lines with %d calls, want 10 with one:\n%s", len(lines), c.asked, strings.Join(lines, ""))
		}
	})
}

func TestABuildThatEndedWithoutAScaler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &chronicle{model: newModel(1, 2), over: map[int64]agentpool.JobRequest{}}
		b := begin(t, c.model, func(config *scaler.Config) { config.History = c })
		for id := range int64(2) {
			b.claimBy(id+1, jobName(id+1, 0))
		}
		after(5 * time.Second)
		b.stop()
		c.end(1, "succeeded")
		c.exit(jobName(1, 0))
		c.with(func() { delete(c.requests, 2) }) // The service does not know it any more.
		c.exit(jobName(2, 0))
		stop := run(t, b.scaler)
		defer stop()
		after(time.Minute)
		lines := strings.Join(b.told(), "")
		for _, want := range []string{"request=1 ", "result=succeeded", "job=azp-test-7-2-0", "result=unknown", "after_restart=true"} {
			if !strings.Contains(lines, want) {
				t.Errorf("%q is missing from:\n%s", want, lines)
			}
		}
		if n := len(b.told()); n != 2 {
			t.Errorf("%d lines, want 2:\n%s", n, lines)
		}
	})
}

func TestAServiceThatDoesNotTellHowABuildEnded(t *testing.T) {
	for name, late := range map[string]bool{"for a while": false, "for long": true} {
		t.Run(name, func(t *testing.T) {
			m := newModel(1)
			chronicled(t, m, nil, func(t *testing.T, b *bench, c *chronicle) {
				b.claimBy(1, jobName(1, 0))
				after(5 * time.Second)
				c.with(func() { c.err = errors.New("no answer") })
				c.end(1, "failed")
				c.exit(jobName(1, 0))
				after(5 * time.Minute)
				wantLines(t, b)
				if !late {
					c.with(func() { c.err = nil })
				}
				after(15 * time.Minute)
				wantLines(t, b, fmt.Sprintf("request=1 result=%s", map[bool]string{false: "failed", true: "unknown"}[late]))
				if n := strings.Count(b.log.String(), "how builds have ended can't be asked"); n != 1 {
					t.Errorf("said %d times that the service does not answer, want once", n)
				}
			})
		})
	}
}

func TestABuildOfSomebodyElsesAgentHasNoLine(t *testing.T) {
	m := newModel(1)
	chronicled(t, m, nil, func(t *testing.T, b *bench, c *chronicle) {
		b.with(func() {
			m.agents["theirs"] = agentpool.Agent{ID: 5, Name: "theirs", Online: true, Enabled: true}
			request := m.requests[1]
			request.Reserved, request.AssignTime, request.ReceiveTime = agentpool.AgentRef{ID: 5, Name: "theirs"}, time.Now(), time.Now()
			m.requests[1] = request
		})
		c.end(1, "succeeded") // Before the next poll.
		after(time.Minute)
		wantLines(t, b)
	})
}
