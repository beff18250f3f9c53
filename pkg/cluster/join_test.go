package cluster

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// at is a moment in seconds after the Job was made.
func at(seconds int) metav1.Time {
	return metav1.NewTime(time.Date(2026, 5, 6, 7, 0, seconds, 0, time.UTC))
}

func makeJob(change ...func(*batchv1.Job)) *batchv1.Job {
	job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{
		Name: "azp-abcdefgh-7-4711-2", Namespace: "agents", UID: "job-1", CreationTimestamp: at(0),
		Labels: map[string]string{
			agentjob.LabelInstance: "abcdefgh", agentjob.LabelManagedBy: agentjob.ManagedBy, agentjob.LabelClass: "java",
		},
		Annotations: map[string]string{
			agentjob.AnnotationFailures: "3",
			agentjob.AnnotationQueuedAt: at(-5).Format(time.RFC3339Nano),
		},
	}, Spec: batchv1.JobSpec{Suspend: new(false)}}
	for _, c := range change {
		c(job)
	}
	return job
}

// makePod gives the Job's pod as it is on its node before any container runs.
func makePod(change ...func(*corev1.Pod)) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "azp-abcdefgh-7-4711-2-x", Namespace: "agents", UID: "pod-1", CreationTimestamp: at(1),
			OwnerReferences: []metav1.OwnerReference{{Kind: "Job", Name: "azp-abcdefgh-7-4711-2", UID: "job-1", Controller: new(true)}},
		},
		Spec: corev1.PodSpec{NodeName: "node-1", Containers: []corev1.Container{{
			Name: "agent", StartupProbe: &corev1.Probe{PeriodSeconds: 1, FailureThreshold: 20},
		}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodPending,
			Conditions: []corev1.PodCondition{
				{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: at(2)},
				{Type: corev1.PodReady, Status: corev1.ConditionFalse, LastTransitionTime: at(2)},
			},
			InitContainerStatuses: []corev1.ContainerStatus{creating("remove"), creating("configure")},
			ContainerStatuses:     []corev1.ContainerStatus{creating("agent")},
		},
	}
	for _, c := range change {
		c(pod)
	}
	return pod
}

func creating(name string) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: name, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "PodInitializing"}}}
}

func waiting(container, reason, message string) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		set(pod, container, func(s *corev1.ContainerStatus) {
			s.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
		})
	}
}

func terminated(container string, code int32, ends int, reason, message string) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		set(pod, container, func(s *corev1.ContainerStatus) {
			s.Ready, s.Started = false, new(false)
			s.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
				ExitCode: code, Reason: reason, Message: message, StartedAt: at(10), FinishedAt: at(ends),
			}}
		})
	}
}

// running has the agent's container run since second 10.
func running(started, ready bool) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		pod.Status.Phase = corev1.PodRunning
		set(pod, "remove", func(s *corev1.ContainerStatus) {
			s.State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: at(3)}}
		})
		terminated("configure", 0, 9, "Completed", "")(pod)
		set(pod, "agent", func(s *corev1.ContainerStatus) {
			s.Started, s.Ready = new(started), ready
			s.State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: at(10)}}
		})
	}
}

func ready(status corev1.ConditionStatus, since int) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		condition := podCondition(pod, corev1.PodReady)
		condition.Status, condition.LastTransitionTime = status, at(since)
	}
}

func phase(p corev1.PodPhase, reason, message string) func(*corev1.Pod) {
	return func(pod *corev1.Pod) { pod.Status.Phase, pod.Status.Reason, pod.Status.Message = p, reason, message }
}

func condition(kind corev1.PodConditionType, status corev1.ConditionStatus, reason, message string) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		pod.Status.Conditions = slices.DeleteFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == kind })
		pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: kind, Status: status, Reason: reason, Message: message, LastTransitionTime: at(12)})
	}
}

func set(pod *corev1.Pod, container string, change func(*corev1.ContainerStatus)) {
	for _, statuses := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		if status := containerStatus(statuses, container); status != nil {
			change(status)
		}
	}
}

func done(kind batchv1.JobConditionType, reason, message string) func(*batchv1.Job) {
	return func(job *batchv1.Job) {
		job.Status.Conditions = append(job.Status.Conditions, batchv1.JobCondition{
			Type: kind, Status: corev1.ConditionTrue, Reason: reason, Message: message, LastTransitionTime: at(40),
		})
	}
}

