package cluster

import (
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// RecordEvent puts an Event on the Job, for people who look at it. It does not
// wait and does not fail; without Run it does nothing.
func (c *Cluster) RecordEvent(job agentpool.AgentJob, warning bool, reason, message string) {
	c.record(corev1.ObjectReference{
		APIVersion: batchv1.SchemeGroupVersion.String(), Kind: kindJob, Name: job.Name, UID: types.UID(job.UID),
	}, warning, reason, message)
}
