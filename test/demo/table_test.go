package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

func moment(second int) time.Time { return time.Unix(1000, 0).Add(time.Duration(second) * time.Second) }

func buildAt(id int64, state, result string) azuredevopstest.BuildStatus {
	build := azuredevopstest.BuildStatus{RequestID: id, Name: fmt.Sprintf("build-%02d", id), State: state, Result: result, Queued: moment(0)}
	if result != "" {
		build.Received, build.Finished = moment(2), moment(5+int(id))
	}
	return build
}

// jobWith makes a Job and its pod, whose agent container is as given.
func jobWith(uid string, status *corev1.ContainerStatus) (batchv1.Job, corev1.Pod) {
	job := batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: uid, UID: types.UID(uid)}}
	pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{OwnerReferences: []metav1.OwnerReference{{UID: job.UID}}}}
	if status != nil {
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{*status}
	}
	return job, pod
}

func TestJobCounts(t *testing.T) {
	t.Parallel()
	yes, no := true, false
	terminated := corev1.ContainerStatus{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}}
	for name, test := range map[string]struct {
		status *corev1.ContainerStatus
		edit   func(*batchv1.Job)
		want   jobCounts
	}{
		"no container yet":     {nil, nil, jobCounts{starting: 1}},
		"not started":          {&corev1.ContainerStatus{Started: &no}, nil, jobCounts{starting: 1}},
		"never probed":         {&corev1.ContainerStatus{}, nil, jobCounts{starting: 1}},
		"waiting for a build":  {&corev1.ContainerStatus{Started: &yes, Ready: true}, nil, jobCounts{waiting: 1}},
		"building":             {&corev1.ContainerStatus{Started: &yes}, nil, jobCounts{building: 1}},
		"container terminated": {&terminated, nil, jobCounts{ending: 1}},
		"complete": {&corev1.ContainerStatus{Started: &yes}, func(job *batchv1.Job) {
			job.Status.Conditions = []batchv1.JobCondition{{Type: batchv1.JobComplete, Status: corev1.ConditionTrue}}
		}, jobCounts{ending: 1}},
		"not complete yet": {&corev1.ContainerStatus{Started: &yes}, func(job *batchv1.Job) {
			job.Status.Conditions = []batchv1.JobCondition{{Type: batchv1.JobComplete, Status: corev1.ConditionFalse}}
		}, jobCounts{building: 1}},
		"being deleted": {&corev1.ContainerStatus{Started: &yes}, func(job *batchv1.Job) {
			now := metav1.Now()
			job.DeletionTimestamp = &now
		}, jobCounts{ending: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			job, pod := jobWith("a", test.status)
			if test.edit != nil {
				test.edit(&job)
			}
			var s snapshot
			s.addJobs([]batchv1.Job{job}, []corev1.Pod{pod})
			if s.jobs != test.want {
				t.Errorf("counts are %+v, want %+v", s.jobs, test.want)
			}
		})
	}
}