func warning(about types.UID, reason, message string, seconds int) *corev1.Event {
	return &corev1.Event{InvolvedObject: corev1.ObjectReference{UID: about}, Reason: reason, Message: message, LastTimestamp: at(seconds)}
}

// TestJoinShowsWhereAnAgentIs goes through the life of an agent.
func TestJoinShowsWhereAnAgentIs(t *testing.T) {
	t.Parallel()
	base := agentpool.AgentJob{
		Name: "azp-abcdefgh-7-4711-2", UID: "job-1", Class: "java", PoolID: 7, RequestID: 4711, Attempt: 2, Failures: 3,
		CreatedAt: at(0).Time, QueuedAt: at(-5).Time,
	}
	withPod := base
	withPod.PodName, withPod.PodUID, withPod.NodeName, withPod.Scheduled = "azp-abcdefgh-7-4711-2-x", "pod-1", "node-1", at(2).Time
	want := func(from agentpool.AgentJob, change func(*agentpool.AgentJob)) agentpool.AgentJob {
		change(&from)
		return from
	}
	for _, c := range []struct {
		name string
		job  *batchv1.Job
		pod  *corev1.Pod
		want agentpool.AgentJob
	}{
		{"suspended", makeJob(func(j *batchv1.Job) { j.Spec.Suspend = new(true) }), nil, want(base, func(j *agentpool.AgentJob) { j.Suspended = true })},
		{"no pod yet", makeJob(), nil, base},
		{"creating", makeJob(), makePod(), withPod},
		{"not listening", makeJob(), makePod(running(false, false)), withPod},
		{"not probed", makeJob(), makePod(running(true, false)), want(withPod, func(j *agentpool.AgentJob) { j.Started = true })},
		{"not probed, in the second the pod was made", makeJob(), makePod(running(true, false), ready(corev1.ConditionFalse, 10)), want(withPod, func(j *agentpool.AgentJob) { j.Started = true })},
		{"waits for a build", makeJob(), makePod(running(true, true), ready(corev1.ConditionTrue, 12)), want(withPod, func(j *agentpool.AgentJob) {
			j.Started, j.Ready, j.ReadySince = true, true, at(12).Time
		})},
		{"ready beside a sidecar that is not", makeJob(), makePod(running(true, true), ready(corev1.ConditionFalse, 12)), want(withPod, func(j *agentpool.AgentJob) {
			j.Started, j.Ready = true, true
		})},
		{"has a build", makeJob(), makePod(running(true, false), ready(corev1.ConditionFalse, 14)), want(withPod, func(j *agentpool.AgentJob) { j.Started, j.RanBuild = true, true })},
		{"told to end while it waits", makeJob(), makePod(running(true, false), ready(corev1.ConditionFalse, 31), deletedAt(30, 3600)), want(withPod, func(j *agentpool.AgentJob) { j.Started, j.Deleting = true, true })},
		{"told to end while it has a build", makeJob(), makePod(running(true, false), ready(corev1.ConditionFalse, 14), deletedAt(30, 3600)), want(withPod, func(j *agentpool.AgentJob) {
			j.Started, j.Deleting, j.RanBuild = true, true, true
		})},
		{"build done, sidecar still there", makeJob(), makePod(running(true, false), ready(corev1.ConditionFalse, 14), terminated("agent", 0, 30, "Completed", "")), want(withPod, func(j *agentpool.AgentJob) {
			j.RanBuild, j.Ended = true, at(30).Time
		})},
		{"complete, pod gone", makeJob(done(batchv1.JobComplete, "", "")), nil, want(base, func(j *agentpool.AgentJob) { j.JobDone, j.Ended = true, at(40).Time })},
		{"Job being deleted", makeJob(func(j *batchv1.Job) { j.DeletionTimestamp = new(at(20)) }), nil, want(base, func(j *agentpool.AgentJob) { j.Deleting = true })},
		{"made of a class that is recorded", makeJob(func(j *batchv1.Job) {
			j.Annotations[agentjob.AnnotationClassVersion] = "abc123"
			j.Annotations[agentjob.AnnotationCapabilities] = `{"java":"21","agent.os":"Linux"}`
		}), nil, want(base, func(j *agentpool.AgentJob) {
			j.ClassVersion, j.Capabilities = "abc123", agentpool.NewCapabilities(map[string]string{"java": "21", "Agent.OS": "Linux"})
		})},
		{"a warm agent", makeJob(func(j *batchv1.Job) {
			j.Name, j.Annotations = "azp-abcdefgh-7-0-12", nil
		}), nil, want(base, func(j *agentpool.AgentJob) {
			j.Name, j.RequestID, j.Attempt, j.Failures, j.QueuedAt = "azp-abcdefgh-7-0-12", agentpool.WarmRequest, 12, 0, time.Time{}
		})},
		{"unreadable records", makeJob(func(j *batchv1.Job) {
			j.Annotations = map[string]string{
				agentjob.AnnotationFailures: "x", agentjob.AnnotationQueuedAt: "y", agentjob.AnnotationCapabilities: `{"a":"1","b":2}`,
			}
		}), nil, want(base, func(j *agentpool.AgentJob) { j.Failures, j.QueuedAt = 0, time.Time{} })},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var pods []*corev1.Pod
			if c.pod != nil {
				pods = append(pods, c.pod)
			}
			got := joinAll([]*batchv1.Job{c.job}, pods, nil)
			if diff := cmp.Diff([]agentpool.AgentJob{c.want}, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func deletedAt(asked, grace int) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		pod.DeletionTimestamp = new(at(asked + grace))
		pod.DeletionGracePeriodSeconds = new(int64(grace))
	}
}

// TestJoinTellsWhy has a case for every reason that Kubernetes or the entrypoint
// can give.
func TestJoinTellsWhy(t *testing.T) {
	t.Parallel()
	failed := func(change ...func(*corev1.Pod)) *corev1.Pod {
		return makePod(slices.Concat([]func(*corev1.Pod){running(true, false)}, change, []func(*corev1.Pod){phase(corev1.PodFailed, "", "")})...)
	}
	for _, c := range []struct {
		name    string
		job     *batchv1.Job
		pod     *corev1.Pod
		events  []*corev1.Event
		want    agentpool.Reason
		message string
		failed  bool // As agentpool.AgentJob.Failed tells.
		ran     bool
	}{
		{name: "image pull", pod: makePod(waiting("remove", "ImagePullBackOff", "Back-off pulling\nimage \"x\"")), want: agentpool.ReasonImagePull, message: `container remove: ImagePullBackOff: Back-off pulling image "x"`},
		{name: "image never", pod: makePod(waiting("agent", "ErrImageNeverPull", "")), want: agentpool.ReasonImagePull},
		{name: "image name", pod: makePod(waiting("agent", "InvalidImageName", "")), want: agentpool.ReasonImagePull},
		{name: "missing key", pod: makePod(waiting("agent", "CreateContainerConfigError", `configmap "x" not found`)), want: agentpool.ReasonMissingObject},
		{name: "bad user", pod: makePod(waiting("agent", "CreateContainerConfigError", "container has runAsNonRoot and image will run as root")), want: agentpool.ReasonContainerCreation},
		{name: "no program", pod: makePod(waiting("agent", "CreateContainerError", "exec: tini: not found")), want: agentpool.ReasonContainerCreation},
		{name: "unschedulable", pod: makePod(condition(corev1.PodScheduled, corev1.ConditionFalse, "Unschedulable", "0/3 nodes")), want: agentpool.ReasonUnschedulable, message: "Unschedulable: 0/3 nodes"},
		{name: "secret missing", pod: makePod(), events: []*corev1.Event{
			warning("pod-1", "FailedMount", `MountVolume.SetUp failed for volume "token" : secret "azp-token" not found`, 5),
		}, want: agentpool.ReasonMissingObject, message: `secret "azp-token" not found`},
		{name: "mount late", pod: makePod(), events: []*corev1.Event{warning("pod-1", "FailedMount", "timed out waiting for the condition", 5)}, want: agentpool.ReasonContainerCreation},
		{name: "sandbox", pod: makePod(), events: []*corev1.Event{warning("pod-1", "FailedCreatePodSandBox", "no network", 5)}, want: agentpool.ReasonContainerCreation},
		{name: "mounted since", pod: makePod(running(false, false)), events: []*corev1.Event{warning("pod-1", "FailedMount", `secret "x" not found`, 5)}, want: agentpool.ReasonNone},
		{name: "sidecar crashes", pod: makePod(waiting("remove", "CrashLoopBackOff", "back-off"), func(pod *corev1.Pod) {
			set(pod, "remove", func(s *corev1.ContainerStatus) {
				s.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 11, Message: "AZP_URL is not set"}
			})
		}), want: agentpool.ReasonConfiguration, message: "AZP_URL is not set"},
		{name: "quota", events: []*corev1.Event{warning("job-1", "FailedCreate", `pods "x" is forbidden: exceeded quota: small`, 5)}, want: agentpool.ReasonQuota, message: "exceeded quota"},
		{name: "quota wants limits", events: []*corev1.Event{warning("job-1", "FailedCreate", `pods "x" is forbidden: failed quota: q: must specify limits.cpu`, 5)}, want: agentpool.ReasonQuota},
		{name: "account missing", events: []*corev1.Event{warning("job-1", "FailedCreate", `pods "x" is forbidden: error looking up service account agents/x: serviceaccount "x" not found`, 5)}, want: agentpool.ReasonMissingObject},
		{name: "pod security", events: []*corev1.Event{warning("job-1", "FailedCreate", `pods "x" is forbidden: violates PodSecurity "restricted:latest"`, 5)}, want: agentpool.ReasonForbidden},
		{name: "pod invalid", events: []*corev1.Event{warning("job-1", "FailedCreate", `Pod "x" is invalid: spec`, 5)}, want: agentpool.ReasonInvalid},
		{name: "pod not made", events: []*corev1.Event{warning("job-1", "FailedCreate", "Internal error", 5)}, want: agentpool.ReasonContainerCreation},
		{name: "latest counts", events: []*corev1.Event{
			warning("job-1", "FailedCreate", "Internal error", 9), warning("job-1", "FailedCreate", "exceeded quota", 20), warning("job-1", "FailedCreate", "Internal error", 5),
		}, want: agentpool.ReasonQuota},
		{name: "another's event", events: []*corev1.Event{warning("job-2", "FailedCreate", "exceeded quota", 5)}, want: agentpool.ReasonNone},

		{name: "done", pod: failed(terminated("agent", 0, 30, "Completed", "")), want: agentpool.ReasonNone, ran: true},
		{name: "done, then the node went", pod: failed(terminated("agent", 0, 30, "", ""), condition(corev1.DisruptionTarget, corev1.ConditionTrue, "DeletionByTaintManager", "")), want: agentpool.ReasonNone, ran: true},
		{name: "no build", pod: failed(terminated("agent", 10, 30, "Error", "withdrawn"), ready(corev1.ConditionFalse, 29)), want: agentpool.ReasonNoBuild, message: "withdrawn"},
		{name: "left in time", pod: failed(terminated("agent", 10, 29, "Error", "")), want: agentpool.ReasonNoBuild},
		{name: "never listened", pod: failed(terminated("agent", 10, 30, "Error", "")), want: agentpool.ReasonStartupLimit, message: "20s", failed: true},
		{name: "configuration", pod: failed(terminated("configure", 11, 9, "Error", "AZP_POOL: no such pool"), neverRan), want: agentpool.ReasonConfiguration, message: "no such pool", failed: true},
		{name: "credential", pod: failed(terminated("configure", 12, 9, "Error", ""), neverRan), want: agentpool.ReasonCredential, failed: true},
		{name: "unreachable", pod: failed(terminated("configure", 13, 9, "Error", ""), neverRan), want: agentpool.ReasonUnreachable, failed: true},
		{name: "configure failed", pod: failed(terminated("configure", 15, 9, "Error", ""), neverRan), want: agentpool.ReasonConfigureFailed, failed: true},
		{name: "configure killed", pod: failed(terminated("configure", 137, 9, "Error", ""), neverRan), want: agentpool.ReasonConfigureFailed, message: "exit code 137", failed: true},
		{name: "configure out of memory", pod: failed(terminated("configure", 137, 9, "OOMKilled", ""), neverRan), want: agentpool.ReasonOutOfMemory, failed: true},
		{name: "configure told to stop", pod: failed(terminated("configure", 10, 9, "Error", ""), neverRan), want: agentpool.ReasonNoBuild},
		{name: "class's init container", pod: failed(func(pod *corev1.Pod) {
			pod.Status.InitContainerStatuses = append(pod.Status.InitContainerStatuses, creating("warm"))
		}, terminated("warm", 11, 9, "Error", ""), neverRan), want: agentpool.ReasonContainerFailed, message: "container warm ended with exit code 11", failed: true},
		{name: "class's init container out of memory", pod: failed(func(pod *corev1.Pod) {
			pod.Status.InitContainerStatuses = append(pod.Status.InitContainerStatuses, creating("warm"))
		}, terminated("warm", 137, 9, "OOMKilled", ""), neverRan), want: agentpool.ReasonOutOfMemory, message: "container warm", failed: true},
		{name: "class's sidecar without its image", pod: makePod(running(true, true), withSidecar, waiting("proxy", "ImagePullBackOff", "no such image")), want: agentpool.ReasonImagePull, message: "container proxy"},
		{name: "class's sidecar without its Secret", pod: makePod(withSidecar, waiting("proxy", "CreateContainerConfigError", `secret "proxy" not found`)), want: agentpool.ReasonMissingObject, message: `container proxy: CreateContainerConfigError: secret "proxy" not found`},
		{name: "class's sidecar crashes", pod: makePod(running(true, true), withSidecar, terminated("proxy", 1, 11, "Error", "no port")), want: agentpool.ReasonContainerFailed, message: "container proxy ended with exit code 1: no port"},
		{name: "class's sidecar out of memory", pod: makePod(running(true, true), withSidecar, terminated("proxy", 137, 11, "OOMKilled", "")), want: agentpool.ReasonOutOfMemory, message: "container proxy"},
		{name: "class's sidecar is done", pod: makePod(running(true, true), withSidecar, terminated("proxy", 0, 11, "Completed", "")), want: agentpool.ReasonNone},
		{name: "class's native sidecar crashes", pod: makePod(waiting("configure", "PodInitializing", ""), func(pod *corev1.Pod) {
			pod.Status.InitContainerStatuses = append(pod.Status.InitContainerStatuses, creating("proxy"))
			set(pod, "proxy", func(s *corev1.ContainerStatus) {
				s.State.Waiting.Reason = "CrashLoopBackOff"
				s.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 11, Message: "no port"}
			})
		}), want: agentpool.ReasonContainerFailed, message: "container proxy ended with exit code 11: no port"},
		{name: "crashed idle", pod: failed(terminated("agent", 14, 30, "Error", "the listener ended by itself")), want: agentpool.ReasonCrashed, message: "by itself", failed: true},
		{name: "crashed with a build", pod: failed(terminated("agent", 16, 30, "Error", "")), want: agentpool.ReasonCrashed, ran: true},
		{name: "killed idle", pod: failed(terminated("agent", 137, 30, "Error", ""), ready(corev1.ConditionFalse, 30)), want: agentpool.ReasonCrashed, failed: true},
		{name: "killed with a build", pod: failed(terminated("agent", 137, 30, "Error", ""), ready(corev1.ConditionFalse, 20)), want: agentpool.ReasonCrashed, ran: true},
		{name: "out of memory", pod: failed(terminated("agent", 137, 30, "OOMKilled", ""), ready(corev1.ConditionFalse, 20)), want: agentpool.ReasonOutOfMemory, message: "more memory", ran: true},
		{name: "out of memory in the build, and the agent lives", pod: failed(terminated("agent", 0, 30, "OOMKilled", ""), ready(corev1.ConditionFalse, 20)), want: agentpool.ReasonOutOfMemory, message: "the agent lived on", ran: true},
		{name: "out of memory with a build that the entrypoint saw end", pod: failed(terminated("agent", 16, 30, "OOMKilled", ""), ready(corev1.ConditionFalse, 20)), want: agentpool.ReasonOutOfMemory, ran: true},
		{name: "out of memory idle", pod: failed(terminated("agent", 137, 30, "OOMKilled", "")), want: agentpool.ReasonOutOfMemory, failed: true},
		{name: "evicted", pod: makePod(phase(corev1.PodFailed, "Evicted", "low on disk")), want: agentpool.ReasonEvicted, message: "Evicted: low on disk", failed: true},
		{name: "evicted by the API", pod: failed(terminated("agent", 143, 30, "Error", ""), condition(corev1.DisruptionTarget, corev1.ConditionTrue, "EvictionByEvictionAPI", "drain")), want: agentpool.ReasonEvicted, failed: true},
		{name: "preempted", pod: failed(terminated("agent", 143, 30, "Error", ""), condition(corev1.DisruptionTarget, corev1.ConditionTrue, "PreemptionByScheduler", "")), want: agentpool.ReasonEvicted, failed: true},
		{name: "node gone", pod: failed(terminated("agent", 137, 30, "Error", ""), condition(corev1.DisruptionTarget, corev1.ConditionTrue, "DeletionByTaintManager", "")), want: agentpool.ReasonNodeLost, failed: true},
		{name: "taken away by a taint", pod: failed(terminated("agent", 16, 30, "Error", ""), condition(corev1.DisruptionTarget, corev1.ConditionTrue, "DeletionByTaintManager", "")), want: agentpool.ReasonEvicted, ran: true},
		{name: "ended by the kubelet", pod: failed(terminated("agent", 143, 30, "Error", ""), condition(corev1.DisruptionTarget, corev1.ConditionTrue, "TerminationByKubelet", "")), want: agentpool.ReasonEvicted, failed: true},
		{name: "node removed", pod: makePod(running(true, false), ready(corev1.ConditionFalse, 20), phase(corev1.PodFailed, "", ""), condition(corev1.DisruptionTarget, corev1.ConditionTrue, "DeletionByPodGC", "")), want: agentpool.ReasonNodeLost, ran: true},
		{name: "node removed under an idle agent", pod: makePod(running(true, true), ready(corev1.ConditionFalse, 20), phase(corev1.PodFailed, "", ""), condition(corev1.DisruptionTarget, corev1.ConditionTrue, "DeletionByPodGC", "")), want: agentpool.ReasonNodeLost, failed: true},
		{name: "node does not report", pod: makePod(running(true, true), ready(corev1.ConditionFalse, 20)), events: []*corev1.Event{warning("pod-1", "NodeNotReady", "Node is not ready", 20)}, want: agentpool.ReasonNodeLost, message: "node node-1: Node is not ready"},
		{name: "node reports again", pod: makePod(running(true, true), ready(corev1.ConditionTrue, 25)), events: []*corev1.Event{warning("pod-1", "NodeNotReady", "Node is not ready", 20)}, want: agentpool.ReasonNone},
		{name: "node silent", pod: makePod(phase(corev1.PodUnknown, "", "")), want: agentpool.ReasonNodeLost},
		{name: "node lost", pod: makePod(running(true, true), phase(corev1.PodRunning, "NodeLost", "")), want: agentpool.ReasonNodeLost},
		{name: "node refused its devices", pod: makePod(phase(corev1.PodFailed, "OutOfnvidia.com/gpu", "")), want: agentpool.ReasonUnschedulable, failed: true},
		{name: "node refused", pod: makePod(phase(corev1.PodFailed, "OutOfcpu", "")), want: agentpool.ReasonUnschedulable, failed: true},
		{name: "ended without a word", pod: makePod(phase(corev1.PodFailed, "", "")), want: agentpool.ReasonUnknown, failed: true},
		{name: "failed, pod gone", job: makeJob(done(batchv1.JobFailed, "BackoffLimitExceeded", "too often")), want: agentpool.ReasonEvicted, message: "too often", failed: true},
		{name: "deadline", job: makeJob(done(batchv1.JobFailed, "DeadlineExceeded", "was active too long")), want: agentpool.ReasonStartupLimit, failed: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			job := c.job
			if job == nil {
				job = makeJob()
			}
			var pods []*corev1.Pod
			if c.pod != nil {
				pods = append(pods, c.pod)
			}
			got := joinAll([]*batchv1.Job{job}, pods, c.events)[0]
			if got.Reason != c.want || got.Failed() != c.failed || got.RanBuild != c.ran {
				t.Errorf("reason %q, failed %t, ran a build %t; want %q, %t, %t", got.Reason, got.Failed(), got.RanBuild, c.want, c.failed, c.ran)
			}
			if !strings.Contains(got.Message, c.message) || (c.want != agentpool.ReasonNone && c.want != agentpool.ReasonNoBuild && got.Message == "") {
				t.Errorf("message %q, want %q in it", got.Message, c.message)
			}
			if strings.ContainsAny(got.Message, "\n\r") {
				t.Errorf("message %q is not one line", got.Message)
			}
			if c.pod != nil && podOver(c.pod) && got.Ended.IsZero() {
				t.Error("it has ended, and nothing says when")
			}
			if got.Reason != agentpool.ReasonNone && !slices.Contains(agentpool.Reasons(), got.Reason) {
				t.Errorf("reason %q is not of the closed set", got.Reason)
			}
		})
	}
}

