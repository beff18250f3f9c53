package azuredevopstest

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/google/uuid"
)

// updateBody is what a listener sends of its request: nothing but the id to
// renew the lock, a result to finish it.
type updateBody struct {
	RequestID  int64           `json:"requestId"`
	FinishTime string          `json:"finishTime"`
	Result     json.RawMessage `json:"result"`
}

// updateRequest renews a lock or finishes a request.
func (c *call) updateRequest() error {
	id, err := c.number("requestId")
	if err != nil {
		return err
	}
	token, _ := c.param("lockToken")
	if lock, err := c.guid(token, "lockToken"); err != nil {
		return err
	} else if lock != uuid.Nil {
		return fail(http.StatusConflict, "TaskAgentJobTokenExpiredException", "The lock token %s does not match the job request %d.", lock, id)
	}
	var body updateBody
	if err := c.decode(&body); err != nil {
		return err
	}
	if body.RequestID != 0 && body.RequestID != id {
		return badRequest("The requestId in the body must be %d.", id)
	}
	ended, err := body.result()
	if err != nil {
		return err
	}
	s := c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	a, err := c.own()
	if err != nil {
		return err
	}
	r := s.requests[id]
	switch {
	case r == nil || r.pool != a.pool:
		return requestNotFound(id)
	case r.agentID != a.id:
		return accessDenied(c.who.name, "Listen", "of job request "+c.vars["requestId"])
	case r.result != "":
		return fail(http.StatusConflict, "TaskAgentJobTokenExpiredException", "The lock on the job request %d has expired: it is finished.", id)
	}
	now := time.Now()
	s.receive(r, now)
	if ended != "" {
		s.finish(r, ended, "request-finished", c.who.name, "")
		s.assignSecond(a, now)
		return c.reply(http.StatusOK, c.row(r, r.progress, nil))
	}
	r.lockedUntil = now.Add(s.opts.LockDuration)
	return c.reply(http.StatusOK, c.row(r, r.progress, nil))
}

// result is the result that a body carries, or "" when it only renews.
func (b *updateBody) result() (string, error) {
	if len(b.Result) == 0 || string(b.Result) == "null" {
		if b.FinishTime != "" {
			// The service omits defaults: a result of 0 is succeeded.
			return ResultSucceeded, nil
		}
		return "", nil
	}
	return resultOf(b.Result)
}
