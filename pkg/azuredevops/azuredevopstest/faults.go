package azuredevopstest

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// FaultKind is a way in which the service can misbehave.
type FaultKind string

// The kinds of faults.
const (
	// FaultStatus answers with Fault.Status, 503 unless set, instead of
	// handling the request.
	FaultStatus FaultKind = "status"
	// FaultThrottle answers 429 with TF400733 and Retry-After.
	FaultThrottle FaultKind = "throttle"
	// FaultRetryAfter handles the request and adds Retry-After and the
	// rate-limit headers to its answer, as the service does before it blocks.
	FaultRetryAfter FaultKind = "retry-after"
	// FaultRateHeaders handles the request and adds rate-limit headers only.
	FaultRateHeaders FaultKind = "rate-headers"
	// FaultTruncate handles the request and cuts its answer in half, in
	// correct framing: nothing but the JSON itself tells.
	FaultTruncate FaultKind = "truncate"
	// FaultCut handles the request and breaks the connection in the middle of
	// its answer.
	FaultCut FaultKind = "cut"
	// FaultSlowBody handles the request and sends the answer in pieces,
	// Fault.Delay apart.
	FaultSlowBody FaultKind = "slow-body"
	// FaultReset breaks the connection and does not handle the request.
	FaultReset FaultKind = "reset"
	// FaultLostAnswer handles the request and then breaks the connection.
	FaultLostAnswer FaultKind = "lost-answer"
	// FaultHang handles nothing and answers nothing until the caller gives up.
	FaultHang FaultKind = "hang"
	// FaultHangAnswer handles the request and answers nothing until the caller gives up.
	FaultHangAnswer FaultKind = "hang-answer"
	// FaultLatency waits for Fault.Delay and then handles the request.
	FaultLatency FaultKind = "latency"
	// FaultHTML answers 200 with the sign-in page.
	FaultHTML FaultKind = "html"
	// FaultSignIn203, FaultSignIn302 and FaultSignIn401 answer as to a bad token.
	FaultSignIn203 FaultKind = "sign-in-203"
	FaultSignIn302 FaultKind = "sign-in-302"
	FaultSignIn401 FaultKind = "sign-in-401"
	// FaultMalformedRow puts rows that make no sense among those of a list.
	FaultMalformedRow FaultKind = "malformed-row"
	// FaultCountMismatch gives a list a count that is not that of its rows.
	FaultCountMismatch FaultKind = "count-mismatch"
	// FaultWrongShape answers with valid JSON of another shape.
	FaultWrongShape FaultKind = "wrong-shape"
)

func faultKinds() []FaultKind {
	return []FaultKind{
		FaultStatus, FaultThrottle, FaultRetryAfter, FaultRateHeaders, FaultTruncate, FaultCut, FaultSlowBody, FaultReset, FaultLostAnswer,
		FaultHang, FaultHangAnswer, FaultLatency, FaultHTML, FaultSignIn203, FaultSignIn302, FaultSignIn401, FaultMalformedRow, FaultCountMismatch, FaultWrongShape,
	}
}

// Fault is a misbehaviour to inject. Requests that match strike it; the first
// of several that match wins.
type Fault struct {
	// Operation is the operation's name, such as jobrequests.list; empty
	// matches all.
	Operation string `json:"operation,omitempty"`
	// Identity is the caller's name in the audit log; empty matches all.
	Identity string    `json:"identity,omitempty"`
	Kind     FaultKind `json:"kind"`
	// Skip lets so many matching requests pass first.
	Skip int `json:"skip,omitempty"`
	// Count is how often it strikes; 0 means for ever.
	Count int `json:"count,omitempty"`
	// Probability is the chance to strike, drawn from the seed; 0 means always.
	Probability float64 `json:"probability,omitempty"`
	// Status is for FaultStatus.
	Status int `json:"status,omitempty"`
	// Delay is for FaultLatency and FaultSlowBody; the default is 100 ms.
	Delay time.Duration `json:"delay,omitempty"`
	// RetryAfter is what that header says, in whole seconds; the default is 1 s.
	RetryAfter time.Duration `json:"retryAfter,omitempty"`
}

