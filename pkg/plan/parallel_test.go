package plan_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

func TestParallelJobs(t *testing.T) {
	const served, full, poolCap = plan.SkipServed, plan.SkipParallelJobs, plan.SkipPoolCap
	base, gpu := class("base"), class("gpu", "gpu")
	kept := class("base")
	kept.MinIdle = 2
	waiting := []agentpool.AgentJob{warmJob(0, ofClass(base, idle)), warmJob(1, ofClass(base, idle))}
	elsewhere := reservedBy(9, "static-vm")
	urgent := demanding(2, "gpu")
	urgent.Priority = 5
	for name, test := range map[string]struct {
		snapshot    plan.Snapshot
		pool, total int
		other       int
		create      map[int64]string
		skip        map[int64]plan.SkipReason
		end         map[string]plan.EndReason
	}{
		"no agent makes room for a request that may not run even then": {
			snapshot: inClasses(snapshot([]agentpool.JobRequest{demanding(1, "gpu")}, append(waiting, job(5, ofClass(base, busy)))...), kept, gpu),
			pool:     3, total: 1,
			skip: map[int64]plan.SkipReason{1: full},
		},
		"and as many make room as may run": {
			snapshot: inClasses(snapshot([]agentpool.JobRequest{demanding(1, "gpu"), demanding(2, "gpu")}, waiting...), kept, gpu),
			pool:     2, total: 1,
			skip: map[int64]plan.SkipReason{1: poolCap, 2: full},
			end:  map[string]plan.EndReason{waiting[1].Name: plan.EndMakeRoom},
		},
		"requests beyond them leave the agents that wait to others": {
			snapshot: inClasses(snapshot(requests(1, 2, 3), waiting...), kept),
			total:    1,
			create:   map[int64]string{0: "base"},
			skip:     map[int64]plan.SkipReason{1: served, 2: full, 3: full},
		},
		"a build on somebody else's agent takes one": {
			snapshot: inClasses(snapshot(append(requests(1, 2), elsewhere)), base),
			total:    2,
			create:   map[int64]string{1: "base"},
			skip:     map[int64]plan.SkipReason{2: full},
		},
		"and so does one in another pool": {
			snapshot: inClasses(snapshot(requests(1, 2)), base),
			other:    1, total: 2,
			create: map[int64]string{1: "base"},
			skip:   map[int64]plan.SkipReason{2: full},
		},
		"the most urgent has the last, whether its agent is there or not": {
			snapshot: inClasses(snapshot([]agentpool.JobRequest{demanding(1), urgent}, job(1, ofClass(base, idle))), base, gpu),
			total:    1,
			create:   map[int64]string{2: "gpu"},
			skip:     map[int64]plan.SkipReason{1: full},
		},
	} {
		t.Run(name, func(t *testing.T) {
			test.snapshot.OtherPools = test.other
			test.snapshot.Limits.PoolAgents, test.snapshot.Limits.ParallelJobs = test.pool, test.total
			p := plan.Make(test.snapshot)
			for what, diff := range map[string]string{
				"made":    cmp.Diff(test.create, made(p)),
				"ended":   cmp.Diff(test.end, ended(p)),
				"skipped": cmp.Diff(test.skip, skipped(p)),
			} {
				if diff != "" {
					t.Errorf("%s (-want +got):\n%s", what, diff)
				}
			}
		})
	}
}
