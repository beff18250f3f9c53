package cluster

import (
	"cmp"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// messageLimit keeps what is shown to people to a line or two.
const messageLimit = 400

// joinAll joins every Job with its pod and the warnings about both. Nothing of
// the input is kept or changed. Jobs are given by age, then by name.
func joinAll(jobs []*batchv1.Job, pods []*corev1.Pod, events []*corev1.Event) []agentpool.AgentJob {
	podOf := make(map[types.UID]*corev1.Pod, len(pods))
	for _, pod := range pods {
		owner := metav1.GetControllerOf(pod)
		if owner == nil || owner.Kind != kindJob {
			continue
		}
		if other, taken := podOf[owner.UID]; !taken || newerPod(pod, other) {
			podOf[owner.UID] = pod
		}
	}
	about := make(map[types.UID][]*corev1.Event, len(events))
	for _, event := range events {
		about[event.InvolvedObject.UID] = append(about[event.InvolvedObject.UID], event)
	}
	joined := make([]agentpool.AgentJob, 0, len(jobs))
	for _, job := range jobs {
		pod := podOf[job.UID]
		warnings := about[job.UID]
		if pod != nil {
			warnings = about[pod.UID]
		}
		if one, ours := join(job, pod, warnings); ours {
			joined = append(joined, one)
		}
	}
	slices.SortFunc(joined, func(a, b agentpool.AgentJob) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), strings.Compare(a.Name, b.Name))
	})
	return joined
}

// newerPod reports whether a tells more about the Job than b: one that can still
// run before one that has ended, then the younger. There is more than one only
// where somebody has deleted the first.
func newerPod(a, b *corev1.Pod) bool {
	if overA, overB := podOver(a), podOver(b); overA != overB {
		return overB
	}
	if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return b.CreationTimestamp.Before(&a.CreationTimestamp)
	}
	return a.UID > b.UID
}

