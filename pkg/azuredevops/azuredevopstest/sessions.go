package azuredevopstest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/google/uuid"
)

// sessionJSON is a session in requests and answers.
type sessionJSON struct {
	SessionID          string            `json:"sessionId,omitempty"`
	OwnerName          string            `json:"ownerName"`
	Agent              agentJSON         `json:"agent"`
	SystemCapabilities map[string]string `json:"systemCapabilities,omitempty"`
}

type sessionBody struct {
	OwnerName string `json:"ownerName"`
	Agent     struct {
		ID            int    `json:"id"`
		Name          string `json:"name"`
		Version       string `json:"version"`
		OSDescription string `json:"osDescription"`
	} `json:"agent"`
	SystemCapabilities *map[string]string `json:"systemCapabilities"`
}

// The kinds of messages an agent gets.
const (
	messageJob     = "PipelineAgentJobRequest"
	messageCancel  = "JobCancellation"
	messageRefresh = "AgentRefresh"
)

// own finds the calling agent and checks that the path speaks of its pool. The
// caller holds the mutex.
func (c *call) own() (*agent, error) {
	p, err := c.pool()
	if err != nil {
		return nil, err
	}
	if a := c.who.agent; p.agents[a.id] == a {
		return a, nil
	}
	return nil, agentNotFound(p.id, fmt.Sprint(c.who.agent.id))
}

func (c *call) createSession() error {
	var body sessionBody
	if err := c.decode(&body); err != nil {
		return err
	}
	s := c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	a, err := c.own()
	if err != nil {
		return err
	}
	now := time.Now()
	switch {
	case body.OwnerName == "":
		return badRequest("Value cannot be null or empty. Parameter name: session.OwnerName")
	case body.Agent.ID != a.id:
		return accessDenied(c.who.name, "Listen", a.pool.name)
	case a.session != nil:
		s.agentEvent("session-refused", a, c.who.name, "owner "+body.OwnerName)
		return fail(http.StatusConflict, "TaskAgentSessionConflictException",
			"The agent %s already has an active session for owner %s.", a.name, a.session.owner)
	}
	if body.Agent.Version != "" {
		a.version = body.Agent.Version
	}
	if body.Agent.OSDescription != "" {
		a.osDescription = body.Agent.OSDescription
	}
	// An empty set counts: that is what an agent sends which was told to skip
	// the scan, and it then matches next to nothing.
	if body.SystemCapabilities != nil {
		a.systemCapabilities = maps.Clone(*body.SystemCapabilities)
	}
	a.updating = ""
	a.fold()
	a.session = newSession(a, s.newID(), body.OwnerName, now)
	a.statusChanged = now
	s.sessions[a.session.id] = a.session
	s.agentEvent("session-created", a, c.who.name, "version "+a.version)
	return c.reply(http.StatusOK, sessionJSON{
		SessionID: a.session.id.String(),
		OwnerName: a.session.owner,
		Agent:     c.agentReference(a),
	})
}

// endSession closes an agent's session, if there is one. What it had not
// fetched is gone with it. The caller holds the mutex.
func (s *Server) endSession(a *agent, event, by, detail string) {
	if a.session == nil {
		return
	}
	a.session.ended = true
	a.session.wake()
	delete(s.sessions, a.session.id)
	a.session = nil
	a.statusChanged = time.Now()
	s.agentEvent(event, a, by, detail)
}

// session finds the caller's session. The caller holds the mutex.
func (c *call) session(text string) (*session, error) {
	a, err := c.own()
	if err != nil {
		return nil, err
	}
	id, err := c.guid(text, "sessionId")
	if err != nil {
		return nil, err
	}
	session := c.srv.sessions[id]
	if session == nil || session.agent != a {
		return nil, sessionExpired(id)
	}
	return session, nil
}

func sessionExpired(id uuid.UUID) *serviceError {
	return fail(http.StatusNotFound, "TaskAgentSessionExpiredException",
		"The session %s has expired or does not exist.", id)
}

