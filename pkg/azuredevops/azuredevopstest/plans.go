package azuredevopstest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"

	"github.com/google/uuid"
)

// The task that runs a script on the command line, as jobs refer to it.
const (
	cmdLineID      = "d9bafed4-0b18-4f58-968d-86655b4d2ce9"
	cmdLineVersion = "2.250.1"
)

// jobMessage is the body of a job's message.
type jobMessage struct {
	MessageType    string              `json:"messageType"`
	Plan           planJSON            `json:"plan"`
	Timeline       timelineJSON        `json:"timeline"`
	JobID          string              `json:"jobId"`
	JobDisplayName string              `json:"jobDisplayName"`
	JobName        string              `json:"jobName"`
	RequestID      int64               `json:"requestId"`
	LockedUntil    string              `json:"lockedUntil"`
	Resources      resourcesJSON       `json:"resources"`
	Variables      map[string]variable `json:"variables"`
	Steps          []stepJSON          `json:"steps"`
}

type planJSON struct {
	ScopeIdentifier string    `json:"scopeIdentifier"`
	PlanType        string    `json:"planType"`
	PlanID          string    `json:"planId"`
	PlanGroup       string    `json:"planGroup"`
	Version         int       `json:"version"`
	Definition      ownerJSON `json:"definition"`
	Owner           ownerJSON `json:"owner"`
}

type timelineJSON struct {
	ID string `json:"id"`
}

type resourcesJSON struct {
	Endpoints []endpointJSON `json:"endpoints"`
}

type endpointJSON struct {
	Name          string            `json:"name"`
	URL           string            `json:"url"`
	Data          map[string]string `json:"data"`
	Authorization endpointAuth      `json:"authorization"`
}

type endpointAuth struct {
	Scheme     string            `json:"scheme"`
	Parameters map[string]string `json:"parameters"`
}

type stepJSON struct {
	ID          string            `json:"id"`
	Name        string            `json:"name"`
	DisplayName string            `json:"displayName"`
	Type        string            `json:"type"`
	Enabled     bool              `json:"enabled"`
	Condition   string            `json:"condition"`
	Reference   stepReference     `json:"reference"`
	Inputs      map[string]string `json:"inputs"`
	Environment map[string]string `json:"environment,omitempty"`
}

type stepReference struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Version string `json:"version"`
}

// jobBody renders a job for an agent. Its addresses are the ones by which the
// agent registered. The caller holds the mutex.
func (s *Server) jobBody(r *request, a *agent) string {
	r.baseURL = a.baseURL
	variables := maps.Clone(r.variables)
	for name, value := range map[string]string{
		"system.collectionUri":  a.baseURL + "/",
		"system.teamProject":    "project",
		"system.teamProjectId":  r.scopeID.String(),
		"system.jobId":          r.jobID.String(),
		"system.planId":         r.planID.String(),
		"system.definitionId":   fmt.Sprint(r.definitionID),
		"build.buildId":         fmt.Sprint(r.runID),
		"build.buildNumber":     fmt.Sprint(r.runID),
		"build.definitionName":  r.name,
		"build.repository.name": "repository",
		"agent.jobstatus":       "Succeeded",
	} {
		variables[name] = variable{Value: value}
	}
	job := jobMessage{
		MessageType: messageJob,
		Plan: planJSON{
			ScopeIdentifier: r.scopeID.String(), PlanType: planType, PlanID: r.planID.String(), Version: 9,
			PlanGroup:  fmt.Sprintf("Build:%s:%d", r.scopeID, r.runID),
			Definition: ownerJSON{ID: r.definitionID, Name: r.name},
			Owner:      ownerJSON{ID: r.runID, Name: fmt.Sprint(r.runID)},
		},
		Timeline:       timelineJSON{r.timelineID.String()},
		JobID:          r.jobID.String(),
		JobDisplayName: r.name,
		JobName:        "__default",
		RequestID:      r.id,
		LockedUntil:    s.stamp(r.assignedAt.Add(s.opts.LockDuration)),
		Resources: resourcesJSON{Endpoints: []endpointJSON{{
			Name: "SystemVssConnection", URL: a.baseURL + "/",
			Data:          map[string]string{"ServerId": s.hostID.String(), "ServerName": s.opts.Organisation},
			Authorization: endpointAuth{Scheme: "OAuth", Parameters: map[string]string{"AccessToken": r.jobToken}},
		}}},
		Variables: variables,
		Steps:     []stepJSON{},
	}
	for i, st := range r.steps {
		job.Steps = append(job.Steps, stepJSON{
			ID: st.id.String(), Name: st.name, DisplayName: fmt.Sprintf("Step %d", i+1), Type: "task", Enabled: true, Condition: "succeeded()",
			Reference:   stepReference{cmdLineID, "CmdLine", cmdLineVersion},
			Inputs:      map[string]string{"script": st.script},
			Environment: r.env,
		})
	}
	return mustJSON(job)
}

// job finds the plan of the path and checks that the caller's token belongs to
// it. The caller holds the mutex.
func (c *call) job() (*request, error) {
	planID, err := c.guid(c.vars["planId"], "planId")
	if err != nil {
		return nil, err
	}
	r := c.srv.plans[planID]
	switch {
	case r != c.who.request || r == nil:
		return nil, accessDenied(c.who.name, "Write", "of plan "+planID.String())
	case !strings.EqualFold(c.vars["scope"], r.scopeID.String()),
		!strings.EqualFold(c.vars["hub"], planType):
		return nil, fail(http.StatusNotFound, "TaskOrchestrationPlanNotFoundException", "No plan found for identifier %s.", planID)
	}
	if text, ok := c.vars["timelineId"]; ok && !strings.EqualFold(text, r.timelineID.String()) {
		return nil, fail(http.StatusNotFound, "TimelineNotFoundException", "No timeline found for identifier %s.", text)
	}
	return r, nil
}

