package audit_test

import (
	"bytes"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/test/audit"
)

// TestVerdicts tells one small run each and says what the auditor must find in
// it: nothing, or exactly these verdicts with this evidence.
func TestVerdicts(t *testing.T) {
	t.Parallel()
	idleAgent := func(s *story, second float64, request, id int) {
		name := job(request, 0)
		s.jobCreated(second, name).online(second+2, id, name).offline(second+60, id, name)
	}
	for name, test := range map[string]struct {
		tell     func(s *story)
		want     string // Verdicts in order.
		evidence string // In the first finding.
	}{
		"one build as it should be": {tell: func(s *story) { s.build(0, 42, 7) }},
		"agents that swapped their builds": {tell: func(s *story) {
			s.queued(0, 1).queued(0, 2).jobCreated(1, job(1, 0)).jobCreated(1, job(2, 0)).online(3, 10, job(1, 0)).online(3, 11, job(2, 0))
			s.received(4, 2, 10, job(1, 0)).received(4, 1, 11, job(2, 0)).finished(5, 1, "succeeded", "").finished(5, 2, "failed", "exit code 1")
			s.offline(6, 10, job(1, 0)).offline(6, 11, job(2, 0))
		}},

		// Duplicates.
		"an agent for nothing": {tell: func(s *story) {
			s.build(0, 42, 7)
			name := job(42, 1)
			s.jobCreated(2, name).online(4, 8, name).offline(64, 8, name)
		}, want: "duplicate", evidence: "agent 8 azp-abcd1234-1-42-1 (pool 1) came online"},
		"a cancellation explains one": {tell: func(s *story) {
			s.queued(0, 1)
			idleAgent(s, 1, 1, 10)
			s.canceled(2, 1)
		}},
		"a cancellation explains one and no more": {tell: func(s *story) {
			s.queued(0, 1)
			idleAgent(s, 1, 1, 10)
			s.jobCreated(1.5, job(1, 1)).online(3, 11, job(1, 1)).offline(60, 11, job(1, 1))
			s.canceled(2, 1)
		}, want: "duplicate"},
		"a cancellation explains the agent that a swap left over": {tell: func(s *story) {
			s.queued(0, 1).queued(0, 2).jobCreated(1, job(1, 0)).jobCreated(1, job(2, 0)).online(3, 10, job(1, 0))
			s.received(4, 2, 10, job(1, 0)).canceled(4.5, 1).online(5, 11, job(2, 0)).finished(6, 2, "succeeded", "")
			s.offline(7, 10, job(1, 0)).offline(65, 11, job(2, 0))
		}},
		"a cancellation before any Job explains nothing": {tell: func(s *story) {
			s.queued(0, 1).canceled(1, 1)
			s.build(20, 2, 9)
			s.jobCreated(21, job(2, 1)).online(24, 11, job(2, 1)).offline(80, 11, job(2, 1))
		}, want: "duplicate"},
		"an agent made long after the cancellation is not explained by it": {tell: func(s *story) {
			s.queued(0, 1).jobCreated(1, job(1, 0)).canceled(2, 1)
			s.jobCreated(13, job(1, 1)).online(15, 11, job(1, 1)).offline(80, 11, job(1, 1))
		}, want: "duplicate"},
		"a poll just before the cancellation still explains": {tell: func(s *story) {
			s.queued(0, 1).canceled(2, 1)
			idleAgent(s, 4, 1, 10)
		}},
		"cancelling a running build explains no idle agent": {tell: func(s *story) {
			s.queued(0, 1).jobCreated(1, job(1, 0)).online(2, 10, job(1, 0)).received(3, 1, 10, job(1, 0)).canceled(4, 1).finished(5, 1, "canceled", "").offline(6, 10, job(1, 0))
			s.jobCreated(1.5, job(1, 1)).online(3, 11, job(1, 1)).offline(60, 11, job(1, 1))
		}, want: "duplicate"},
		"a foreign agent that took the build explains one": {tell: func(s *story) {
			s.rules.StandingAgents = []string{"static-1"}
			s.online(0, 3, "static-1").queued(1, 1)
			idleAgent(s, 2, 1, 10)
			s.received(3, 1, 3, "static-1").finished(5, 1, "succeeded", "")
		}},
		"an idle foreign agent is nobody's duplicate": {tell: func(s *story) {
			s.rules.StandingAgents = []string{"static-1"}
			s.online(0, 3, "static-1").build(1, 1, 10)
		}},
		"a request failed by the service explains one": {tell: func(s *story) {
			s.queued(0, 1)
			idleAgent(s, 1, 1, 10)
			s.event(2, "request-failed-no-agent", map[string]any{"requestId": 1, "result": "failed", "detail": "No agent found in pool"})
		}},
		"an agent that never came online is no duplicate": {tell: func(s *story) {
			s.build(0, 1, 10).jobCreated(2, job(1, 1))
		}},

		// Lost.
		"never assigned": {tell: func(s *story) { s.queued(0, 1) }, want: "lost", evidence: "no agent ever received it"},
		"running for ever": {tell: func(s *story) {
			s.queued(0, 1).jobCreated(1, job(1, 0)).online(2, 10, job(1, 0)).received(3, 1, 10, job(1, 0)).offline(9, 10, job(1, 0))
		}, want: "lost", evidence: "received at 03:04:03.100 by agent 10"},
		"cancelled while it ran, but never ended": {tell: func(s *story) {
			s.queued(0, 1).jobCreated(1, job(1, 0)).online(2, 10, job(1, 0)).received(3, 1, 10, job(1, 0)).canceled(4, 1).offline(9, 10, job(1, 0))
		}, want: "lost"},
		"abandoned": {tell: func(s *story) {
			s.queued(0, 1).jobCreated(1, job(1, 0)).online(2, 10, job(1, 0)).received(3, 1, 10, job(1, 0)).offline(9, 10, job(1, 0))
			s.event(10, "request-abandoned", map[string]any{"requestId": 1, "result": "abandoned"})
		}, want: "lost", evidence: "abandoned at 03:04:10.000"},
		"a build goes with its agent that was killed": {tell: func(s *story) {
			s.rules.Killed = map[string]time.Time{job(1, 0): at(5)}
			s.queued(0, 1).jobCreated(1, job(1, 0)).online(2, 10, job(1, 0)).received(3, 1, 10, job(1, 0))
			s.event(10, "request-abandoned", map[string]any{"requestId": 1, "result": "abandoned"}).offline(11, 10, job(1, 0))
		}},
		"a build that another agent had does not": {tell: func(s *story) {
			s.rules.Killed = map[string]time.Time{job(2, 0): at(5)}
			s.queued(0, 1).jobCreated(1, job(1, 0)).online(2, 10, job(1, 0)).received(3, 1, 10, job(1, 0))
			s.event(10, "request-abandoned", map[string]any{"requestId": 1, "result": "abandoned"}).offline(11, 10, job(1, 0))
		}, want: "lost"},
		"nor does one that was lost before": {tell: func(s *story) {
			s.rules.Killed = map[string]time.Time{job(1, 0): at(10.5)}
			s.queued(0, 1).jobCreated(1, job(1, 0)).online(2, 10, job(1, 0)).received(3, 1, 10, job(1, 0))
			s.event(10, "request-abandoned", map[string]any{"requestId": 1, "result": "abandoned"}).offline(11, 10, job(1, 0))
		}, want: "lost"},
		"nor one that is given to it long after": {tell: func(s *story) {
			s.rules.Killed = map[string]time.Time{job(1, 0): at(5)}
			s.queued(0, 1).jobCreated(1, job(1, 0)).online(2, 10, job(1, 0))
			s.event(20, "request-assigned", map[string]any{"requestId": 1, "agentId": 10, "agentName": job(1, 0)})
			s.event(80, "request-abandoned", map[string]any{"requestId": 1, "result": "abandoned"}).offline(81, 10, job(1, 0))
		}, want: "lost"},
		"an agent that is killed while a build waits for it": {tell: func(s *story) {
			s.rules.Killed = map[string]time.Time{job(1, 0): at(3)}
			s.queued(0, 1).jobCreated(1, job(1, 0)).online(2, 10, job(1, 0)).event(4, "agent-deleted", map[string]any{"agentId": 10, "agentName": job(1, 0)})
			s.jobCreated(5, job(1, 1)).ran(6, 1, 11, job(1, 1))
		}},
		"an agent that is killed and that nobody wanted": {tell: func(s *story) {
			s.rules.Killed = map[string]time.Time{job(1, 1): at(40)}
			s.build(0, 1, 10)
			s.jobCreated(2, job(1, 1)).online(4, 11, job(1, 1)).event(41, "agent-deleted", map[string]any{"agentId": 11, "agentName": job(1, 1)})
		}, want: "duplicate"},
		"rights go with an agent that was killed, before the service gives it up": {tell: func(s *story) {
			s.rules.Killed = map[string]time.Time{job(1, 0): at(5)}
			s.queued(0, 1).jobCreated(1, job(1, 0)).bound(1, job(1, 0)).online(2, 10, job(1, 0)).received(3, 1, 10, job(1, 0))
			s.unbound(6, job(1, 0)).finished(20, 1, "succeeded", "").event(21, "agent-deleted", map[string]any{"agentId": 10, "agentName": job(1, 0)})
		}},
		"rights go before their agent is killed": {tell: func(s *story) {
			s.rules.Killed = map[string]time.Time{job(1, 0): at(7)}
			s.queued(0, 1).jobCreated(1, job(1, 0)).bound(1, job(1, 0)).online(2, 10, job(1, 0)).received(3, 1, 10, job(1, 0))
			s.unbound(6, job(1, 0)).finished(20, 1, "succeeded", "").event(21, "agent-deleted", map[string]any{"agentId": 10, "agentName": job(1, 0)})
		}, want: "rights"},
		"abandoned by result": {tell: func(s *story) {
			s.queued(0, 1).jobCreated(1, job(1, 0)).online(2, 10, job(1, 0)).received(3, 1, 10, job(1, 0)).offline(9, 10, job(1, 0)).finished(10, 1, "abandoned", "")
		}, want: "lost"},
		"lost its agent": {tell: func(s *story) {
			s.queued(0, 1).jobCreated(1, job(1, 0)).online(2, 10, job(1, 0)).received(3, 1, 10, job(1, 0)).offline(9, 10, job(1, 0))
			s.finished(10, 1, "failed", "We stopped hearing from agent azp-abcd1234-1-1-0.")
		}, want: "lost", evidence: "loss of its agent"},
		"finished with an unknown result": {tell: func(s *story) { s.queued(0, 1).finished(1, 1, "", "") }, want: "lost"},
		"failed by its own step": {tell: func(s *story) {
			s.queued(0, 1).jobCreated(1, job(1, 0)).online(2, 10, job(1, 0)).received(3, 1, 10, job(1, 0)).finished(4, 1, "failed", "exit code 3").offline(5, 10, job(1, 0))
		}},
		"failed for want of an agent, which is a reason": {tell: func(s *story) {
			s.queued(0, 1).event(0.1, "request-failed-no-agent", map[string]any{"requestId": 1, "result": "failed", "detail": "No agent found in pool"})
		}},

		// Registrations.
		"a registration left": {tell: func(s *story) {
			s.build(0, 1, 10).event(20, "agent-added", map[string]any{"agentId": 11, "agentName": job(2, 0)}).jobCreated(19, job(2, 0))
		}, want: "leaked", evidence: "agent 11"},
		"a standing registration": {tell: func(s *story) {
			s.rules.StandingAgents = []string{"placeholder"}
			s.event(0, "agent-added", map[string]any{"agentId": 3, "agentName": "placeholder"}).build(1, 1, 10)
		}},
		"the list shows an agent that the log does not": {tell: func(s *story) {
			s.build(0, 1, 10)
			s.listed, s.agents = true, []audit.LiveAgent{{Pool: "1", ID: 99, Name: "ghost"}}
		}, want: "leaked", evidence: "agent 99 ghost"},
		"the list and the log differ": {tell: func(s *story) {
			s.build(0, 1, 10)
			s.listed, s.agents = true, []audit.LiveAgent{{Pool: "1", ID: 10, Name: job(1, 0)}}
		}, want: "evidence leaked", evidence: "alive by the service's audit log is false, by its list of agents true"},
		"the list agrees": {tell: func(s *story) { s.build(0, 1, 10).listed = true }},

		// Exclusivity.
		"a build on two agents": {tell: func(s *story) {
			s.build(0, 1, 10).jobCreated(2, job(1, 1)).online(3, 11, job(1, 1)).received(4.5, 1, 11, job(1, 1)).offline(9, 11, job(1, 1))
		}, want: "run-twice", evidence: "agent 11"},
		"an agent with two builds": {tell: func(s *story) {
			s.build(0, 1, 10).queued(5, 2).received(6.5, 2, 10, job(1, 0)).finished(6.9, 2, "succeeded", "")
		}, want: "agent-reused", evidence: "requests 1, 2"},

		// Rights.
		"rights kept too long": {tell: func(s *story) {
			s.queued(0, 1).jobCreated(1, job(1, 0)).bound(1.1, job(1, 0)).online(2, 10, job(1, 0)).received(3, 1, 10, job(1, 0)).finished(4, 1, "succeeded", "")
			s.offline(5, 10, job(1, 0)).unbound(21, job(1, 0))
		}, want: "rights", evidence: "16.01s after agent 10"},
		"rights kept while the scaler was down": {tell: func(s *story) {
			s.queued(0, 1).jobCreated(1, job(1, 0)).bound(1.1, job(1, 0)).online(2, 10, job(1, 0)).received(3, 1, 10, job(1, 0)).finished(4, 1, "succeeded", "")
			s.offline(5, 10, job(1, 0)).unbound(21, job(1, 0))
			s.rules.Outages = []audit.Interval{{From: at(0), To: at(18)}}
		}},
		"rights of a second namespace kept too long": {tell: func(s *story) {
			s.build(0, 1, 10).bound(1.2, job(1, 0)+"-2").unbound(40, job(1, 0)+"-2")
		}, want: "rights"},
		"rights taken from a running build": {tell: func(s *story) {
			s.queued(0, 1).jobCreated(1, job(1, 0)).bound(1.1, job(1, 0)).online(2, 10, job(1, 0)).received(3, 1, 10, job(1, 0)).unbound(3.5, job(1, 0))
			s.finished(4, 1, "succeeded", "").offline(5, 10, job(1, 0))
		}, want: "rights", evidence: "though request 1 (pool 1) ran until 03:04:04.000"},
		"an account that works after its build": {tell: func(s *story) {
			s.build(0, 1, 10).kubeWrite(30, "system:serviceaccount:agents:"+job(1, 0), "list", "", "pods", "shop", "", 200, nil)
		}, want: "rights", evidence: "could still list pods in shop"},
		"an account refused after its build": {tell: func(s *story) {
			s.build(0, 1, 10).kubeWrite(30, "system:serviceaccount:agents:"+job(1, 0), "list", "", "pods", "shop", "", 403, nil)
		}},

		// Evidence.
		"an empty log": {tell: func(*story) {}, want: "evidence", evidence: "empty"},
		"a gap in the log": {tell: func(s *story) {
			s.queued(0, 1)
			s.seq += 3
			s.canceled(1, 1)
		}, want: "evidence", evidence: "jumps from seq 1 to 5"},
		"an agent of ours without a Job": {tell: func(s *story) {
			s.queued(0, 1).online(2, 10, job(1, 0)).received(3, 1, 10, job(1, 0)).finished(4, 1, "succeeded", "").offline(5, 10, job(1, 0))
		}, want: "evidence", evidence: "no Job of that name was created"},
		"a Job whose creation was carried out and never answered": {tell: func(s *story) {
			lost(s, 1, "batch", "jobs", "agents", job(1, 0)).kubeWrite(1.5, "system:serviceaccount:kube-system:job-controller", "update", "batch", "jobs", "agents", job(1, 0), 200, nil)
			s.queued(0, 1).online(2, 10, job(1, 0)).received(3, 1, 10, job(1, 0)).finished(4, 1, "succeeded", "").offline(5, 10, job(1, 0))
		}},
		"a Job whose creation was never answered and never seen": {tell: func(s *story) {
			lost(s, 1, "batch", "jobs", "agents", job(1, 0)).kubeWrite(1.5, scaler, "get", "batch", "jobs", "agents", job(1, 0), 404, nil)
			s.queued(0, 1).online(2, 10, job(1, 0)).received(3, 1, 10, job(1, 0)).finished(4, 1, "succeeded", "").offline(5, 10, job(1, 0))
		}, want: "evidence", evidence: "no Job of that name was created"},
		"rights whose creation was never answered and that outlive their build": {tell: func(s *story) {
			s.queued(0, 1).jobCreated(1, job(1, 0))
			lost(s, 1.1, "rbac.authorization.k8s.io", "rolebindings", "shop", job(1, 0))
			s.online(2, 10, job(1, 0)).received(3, 1, 10, job(1, 0)).finished(4, 1, "succeeded", "").offline(5, 10, job(1, 0)).unbound(50, job(1, 0))
		}, want: "rights"},
		"an unnamed scaler": {tell: func(s *story) {
			s.queued(0, 1).canceled(1, 1)
			s.rules.ScalerUsers = nil
		}, want: "evidence", evidence: "no user of the scaler"},
		"an end without a beginning": {tell: func(s *story) { s.canceled(1, 1) }, want: "evidence", evidence: "never queued"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStory(t)
			test.tell(s)
			report := s.judge()
			if got := verdicts(report); got != test.want {
				t.Fatalf("verdicts are %q, want %q: %+v", got, test.want, report.Findings)
			}
			if report.Clean() != (test.want == "") {
				t.Errorf("clean is %t", report.Clean())
			}
			if test.want != "" && !strings.Contains(report.Findings[0].Text, test.evidence) {
				t.Errorf("the finding %q does not name %q", report.Findings[0].Text, test.evidence)
			}
		})
	}
}

