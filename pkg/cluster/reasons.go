package cluster

import (
	"fmt"
	"slices"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// The reasons of Events that this package reads.
const (
	eventUnhealthy           = "Unhealthy"
	eventFailedCreate        = "FailedCreate"
	eventFailedMount         = "FailedMount"
	eventFailedAttach        = "FailedAttachVolume"
	eventFailedSandbox       = "FailedCreatePodSandBox"
	eventNodeNotReady        = "NodeNotReady"
	reasonCrashLoop          = "CrashLoopBackOff"
	reasonOOMKilled          = "OOMKilled"
	reasonDeadline           = "DeadlineExceeded"
	exitNoBuild        int32 = 10
)

// outcome is what an exit code of the entrypoint says.
type outcome struct {
	reason   agentpool.Reason
	ranBuild bool
}

// outcomeOf reads the entrypoint's exit codes, and reports whether the code is
// one of them: a process that was killed has another. They are the entrypoint's
// own constants, which a test compares; this package must not depend on it.
func outcomeOf(code int32) (result outcome, told bool) {
	switch code {
	case 0:
		return outcome{agentpool.ReasonNone, true}, true
	case exitNoBuild:
		return outcome{agentpool.ReasonNoBuild, false}, true
	case 11:
		return outcome{agentpool.ReasonConfiguration, false}, true
	case 12:
		return outcome{agentpool.ReasonCredential, false}, true
	case 13:
		return outcome{agentpool.ReasonUnreachable, false}, true
	case 14:
		return outcome{agentpool.ReasonCrashed, false}, true
	case 15:
		return outcome{agentpool.ReasonConfigureFailed, false}, true
	case 16:
		return outcome{agentpool.ReasonCrashed, true}, true
	default:
		return outcome{agentpool.ReasonCrashed, false}, false
	}
}

// waitingReason sorts what a kubelet says about a container that does not start.
// What is not listed is on its way, such as ContainerCreating and PodInitializing.
func waitingReason(waiting *corev1.ContainerStateWaiting) agentpool.Reason {
	switch waiting.Reason {
	case "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed":
		return agentpool.ReasonImagePull
	case "CreateContainerConfigError":
		// A ConfigMap or Secret that the environment refers to; or a user that the
		// image does not have.
		if strings.Contains(waiting.Message, "not found") || strings.Contains(waiting.Message, "couldn't find key") {
			return agentpool.ReasonMissingObject
		}
		return agentpool.ReasonContainerCreation
	case "CreateContainerError", "RunContainerError", "PostStartHookError", "PreCreateHookError", "PreStartHookError":
		return agentpool.ReasonContainerCreation
	default:
		return agentpool.ReasonNone
	}
}

// disruption sorts why the cluster itself ended a pod: the pod's own reason, as
// the kubelet gives it, or that of its condition DisruptionTarget.
func disruption(reason string) agentpool.Reason {
	switch reason {
	case "Evicted", "EvictionByEvictionAPI", "PreemptionByScheduler", "Preempting", "TerminationByKubelet", "Terminated", "NodeShutdown":
		return agentpool.ReasonEvicted
	case "NodeLost", "DeletionByTaintManager", "DeletionByPodGC":
		return agentpool.ReasonNodeLost
	case "NodeAffinity", "NodePorts", "TopologyAffinityError", "UnexpectedAdmissionError":
		// The node turned down what the scheduler had given it.
		return agentpool.ReasonUnschedulable
	case reasonDeadline:
		return agentpool.ReasonStartupLimit
	}
	if strings.HasPrefix(reason, "OutOf") { // And the name of the resource.
		return agentpool.ReasonUnschedulable
	}
	return agentpool.ReasonNone
}

// endReason tells why a Job that has ended has ended. The order matters: the
// kernel's word over the cluster's, the cluster's over the entrypoint's, which
// may have been cut short. An agent that ended well ended well, whatever happened
// to its node afterwards.
func endReason(j *agentpool.AgentJob, pod *corev1.Pod, done *batchv1.JobCondition) (agentpool.Reason, string) {
	if pod == nil {
		return endWithoutPod(j, done)
	}
	agent := containerStatus(pod.Status.ContainerStatuses, agentjob.ContainerAgent)
	if agent != nil && agent.State.Terminated != nil {
		ended := agent.State.Terminated
		switch {
		case ended.ExitCode == 0 && ended.Reason == reasonOOMKilled:
			// The container runtime says so of a container in which any process was
			// killed. The agent lived on, and told a result; what is missing in the build
			// nobody else explains.
			return agentpool.ReasonOutOfMemory, fmt.Sprintf("a process in container %s was killed because the container used more memory than its limit; the agent lived on and told the build's result", agent.Name)
		case ended.ExitCode == 0:
			return agentpool.ReasonNone, ended.Message
		case ended.Reason == reasonOOMKilled:
			return agentpool.ReasonOutOfMemory, fmt.Sprintf("container %s was killed for using more memory than its limit", agent.Name)
		case ended.ExitCode == exitNoBuild:
			if neverListened(j, pod, ended) {
				return agentpool.ReasonStartupLimit, fmt.Sprintf("the agent was not listening after %s", ended.FinishedAt.Sub(ended.StartedAt.Time))
			}
			return agentpool.ReasonNoBuild, ended.Message
		}
	}
	if reason, message := disrupted(pod); reason != agentpool.ReasonNone {
		if reason == agentpool.ReasonNodeLost && agent != nil && agent.State.Terminated != nil {
			if _, told := outcomeOf(agent.State.Terminated.ExitCode); told {
				// A taint has made the pod leave, and the node is there: its kubelet has let
				// the agent end in its own way.
				reason = agentpool.ReasonEvicted
			}
		}
		return reason, message
	}
	if agent != nil && agent.State.Terminated != nil {
		told, _ := outcomeOf(agent.State.Terminated.ExitCode)
		return told.reason, containerEnd(*agent, agent.State.Terminated)
	}
	for _, status := range pod.Status.InitContainerStatuses {
		if ended := status.State.Terminated; ended != nil && ended.ExitCode != 0 {
			return besideReason(status.Name, ended), containerEnd(status, ended)
		}
	}
	return endWithoutPod(j, done)
}

// besideReason sorts how a container beside the agent's failed. One of the class's own is not
// bound by the entrypoint's exit codes.
func besideReason(name string, ended *corev1.ContainerStateTerminated) agentpool.Reason {
	switch {
	case ended.Reason == reasonOOMKilled:
		return agentpool.ReasonOutOfMemory
	case !isOurs(name):
		return agentpool.ReasonContainerFailed
	}
	result, _ := outcomeOf(ended.ExitCode)
	if name != agentjob.ContainerRemove && result.reason == agentpool.ReasonCrashed {
		// Ended by a signal, or by its limit: the agent was not there yet.
		return agentpool.ReasonConfigureFailed
	}
	return result.reason
}

// isOurs reports whether a container is one that we have put beside the agent's.
func isOurs(name string) bool {
	return name == agentjob.ContainerConfigure || name == agentjob.ContainerRemove || name == agentjob.ContainerDownload
}

// neverListened reports whether an agent that left without a build was ended by
// its startup probe: it ran for as long as that allows and was never ready.
func neverListened(j *agentpool.AgentJob, pod *corev1.Pod, ended *corev1.ContainerStateTerminated) bool {
	ready := podCondition(pod, corev1.PodReady)
	wasReady := ready != nil && ended.StartedAt.Before(&ready.LastTransitionTime)
	if wasReady || j.RanBuild {
		return false
	}
	for _, container := range pod.Spec.Containers {
		if probe := container.StartupProbe; container.Name == agentjob.ContainerAgent && probe != nil {
			allowed := time.Duration(probe.FailureThreshold) * time.Duration(probe.PeriodSeconds) * time.Second
			return ended.FinishedAt.Sub(ended.StartedAt.Time) >= allowed
		}
	}
	return false
}

// endWithoutPod tells what the Job alone says.
func endWithoutPod(j *agentpool.AgentJob, done *batchv1.JobCondition) (agentpool.Reason, string) {
	switch {
	case j.RanBuild:
		return agentpool.ReasonNone, ""
	case done == nil:
		return agentpool.ReasonUnknown, "the pod ended without saying why"
	case done.Type == batchv1.JobComplete:
		return agentpool.ReasonNone, ""
	case done.Reason == batchv1.JobReasonDeadlineExceeded:
		return agentpool.ReasonStartupLimit, done.Message
	default:
		// One that has failed by itself stays as long as its Job. What it had come to went
		// with it.
		return agentpool.ReasonEvicted, "the pod was deleted, as when its node is drained or removed: " + done.Message
	}
}

// disrupted tells whether the cluster ended the pod.
func disrupted(pod *corev1.Pod) (agentpool.Reason, string) {
	if reason := disruption(pod.Status.Reason); reason != agentpool.ReasonNone {
		return reason, fmt.Sprintf("%s: %s", pod.Status.Reason, pod.Status.Message)
	}
	if target := podCondition(pod, corev1.DisruptionTarget); target != nil && target.Status == corev1.ConditionTrue {
		if reason := disruption(target.Reason); reason != agentpool.ReasonNone {
			return reason, fmt.Sprintf("%s: %s", target.Reason, target.Message)
		}
	}
	if pod.Status.Phase == corev1.PodUnknown {
		return agentpool.ReasonNodeLost, fmt.Sprintf("node %s does not report: %s", pod.Spec.NodeName, pod.Status.Message)
	}
	return agentpool.ReasonNone, ""
}

// podTrouble tells why a pod is not getting on, if it is not.
func podTrouble(pod *corev1.Pod, warnings []*corev1.Event) (agentpool.Reason, string) {
	if reason, message := disrupted(pod); reason != agentpool.ReasonNone {
		return reason, message
	}
	if scheduled := podCondition(pod, corev1.PodScheduled); scheduled != nil && scheduled.Status == corev1.ConditionFalse {
		return agentpool.ReasonUnschedulable, fmt.Sprintf("%s: %s", scheduled.Reason, scheduled.Message)
	}
	if event := latest(warnings, eventNodeNotReady); event != nil && readinessTaken(pod) {
		return agentpool.ReasonNodeLost, fmt.Sprintf("node %s: %s", pod.Spec.NodeName, event.Message)
	}
	begun := false
	for _, statuses := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for _, status := range statuses {
			begun = begun || status.State.Running != nil || status.State.Terminated != nil
			waiting := status.State.Waiting
			if waiting == nil {
				continue
			}
			if last := status.LastTerminationState.Terminated; waiting.Reason == reasonCrashLoop && last != nil {
				return besideReason(status.Name, last), containerEnd(status, last)
			}
			if reason := waitingReason(waiting); reason != agentpool.ReasonNone {
				return reason, fmt.Sprintf("container %s: %s: %s", status.Name, waiting.Reason, waiting.Message)
			}
		}
	}
	for _, status := range pod.Status.ContainerStatuses {
		// Beside an agent that runs: a sidecar that nobody starts again.
		if ended := status.State.Terminated; ended != nil && ended.ExitCode != 0 {
			return besideReason(status.Name, ended), containerEnd(status, ended)
		}
	}
	if begun {
		return agentpool.ReasonNone, ""
	}
	return beforeStart(warnings)
}

