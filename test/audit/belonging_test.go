package audit_test

import (
	"strings"
	"testing"

	"github.com/azp-scaler/azp-scaler/test/audit"
)

// TestSwaps tells what the service may do to agents of several classes, and what
// looks like it and is the scaler's fault.
func TestSwaps(t *testing.T) {
	t.Parallel()
	// A common build that the agent for a rare one takes, which is made anew.
	taken := func(left, again string) func(s *story) {
		return func(s *story) {
			s.queued(0, 1).queued(0, 2).jobOfClass(1, job(1, 0), "rare").jobOfClass(1, job(2, 0), left)
			s.ran(3, 2, 10, job(1, 0)).jobOfClass(5, job(1, 1), again).ran(7, 1, 11, job(1, 1)).idle(4, 12, job(2, 0))
		}
	}
	tell(t, map[string]tale{
		"a rare agent took a common build":                      {tell: taken("common", "rare")},
		"the agent that was left over could have had the build": {tell: taken("rare", "rare"), want: "duplicate", evidence: "agent 12"},
		"a Job made anew explains no more than one": {tell: func(s *story) {
			taken("common", "rare")(s)
			s.jobOfClass(1, job(2, 1), "common").idle(4, 13, job(2, 1))
		}, want: "duplicate"},
		"a Job made anew for which nothing was taken": {tell: func(s *story) {
			s.queued(0, 1).queued(0, 2).jobOfClass(1, job(1, 0), "rare").jobOfClass(1, job(2, 0), "common").idle(3, 10, job(1, 0))
			s.ran(4, 2, 12, job(2, 0)).jobOfClass(5, job(1, 1), "rare").ran(6, 1, 11, job(1, 1))
		}, want: "duplicate", evidence: "agent 10"},
		"a Job made anew long before the build was taken": {tell: func(s *story) {
			s.queued(0, 1).queued(0, 2).jobOfClass(1, job(1, 0), "rare").jobOfClass(1, job(2, 0), "common").jobOfClass(2, job(1, 1), "rare")
			s.ran(20, 2, 10, job(1, 0)).ran(21, 1, 11, job(1, 1)).idle(22, 12, job(2, 0))
		}, want: "duplicate", evidence: "agent 12"},
		"the agent that is made anew is named after another rare build": {tell: func(s *story) {
			s.queued(0, 1).queued(0, 2).queued(0, 3)
			s.jobOfClass(1, job(1, 0), "rare").jobOfClass(1, job(2, 0), "rare").jobOfClass(1, job(3, 0), "common")
			s.ran(3, 3, 10, job(1, 0)).jobOfClass(5, job(2, 1), "rare").ran(7, 1, 12, job(2, 1)).ran(8, 2, 11, job(2, 0)).idle(4, 13, job(3, 0))
		}},
		"a further Job of a class that lost no agent": {tell: func(s *story) {
			s.queued(0, 1).queued(0, 2).queued(0, 3)
			s.jobOfClass(1, job(1, 0), "rare").jobOfClass(1, job(2, 0), "rare").jobOfClass(1, job(3, 0), "common")
			s.ran(3, 2, 10, job(1, 0)).ran(3, 3, 11, job(2, 0)).jobOfClass(5, job(3, 1), "other").ran(7, 1, 12, job(3, 1)).idle(4, 13, job(3, 0))
		}, want: "duplicate", evidence: "agent 13"},
		"another installation took the build": {tell: func(s *story) {
			s.queued(0, 1).jobCreated(1, job(1, 0)).jobCreated(1, other()).ran(3, 1, 10, other()).idle(3, 11, job(1, 0))
		}},
		"another installation's build explains no agent of one that made none for it": {tell: func(s *story) {
			s.queued(0, 1).jobCreated(1, other()).ran(3, 1, 10, other())
			s.build(20, 2, 12).jobCreated(21, job(2, 1)).idle(23, 13, job(2, 1))
		}, want: "duplicate", evidence: "agent 13"},
	})
}

