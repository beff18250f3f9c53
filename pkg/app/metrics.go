package app

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

// NewMetrics registers every metric of the scaler's own: what the client of
// Azure DevOps reports through the recorder, and the loop's. It panics when one
// is registered there already, as that is a mistake in the wiring.
func NewMetrics(registerer prometheus.Registerer) (azuredevops.Recorder, *scaler.Metrics) {
	return newRecorder(registerer), scaler.NewMetrics(registerer)
}
