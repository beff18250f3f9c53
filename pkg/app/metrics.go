package app

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// Metrics are all of the scaler's own.
type Metrics struct {
	Recorder azuredevops.Recorder // Takes what the client of Azure DevOps reports.
	Loop     *scaler.Metrics
	Classes  *ClassMetrics
	Token    *TokenMetric
}

// NewMetrics registers every metric of the scaler's own. It panics when one is
// registered there already, as that is a mistake in the wiring.
func NewMetrics(registerer prometheus.Registerer) Metrics {
	classes := &ClassMetrics{
		broken: prometheus.NewDesc("azp_scaler_class_broken",
			"Whether a class of agent can't be used because of how it is written (1 or 0).", []string{"class"}, nil),
		usable: prometheus.NewDesc("azp_scaler_classes",
			"Classes of agent that can be used as they are written, the built-in one included.", []string{"pool"}, nil),
	}
	token := &TokenMetric{ends: prometheus.NewDesc("azp_scaler_agent_token_end_timestamp_seconds",
		"When the token ends that pods register with, where the scaler keeps it: Unix time, 0 without one.", nil, nil)}
	registerer.MustRegister(classes, token)
	return Metrics{Recorder: newRecorder(registerer), Loop: scaler.NewMetrics(registerer), Classes: classes, Token: token}
}

// TokenMetric tells when the token ends that the scaler keeps for pods.
type TokenMetric struct {
	ends *prometheus.Desc
	at   atomic.Pointer[time.Time]
}

// set is told the end of the token, zero if there is none.
func (m *TokenMetric) set(ends time.Time) { m.at.Store(&ends) }

// Describe implements prometheus.Collector.
func (m *TokenMetric) Describe(descs chan<- *prometheus.Desc) { descs <- m.ends }

// Collect implements prometheus.Collector. There is nothing to tell where the scaler keeps none.
func (m *TokenMetric) Collect(metrics chan<- prometheus.Metric) {
	ends := m.at.Load()
	if ends == nil {
		return
	}
	value := 0.0
	if !ends.IsZero() {
		value = float64(ends.Unix())
	}
	metrics <- prometheus.MustNewConstMetric(m.ends, prometheus.GaugeValue, value)
}

// ClassMetrics turn the classes of agent that are there into gauges.
type ClassMetrics struct {
	broken, usable *prometheus.Desc
	watched        atomic.Pointer[watched]
}

// watched is where the gauges come from.
type watched struct {
	catalogue *catalogue
	pools     []agentpool.Pool
}

func (m *ClassMetrics) watch(c *catalogue, pools []agentpool.Pool) {
	m.watched.Store(&watched{catalogue: c, pools: pools})
}

// Describe implements prometheus.Collector.
func (m *ClassMetrics) Describe(descs chan<- *prometheus.Desc) {
	descs <- m.broken
	descs <- m.usable
}

// Collect implements prometheus.Collector. There is nothing to tell before the pools
// are known.
func (m *ClassMetrics) Collect(metrics chan<- prometheus.Metric) {
	of := m.watched.Load()
	if of == nil {
		return
	}
	for _, e := range of.catalogue.all() {
		broken := 0.0
		if e.problem != "" {
			broken = 1
		}
		metrics <- prometheus.MustNewConstMetric(m.broken, prometheus.GaugeValue, broken, e.class.Name)
	}
	for _, pool := range of.pools {
		usable := len(of.catalogue.of(pool.Name).usable)
		metrics <- prometheus.MustNewConstMetric(m.usable, prometheus.GaugeValue, float64(usable), pool.Name)
	}
}
