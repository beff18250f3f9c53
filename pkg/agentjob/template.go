package agentjob

import (
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// ContainerAgent is the container that runs the build. A class's template must
// have one of this name; everything else in the template is the class's own.
const ContainerAgent = "agent"

// DefaultClass is what the one class of the simplest install is made from.
type DefaultClass struct {
	Image            string
	PullPolicy       corev1.PullPolicy // Empty leaves it to Kubernetes.
	ImagePullSecrets []string
	Resources        corev1.ResourceRequirements
}

// DefaultTemplate makes the template of the built-in class.
func DefaultTemplate(class DefaultClass) batchv1.JobTemplateSpec {
	var template batchv1.JobTemplateSpec
	pod := &template.Spec.Template.Spec
	pod.Containers = []corev1.Container{{
		Name:            ContainerAgent,
		Image:           class.Image,
		ImagePullPolicy: class.PullPolicy,
		Resources:       *class.Resources.DeepCopy(),
	}}
	for _, name := range class.ImagePullSecrets {
		pod.ImagePullSecrets = append(pod.ImagePullSecrets, corev1.LocalObjectReference{Name: name})
	}
	return template
}
