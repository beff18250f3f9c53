package app

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
)

// recorder turns what the client of Azure DevOps does into metrics.
type recorder struct {
	requests  *prometheus.HistogramVec
	limit     *prometheus.GaugeVec
	remaining *prometheus.GaugeVec
	delay     *prometheus.GaugeVec
	waited    prometheus.Counter
}

func newRecorder(registerer prometheus.Registerer) *recorder {
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"resource"})
	}
	r := &recorder{
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "azp_scaler_azuredevops_request_duration_seconds",
			Help:    "Seconds that a request to Azure DevOps took, by operation and outcome.",
			Buckets: prometheus.DefBuckets,
		}, []string{"operation", "outcome"}),
		limit:     gauge("azp_scaler_azuredevops_ratelimit_limit", "Throughput units that the service allows, as it last said."),
		remaining: gauge("azp_scaler_azuredevops_ratelimit_remaining", "Throughput units that the service says are left."),
		delay:     gauge("azp_scaler_azuredevops_ratelimit_delay_seconds", "Seconds by which the service last delayed a request."),
		waited: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "azp_scaler_azuredevops_retry_after_seconds_total",
			Help: "Seconds that requests were held back because the service asked for it.",
		}),
	}
	registerer.MustRegister(r.requests, r.limit, r.remaining, r.delay, r.waited)
	return r
}

// Request implements azuredevops.Recorder.
func (r *recorder) Request(operation, outcome string, d time.Duration) {
	r.requests.WithLabelValues(operation, outcome).Observe(d.Seconds())
}

// RateLimit implements azuredevops.Recorder.
func (r *recorder) RateLimit(limit azuredevops.RateLimit) {
	r.limit.WithLabelValues(limit.Resource).Set(float64(limit.Limit))
	r.remaining.WithLabelValues(limit.Resource).Set(float64(limit.Remaining))
	r.delay.WithLabelValues(limit.Resource).Set(limit.Delay.Seconds())
}

// Waited implements azuredevops.Recorder.
func (r *recorder) Waited(d time.Duration) { r.waited.Add(d.Seconds()) }
