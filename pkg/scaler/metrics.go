package scaler

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// Metrics are the loop's. Counters and histograms count as things happen; gauges
// are computed from the last cycle when they are scraped.
type Metrics struct {
	created      *prometheus.CounterVec
	failed       *prometheus.CounterVec
	lost         *prometheus.CounterVec
	ended        *prometheus.CounterVec
	sweptTotal   *prometheus.CounterVec
	polls        *prometheus.CounterVec
	malformed    *prometheus.CounterVec
	pollDuration *prometheus.HistogramVec
	queueToJob   *prometheus.HistogramVec
	queueToAgent *prometheus.HistogramVec
	states       *stateCollector
}

// waitBuckets suit waits between a poll and a cold node, in seconds.
func waitBuckets() []float64 {
	return []float64{0.5, 1, 2, 3, 5, 8, 13, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1800, 3600}
}

// NewMetrics registers the loop's metrics. It panics when they are registered
// there already, as that is a mistake in the wiring.
func NewMetrics(registerer prometheus.Registerer) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	}
	m := &Metrics{
		created:      counter("azp_scaler_jobs_created_total", "Jobs made.", "pool", "class"),
		failed:       counter("azp_scaler_jobs_failed_total", "Jobs that could not be made, or whose agent failed before it ran a build, by reason.", "pool", "class", "reason"),
		lost:         counter("azp_scaler_builds_lost_total", "Builds whose agent failed, was taken away or ran out of memory while it ran them, by reason.", "pool", "class", "reason"),
		ended:        counter("azp_scaler_agents_ended_total", "Agents without a build that were ended, by reason.", "pool", "class", "reason"),
		sweptTotal:   counter("azp_scaler_swept_total", "Objects and registrations that a crash had left and that were removed, by kind.", "pool", "kind"),
		polls:        counter("azp_scaler_polls_total", "Polls of the queue, by outcome (success or error).", "pool", "outcome"),
		malformed:    counter("azp_scaler_malformed_rows_total", "Rows of the queue that could not be read and were left out.", "pool"),
		pollDuration: histogram("azp_scaler_poll_duration_seconds", "Seconds that a poll of the queue took.", prometheus.DefBuckets, "pool"),
		queueToJob:   histogram("azp_scaler_queue_to_job_seconds", "Seconds from a request's queueing to its Job.", waitBuckets(), "pool", "class"),
		queueToAgent: histogram("azp_scaler_queue_to_agent_seconds", "Seconds from a request's queueing until the agent made for it waits for a build.", waitBuckets(), "pool", "class"),
		states:       newStateCollector(),
	}
	registerer.MustRegister(m.created, m.failed, m.lost, m.ended, m.sweptTotal, m.polls, m.malformed, m.pollDuration, m.queueToJob, m.queueToAgent, m.states)
	return m
}

func (m *Metrics) watch(pool string, status func() Status, now func() time.Time) {
	m.states.add(pool, status, now)
}

func (m *Metrics) polled(pool string, took time.Duration, malformed int, err error) {
	outcome := "success"
	if err != nil {
		outcome = "error"
	}
	m.polls.WithLabelValues(pool, outcome).Inc()
	m.pollDuration.WithLabelValues(pool).Observe(took.Seconds())
	m.malformed.WithLabelValues(pool).Add(float64(malformed))
}

func (m *Metrics) jobCreated(pool, class string) { m.created.WithLabelValues(pool, class).Inc() }

func (m *Metrics) jobWaited(pool, class string, wait time.Duration) {
	m.queueToJob.WithLabelValues(pool, class).Observe(wait.Seconds())
}

func (m *Metrics) jobFailed(pool, class string, reason agentpool.Reason) {
	m.failed.WithLabelValues(pool, class, string(reason)).Inc()
}

func (m *Metrics) buildLost(pool, class string, reason agentpool.Reason) {
	m.lost.WithLabelValues(pool, class, string(reason)).Inc()
}

func (m *Metrics) agentStarted(pool, class string, wait time.Duration) {
	m.queueToAgent.WithLabelValues(pool, class).Observe(wait.Seconds())
}

func (m *Metrics) agentEnded(job agentpool.AgentJob, pool string, reason plan.EndReason) {
	m.ended.WithLabelValues(pool, job.Class, string(reason)).Inc()
}

func (m *Metrics) swept(pool, kind string, n int) {
	m.sweptTotal.WithLabelValues(pool, kind).Add(float64(n))
}

// stateCollector turns the last cycle of each pool into gauges.
type stateCollector struct {
	queueDepth, oldestWait, requests, agents, stuck, skipped, lastPoll, blocked *prometheus.Desc

	mismatch, warm, warmWanted, leading, leaked, duplicates, surplus, rival *prometheus.Desc

	mu    sync.Mutex
	pools []watched
}

type watched struct {
	pool   string
	status func() Status
	now    func() time.Time
}