// TestWarmAgents tells of agents that are kept waiting for no build in particular.
func TestWarmAgents(t *testing.T) {
	t.Parallel()
	warm := func(n int) string { return job(0, n) }
	// Two agents one after the other that have one name, as after a restart.
	lives := func(begin func(s *story), unbound float64) func(s *story) {
		return func(s *story) {
			begin(s)
			s.jobCreated(1, warm(0)).bound(1.1, warm(0)).queued(2, 1).ran(3, 1, 10, warm(0)).unbound(8, warm(0))
			s.jobCreated(40, warm(0)).bound(40.1, warm(0)).queued(41, 2).ran(42, 2, 11, warm(0)).unbound(unbound, warm(0))
		}
	}
	keep := func(count int) func(s *story) {
		return func(s *story) {
			s.rules.Warm = count
			s.queued(100, 99).canceled(100, 99) // A run has builds.
		}
	}
	tell(t, map[string]tale{
		"kept and ended": {tell: func(s *story) {
			keep(2)(s)
			s.jobCreated(1, warm(0)).jobCreated(1, warm(1)).idle(3, 10, warm(0)).idle(3, 11, warm(1))
		}},
		"kept though none were to be": {tell: func(s *story) {
			keep(0)(s)
			s.jobCreated(1, warm(0)).idle(3, 10, warm(0))
		}, want: "duplicate", evidence: "for no request"},
		"one too many": {tell: func(s *story) {
			keep(2)(s)
			s.jobCreated(1, warm(0)).jobCreated(1, warm(1)).jobCreated(5, warm(2)).idle(3, 10, warm(0)).idle(3, 11, warm(1)).idle(7, 12, warm(2))
		}, want: "duplicate", evidence: "3 agents had no build, for 0 requests and 2 to be kept waiting"},
		"taken and replaced": {tell: func(s *story) {
			keep(1)(s)
			s.jobCreated(1, warm(0)).online(2, 10, warm(0)).queued(5, 1).received(5.1, 1, 10, warm(0)).jobCreated(6, warm(1))
			s.finished(8, 1, "succeeded", "").offline(9, 10, warm(0)).idle(8, 11, warm(1))
		}},
		"given the name of one long gone": {tell: func(s *story) {
			lives(keep(1), 48)(s)
		}},
		"given the name of one that never had an agent": {tell: func(s *story) {
			keep(1)(s)
			s.jobCreated(1, warm(0)).bound(1.1, warm(0)).unbound(1.2, warm(0))
			s.jobCreated(40, warm(0)).bound(40.1, warm(0)).queued(41, 2).ran(42, 2, 11, warm(0)).unbound(48, warm(0))
		}},
		"given the name of one long gone, its rights end early": {tell: func(s *story) {
			lives(keep(1), 44)(s)
		}, want: "rights", evidence: "agent 11"},
		"given the name of one long gone, and one too many": {tell: func(s *story) {
			lives(keep(1), 48)(s)
			s.jobCreated(80, warm(0)).idle(82, 12, warm(0)).jobCreated(85, warm(1)).idle(87, 13, warm(1))
		}, want: "duplicate", evidence: "2 agents had no build"},
		"replaced by one of a newer class": {tell: func(s *story) {
			keep(1)(s)
			s.jobCreated(1, warm(0)).online(2, 10, warm(0)).jobCreated(20, warm(1)).offline(22, 10, warm(0)).idle(23, 11, warm(1))
		}},
		"one that takes a build leaves the agent made for it over": {tell: func(s *story) {
			keep(1)(s)
			s.jobCreated(1, warm(0)).queued(1.5, 1).jobCreated(2, job(1, 0)).online(2.5, 10, warm(0)).received(3, 1, 10, warm(0))
			s.finished(4, 1, "succeeded", "").offline(5, 10, warm(0)).idle(6, 11, job(1, 0))
		}},
		"a build that a warm agent took explains one agent, and only of its own request": {tell: func(s *story) {
			keep(1)(s)
			s.jobCreated(1, warm(0)).online(2.5, 10, warm(0)).queued(2.6, 1).received(3, 1, 10, warm(0)).finished(4, 1, "succeeded", "").offline(5, 10, warm(0))
			s.build(30, 2, 12).jobCreated(31, job(2, 1)).idle(33, 13, job(2, 1))
		}, want: "duplicate", evidence: "agent 13"},
	})
}