// withSidecar adds a container of the class's to the pod.
func withSidecar(pod *corev1.Pod) {
	pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, creating("proxy"))
}

// neverRan has the agent's container wait for ever.
func neverRan(pod *corev1.Pod) {
	for i := range pod.Status.ContainerStatuses {
		pod.Status.ContainerStatuses[i] = creating(pod.Status.ContainerStatuses[i].Name)
	}
}

func TestJoinTakesThePodThatCanStillRun(t *testing.T) {
	t.Parallel()
	second := func(change ...func(*corev1.Pod)) *corev1.Pod {
		pod := makePod(change...)
		pod.Name, pod.UID = "second", "pod-2"
		return pod
	}
	later := func(pod *corev1.Pod) { pod.CreationTimestamp = at(5) }
	over := phase(corev1.PodFailed, "", "")
	for _, c := range []struct {
		name string
		pods []*corev1.Pod
		want string
	}{
		{"younger", []*corev1.Pod{makePod(), second(later)}, "pod-2"},
		{"younger is over", []*corev1.Pod{makePod(), second(later, over)}, "pod-1"},
		{"both over", []*corev1.Pod{makePod(over), second(later, over)}, "pod-2"},
		{"same second", []*corev1.Pod{makePod(), second()}, "pod-2"},
		{"owned by nobody", []*corev1.Pod{makePod(), second(later, func(p *corev1.Pod) { p.OwnerReferences = nil })}, "pod-1"},
		{"owned by another", []*corev1.Pod{makePod(), second(later, func(p *corev1.Pod) { p.OwnerReferences[0].UID = "job-2" })}, "pod-1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for range 2 {
				if got := joinAll([]*batchv1.Job{makeJob()}, c.pods, nil)[0].PodUID; got != c.want {
					t.Errorf("took %s, want %s", got, c.want)
				}
				slices.Reverse(c.pods)
			}
		})
	}
}