func (c *call) deleteSession() error {
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	session, err := c.session(c.vars["sessionId"])
	if err != nil {
		return err
	}
	c.srv.endSession(session.agent, "session-deleted", c.who.name, "")
	return c.replyEmpty(http.StatusOK)
}

// messageJSON is a message as the agent gets it. Without an encryption key in
// the session the body is plain.
type messageJSON struct {
	MessageID   int64  `json:"messageId"`
	MessageType string `json:"messageType"`
	Body        string `json:"body"`
}

// getMessage holds the poll until there is a message or its time is up. A
// message is given out again and again until it is deleted or the caller says
// by lastMessageId that it has it.
func (c *call) getMessage() error {
	s := c.srv
	last, _, err := c.count("lastMessageId")
	if err != nil {
		return err
	}
	text, _ := c.param("sessionId")

	s.mu.Lock()
	session, err := c.session(text)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	session.polls++
	session.lastPoll = time.Now()
	m := session.next(int64(last))
	changed := session.changed
	s.mu.Unlock()

	defer func() {
		s.mu.Lock()
		session.polls--
		session.lastPoll = time.Now()
		s.mu.Unlock()
	}()
	timeout := time.NewTimer(s.opts.MessageWait)
	defer timeout.Stop()
	for m == nil {
		select {
		case <-c.r.Context().Done():
			return nil
		case <-s.ctx.Done():
			return fail(http.StatusServiceUnavailable, "VssServiceException", "The service is shutting down.")
		case <-timeout.C:
			return c.replyEmpty(http.StatusAccepted)
		case <-changed:
		}
		s.mu.Lock()
		if session.ended {
			_, gone := c.own()
			s.mu.Unlock()
			if gone != nil {
				return gone
			}
			return sessionExpired(session.id)
		}
		m = session.next(int64(last))
		changed = session.changed
		s.mu.Unlock()
	}
	return c.reply(http.StatusOK, messageJSON{MessageID: m.id, MessageType: m.kind, Body: m.body})
}

// next marks the first message after one as delivered and returns it.
func (s *session) next(after int64) *message {
	for _, m := range s.messages {
		if m.id > after {
			m.delivered = true
			return m
		}
	}
	return nil
}

func (c *call) deleteMessage() error {
	s := c.srv
	id, err := c.number("messageId")
	if err != nil {
		return err
	}
	text, _ := c.param("sessionId")
	s.mu.Lock()
	defer s.mu.Unlock()
	session, err := c.session(text)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(session.messages, func(m *message) bool { return m.id == id })
	if i < 0 {
		return fail(http.StatusNotFound, "TaskAgentMessageNotFoundException", "The message %d could not be found.", id)
	}
	m := session.messages[i]
	session.messages = slices.Delete(session.messages, i, i+1)
	if m.request != nil && m.kind == messageJob {
		s.receive(m.request, time.Now())
	}
	return c.replyEmpty(http.StatusOK)
}

// drop takes back a message that has not been fetched.
func (s *session) drop(m *message) {
	s.messages = slices.DeleteFunc(s.messages, func(other *message) bool { return other == m })
}

// cancelBody and refreshBody are the bodies of two kinds of messages; times
// are .NET time spans.
type cancelBody struct {
	JobID   string `json:"jobId"`
	Timeout string `json:"timeout"`
}

type refreshBody struct {
	AgentID       int    `json:"agentId"`
	Timeout       string `json:"timeout"`
	TargetVersion string `json:"targetVersion"`
}

// timeSpan writes a duration as .NET does: hours, minutes, seconds.
func timeSpan(d time.Duration) string {
	return fmt.Sprintf("%02d:%02d:%02d", int(d.Hours()), int(d.Minutes())%60, int(d.Seconds())%60)
}

// mustJSON encodes what cannot fail to encode: structs of strings and numbers.
func mustJSON(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("azuredevopstest: encode %T: %v", v, err))
	}
	return string(text)
}