// readinessTaken reports whether the pod counts as not ready although every container says
// that it is: so the controller of nodes leaves a pod whose node does not report any more.
func readinessTaken(pod *corev1.Pod) bool {
	ready := podCondition(pod, corev1.PodReady)
	unready := func(status corev1.ContainerStatus) bool { return !status.Ready }
	return ready != nil && ready.Status == corev1.ConditionFalse &&
		len(pod.Status.ContainerStatuses) > 0 && !slices.ContainsFunc(pod.Status.ContainerStatuses, unready)
}

// beforeStart tells from the Events what a pod on its node is waiting for before
// any container runs: nothing else says that a volume's Secret is missing.
func beforeStart(warnings []*corev1.Event) (agentpool.Reason, string) {
	event := latest(warnings, eventFailedMount, eventFailedAttach, eventFailedSandbox)
	switch {
	case event == nil:
		return agentpool.ReasonNone, ""
	case event.Reason == eventFailedMount && (strings.Contains(event.Message, "not found") || strings.Contains(event.Message, "non-existent")):
		return agentpool.ReasonMissingObject, event.Message
	default:
		return agentpool.ReasonContainerCreation, event.Message
	}
}

// noPodReason tells from the Events why the Job controller can't make the pod.
func noPodReason(warnings []*corev1.Event) (agentpool.Reason, string) {
	event := latest(warnings, eventFailedCreate)
	if event == nil {
		return agentpool.ReasonNone, ""
	}
	message := event.Message
	switch {
	case isQuotaMessage(message):
		return agentpool.ReasonQuota, message
	case strings.Contains(message, "serviceaccount") && strings.Contains(message, "not found"):
		return agentpool.ReasonMissingObject, message
	case strings.Contains(message, "forbidden"):
		return agentpool.ReasonForbidden, message
	case strings.Contains(message, "is invalid"):
		return agentpool.ReasonInvalid, message
	default:
		return agentpool.ReasonContainerCreation, message
	}
}