// FaultStatusReport is a fault with how often it struck.
type FaultStatusReport struct {
	ID     int   `json:"id"`
	Fault  Fault `json:"fault"`
	Struck int   `json:"struck"`
}

// faultSet holds the faults in force.
type faultSet struct {
	mu     sync.Mutex
	rng    *rand.Rand
	next   int
	active []*activeFault
}

type activeFault struct {
	Fault
	id, seen, struck int
}

func newFaultSet(rng *rand.Rand) *faultSet { return &faultSet{rng: rng, next: 1} }

// strike returns the fault that a request meets, or nil.
func (f *faultSet) strike(operation, identity string) *activeFault {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.active {
		if a.Operation != "" && a.Operation != operation ||
			a.Identity != "" && a.Identity != identity ||
			a.Count > 0 && a.struck >= a.Count {
			continue
		}
		a.seen++
		if a.seen <= a.Skip || a.Probability > 0 && f.rng.Float64() >= a.Probability {
			continue
		}
		a.struck++
		// A copy, as the counters go on changing.
		struck := *a
		return &struck
	}
	return nil
}

// Inject puts a fault in force and returns its number.
func (s *Server) Inject(f Fault) (int, error) {
	operations := []string{""}
	for _, r := range s.routes {
		operations = append(operations, r.operation)
	}
	switch {
	case !slices.Contains(faultKinds(), f.Kind):
		return 0, fmt.Errorf("inject fault: kind %q is none of %v", f.Kind, faultKinds())
	case !slices.Contains(operations, f.Operation):
		return 0, fmt.Errorf("inject fault: operation %q is none of %s", f.Operation, strings.Join(slices.Compact(operations), " "))
	case f.Probability < 0 || f.Probability > 1:
		return 0, fmt.Errorf("inject fault: probability %v: use 0 to 1", f.Probability)
	case f.Kind == FaultStatus && f.Status != 0 && (f.Status < 400 || f.Status > 599):
		return 0, fmt.Errorf("inject fault: status %d: use 400 to 599", f.Status)
	}
	if f.Delay == 0 {
		f.Delay = 100 * time.Millisecond
	}
	if f.RetryAfter == 0 {
		f.RetryAfter = time.Second
	}
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	a := &activeFault{Fault: f, id: s.faults.next}
	s.faults.next++
	s.faults.active = append(s.faults.active, a)
	return a.id, nil
}

// RemoveFault ends a fault.
func (s *Server) RemoveFault(id int) {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.active = slices.DeleteFunc(s.faults.active, func(a *activeFault) bool { return a.id == id })
}

// ClearFaults ends all faults.
func (s *Server) ClearFaults() {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.active = nil
}

// Faults returns the faults in force.
func (s *Server) Faults() []FaultStatusReport {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	all := []FaultStatusReport{}
	for _, a := range s.faults.active {
		all = append(all, FaultStatusReport{ID: a.id, Fault: a.Fault, Struck: a.struck})
	}
	return all
}

// spoil changes the body of a list.
func (a *activeFault) spoil(body []byte) []byte {
	body = []byte(strings.TrimPrefix(string(body), byteOrderMark))
	var wrapper struct {
		Count int               `json:"count"`
		Value []json.RawMessage `json:"value"`
	}
	if err := json.Unmarshal(body, &wrapper); err != nil {
		return body
	}
	switch a.Kind {
	case FaultCountMismatch:
		wrapper.Count++
	case FaultWrongShape:
		return []byte(mustJSON(wrapper.Value))
	default:
		bad := []string{
			`{"requestId":"none","queueTime":17,"demands":{"a":1}}`,
			`"row"`,
			`{"requestId":{"id":1}}`,
			`{"requestId":4711,"queueTime":"yesterday","demands":["npm"]}`,
		}
		// In the middle, so that a reader that stops at it loses rows.
		at := len(wrapper.Value) / 2
		row := json.RawMessage(bad[a.struck%len(bad)])
		wrapper.Value = slices.Insert(wrapper.Value, at, row)
		wrapper.Count = len(wrapper.Value)
	}
	return []byte(mustJSON(wrapper))
}
