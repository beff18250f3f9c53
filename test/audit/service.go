package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
)

// ServiceEvent is one line of the audit log of the fake Azure DevOps.
type ServiceEvent struct {
	Seq       int64     `json:"seq"`
	Time      time.Time `json:"time"`
	Event     string    `json:"event"`
	Pool      PoolRef   `json:"pool"`
	RequestID int64     `json:"requestId"`
	AgentID   int64     `json:"agentId"`
	AgentName string    `json:"agentName"`
	By        string    `json:"by"`
	Result    string    `json:"result"`
	Detail    string    `json:"detail"`
}

// The events of the service's audit log that the verdicts rest on. Others, such
// as "http", are read over.
const (
	eventQueued         = "request-queued"
	eventAssigned       = "request-assigned"
	eventReceived       = "request-received"
	eventFinished       = "request-finished"
	eventCanceled       = "request-canceled"
	eventAbandoned      = "request-abandoned"
	eventNoAgent        = "request-failed-no-agent"
	eventAgentAdded     = "agent-added"
	eventAgentDeleted   = "agent-deleted"
	eventAgentReplaced  = "agent-replaced"
	eventAgentUpdated   = "agent-updated"
	eventAgentDisabled  = "agent-disabled"
	eventAgentEnabled   = "agent-enabled"
	eventDeleteRefused  = "agent-delete-refused"
	eventSessionCreated = "session-created"
	eventSessionDeleted = "session-deleted"
	eventSessionExpired = "session-expired"
)

// PoolRef names a pool as the log does, by its number or by its name.
type PoolRef string

// UnmarshalJSON accepts a number as well as a string.
func (p *PoolRef) UnmarshalJSON(data []byte) error {
	data = bytes.TrimSpace(data)
	if bytes.Equal(data, []byte("null")) {
		*p = ""
		return nil
	}
	if len(data) > 0 && data[0] == '"' {
		var text string
		if err := json.Unmarshal(data, &text); err != nil {
			return fmt.Errorf("pool: %w", err)
		}
		*p = PoolRef(text)
		return nil
	}
	var number int64
	if err := json.Unmarshal(data, &number); err != nil {
		return fmt.Errorf("pool %s: neither a number nor a string: %w", data, err)
	}
	*p = PoolRef(strconv.FormatInt(number, 10))
	return nil
}

// ReadServiceLog reads the service's audit log to its end. A line that does not
// parse is an error: a verdict must not rest on half a log.
func ReadServiceLog(r io.Reader) ([]ServiceEvent, error) {
	var events []ServiceEvent
	err := readLines(r, func(line int, data []byte) error {
		var event ServiceEvent
		if err := json.Unmarshal(data, &event); err != nil {
			return fmt.Errorf("service audit log, line %d: %w", line, err)
		}
		if event.Event == "" || event.Time.IsZero() {
			return fmt.Errorf("service audit log, line %d: has no event or no time: is this the log of the fake Azure DevOps?", line)
		}
		events = append(events, event)
		return nil
	})
	return events, err
}

// readLines hands every non-empty line to visit, whatever its length, with its
// number counted from 1. A last line without a line break is left out: the
// server is still writing it, so it tells of something after the run.
func readLines(r io.Reader, visit func(line int, data []byte) error) error {
	buffered := bufio.NewReaderSize(r, 1<<16)
	for line := 1; ; line++ {
		data, err := buffered.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", line, err)
		}
		if text := bytes.TrimSpace(data); len(text) > 0 {
			if err := visit(line, text); err != nil {
				return err
			}
		}
	}
}
