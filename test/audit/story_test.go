package audit_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/test/audit"
)

const scaler = "system:serviceaccount:agents:azp-scaler"

// story writes the two logs of a run line by line, as the two servers do, so
// that every test of a verdict goes through the readers as well.
type story struct {
	t       *testing.T
	service strings.Builder
	kube    strings.Builder
	seq     int
	objects []audit.LiveObject
	agents  []audit.LiveAgent
	listed  bool
	rules   audit.Rules
	level   string
}

func newStory(t *testing.T) *story {
	t.Helper()
	return &story{t: t, rules: audit.Rules{ScalerUsers: []string{scaler}}, level: "RequestResponse"}
}

func at(second float64) time.Time {
	return time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC).Add(time.Duration(second * float64(time.Second)))
}

// event adds a line to the service's log.
func (s *story) event(second float64, name string, fields map[string]any) *story {
	s.seq++
	line := map[string]any{"seq": s.seq, "time": at(second).Format(time.RFC3339Nano), "event": name, "pool": 1}
	for field, value := range fields {
		line[field] = value
	}
	s.append(&s.service, line)
	return s
}

func (s *story) queued(second float64, request int) *story {
	return s.event(second, "request-queued", map[string]any{"requestId": request})
}

func (s *story) canceled(second float64, request int) *story {
	return s.event(second, "request-canceled", map[string]any{"requestId": request, "result": "canceled"})
}

func (s *story) finished(second float64, request int, result, detail string) *story {
	return s.event(second, "request-finished", map[string]any{"requestId": request, "result": result, "detail": detail})
}

// online registers an agent and opens its session.
func (s *story) online(second float64, id int, name string) *story {
	s.event(second, "agent-added", map[string]any{"agentId": id, "agentName": name})
	return s.event(second+0.5, "session-created", map[string]any{"agentId": id, "agentName": name})
}

// received assigns a request to an agent, which takes it.
func (s *story) received(second float64, request, id int, name string) *story {
	s.event(second, "request-assigned", map[string]any{"requestId": request, "agentId": id, "agentName": name})
	return s.event(second+0.1, "request-received", map[string]any{"requestId": request, "agentId": id, "agentName": name})
}

// offline closes an agent's session and deletes its registration.
func (s *story) offline(second float64, id int, name string) *story {
	s.event(second, "session-deleted", map[string]any{"agentId": id, "agentName": name})
	return s.event(second+0.5, "agent-deleted", map[string]any{"agentId": id, "agentName": name})
}

// kubeWrite adds a line to the API server's log.
func (s *story) kubeWrite(second float64, user, verb, group, resource, namespace, name string, code int, edit func(map[string]any)) *story {
	ref := map[string]any{"resource": resource, "namespace": namespace, "name": name, "apiVersion": "v1"}
	if group != "" {
		ref["apiGroup"] = group
	}
	line := map[string]any{
		"kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": s.level, "auditID": fmt.Sprint(second, name), "stage": "ResponseComplete",
		"requestURI": "/apis/" + group + "/v1/namespaces/" + namespace + "/" + resource, "verb": verb, "user": map[string]any{"username": user},
		"objectRef": ref, "responseStatus": map[string]any{"code": code},
		"requestReceivedTimestamp": at(second).Format("2006-01-02T15:04:05.000000Z"), "stageTimestamp": at(second + 0.01).Format("2006-01-02T15:04:05.000000Z"),
	}
	if verb == "create" && s.level == "RequestResponse" && code < 300 {
		line["responseObject"] = map[string]any{"metadata": map[string]any{"name": name, "uid": "uid-of-" + name}}
	}
	if edit != nil {
		edit(line)
	}
	s.append(&s.kube, line)
	return s
}

func (s *story) jobCreated(second float64, name string) *story {
	return s.kubeWrite(second, scaler, "create", "batch", "jobs", "agents", name, 201, nil)
}

func (s *story) bound(second float64, name string) *story {
	return s.kubeWrite(second, scaler, "create", "rbac.authorization.k8s.io", "rolebindings", "shop", name, 201, nil)
}

func (s *story) unbound(second float64, name string) *story {
	return s.kubeWrite(second, scaler, "delete", "rbac.authorization.k8s.io", "rolebindings", "shop", name, 200, nil)
}

// build tells one build from queue to end, as it should be.
func (s *story) build(second float64, request, id int) *story {
	name := job(request, 0)
	s.queued(second, request).jobCreated(second+1, name).bound(second+1.1, name).online(second+3, id, name)
	s.received(second+4, request, id, name).finished(second+6, request, "succeeded", "")
	return s.offline(second+7, id, name).unbound(second+8, name)
}

func (s *story) append(to *strings.Builder, line map[string]any) {
	s.t.Helper()
	data, err := json.Marshal(line)
	if err != nil {
		s.t.Fatal(err)
	}
	to.Write(append(data, '\n'))
}

func (s *story) judge() audit.Report {
	s.t.Helper()
	service, err := audit.ReadServiceLog(strings.NewReader(s.service.String()))
	if err != nil {
		s.t.Fatal(err)
	}
	kube, err := audit.ReadKubeLog(strings.NewReader(s.kube.String()))
	if err != nil {
		s.t.Fatal(err)
	}
	return audit.Judge(audit.Input{Service: service, Kube: kube, Objects: s.objects, Agents: s.agents, AgentsListed: s.listed}, s.rules)
}

// jobOfClass creates a Job that says what class it is of.
func (s *story) jobOfClass(second float64, name, class string) *story {
	return s.kubeWrite(second, scaler, "create", "batch", "jobs", "agents", name, 201, func(line map[string]any) {
		line["responseObject"] = map[string]any{"metadata": map[string]any{
			"name": name, "uid": "uid-of-" + name, "labels": map[string]any{"azp-scaler.github.io/class": class},
		}}
	})
}

// idle tells an agent that came online and never received a build.
func (s *story) idle(second float64, id int, name string) *story {
	return s.online(second, id, name).offline(second+60, id, name)
}

// ran tells an agent that ran one build, from its registration on.
func (s *story) ran(second float64, request, id int, name string) *story {
	return s.online(second, id, name).received(second+1, request, id, name).finished(second+3, request, "succeeded", "").offline(second+4, id, name)
}

func job(request, attempt int) string { return fmt.Sprintf("azp-abcd1234-1-%d-%d", request, attempt) }

// verdicts gives the verdicts of a report in order, for comparison.
func verdicts(report audit.Report) string {
	out := make([]string, 0, len(report.Findings))
	for _, finding := range report.Findings {
		out = append(out, string(finding.Verdict))
	}
	return strings.Join(out, " ")
}
