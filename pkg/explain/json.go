package explain

import (
	"encoding/json"
	"io"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// document is what "scaler plan -o json" writes. Fields are only ever added to it.
type document struct {
	Pools []poolDocument `json:"pools"`
}

type poolDocument struct {
	Pool    string    `json:"pool"`
	ID      int       `json:"id"`
	At      time.Time `json:"at"`
	Queued  int       `json:"queued"`
	Running int       `json:"running"`
	Classes []class   `json:"classes"`
	Actions []action  `json:"actions"`
	Waiting []waiting `json:"waiting"`
}

// waiting is a queued request that gets no Job of its own now.
type waiting struct {
	Request  int64     `json:"request"`
	Pipeline string    `json:"pipeline,omitempty"`
	Queued   time.Time `json:"queuedAt"`
	Demands  []string  `json:"demands,omitempty"`
	Class    string    `json:"class,omitempty"`
	Reason   string    `json:"reason"`
	Detail   string    `json:"detail,omitempty"`
	Closest  string    `json:"closestClass,omitempty"`
	Missing  []string  `json:"missing,omitempty"`
}

// WriteJSON writes what the plans would do and why, for programs: one object with the
// pools, times as RFC 3339 has them.
func WriteJSON(w io.Writer, pools []Pool) error {
	d := document{Pools: []poolDocument{}}
	for _, p := range pools {
		one := poolDocument{
			Pool: p.Snapshot.Pool.Name, ID: p.Snapshot.Pool.ID, At: p.Snapshot.Now.UTC(),
			Queued: p.Plan.View.Queued, Running: p.Plan.View.Running,
			Classes: p.classes(), Actions: p.actions(), Waiting: []waiting{},
		}
		for _, skip := range p.Plan.Skipped {
			one.Waiting = append(one.Waiting, waiting{
				Request: skip.Request.ID, Pipeline: skip.Request.Definition.Name, Queued: skip.Request.QueueTime.UTC(),
				Demands: demands(skip.Request), Class: skip.Class, Reason: string(skip.Reason), Detail: skip.Detail,
				Closest: skip.Closest, Missing: skip.Missing,
			})
		}
		d.Pools = append(d.Pools, one)
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(d)
}

// demands gives what a request demands as the service writes it.
func demands(request agentpool.JobRequest) []string {
	var texts []string
	for _, demand := range request.Demands {
		texts = append(texts, demand.String())
	}
	return append(texts, request.UnknownDemands...)
}
