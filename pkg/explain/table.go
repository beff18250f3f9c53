package explain

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// mostAlike is how many requests that wait for the same reason are shown one by one.
const mostAlike = 10

// WriteTable writes what the plans would do and why, for people.
func WriteTable(w io.Writer, pools []Pool) error {
	t := &text{w: w}
	for i, p := range pools {
		if i > 0 {
			t.line("")
		}
		p.table(t)
	}
	return t.err
}

func (p Pool) table(t *text) {
	view := p.Plan.View
	t.line("Pool %s (id %d) at %s: %d queued, %d assigned, %d running", p.Snapshot.Pool.Name, p.Snapshot.Pool.ID,
		stamp(p.Snapshot.Now), view.Queued, view.Assigned, view.Running)
	t.line("")
	t.columns("CLASS", "PRIORITY", "STARTING", "IDLE", "BUSY", "CAP", "WARM", "STATE")
	for _, c := range p.classes() {
		limit, waiting := "-", "-"
		if c.MaxAgents > 0 {
			limit = strconv.Itoa(c.MaxAgents)
		}
		if c.Warm != nil {
			waiting = fmt.Sprintf("%d of %d", c.Warm.Have, c.Warm.Want)
		}
		t.row(c.Name, c.Priority, c.Agents["starting"], c.Agents["idle"], c.Agents["busy"], limit, waiting, c.state())
	}
	t.end()
	t.line("")
	actions := p.actions()
	if len(actions) == 0 {
		t.line("Nothing to do.")
	} else {
		t.line("The next cycle would")
		t.columns("ACTION", "WHAT", "CLASS", "WHY")
		for _, a := range actions {
			t.row(a.Verb, a.what(), a.Class, a.Why)
		}
		t.end()
	}
	p.waiting(t)
}

// waiting shows the requests that get no Job of their own now.
func (p Pool) waiting(t *text) {
	if len(p.Plan.Skipped) == 0 {
		return
	}
	t.line("")
	t.line("Queued builds that get no Job of their own now")
	t.columns("REQUEST", "PIPELINE", "WAITED", "CLASS", "REASON", "DETAIL")
	type kind struct {
		class  string
		reason plan.SkipReason
	}
	shown, more := map[kind]int{}, []kind{}
	for _, skip := range p.Plan.Skipped {
		k := kind{skip.Class, skip.Reason}
		shown[k]++
		if shown[k] > mostAlike {
			if shown[k] == mostAlike+1 {
				more = append(more, k)
			}
			continue
		}
		t.row(skip.Request.ID, or(skip.Request.Definition.Name), since(p.Snapshot.Now, skip.Request.QueueTime), or(skip.Class), skip.Reason, or(skip.Detail))
	}
	t.end()
	for _, k := range more {
		t.line("and %d more with the reason %s (class %s)", shown[k]-mostAlike, k.reason, or(k.class))
	}
}

func (a action) what() string {
	switch {
	case a.Job != "":
		return a.Job
	case a.Request == agentpool.WarmRequest:
		return "an agent for no request"
	default:
		return "an agent for request " + strconv.FormatInt(a.Request, 10)
	}
}

// or shows that there is nothing.
func or(value string) string {
	if value == "" {
		return "-"
	}
	return value
}

func stamp(at time.Time) string { return at.UTC().Format(time.RFC3339) }

// since gives a span to the second.
func since(now, at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	return now.Sub(at).Truncate(time.Second).String()
}

// text writes lines and tables, and keeps the first error.
type text struct {
	w    io.Writer
	tabs *tabwriter.Writer
	err  error
}

func (t *text) line(format string, args ...any) {
	_, err := fmt.Fprintf(t.w, format+"\n", args...)
	t.err = errors.Join(t.err, err)
}

// columns begins a table.
func (t *text) columns(names ...string) {
	t.tabs = tabwriter.NewWriter(t.w, 0, 0, 2, ' ', 0)
	cells := make([]any, len(names))
	for i, name := range names {
		cells[i] = name
	}
	t.row(cells...)
}

func (t *text) row(cells ...any) {
	var line strings.Builder
	for i, cell := range cells {
		if i > 0 {
			line.WriteByte('\t')
		}
		line.WriteString(oneLine(fmt.Sprint(cell)))
	}
	_, err := fmt.Fprintln(t.tabs, "  "+line.String())
	t.err = errors.Join(t.err, err)
}

// oneLine keeps a value in its place, whatever a pipeline is called.
func oneLine(value string) string { return strings.Join(strings.Fields(value), " ") }

// end writes the table.
func (t *text) end() { t.err = errors.Join(t.err, t.tabs.Flush()) }
