package main

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

// snapshot is the state of the system at one moment.
type snapshot struct {
	elapsed time.Duration
	builds  []azuredevopstest.BuildStatus
	jobs    jobCounts
	agents  agentCounts
	wanted  map[string]string  // The class that a build's demands call for, by the build's name.
	made    map[string]madeJob // By name, which is the agent's too.
}

// headLines are the table's lines before its first build.
const headLines = 3

// jobCounts counts the Jobs in the agents' namespace by what their pods show.
type jobCounts struct{ starting, waiting, building, ending int }

// agentCounts counts the pool's registrations but for the placeholders, of which
// there is always one for each class; online ones are busy or not.
type agentCounts struct{ registered, online, busy int }

func (s *snapshot) addAgent(agent azuredevopstest.AgentStatus) {
	if strings.HasPrefix(agent.Name, placeholderPrefix) {
		return
	}
	s.agents.registered++
	if agent.Online {
		s.agents.online++
	}
	if agent.RequestID != 0 {
		s.agents.busy++
	}
}

// addJobs sorts Jobs by the state of their pods' agent containers: not started,
// ready (waiting for a build), started and not ready (building), ended.
func (s *snapshot) addJobs(jobs []batchv1.Job, pods []corev1.Pod) {
	podOf := map[string]*corev1.Pod{}
	for i := range pods {
		for _, owner := range pods[i].OwnerReferences {
			podOf[string(owner.UID)] = &pods[i]
		}
	}
	for i := range jobs {
		pod := podOf[string(jobs[i].UID)]
		var status *corev1.ContainerStatus
		if pod != nil && len(pod.Status.ContainerStatuses) > 0 {
			status = &pod.Status.ContainerStatuses[0]
		}
		switch {
		case jobs[i].DeletionTimestamp != nil || finished(jobs[i]) || status != nil && status.State.Terminated != nil:
			s.jobs.ending++
		case status == nil || status.Started == nil || !*status.Started:
			s.jobs.starting++
		case status.Ready:
			s.jobs.waiting++
		default:
			s.jobs.building++
		}
	}
}

func finished(job batchv1.Job) bool {
	return slices.ContainsFunc(job.Status.Conditions, func(condition batchv1.JobCondition) bool {
		return condition.Status == corev1.ConditionTrue && (condition.Type == batchv1.JobComplete || condition.Type == batchv1.JobFailed)
	})
}

// buildCounts counts the builds that no agent has yet, the running and the
// finished ones.
func (s *snapshot) buildCounts() (waiting, running, done int) {
	for _, build := range s.builds {
		switch stateOf(build) {
		case "queued", "assigned":
			waiting++
		case "running":
			running++
		default:
			done++
		}
	}
	return waiting, running, done
}

// stateOf is a build's state, or its result once it has one.
func stateOf(build azuredevopstest.BuildStatus) string {
	if build.Result != "" {
		return build.Result
	}
	return build.State
}

// status is the counts in one line, and summary in two that fit a terminal.
func (s *snapshot) status() string { return strings.Join(s.summary(), " |") }

func (s *snapshot) summary() []string {
	waiting, running, done := s.buildCounts()
	return []string{
		fmt.Sprintf("%7.1fs  builds: %d waiting, %d running, %d ended", s.elapsed.Seconds(), waiting, running, done),
		fmt.Sprintf(" Jobs: %d starting, %d waiting, %d building, %d ending | agents: %d registered, %d online, %d busy",
			s.jobs.starting, s.jobs.waiting, s.jobs.building, s.jobs.ending, s.agents.registered, s.agents.online, s.agents.busy),
	}
}

