package azuredevopstest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"
)

// Event is one line of the audit log; the package's documentation lists the
// events.
type Event struct {
	Seq       uint64    `json:"seq"`
	Time      time.Time `json:"time"`
	Event     string    `json:"event"`
	Pool      int       `json:"pool,omitempty"`
	RequestID int64     `json:"requestId,omitempty"`
	AgentID   int       `json:"agentId,omitempty"`
	AgentName string    `json:"agentName,omitempty"`
	By        string    `json:"by,omitempty"`
	Result    string    `json:"result,omitempty"`
	Detail    string    `json:"detail,omitempty"`
}

// byService is who does what nobody asked for: the tick.
const byService = "service"

// byControl is who does what the control API asked for.
const byControl = "control"

// auditLog numbers events, writes them, and keeps all but the numerous ones.
type auditLog struct {
	mu     sync.Mutex
	now    func() time.Time
	out    io.Writer
	seq    uint64
	events []Event
	err    error
	line   bytes.Buffer
}

// record writes one event. Events of requests are written but not kept, as a
// long run has millions of them.
func (l *auditLog) record(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seq++
	e.Seq = l.seq
	e.Time = l.now().UTC()
	if e.Event != "http" {
		l.events = append(l.events, e)
	}
	if l.out == nil || l.err != nil {
		return
	}
	l.line.Reset()
	if err := json.NewEncoder(&l.line).Encode(e); err != nil {
		l.err = fmt.Errorf("audit log: encode event %d: %w", e.Seq, err)
		return
	}
	if _, err := l.out.Write(l.line.Bytes()); err != nil {
		l.err = fmt.Errorf("audit log: write event %d: %w", e.Seq, err)
	}
}

// after returns the kept events whose number is above seq.
func (l *auditLog) after(seq uint64) []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, e := range l.events {
		if e.Seq > seq {
			return append([]Event(nil), l.events[i:]...)
		}
	}
	return []Event{}
}

// failure returns the first error of writing the log, if any.
func (l *auditLog) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}
