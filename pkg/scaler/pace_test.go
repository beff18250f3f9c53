package scaler_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// counted counts what a loop asks of the cluster when it makes no plan. Each question takes a
// moment, so that a loop that never pauses does not stop the virtual time.
type counted struct {
	*model
	asked int
}

func (c *counted) ask() {
	time.Sleep(time.Millisecond)
	c.with(func() { c.asked++ })
}

func (c *counted) Synced() bool {
	c.ask()
	return c.model.Synced()
}

func (c *counted) LiveJobs(ctx context.Context) ([]agentpool.AgentJob, error) {
	c.ask()
	return c.model.LiveJobs(ctx)
}

// TestAClusterThatDoesNotAnswerIsNotPressed says that a loop which can make no plan pauses
// before it tries again, whatever keeps it from making one.
func TestAClusterThatDoesNotAnswerIsNotPressed(t *testing.T) {
	for name, trouble := range map[string]func(m *model){
		"the cache is stale and the API server does not answer": func(m *model) {
			m.cached, m.frozen, m.liveError = nil, true, errors.New("the API server is away")
		},
		"the cache is not filled any more": func(m *model) { m.unsynced = true },
	} {
		t.Run(name, func(t *testing.T) {
			m := &counted{model: newModel(1)}
			synctest.Test(t, func(t *testing.T) {
				m.queue(m.initial...)
				loop := scaler.New(config(), m, m, scaler.NewMetrics(prometheus.NewRegistry()), slog.New(slog.DiscardHandler), time.Now)
				stop := run(t, loop)
				defer stop()
				after(time.Second)
				m.with(func() { trouble(m.model) })
				after(time.Minute) // By then own writes count as unseen for too long.
				before := read(m.model, func() int { return m.asked })
				after(time.Minute)
				if asked := read(m.model, func() int { return m.asked }) - before; asked > 60 {
					t.Errorf("the cluster was asked %d times in a minute", asked)
				}
			})
		})
	}
}