// lost tells a creation by the scaler whose client went away before the answer.
func lost(s *story, second float64, group, resource, namespace, name string) *story {
	return s.kubeWrite(second, scaler, "create", group, resource, namespace, name, 504, nil)
}

// TestLeakedObjects judges the same live object under different beginnings.
func TestLeakedObjects(t *testing.T) {
	t.Parallel()
	name := job(1, 0)
	account := audit.LiveObject{Resource: "serviceaccounts", Namespace: "agents", Name: name, UID: "uid-of-" + name, Created: at(1)}
	create := func(s *story) {
		s.kubeWrite(1, scaler, "create", "", "serviceaccounts", "agents", name, 201, nil)
	}
	for title, test := range map[string]struct {
		tell func(s *story)
		want map[string]int
	}{
		"created by the scaler": {
			tell: func(s *story) { create(s); s.objects = append(s.objects, account) },
			want: map[string]int{"serviceaccounts": 1},
		},
		"created by the scaler, log without bodies": {
			tell: func(s *story) { s.level = "Metadata"; create(s); s.objects = append(s.objects, account) },
			want: map[string]int{"serviceaccounts": 1},
		},
		"created by an apply": {
			tell: func(s *story) {
				s.kubeWrite(1, scaler, "patch", "", "serviceaccounts", "agents", name, 201, nil)
				s.objects = append(s.objects, account)
			},
			want: map[string]int{"serviceaccounts": 1},
		},
		"gone": {tell: create},
		"of the same name, but another": {tell: func(s *story) {
			create(s)
			other := account
			other.UID = "another"
			s.objects = append(s.objects, other)
		}},
		"created by somebody else": {tell: func(s *story) {
			s.kubeWrite(1, "kubernetes-admin", "create", "", "serviceaccounts", "agents", name, 201, nil)
			s.objects = append(s.objects, account)
		}},
		"refused": {tell: func(s *story) {
			s.kubeWrite(1, scaler, "create", "", "serviceaccounts", "agents", name, 403, nil)
			other := account
			other.UID = "another"
			s.objects = append(s.objects, other)
		}},
		"a dry run": {tell: func(s *story) {
			s.kubeWrite(1, scaler, "create", "", "serviceaccounts", "agents", name, 201, func(line map[string]any) {
				line["requestURI"] = "/api/v1/namespaces/agents/serviceaccounts?dryRun=All"
			})
			s.objects = append(s.objects, account)
		}},
		"a token of an account, which is no object": {tell: func(s *story) {
			s.kubeWrite(1, scaler, "create", "", "serviceaccounts", "agents", name, 201, func(line map[string]any) {
				ref, ok := line["objectRef"].(map[string]any)
				if !ok {
					panic("the story has changed its form")
				}
				ref["subresource"] = "token"
			})
			s.objects = append(s.objects, account)
		}},
		"an event": {tell: func(s *story) {
			s.kubeWrite(1, scaler, "create", "", "events", "agents", "e1", 201, nil)
			s.objects = append(s.objects, audit.LiveObject{Resource: "events", Namespace: "agents", Name: "e1", UID: "uid-of-e1"})
		}},
		"a standing object": {tell: func(s *story) {
			s.rules.StandingObjects = []string{"leases/agents/azp-scaler"}
			s.kubeWrite(1, scaler, "create", "coordination.k8s.io", "leases", "agents", "azp-scaler", 201, nil)
			s.objects = append(s.objects, audit.LiveObject{Group: "coordination.k8s.io", Resource: "leases", Namespace: "agents", Name: "azp-scaler", UID: "uid-of-azp-scaler"})
		}},
		"a lease nobody named": {
			tell: func(s *story) {
				s.kubeWrite(1, scaler, "create", "coordination.k8s.io", "leases", "agents", "azp-scaler", 201, nil)
				s.objects = append(s.objects, audit.LiveObject{Group: "coordination.k8s.io", Resource: "leases", Namespace: "agents", Name: "azp-scaler", UID: "uid-of-azp-scaler"})
			},
			want: map[string]int{"leases": 1},
		},
		"a pod of a Job that is gone": {
			tell: func(s *story) {
				s.jobCreated(1, name)
				s.objects = append(s.objects, audit.LiveObject{Resource: "pods", Namespace: "agents", Name: name + "-x1", UID: "p", OwnerUIDs: []string{"uid-of-" + name}, Deleting: true})
			},
			want: map[string]int{"pods": 1},
		},
		"what a leaked pod owns": {
			tell: func(s *story) {
				s.jobCreated(1, name)
				s.objects = append(s.objects,
					audit.LiveObject{Resource: "secrets", Namespace: "agents", Name: "s", UID: "s", OwnerUIDs: []string{"p"}},
					audit.LiveObject{Resource: "pods", Namespace: "agents", Name: name + "-x1", UID: "p", OwnerUIDs: []string{"uid-of-" + name}},
					audit.LiveObject{Group: "batch", Resource: "jobs", Namespace: "agents", Name: name, UID: "uid-of-" + name})
			},
			want: map[string]int{"jobs": 1, "pods": 1, "secrets": 1},
		},
		"a per-build label on what nobody saw created": {
			tell: func(s *story) {
				s.objects = append(s.objects, audit.LiveObject{Resource: "configmaps", Namespace: "shop", Name: "c", UID: "c", Labels: map[string]string{"azp-scaler.github.io/request-id": "5"}})
			},
			want: map[string]int{"configmaps": 1},
		},
		"what a build deployed": {tell: func(s *story) {
			s.kubeWrite(1, "system:serviceaccount:agents:"+name, "create", "", "configmaps", "shop", "site", 201, nil)
			s.objects = append(s.objects, audit.LiveObject{Resource: "configmaps", Namespace: "shop", Name: "site", UID: "uid-of-site"})
		}},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			s := newStory(t).build(0, 9, 10)
			test.tell(s)
			report := s.judge()
			want := map[string]int{"jobs": 0, "pods": 0, "serviceaccounts": 0, "rolebindings": 0, "secrets": 0, "registrations": 0}
			total := 0
			for kind, count := range test.want {
				want[kind] = count
				total += count
			}
			if !maps.Equal(report.Leaked, want) {
				t.Errorf("leaked is %v, want %v: %+v", report.Leaked, want, report.Findings)
			}
			if report.LeakedTotal() != total || len(report.Findings) != total {
				t.Errorf("%d leaked and %d findings, want %d of each: %+v", report.LeakedTotal(), len(report.Findings), total, report.Findings)
			}
		})
	}
}