func TestJoinLeavesForeignJobsAlone(t *testing.T) {
	t.Parallel()
	tried := makeJob(func(j *batchv1.Job) { j.Name = "try-java" })
	forged := makeJob(func(j *batchv1.Job) { j.Labels[agentjob.LabelInstance] = "other234" })
	if got := joinAll([]*batchv1.Job{tried, forged}, nil, nil); len(got) != 0 {
		t.Errorf("took %v for ours", got)
	}
}

func TestJoinIsInOneOrderAndKeepsItsInput(t *testing.T) {
	t.Parallel()
	var jobs []*batchv1.Job
	for i, name := range []string{"azp-abcdefgh-7-3-0", "azp-abcdefgh-7-1-0", "azp-abcdefgh-7-2-0"} {
		jobs = append(jobs, makeJob(func(j *batchv1.Job) {
			j.Name, j.UID = name, types.UID(name)
			j.CreationTimestamp = at(i / 2)
		}))
	}
	names := func() (all []string) {
		for _, j := range joinAll(jobs, nil, nil) {
			all = append(all, j.Name)
		}
		return all
	}
	want := names()
	slices.Reverse(jobs)
	if diff := cmp.Diff(want, names()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"azp-abcdefgh-7-1-0", "azp-abcdefgh-7-3-0", "azp-abcdefgh-7-2-0"}, want); diff != "" {
		t.Error(diff)
	}
}

func TestTerminationMessagesAreCut(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ü", messageLimit)
	if got := oneLine(long); len(got) > messageLimit+len("…") || !strings.HasSuffix(got, "…") || strings.ContainsRune(got, '�') {
		t.Errorf("cut to %q", got)
	}
}