// recordStates are the values of the service's TimelineRecordState by number.
func recordStates() []string { return []string{"pending", "inProgress", "completed"} }

// enum reads a member that may be a number or a string.
func (r *record) enum(member string, values []string) string {
	var n int
	if json.Unmarshal(r.members[member], &n) == nil && n >= 0 && n < len(values) && len(r.members[member]) > 0 && string(r.members[member]) != "null" {
		return values[n]
	}
	text := r.text(member)
	for _, v := range values {
		if strings.EqualFold(v, text) {
			return v
		}
	}
	return text
}

// recordsBody is the wrapper in which records come.
type recordsBody struct {
	Value []map[string]json.RawMessage `json:"value"`
}

// updateRecords takes the worker's reports over: members that are sent replace
// those known, others stay.
func (c *call) updateRecords() error {
	var body recordsBody
	if err := c.decode(&body); err != nil {
		return err
	}
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	r, err := c.job()
	if err != nil {
		return err
	}
	for _, members := range body.Value {
		var text string
		if err := json.Unmarshal(members["id"], &text); err != nil {
			return badRequest("A timeline record has no id.")
		}
		id, err := uuid.Parse(text)
		if err != nil {
			return badRequest("The value '%s' is not valid for a timeline record's id.", text)
		}
		rec := r.record(id.String())
		maps.Copy(rec.members, members)
	}
	return c.reply(http.StatusOK, list{len(r.records), r.recordList()})
}

// record finds a record or adds it.
func (r *request) record(id string) *record {
	for _, rec := range r.records {
		if rec.id == id {
			return rec
		}
	}
	rec := &record{id: id, members: make(map[string]json.RawMessage)}
	r.records = append(r.records, rec)
	return rec
}

func (r *request) recordList() []map[string]json.RawMessage {
	all := []map[string]json.RawMessage{}
	for _, rec := range r.records {
		all = append(all, maps.Clone(rec.members))
	}
	return all
}

func (c *call) getRecords() error {
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	r, err := c.job()
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, list{len(r.records), r.recordList()})
}

// appendFeed takes lines for the live console. They are no part of the log.
func (c *call) appendFeed() error {
	var body struct {
		Value []string `json:"value"`
	}
	if err := c.decode(&body); err != nil {
		return err
	}
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	r, err := c.job()
	if err != nil {
		return err
	}
	r.feed = append(r.feed, body.Value...)
	return c.replyEmpty(http.StatusNoContent)
}

type logJSON struct {
	ID        int    `json:"id"`
	Path      string `json:"path"`
	LineCount int    `json:"lineCount,omitempty"`
	Location  string `json:"location"`
}

func (c *call) logJSON(r *request, l *buildLog) logJSON {
	return logJSON{ID: l.id, Path: l.path, LineCount: l.lines, Location: fmt.Sprintf(
		"%s/%s/_apis/distributedtask/hubs/%s/plans/%s/logs/%d", c.base, r.scopeID, strings.ToLower(planType), r.planID, l.id)}
}

func (c *call) createLog() error {
	var body struct {
		Path string `json:"path"`
	}
	if err := c.decode(&body); err != nil {
		return err
	}
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	r, err := c.job()
	if err != nil {
		return err
	}
	l := &buildLog{id: len(r.logs) + 1, path: body.Path}
	r.logs = append(r.logs, l)
	return c.reply(http.StatusCreated, c.logJSON(r, l))
}

func (c *call) appendLog() error {
	id, err := c.number("logId")
	if err != nil {
		return err
	}
	text, err := c.body()
	if err != nil {
		return err
	}
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	r, err := c.job()
	if err != nil {
		return err
	}
	if id < 1 || id > int64(len(r.logs)) {
		return fail(http.StatusNotFound, "TaskLogNotFoundException", "No log found for identifier %d.", id)
	}
	l := r.logs[id-1]
	l.text.Write(text)
	l.lines += strings.Count(string(text), "\n")
	return c.reply(http.StatusOK, c.logJSON(r, l))
}

// raiseEvent takes the worker's word on how its job ended. The request itself
// is finished by the listener.
func (c *call) raiseEvent() error {
	var body struct {
		Name      string          `json:"name"`
		JobID     string          `json:"jobId"`
		RequestID int64           `json:"requestId"`
		Result    json.RawMessage `json:"result"`
	}
	if err := c.decode(&body); err != nil {
		return err
	}
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	r, err := c.job()
	if err != nil {
		return err
	}
	if body.Name != "JobCompleted" {
		return c.replyEmpty(http.StatusNoContent)
	}
	if !strings.EqualFold(body.JobID, r.jobID.String()) || body.RequestID != r.id {
		return badRequest("The event speaks of job %s and request %d, the token belongs to job %s and request %d.", body.JobID, body.RequestID, r.jobID, r.id)
	}
	result := ResultSucceeded
	if len(body.Result) > 0 {
		if result, err = resultOf(body.Result); err != nil {
			return err
		}
	}
	if r.result == "" {
		r.reported = result
	}
	return c.replyEmpty(http.StatusNoContent)
}