// TestCounts checks the figures of a mixed run by hand.
func TestCounts(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	for i := 1; i <= 3; i++ {
		s.build(float64(i), i, 10+i)
	}
	s.queued(0, 4).jobCreated(3, job(4, 0)).online(4, 20, job(4, 0)).received(5, 4, 20, job(4, 0)).finished(9, 4, "failed", "exit code 1").offline(10, 20, job(4, 0))
	s.queued(0, 5).canceled(0.5, 5)
	report := s.judge()
	if !report.Clean() {
		t.Fatalf("not clean: %+v", report.Findings)
	}
	if report.Builds != 5 || report.Succeeded != 3 || report.Failed != 1 || report.Canceled != 1 || report.JobsCreated != 4 {
		t.Errorf("counts: %+v", report)
	}
	// Three waited 1.01 s for their Job, one 3.01 s; 4.1 s and 5.1 s for an agent.
	if want := (audit.Quantiles{P50: 1.01, P99: 3.01}); report.QueueToJob != want {
		t.Errorf("queue to Job is %+v, want %+v", report.QueueToJob, want)
	}
	if want := (audit.Quantiles{P50: 4.1, P99: 5.1}); report.QueueToAgent != want {
		t.Errorf("queue to agent is %+v, want %+v", report.QueueToAgent, want)
	}
	var text bytes.Buffer
	if err := report.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"5 builds: 3 succeeded, 1 failed, 1 canceled; 4 Jobs created", "duplicates 0, lost 0, leaked 0", "queue to Job p50 1.01 s, p99 3.01 s"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the text does not say %q:\n%s", want, text.String())
		}
	}
}

// TestRightsLimit checks that the limit is the caller's to set.
func TestRightsLimit(t *testing.T) {
	t.Parallel()
	s := newStory(t).build(0, 1, 10) // The binding goes 1.01 s after the session.
	s.rules.RightsLimit = time.Second
	if got := verdicts(s.judge()); got != "rights" {
		t.Errorf("with a limit of 1 s the verdicts are %q", got)
	}
	s.rules.RightsLimit = 2 * time.Second
	if got := verdicts(s.judge()); got != "" {
		t.Errorf("with a limit of 2 s the verdicts are %q", got)
	}
}