func newStateCollector() *stateCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &stateCollector{
		queueDepth: desc("azp_scaler_queue_depth", "Requests that wait for an agent.", "pool"),
		oldestWait: desc("azp_scaler_queue_oldest_wait_seconds", "Seconds that the oldest waiting request has waited; 0 when none waits.", "pool"),
		requests:   desc("azp_scaler_requests", "Unfinished requests by state (queued, assigned, running).", "pool", "state"),
		agents:     desc("azp_scaler_agents", "Agents of ours by phase (starting, idle, busy, leaving, finished).", "pool", "class", "phase"),
		stuck:      desc("azp_scaler_agents_held_up", "Unfinished agents that are not getting on, by reason.", "pool", "class", "reason"),
		skipped:    desc("azp_scaler_requests_skipped", "Queued requests that got no Job in the last cycle, by reason.", "pool", "reason"),
		lastPoll:   desc("azp_scaler_last_successful_poll_timestamp_seconds", "When the queue was last read whole, in seconds since 1970; 0 before the first time.", "pool"),
		blocked:    desc("azp_scaler_classes_blocked", "Classes of agent that can't be served now.", "pool"),
		mismatch:   desc("azp_scaler_class_mismatch", "Whether the agents of a class were found to lack what it claims (1 or 0).", "pool", "class"),
		warm:       desc("azp_scaler_warm_agents", "Agents that wait, or start to wait, beyond need, of classes that keep some.", "pool", "class"),
		leading:    desc("azp_scaler_leading", "Whether this replica serves the pool (1), or stands by (0) and has none of the pool's other gauges.", "pool"),
		rival:      desc("azp_scaler_instance_taken", "Whether another installation with the same id has placeholders in the pool (1 or 0); while it has, this one does nothing there.", "pool"),
		leaked:     desc("azp_scaler_leaked", "Things of ours that should be gone and are not, for twice AZP_SWEEP_GRACE: finished Jobs whose build still has rights, Jobs that were deleted, and registrations without an unfinished Job. Always 0 if all is well.", "pool"),
		duplicates: desc("azp_scaler_duplicates", "Agents without a build that were made for a request which had one already, though that one was not counted for another request. Always 0 if all is well.", "pool", "class"),
		surplus:    desc("azp_scaler_surplus", "Agents without a build, beyond need and min-idle, which are still there a minute after AZP_IDLE_LIMIT. Always 0 if all is well.", "pool", "class"),
		warmWanted: desc("azp_scaler_warm_agents_wanted", "Agents that a class is to keep waiting beyond need.", "pool", "class"),
	}
}

func (c *stateCollector) add(pool string, status func() Status, now func() time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pools = append(c.pools, watched{pool: pool, status: status, now: now})
}

// Describe implements prometheus.Collector.
func (c *stateCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{c.queueDepth, c.oldestWait, c.requests, c.agents, c.stuck, c.skipped, c.lastPoll, c.blocked, c.mismatch, c.warm, c.warmWanted, c.leading, c.leaked, c.duplicates, c.surplus, c.rival} {
		descs <- desc
	}
}

// Collect implements prometheus.Collector.
func (c *stateCollector) Collect(metrics chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.pools {
		c.collect(metrics, w)
	}
}

func (c *stateCollector) collect(metrics chan<- prometheus.Metric, w watched) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, append([]string{w.pool}, labels...)...)
	}
	status := w.status()
	if status.Standby {
		// The one that serves the pool tells of it: two would be added up.
		gauge(c.leading, 0)
		return
	}
	gauge(c.leading, 1)
	view := status.View
	wait := 0.0
	if !view.OldestQueue.IsZero() {
		wait = max(0, w.now().Sub(view.OldestQueue).Seconds())
	}
	polled := 0.0
	if !status.LastPoll.IsZero() {
		polled = float64(status.LastPoll.UnixMilli()) / 1000
	}
	gauge(c.queueDepth, float64(view.Queued))
	gauge(c.oldestWait, wait)
	gauge(c.lastPoll, polled)
	gauge(c.blocked, float64(len(status.Blocked)))
	gauge(c.requests, float64(view.Queued), agentpool.RequestQueued.String())
	gauge(c.requests, float64(view.Assigned), agentpool.RequestAssigned.String())
	gauge(c.requests, float64(view.Running), agentpool.RequestRunning.String())
	for class, phases := range view.Agents {
		for _, phase := range agentpool.Phases() {
			gauge(c.agents, float64(phases[phase]), class, phase.String())
		}
	}
	taken := 0.0
	if status.Rival != "" {
		taken = 1
	}
	gauge(c.rival, taken)
	gauge(c.leaked, float64(status.Invariants.Leaked))
	for class, n := range status.Invariants.Duplicates {
		gauge(c.duplicates, float64(n), class)
	}
	for class, n := range status.Invariants.Surplus {
		gauge(c.surplus, float64(n), class)
	}
	for class, mismatch := range status.Mismatch {
		gauge(c.mismatch, float64(mismatch), class)
	}
	for class, warm := range view.Warm {
		gauge(c.warm, float64(warm.Have), class)
		gauge(c.warmWanted, float64(warm.Want), class)
	}
	for class, reasons := range status.NotGettingOn {
		for reason, n := range reasons {
			gauge(c.stuck, float64(n), class, string(reason))
		}
	}
	for _, reason := range plan.SkipReasons() {
		gauge(c.skipped, float64(status.Skipped[reason]), string(reason))
	}
}