func TestAgentCounts(t *testing.T) {
	t.Parallel()
	var s snapshot
	s.addAgent(azuredevopstest.AgentStatus{})
	s.addAgent(azuredevopstest.AgentStatus{Name: "azp-placeholder-abcdefgh-java-1a2b3c"})
	s.addAgent(azuredevopstest.AgentStatus{Online: true})
	s.addAgent(azuredevopstest.AgentStatus{Online: true, RequestID: 4})
	if want := (agentCounts{registered: 3, online: 2, busy: 1}); s.agents != want {
		t.Errorf("counts are %+v, want %+v", s.agents, want)
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	s := snapshot{elapsed: 12340 * time.Millisecond}
	for id := int64(1); id <= 12; id++ {
		build := buildAt(id, "queued", "")
		if id <= 6 {
			build = buildAt(id, "finished", "succeeded")
		}
		s.builds = append(s.builds, build)
	}
	all := table(s, 200, 40)
	if len(all) != 3+12 {
		t.Fatalf("%d lines for 12 builds:\n%s", len(all), strings.Join(all, "\n"))
	}
	if !strings.Contains(all[0], "12.3s  builds: 6 waiting, 0 running, 6 ended") {
		t.Errorf("the first line is %q", all[0])
	}
	if !strings.Contains(all[3], "build-01") || !strings.Contains(all[3], "succeeded") || !strings.Contains(all[3], "2.0s  4.0s") {
		t.Errorf("the first build's line is %q", all[3])
	}
	few := table(s, 200, 11)
	if len(few) > 11 {
		t.Fatalf("%d lines where 11 fit:\n%s", len(few), strings.Join(few, "\n"))
	}
	text := strings.Join(few, "\n")
	if !strings.Contains(text, "… and 5 more") || strings.Contains(text, "build-05") || !strings.Contains(text, "build-06") || !strings.Contains(text, "build-12") {
		t.Errorf("not the earliest ended are left out:\n%s", text)
	}
	// A width to which everything fits: the longest names that a demo has.
	s.builds[0].Name, s.builds[0].AgentName = "cancel-20", "azp-abcdefgh-20-2345-1"
	s.wanted = map[string]string{"cancel-20": "java"}
	s.made = map[string]madeJob{"azp-abcdefgh-20-2345-1": {class: "general"}}
	fields := strings.Fields(table(s, 80, 40)[3])
	if want := []string{"1", "cancel-20", "succeeded", "java", "general", "2.0s", "4.0s", "azp-abcdefgh-20-2345-1"}; !slices.Equal(fields, want) {
		t.Errorf("the first build's line shows %q, want %q", fields, want)
	}
	if fields := strings.Fields(table(s, 80, 40)[14]); !slices.Equal(fields, []string{"12", "build-12", "queued", "-", "-", "-", "-"}) {
		t.Errorf("the line of a build that waits, whose class is not known, shows %q", fields)
	}
	for _, line := range table(s, 40, 40) {
		if width := len([]rune(line)); width > 39 {
			t.Errorf("a line of %d characters on a terminal of 40: %q", width, line)
		}
	}
}

func TestRedraw(t *testing.T) {
	t.Parallel()
	if got, want := redraw([]string{"a", "b"}, 0), "a\x1b[K\nb\x1b[K\n\x1b[J"; got != want {
		t.Errorf("first: %q, want %q", got, want)
	}
	if got, want := redraw([]string{"a"}, 2), "\x1b[2A\ra\x1b[K\n\x1b[J"; got != want {
		t.Errorf("again: %q, want %q", got, want)
	}
}

func TestChanges(t *testing.T) {
	t.Parallel()
	before := snapshot{builds: []azuredevopstest.BuildStatus{buildAt(1, "queued", ""), buildAt(2, "queued", "")}}
	running := buildAt(2, "running", "")
	running.AgentName = "a-7"
	before.wanted = map[string]string{"build-02": "java", "build-03": "general"}
	now := snapshot{elapsed: time.Second, wanted: before.wanted, made: map[string]madeJob{"a-7": {class: "heavy"}}, builds: []azuredevopstest.BuildStatus{buildAt(1, "queued", ""), running, buildAt(3, "finished", "canceled")}}
	lines := strings.Split(strings.TrimSuffix(changes(before, now), "\n"), "\n")
	for i := range lines {
		lines[i] = strings.Join(strings.Fields(lines[i]), " ")
	}
	want := []string{
		"1.0s request 2 build-02 for java running on a-7 (heavy)",
		"1.0s request 3 build-03 for general canceled",
		"1.0s builds: 1 waiting, 1 running, 1 ended | Jobs: 0 starting, 0 waiting, 0 building, 0 ending | agents: 0 registered, 0 online, 0 busy",
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Error(diff)
	}
	if got := changes(now, now); got != "" {
		t.Errorf("without a change: %q", got)
	}
}