// table gives the lines that show a snapshot within a width and a number of
// lines. Where the builds do not all fit, those that ended earliest are left out
// and counted.
func table(s snapshot, width, height int) []string {
	builds := slices.Clone(s.builds)
	slices.SortStableFunc(builds, func(a, b azuredevopstest.BuildStatus) int { return cmp.Compare(a.RequestID, b.RequestID) })
	hidden := 0
	if room := max(height-headLines, 1); len(builds) > room {
		hidden = len(builds) - (room - 1)
		byEnd := slices.Clone(builds)
		slices.SortStableFunc(byEnd, func(a, b azuredevopstest.BuildStatus) int {
			return cmp.Or(compareBool(a.Result == "", b.Result == ""), a.Finished.Compare(b.Finished))
		})
		gone := map[int64]bool{}
		for _, build := range byEnd[:hidden] {
			gone[build.RequestID] = true
		}
		builds = slices.DeleteFunc(builds, func(build azuredevopstest.BuildStatus) bool { return gone[build.RequestID] })
	}
	lines := append(s.summary(),
		fmt.Sprintf(rowForm, "request", "build", "state", "class", "ran on", "waited", "ran", "agent"))
	lines[1] = " " + lines[1]
	for _, build := range builds {
		lines = append(lines, s.row(build))
	}
	if hidden > 0 {
		lines = append(lines, fmt.Sprintf("  … and %d more", hidden))
	}
	for i := range lines {
		lines[i] = cut(lines[i], width-1)
	}
	return lines
}

// rowForm has an agent's whole name fit a terminal of 80 characters.
const rowForm = "%-7v %-9s %-9s %-7s %-7s %6s %5s %s"

// row shows a build: its class is the one that its demands call for, and it ran on
// an agent of one that may offer more.
func (s *snapshot) row(build azuredevopstest.BuildStatus) string {
	line := fmt.Sprintf(rowForm, build.RequestID, build.Name, stateOf(build), known(s.wanted[build.Name]), known(s.made[build.AgentName].class),
		span(build.Queued, build.Received), span(build.Received, build.Finished), build.AgentName)
	return strings.TrimRight(line, " ")
}

func known(class string) string {
	if class == "" {
		return "-"
	}
	return class
}

// span is the time between two moments, as far as both are there.
func span(from, to time.Time) string {
	if from.IsZero() || to.IsZero() {
		return "-"
	}
	return fmt.Sprintf("%.1fs", to.Sub(from).Seconds())
}

// redraw gives what a terminal must receive to show lines in the place of as
// many as were drawn before.
func redraw(lines []string, before int) string {
	var text strings.Builder
	if before > 0 {
		fmt.Fprintf(&text, "\x1b[%dA\r", before)
	}
	for _, line := range lines {
		text.WriteString(line + "\x1b[K\n")
	}
	text.WriteString("\x1b[J")
	return text.String()
}

// changes gives a line for each build whose state is not what it was, and the
// counts if there was any.
func changes(before, now snapshot) string {
	was := map[int64]string{}
	for _, build := range before.builds {
		was[build.RequestID] = stateOf(build)
	}
	var text strings.Builder
	for _, build := range now.builds {
		if state := stateOf(build); was[build.RequestID] != state {
			fmt.Fprintf(&text, "%7.1fs  request %d %-9s for %-7s %s%s\n", now.elapsed.Seconds(), build.RequestID, build.Name, known(now.wanted[build.Name]), state, now.on(build.AgentName))
		}
	}
	if text.Len() > 0 || before.jobs != now.jobs {
		fmt.Fprintf(&text, "%s\n", now.status())
	}
	return text.String()
}

func (s *snapshot) on(agent string) string {
	if agent == "" {
		return ""
	}
	return fmt.Sprintf(" on %s (%s)", agent, known(s.made[agent].class))
}

// cut shortens a line to a number of characters.
func cut(line string, width int) string {
	if characters := []rune(line); len(characters) > width && width > 0 {
		return string(characters[:width-1]) + "…"
	}
	return line
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	default:
		return -1
	}
}

// splitLines gives the lines of a text without their ends.
func splitLines(text string) iter.Seq[string] {
	return strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n")
}