// TestBelonging tells who may change what, and what a placeholder is.
func TestBelonging(t *testing.T) {
	t.Parallel()
	const placeholder = "azp-placeholder-abcd1234-java-zzzzzz"
	standing := func(s *story) *story {
		s.rules.Placeholders = "azp-placeholder-"
		return s.by(0, "agent-added", 3, placeholder, "scaler").build(1, 1, 10)
	}
	tell(t, map[string]tale{
		"a placeholder stays":                      {tell: func(s *story) { standing(s) }},
		"a placeholder of an unknown kind":         {tell: func(s *story) { standing(s).rules.Placeholders = "" }, want: "leaked"},
		"a placeholder left after the cleanup":     {tell: func(s *story) { standing(s).rules.CleanedUp = true }, want: "leaked", evidence: placeholder},
		"a placeholder taken away by the cleanup":  {tell: func(s *story) { standing(s).by(30, "agent-deleted", 3, placeholder, "scaler").rules.CleanedUp = true }},
		"a placeholder that comes online":          {tell: func(s *story) { standing(s).by(5, "session-created", 3, placeholder, "") }, want: "placeholder", evidence: "03:04:05"},
		"a placeholder taken away by an installer": {tell: func(s *story) { standing(s).by(30, "agent-deleted", 3, placeholder, "installer") }, want: "touched", evidence: "installer"},
		"the same by a named administrator": {tell: func(s *story) {
			standing(s).by(30, "agent-deleted", 3, placeholder, "installer").rules.Administrators = []string{"installer"}
		}},
		"an agent that another installation disables": {tell: func(s *story) {
			s.build(0, 1, 10).by(20, "agent-added", 20, "static", "vm").by(21, "agent-disabled", 20, "static", "scaler").by(22, "agent-deleted", 20, "static", "vm")
		}, want: "touched", evidence: `agent 20 static (pool 1) was added by "vm", and yet there is agent-disabled by "scaler"`},
		"an agent that another installation may not delete": {tell: func(s *story) {
			s.build(0, 1, 10).by(20, "agent-added", 20, "static", "vm").by(21, "agent-delete-refused", 20, "static", "scaler").by(22, "agent-deleted", 20, "static", "vm")
		}, want: "touched"},
		"an agent that changes itself": {tell: func(s *story) {
			s.build(0, 1, 10).by(20, "agent-added", 20, "static", "vm").by(21, "agent-updated", 20, "static", "agent:static").by(22, "agent-deleted", 20, "static", "vm")
		}},
		"a Job that another installation deletes": {tell: func(s *story) {
			s.rules.ScalerUsers = append(s.rules.ScalerUsers, "system:serviceaccount:b:azp-scaler")
			s.build(0, 1, 10).kubeWrite(20, "system:serviceaccount:b:azp-scaler", "delete", "batch", "jobs", "agents", job(1, 0), 200, nil)
		}, want: "touched", evidence: "jobs agents/" + job(1, 0)},
		"a pod that another installation deletes": {tell: func(s *story) {
			s.rules.ScalerUsers = append(s.rules.ScalerUsers, "system:serviceaccount:b:azp-scaler")
			s.build(0, 1, 10).kubeWrite(20, "system:serviceaccount:b:azp-scaler", "delete", "", "pods", "agents", job(1, 0)+"-x7k2p", 200, nil)
		}, want: "touched"},
		"a Job that another installation may not delete": {tell: func(s *story) {
			s.rules.ScalerUsers = append(s.rules.ScalerUsers, "system:serviceaccount:b:azp-scaler")
			s.build(0, 1, 10).kubeWrite(20, "system:serviceaccount:b:azp-scaler", "delete", "batch", "jobs", "agents", job(1, 0), 403, nil)
		}},
		"a pod of one's own": {tell: func(s *story) {
			s.build(0, 1, 10).kubeWrite(20, scaler, "delete", "", "pods", "agents", job(1, 0)+"-x7k2p", 200, nil)
		}},
	})
}

// tale is a small run and what the auditor must find in it: nothing, or exactly
// these verdicts, the first with this evidence.
type tale struct {
	tell     func(s *story)
	want     string
	evidence string
}

