package audit

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
)

// Verdict is what a finding is about.
type Verdict string

// The verdicts, in the order in which a report shows them.
const (
	VerdictEvidence    Verdict = "evidence"
	VerdictDuplicate   Verdict = "duplicate"
	VerdictLost        Verdict = "lost"
	VerdictLeaked      Verdict = "leaked"
	VerdictRunTwice    Verdict = "run-twice"
	VerdictAgentReused Verdict = "agent-reused"
	VerdictPlaceholder Verdict = "placeholder"
	VerdictTouched     Verdict = "touched"
	VerdictRights      Verdict = "rights"
)

// Finding is one thing that is not as promised, with its evidence.
type Finding struct {
	Verdict Verdict `json:"verdict"`
	Text    string  `json:"text"`
}

// Quantiles are by nearest rank, in seconds.
type Quantiles struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

// Report is what the auditor says about a run.
type Report struct {
	Builds         int            `json:"builds"`
	Succeeded      int            `json:"succeeded"`
	Failed         int            `json:"failed"`
	Canceled       int            `json:"canceled"`
	JobsCreated    int            `json:"jobs_created"`
	Duplicates     int            `json:"duplicates"`
	Lost           int            `json:"lost"`
	Killed         int            `json:"killed"` // Builds that went with an agent which somebody ended from outside.
	Leaked         map[string]int `json:"leaked"` // By kind; the usual kinds are there with 0 too.
	BuildsRunTwice int            `json:"builds_run_twice"`
	AgentsReused   int            `json:"agents_reused"`
	Placeholders   int            `json:"placeholders_online"` // That came online, which none ever does.
	Touched        int            `json:"touched"`             // Agents and objects changed by somebody whose they are not.
	RightsEarly    int            `json:"rights_early"`
	RightsLate     int            `json:"rights_late"`
	QueueToJob     Quantiles      `json:"queue_to_job_seconds"`
	QueueToAgent   Quantiles      `json:"queue_to_agent_seconds"`
	Findings       []Finding      `json:"findings"`

	longestRights time.Duration
}

// Clean tells whether nothing at all was found.
func (r Report) Clean() bool { return len(r.Findings) == 0 }

// LeakedTotal is the number of leaked things of all kinds.
func (r Report) LeakedTotal() int {
	total := 0
	for _, count := range r.Leaked {
		total += count
	}
	return total
}

// WriteText writes the report for people: the figures, then every finding.
func (r Report) WriteText(w io.Writer) error {
	var text strings.Builder
	fmt.Fprintf(&text, "%d builds: %d succeeded, %d failed, %d canceled; %d Jobs created\n", r.Builds, r.Succeeded, r.Failed, r.Canceled, r.JobsCreated)
	if r.Killed > 0 {
		fmt.Fprintf(&text, "%d builds went with agents that were killed\n", r.Killed)
	}
	fmt.Fprintf(&text, "duplicates %d, lost %d, leaked %d", r.Duplicates, r.Lost, r.LeakedTotal())
	kinds := make([]string, 0, len(r.Leaked))
	for kind, count := range r.Leaked {
		if count > 0 {
			kinds = append(kinds, fmt.Sprintf("%s %d", kind, count))
		}
	}
	if slices.Sort(kinds); len(kinds) > 0 {
		fmt.Fprintf(&text, " (%s)", strings.Join(kinds, ", "))
	}
	fmt.Fprintf(&text, "\nbuilds run twice %d, agents reused %d, rights ended early %d, late %d (longest kept within the limit: %s)\n",
		r.BuildsRunTwice, r.AgentsReused, r.RightsEarly, r.RightsLate, r.longestRights.Round(time.Millisecond))
	fmt.Fprintf(&text, "placeholders online %d, others' agents or objects touched %d\n", r.Placeholders, r.Touched)
	fmt.Fprintf(&text, "queue to Job p50 %.2f s, p99 %.2f s; queue to agent p50 %.2f s, p99 %.2f s\n", r.QueueToJob.P50, r.QueueToJob.P99, r.QueueToAgent.P50, r.QueueToAgent.P99)
	for _, finding := range r.Findings {
		fmt.Fprintf(&text, "%s: %s\n", finding.Verdict, finding.Text)
	}
	if _, err := io.WriteString(w, text.String()); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func quantiles(samples []time.Duration) Quantiles {
	if len(samples) == 0 {
		return Quantiles{}
	}
	slices.Sort(samples)
	rank := func(q float64) float64 {
		index := max(int(math.Ceil(q*float64(len(samples))))-1, 0)
		return math.Round(samples[index].Seconds()*1000) / 1000
	}
	return Quantiles{P50: rank(0.50), P99: rank(0.99)}
}
