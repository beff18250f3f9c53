package app

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// Metrics are all of the scaler's own.
type Metrics struct {
	Recorder azuredevops.Recorder // Takes what the client of Azure DevOps reports.
	Loop     *scaler.Metrics
	Classes  *ClassMetrics
}

// NewMetrics registers every metric of the scaler's own. It panics when one is
// registered there already, as that is a mistake in the wiring.
func NewMetrics(registerer prometheus.Registerer) Metrics {
	classes := &ClassMetrics{
		broken: prometheus.NewDesc("azp_scaler_class_broken",
			"Whether a class of agent can't be used because of how it is written (1 or 0).", []string{"class"}, nil),
	}
	registerer.MustRegister(classes)
	return Metrics{Recorder: newRecorder(registerer), Loop: scaler.NewMetrics(registerer), Classes: classes}
}

// ClassMetrics turn the classes of agent that are there into gauges.
type ClassMetrics struct {
	broken    *prometheus.Desc
	catalogue atomic.Pointer[catalogue]
}

func (m *ClassMetrics) watch(c *catalogue) { m.catalogue.Store(c) }

// Describe implements prometheus.Collector.
func (m *ClassMetrics) Describe(descs chan<- *prometheus.Desc) { descs <- m.broken }

// Collect implements prometheus.Collector.
func (m *ClassMetrics) Collect(metrics chan<- prometheus.Metric) {
	c := m.catalogue.Load()
	if c == nil {
		return
	}
	for _, e := range c.all() {
		broken := 0.0
		if e.problem != "" {
			broken = 1
		}
		metrics <- prometheus.MustNewConstMetric(m.broken, prometheus.GaugeValue, broken, e.class.Name)
	}
}