func tell(t *testing.T, tales map[string]tale) {
	t.Helper()
	for name, test := range tales {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStory(t)
			test.tell(s)
			report := s.judge()
			if got := verdicts(report); got != test.want {
				t.Fatalf("verdicts are %q, want %q: %+v", got, test.want, report.Findings)
			}
			if test.want != "" && !strings.Contains(report.Findings[0].Text, test.evidence) {
				t.Errorf("the finding %q does not name %q", report.Findings[0].Text, test.evidence)
			}
			checkCounts(t, report)
		})
	}
}

// checkCounts compares the figures with the findings that they count.
func checkCounts(t *testing.T, report audit.Report) {
	t.Helper()
	found := map[audit.Verdict]int{}
	for _, finding := range report.Findings {
		found[finding.Verdict]++
	}
	for verdict, count := range map[audit.Verdict]int{
		audit.VerdictDuplicate: report.Duplicates, audit.VerdictPlaceholder: report.Placeholders, audit.VerdictTouched: report.Touched,
	} {
		if found[verdict] != count {
			t.Errorf("%d findings %q, and the figure says %d", found[verdict], verdict, count)
		}
	}
}

// by adds a line about an agent with who did it.
func (s *story) by(second float64, event string, id int, name, who string) *story {
	return s.event(second, event, map[string]any{"agentId": id, "agentName": name, "by": who})
}

// other is the name of the first Job that another installation made for request 1.
func other() string {
	return strings.Replace(job(1, 0), "abcd1234", "wxyz5678", 1)
}

// TestStandingAccounts tells of builds that run as an account of the administrator's.
func TestStandingAccounts(t *testing.T) {
	t.Parallel()
	const account = "cloud"
	standing := audit.LiveObject{Resource: "serviceaccounts", Namespace: "agents", Name: account, UID: "uid-of-cloud"}
	// A build of the class, with what else is told of it.
	build := func(more func(s *story)) func(s *story) {
		return func(s *story) {
			s.rules.StandingAccounts = map[string]string{"azure": "agents/" + account}
			s.objects = []audit.LiveObject{standing}
			s.queued(0, 1).jobOfClass(1, job(1, 0), "azure")
			if more != nil {
				more(s)
			}
			s.ran(3, 1, 10, job(1, 0))
		}
	}
	write := func(user, verb string) func(s *story) {
		return func(s *story) { s.kubeWrite(2, user, verb, "", "serviceaccounts", "agents", account, 200, nil) }
	}
	tell(t, map[string]tale{
		"the account stays":            {tell: build(nil)},
		"the administrator changes it": {tell: build(write("kubernetes-admin", "patch"))},
		"the scaler looks at it":       {tell: build(write(scaler, "get"))},
		"the scaler changes it":        {tell: build(write(scaler, "patch")), want: "touched", evidence: "serviceaccount agents/cloud is the administrator's"},
		"the scaler deletes it": {tell: build(func(s *story) {
			write(scaler, "delete")(s)
			s.objects = nil
		}), want: "touched touched", evidence: "delete serviceaccounts by " + scaler},
		"the scaler requests its token": {tell: build(func(s *story) {
			s.kubeWrite(2, scaler, "create", "", "serviceaccounts", "agents", account, 201, func(line map[string]any) {
				line["objectRef"] = map[string]any{"resource": "serviceaccounts", "subresource": "token", "namespace": "agents", "name": account}
			})
		}), want: "touched", evidence: "create serviceaccounts/token"},
		"somebody removes it": {tell: build(func(s *story) { s.objects = nil }), want: "touched", evidence: "is not there at the end"},
		"the build is given a right": {
			tell: build(func(s *story) { s.bound(2, job(1, 0)).unbound(8, job(1, 0)) }), want: "rights", evidence: "rolebindings shop/" + job(1, 0),
		},
		"the build is given an account": {tell: build(func(s *story) {
			s.kubeWrite(2, scaler, "create", "", "serviceaccounts", "agents", job(1, 0), 201, nil)
		}), want: "rights", evidence: "serviceaccounts agents/" + job(1, 0)},
		"builds of other classes have their own": {tell: build(func(s *story) {
			s.queued(2, 2).jobOfClass(3, job(2, 0), "general").bound(3.1, job(2, 0)).ran(4, 2, 11, job(2, 0)).unbound(9, job(2, 0))
		})},
	})
}
