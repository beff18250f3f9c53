// Package explain shows people what a plan would do and why. It is pure: it turns
// a snapshot and its plan into text or JSON.
package explain

import (
	"io"

	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// Pool is one pool's snapshot with the plan that was made from it.
type Pool struct {
	Snapshot plan.Snapshot
	Plan     plan.Plan
}

// WriteTable writes what the plans would do and why, for people.
func WriteTable(w io.Writer, pools []Pool) error { return nil }

// WriteJSON writes the same for programs.
func WriteJSON(w io.Writer, pools []Pool) error { return nil }

// WriteRequest writes why a request waits, and which class serves it or comes
// closest. Request 0 is every queued one. It reports whether the request was found.
func WriteRequest(w io.Writer, pools []Pool, request int64) (found bool, err error) {
	return false, nil
}