// latest gives the youngest warning of the given reasons, or nil.
func latest(warnings []*corev1.Event, reasons ...string) *corev1.Event {
	var last *corev1.Event
	for _, event := range warnings {
		for _, reason := range reasons {
			if event.Reason == reason && (last == nil || eventTime(event).After(eventTime(last))) {
				last = event
			}
		}
	}
	return last
}

func eventTime(event *corev1.Event) time.Time {
	last := event.CreationTimestamp.Time
	for _, t := range []time.Time{event.FirstTimestamp.Time, event.LastTimestamp.Time, event.EventTime.Time} {
		if t.After(last) {
			last = t
		}
	}
	if event.Series != nil && event.Series.LastObservedTime.After(last) {
		last = event.Series.LastObservedTime.Time
	}
	return last
}

// containerEnd puts into words how a container ended; its own last words where it
// left any.
func containerEnd(status corev1.ContainerStatus, ended *corev1.ContainerStateTerminated) string {
	text := fmt.Sprintf("container %s ended with exit code %d", status.Name, ended.ExitCode)
	if ended.Signal != 0 {
		text += fmt.Sprintf(" by signal %d", ended.Signal)
	}
	if ended.Message != "" {
		return text + ": " + ended.Message
	}
	if ended.Reason != "" && ended.Reason != "Error" {
		return text + ": " + ended.Reason
	}
	return text
}
