package cluster

import (
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// RecordEvent puts an Event on the Job, for people who look at it. It does not
// wait and does not fail: Events are sent one by one in the background, alike ones
// are counted on one object, and many about one Job are dropped.
func (c *Cluster) RecordEvent(job agentpool.AgentJob, warning bool, reason, message string) {
	kind := corev1.EventTypeNormal
	if warning {
		kind = corev1.EventTypeWarning
	}
	c.recorder.Event(&corev1.ObjectReference{
		APIVersion: batchv1.SchemeGroupVersion.String(),
		Kind:       kindJob,
		Namespace:  c.config.Namespace,
		Name:       job.Name,
		UID:        types.UID(job.UID),
	}, kind, reason, oneLine(message))
}