func podOver(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// join makes the one picture of a Job. warnings are the Events about the pod, or
// about the Job as long as there is no pod. A Job whose name is none of ours is
// left alone, whatever its labels say.
func join(job *batchv1.Job, pod *corev1.Pod, warnings []*corev1.Event) (agentpool.AgentJob, bool) {
	pool, request, attempt, ok := agentjob.ParseJobName(job.Labels[agentjob.LabelInstance], job.Name)
	if !ok {
		return agentpool.AgentJob{}, false
	}
	j := agentpool.AgentJob{
		Name:         job.Name,
		UID:          string(job.UID),
		Class:        job.Labels[agentjob.LabelClass],
		ClassVersion: job.Annotations[agentjob.AnnotationClassVersion],
		PoolID:       pool,
		RequestID:    request,
		Attempt:      attempt,
		CreatedAt:    job.CreationTimestamp.Time,
		Suspended:    job.Spec.Suspend != nil && *job.Spec.Suspend,
		Deleting:     job.DeletionTimestamp != nil,
	}
	j.Registration = agentpool.Registration(job.Annotations[agentjob.AnnotationRegistration])
	// What a person has made unreadable counts as not recorded.
	j.AgentID, _ = strconv.Atoi(job.Annotations[agentjob.AnnotationAgentID])
	j.Failures, _ = strconv.Atoi(job.Annotations[agentjob.AnnotationFailures])
	if json.Unmarshal([]byte(job.Annotations[agentjob.AnnotationCapabilities]), &j.Capabilities) != nil {
		j.Capabilities = nil
	}
	j.QueuedAt, _ = time.Parse(time.RFC3339Nano, job.Annotations[agentjob.AnnotationQueuedAt])
	if pod != nil {
		addPod(&j, pod)
	}
	done := jobDone(job)
	if done != nil {
		j.JobDone = true
		if j.Ended.IsZero() {
			j.Ended = done.LastTransitionTime.Time
		}
	}
	switch {
	case j.Finished():
		j.Reason, j.Message = endReason(&j, pod, done)
	case pod != nil:
		j.Reason, j.Message = podTrouble(pod, warnings)
	case !j.Suspended:
		j.Reason, j.Message = noPodReason(warnings)
	}
	j.Message = oneLine(j.Message)
	return j, true
}

// addPod fills in what the pod shows.
func addPod(j *agentpool.AgentJob, pod *corev1.Pod) {
	j.PodName, j.PodUID, j.NodeName = pod.Name, string(pod.UID), pod.Spec.NodeName
	j.Deleting = j.Deleting || pod.DeletionTimestamp != nil
	if scheduled := podCondition(pod, corev1.PodScheduled); scheduled != nil && scheduled.Status == corev1.ConditionTrue {
		j.Scheduled = scheduled.LastTransitionTime.Time
	}
	agent := containerStatus(pod.Status.ContainerStatuses, agentjob.ContainerAgent)
	switch {
	case agent == nil:
	case agent.State.Terminated != nil:
		ended := agent.State.Terminated
		j.Ended, j.ExitCode = ended.FinishedAt.Time, int(ended.ExitCode)
		if outcome, told := outcomeOf(ended.ExitCode); told {
			j.RanBuild = outcome.ranBuild
		} else {
			// Killed before it could tell.
			j.RanBuild = claimed(pod, ended.StartedAt, ended.FinishedAt)
			j.Untold = !j.RanBuild
		}
	case agent.State.Running != nil:
		j.Started = agent.Started != nil && *agent.Started
		j.Ready = j.Started && agent.Ready
		ready := podCondition(pod, corev1.PodReady)
		if j.Ready && ready != nil && ready.Status == corev1.ConditionTrue {
			j.ReadySince = ready.LastTransitionTime.Time
		}
		j.RanBuild = j.Started && !j.Ready && claimed(pod, agent.State.Running.StartedAt, metav1.Time{})
	}
	if podOver(pod) && j.Ended.IsZero() {
		j.Ended = podEnd(pod)
		j.Untold = j.Started && !j.RanBuild
		for _, name := range []string{agentjob.ContainerConfigure, agentjob.ContainerDownload} {
			if first := containerStatus(pod.Status.InitContainerStatuses, name); first != nil && first.State.Terminated != nil {
				j.ExitCode = int(first.State.Terminated.ExitCode)
			}
		}
	}
}

// claimed reports whether the pod has lost its readiness after the agent's
// container started, and before it ended or was told to: so the agent was waiting
// for a build, and has been given one. Before the first readiness probe the
// condition is false since before the container started. Times are whole seconds,
// and the probe that tells of a claim comes a second or more after the first one,
// so the comparison is strict.
func claimed(pod *corev1.Pod, started, ended metav1.Time) bool {
	ready := podCondition(pod, corev1.PodReady)
	if ready == nil || ready.Status != corev1.ConditionFalse || started.IsZero() {
		return false
	}
	lost := ready.LastTransitionTime
	if !started.Before(&lost) || (!ended.IsZero() && !lost.Before(&ended)) {
		return false
	}
	if pod.DeletionTimestamp == nil {
		return true
	}
	// The timestamp is when the grace will be over, not when the deletion was asked
	// for. An agent that is told to end stops being ready too.
	var grace time.Duration
	if pod.DeletionGracePeriodSeconds != nil {
		grace = time.Duration(*pod.DeletionGracePeriodSeconds) * time.Second
	}
	return lost.Time.Before(pod.DeletionTimestamp.Add(-grace))
}

// podEnd is when a pod that is over has ended, as far as it says.
func podEnd(pod *corev1.Pod) time.Time {
	var last time.Time
	for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if ended := status.State.Terminated; ended != nil && ended.FinishedAt.After(last) {
			last = ended.FinishedAt.Time
		}
	}
	if !last.IsZero() {
		return last
	}
	for _, condition := range pod.Status.Conditions {
		if condition.LastTransitionTime.After(last) {
			last = condition.LastTransitionTime.Time
		}
	}
	if last.IsZero() {
		last = pod.CreationTimestamp.Time
	}
	return last
}

// jobDone gives the condition by which the Job has ended, or nil.
func jobDone(job *batchv1.Job) *batchv1.JobCondition {
	for i, condition := range job.Status.Conditions {
		if condition.Status == corev1.ConditionTrue && (condition.Type == batchv1.JobComplete || condition.Type == batchv1.JobFailed) {
			return &job.Status.Conditions[i]
		}
	}
	return nil
}

func podCondition(pod *corev1.Pod, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == kind {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

func containerStatus(statuses []corev1.ContainerStatus, name string) *corev1.ContainerStatus {
	for i := range statuses {
		if statuses[i].Name == name {
			return &statuses[i]
		}
	}
	return nil
}

// oneLine keeps a message to a line that fits a table.
func oneLine(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) <= messageLimit {
		return text
	}
	return strings.ToValidUTF8(text[:messageLimit], "") + "…"
}
