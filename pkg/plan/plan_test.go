package plan_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

func now() time.Time { return time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC) }

func ago(d time.Duration) time.Time { return now().Add(-d) }

func request(id int64) agentpool.JobRequest {
	return agentpool.JobRequest{ID: id, PoolID: 7, QueueTime: now().Add(time.Duration(id) * time.Second).Add(-time.Hour)}
}

func job(requestID int64, change func(*agentpool.AgentJob)) agentpool.AgentJob {
	j := agentpool.AgentJob{
		Name: agentName(requestID), UID: agentName(requestID), Class: "default", PoolID: 7,
		RequestID: requestID, CreatedAt: ago(10 * time.Second), PodName: "pod",
	}
	if change != nil {
		change(&j)
	}
	return j
}

func agentName(requestID int64) string { return "azp-test-7-" + string(rune('a'+requestID)) }

func starting(j *agentpool.AgentJob) { j.Scheduled = ago(5 * time.Second) }

func idle(j *agentpool.AgentJob) {
	starting(j)
	j.Started, j.Ready, j.ReadySince = true, true, ago(3*time.Second)
}

func busy(j *agentpool.AgentJob) {
	idle(j)
	j.Ready, j.RanBuild = false, true
}

func finished(j *agentpool.AgentJob) {
	busy(j)
	j.Ended, j.JobDone = ago(time.Second), true
}

func failed(j *agentpool.AgentJob) {
	starting(j)
	j.Ended, j.JobDone, j.Reason = ago(time.Second), true, agentpool.ReasonCrashed
}

func evicted(j *agentpool.AgentJob) {
	failed(j)
	j.Reason = agentpool.ReasonEvicted
}

func snapshot(requests []agentpool.JobRequest, jobs ...agentpool.AgentJob) plan.Snapshot {
	return plan.Snapshot{
		Now: now(), Pool: agentpool.Pool{ID: 7, Name: "k8s"}, Requests: requests, Jobs: jobs, SpareSince: spareSince(jobs),
		Classes: []agentpool.AgentClass{{Name: "default", Capabilities: agentpool.NewCapabilities(map[string]string{"Agent.OS": "Linux"})}},
		Limits: plan.Limits{
			PoolAgents: 100, CreationsPerCycle: 250, IdleLimit: time.Minute, MaxIdleAge: time.Hour,
			StartupLimit: 10 * time.Minute, HalfMadeLimit: 2 * time.Minute,
			BackoffMin: 10 * time.Second, BackoffMax: 10 * time.Minute,
		},
	}
}

// spareSince has all agents be beyond need for as long as they wait.
func spareSince(jobs []agentpool.AgentJob) map[string]time.Time {
	since := map[string]time.Time{}
	for _, job := range jobs {
		since[job.UID] = job.WaitingSince()
	}
	return since
}

func requests(ids ...int64) []agentpool.JobRequest {
	var list []agentpool.JobRequest
	for _, id := range ids {
		list = append(list, request(id))
	}
	return list
}

func created(p plan.Plan) []int64 {
	var ids []int64
	for _, c := range p.Create {
		ids = append(ids, c.Request.ID)
	}
	return ids
}

func ended(p plan.Plan) map[string]plan.EndReason {
	var names map[string]plan.EndReason
	for _, e := range p.End {
		if names == nil {
			names = map[string]plan.EndReason{}
		}
		names[e.Job.Name] = e.Reason
	}
	return names
}

func skipped(p plan.Plan) map[int64]plan.SkipReason {
	var reasons map[int64]plan.SkipReason
	for _, s := range p.Skipped {
		if reasons == nil {
			reasons = map[int64]plan.SkipReason{}
		}
		reasons[s.Request.ID] = s.Reason
	}
	return reasons
}

func reservedBy(id int64, agent string) agentpool.JobRequest {
	r := request(id)
	r.AssignTime, r.Reserved = now(), agentpool.AgentRef{ID: 1, Name: agent}
	return r
}

func TestMake(t *testing.T) {
	const served = plan.SkipServed
	old := func(set func(*agentpool.AgentJob), age time.Duration) func(*agentpool.AgentJob) {
		return func(j *agentpool.AgentJob) {
			set(j)
			j.CreatedAt = ago(age)
			if j.Ready {
				j.ReadySince = ago(age)
			}
			if !j.Scheduled.IsZero() {
				j.Scheduled = ago(age)
			}
		}
	}
	suspended := func(j *agentpool.AgentJob) { j.Suspended, j.PodName = true, "" }

	tests := map[string]struct {
		snapshot plan.Snapshot
		change   func(*plan.Snapshot)
		create   []int64
		attempts []int
		end      map[string]plan.EndReason
		complete []string
		disable  []string
		skip     map[int64]plan.SkipReason
	}{
		"an empty queue needs nothing":               {snapshot: snapshot(nil)},
		"one Job for each queued request":            {snapshot: snapshot(requests(1, 2, 3)), create: []int64{1, 2, 3}},
		"a starting agent is capacity":               {snapshot: snapshot(requests(1, 2), job(1, starting)), create: []int64{2}, skip: map[int64]plan.SkipReason{1: served}},
		"an idle agent is capacity":                  {snapshot: snapshot(requests(1), job(1, idle)), skip: map[int64]plan.SkipReason{1: served}},
		"an unprobed agent is capacity":              {snapshot: snapshot(requests(1), job(1, func(j *agentpool.AgentJob) { starting(j); j.Started = true })), skip: map[int64]plan.SkipReason{1: served}},
		"a busy agent is none":                       {snapshot: snapshot(requests(1), job(1, busy)), create: []int64{1}, attempts: []int{1}, disable: []string{agentName(1)}},
		"a finished agent is none":                   {snapshot: snapshot(requests(1), job(1, finished)), create: []int64{1}, attempts: []int{1}},
		"running plus queued gives one a piece":      {snapshot: snapshot(append(requests(5, 6), reservedBy(1, agentName(1)), reservedBy(2, agentName(2))), job(1, busy), job(2, busy)), create: []int64{5, 6}, disable: []string{agentName(1), agentName(2)}},
		"an agent named by a request is busy":        {snapshot: snapshot(append(requests(2), reservedBy(1, agentName(2))), job(2, idle)), create: []int64{2}, attempts: []int{1}, disable: []string{agentName(2)}},
		"another's agent takes none of our capacity": {snapshot: snapshot(append(requests(2), reservedBy(1, "static-vm")), job(2, idle)), skip: map[int64]plan.SkipReason{2: served}},
		"swapped requests need only one more":        {snapshot: snapshot(append(requests(1, 3), reservedBy(2, agentName(1))), job(1, busy), job(2, idle)), create: []int64{3}, skip: map[int64]plan.SkipReason{1: served}, disable: []string{agentName(1)}},
		"a disabled busy agent is left alone":        {snapshot: snapshot(nil, job(1, busy)), change: func(s *plan.Snapshot) { s.Disabled = map[string]bool{agentName(1): true} }},
		"a disabled idle agent is ended":             {snapshot: snapshot(requests(1), job(1, idle)), change: func(s *plan.Snapshot) { s.Disabled = map[string]bool{agentName(1): true} }, create: []int64{1}, attempts: []int{1}, end: map[string]plan.EndReason{agentName(1): plan.EndWithdrawn}},
		"a Job being deleted is no capacity":         {snapshot: snapshot(requests(1), job(1, func(j *agentpool.AgentJob) { idle(j); j.Deleting = true })), create: []int64{1}, attempts: []int{1}},
		"surplus within the idle limit stays":        {snapshot: snapshot(nil, job(1, old(idle, 59*time.Second)), job(2, old(starting, 59*time.Second)))},
		"surplus beyond the idle limit goes":         {snapshot: snapshot(nil, job(1, old(idle, time.Minute)), job(2, old(starting, time.Minute))), end: map[string]plan.EndReason{agentName(1): plan.EndSurplus, agentName(2): plan.EndSurplus}},
		"what was needed until now is no surplus":    {snapshot: snapshot(nil, job(1, old(idle, time.Hour))), change: func(s *plan.Snapshot) { s.SpareSince = nil }},
		"what starts is surplus before what waits":   {snapshot: snapshot(requests(9), job(1, old(idle, time.Hour)), job(2, old(starting, 5*time.Minute))), skip: map[int64]plan.SkipReason{9: served}, end: map[string]plan.EndReason{agentName(2): plan.EndSurplus}},
		"an unscheduled agent is not overdue":        {snapshot: snapshot(requests(1), job(1, func(j *agentpool.AgentJob) { j.CreatedAt = ago(time.Hour) })), skip: map[int64]plan.SkipReason{1: served}},
		"one that never registers is overdue":        {snapshot: snapshot(requests(1), job(1, old(starting, 10*time.Minute))), create: []int64{1}, attempts: []int{1}, end: map[string]plan.EndReason{agentName(1): plan.EndStartupLimit}},
		"and one that listens and never waits":       {snapshot: snapshot(requests(1), job(1, func(j *agentpool.AgentJob) { old(starting, 10*time.Minute)(j); j.Started = true })), create: []int64{1}, attempts: []int{1}, end: map[string]plan.EndReason{agentName(1): plan.EndStartupLimit}},
		"a half-made Job is gone on with":            {snapshot: snapshot(requests(1), job(1, suspended)), complete: []string{agentName(1)}, skip: map[int64]plan.SkipReason{1: served}},
		"a half-made Job gets two minutes":           {snapshot: snapshot(requests(1), job(1, func(j *agentpool.AgentJob) { suspended(j); j.CreatedAt = ago(2 * time.Minute) })), create: []int64{1}, attempts: []int{1}, end: map[string]plan.EndReason{agentName(1): plan.EndHalfMade}},
		"a Job that gets no pod is replaced": {snapshot: snapshot(requests(1), job(1, func(j *agentpool.AgentJob) {
			j.PodName, j.Reason, j.CreatedAt = "", agentpool.ReasonMissingObject, ago(2*time.Minute)
		})), create: []int64{1}, attempts: []int{1}, end: map[string]plan.EndReason{agentName(1): plan.EndHalfMade}},
		"one that waits for a quota stays": {snapshot: snapshot(requests(1), job(1, func(j *agentpool.AgentJob) {
			j.PodName, j.Reason, j.CreatedAt = "", agentpool.ReasonQuota, ago(time.Hour)
		})), skip: map[int64]plan.SkipReason{1: served}},
		"what is left of a lost node goes":               {snapshot: snapshot(nil, job(1, func(j *agentpool.AgentJob) { idle(j); j.Deleting = true })), change: func(s *plan.Snapshot) { s.Lost = map[string]bool{agentName(1): true} }, end: map[string]plan.EndReason{agentName(1): plan.EndLost}},
		"a pod outlives its agent for a while":           {snapshot: snapshot(nil, job(1, func(j *agentpool.AgentJob) { finished(j); j.JobDone, j.Ended = false, ago(9*time.Minute) }))},
		"and not for ever":                               {snapshot: snapshot(nil, job(1, func(j *agentpool.AgentJob) { finished(j); j.JobDone, j.Ended = false, ago(10*time.Minute) })), end: map[string]plan.EndReason{agentName(1): plan.EndLingering}},
		"one that nobody registered is not gone on with": {snapshot: snapshot(requests(1), job(1, func(j *agentpool.AgentJob) { suspended(j); j.Registration = agentpool.RegistrationJIT })), skip: map[int64]plan.SkipReason{1: served}},
		"but replaced when its maker is gone": {snapshot: snapshot(requests(1), job(1, func(j *agentpool.AgentJob) { suspended(j); j.Registration = agentpool.RegistrationJIT })), change: func(s *plan.Snapshot) {
			s.Abandoned = map[string]bool{s.Jobs[0].UID: true}
		}, create: []int64{1}, attempts: []int{1}, end: map[string]plan.EndReason{agentName(1): plan.EndUnregistered}},
		"and one that is registered is gone on with": {snapshot: snapshot(requests(1), job(1, func(j *agentpool.AgentJob) {
			suspended(j)
			j.Registration, j.AgentID = agentpool.RegistrationJIT, 5
		})), complete: []string{agentName(1)}, skip: map[int64]plan.SkipReason{1: served}},
		"no deletions when the cache is stale":     {snapshot: snapshot(nil, job(1, old(idle, time.Hour))), change: func(s *plan.Snapshot) { s.NoDeletions = true }},
		"a failed agent is replaced after a wait":  {snapshot: snapshot(requests(1), job(1, failed)), skip: map[int64]plan.SkipReason{1: plan.SkipBackoff}},
		"and once the wait is over":                {snapshot: snapshot(requests(1), job(1, failed)), change: func(s *plan.Snapshot) { s.Now = s.Now.Add(9 * time.Second) }, create: []int64{1}, attempts: []int{1}},
		"one failure does not stop other requests": {snapshot: snapshot(requests(1, 2), job(1, failed)), create: []int64{2}, skip: map[int64]plan.SkipReason{1: plan.SkipBackoff}},
		"three failures in a row stop the class":   {snapshot: snapshot(requests(4), job(1, failed), job(2, failed), job(3, failed)), skip: map[int64]plan.SkipReason{4: plan.SkipBackoff}},
		"nodes that are drained do not":            {snapshot: snapshot(requests(4), job(1, evicted), job(2, evicted), job(3, evicted)), create: []int64{4}},
		"a remembered failure counts too": {snapshot: snapshot(requests(1)), change: func(s *plan.Snapshot) {
			s.Failures = []plan.Failure{{RequestID: 1, Class: "default", Count: 4, At: ago(79 * time.Second)}}
		}, skip: map[int64]plan.SkipReason{1: plan.SkipBackoff}},
		"a remembered attempt is not used again":   {snapshot: snapshot(requests(1)), change: func(s *plan.Snapshot) { s.Attempts = map[int64]int{1: 4} }, create: []int64{1}, attempts: []int{5}},
		"the pool's cap counts busy agents":        {snapshot: snapshot(requests(2, 3), job(1, busy)), change: func(s *plan.Snapshot) { s.Limits.PoolAgents = 2 }, create: []int64{2}, disable: []string{agentName(1)}, skip: map[int64]plan.SkipReason{3: plan.SkipPoolCap}},
		"the pool's cap counts no finished agents": {snapshot: snapshot(requests(2), job(1, finished)), change: func(s *plan.Snapshot) { s.Limits.PoolAgents = 1 }, create: []int64{2}},
		"the class's cap":                          {snapshot: snapshot(requests(1, 2)), change: func(s *plan.Snapshot) { s.Classes[0].MaxAgents = 1 }, create: []int64{1}, skip: map[int64]plan.SkipReason{2: plan.SkipClassCap}},
		"the organisation's parallel jobs":         {snapshot: snapshot(requests(1, 2)), change: func(s *plan.Snapshot) { s.Limits.ParallelJobs = 1 }, create: []int64{1}, skip: map[int64]plan.SkipReason{2: plan.SkipParallelJobs}},
		"creations per cycle":                      {snapshot: snapshot(requests(1, 2, 3)), change: func(s *plan.Snapshot) { s.Limits.CreationsPerCycle = 2 }, create: []int64{1, 2}, skip: map[int64]plan.SkipReason{3: plan.SkipPerCycle}},
		"a blocked class makes nothing":            {snapshot: snapshot(requests(1)), change: func(s *plan.Snapshot) { s.Blocked = map[string]string{"default": "role absent"} }, skip: map[int64]plan.SkipReason{1: plan.SkipBlocked}},
		"a demand that is met":                     {snapshot: snapshot([]agentpool.JobRequest{demanding(1, "Agent.OS -equals linux")}), create: []int64{1}},
		"a demand that is not":                     {snapshot: snapshot([]agentpool.JobRequest{demanding(1, "java")}), skip: map[int64]plan.SkipReason{1: plan.SkipUnmatched}},
		"the agent's version rules nothing out":    {snapshot: snapshot([]agentpool.JobRequest{demanding(1, "Agent.Version -gtVersion 99.1")}), create: []int64{1}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if test.change != nil {
				test.change(&test.snapshot)
			}
			p := plan.Make(test.snapshot)
			var attempts []int
			for _, c := range p.Create {
				attempts = append(attempts, c.Attempt)
			}
			if test.attempts == nil && len(p.Create) > 0 {
				test.attempts = make([]int, len(p.Create))
			}
			var complete, disable []string
			for _, j := range p.Complete {
				complete = append(complete, j.Name)
			}
			for _, j := range p.Disable {
				disable = append(disable, j.Name)
			}
			for what, diff := range map[string]string{
				"created":   cmp.Diff(test.create, created(p)),
				"attempts":  cmp.Diff(test.attempts, attempts),
				"ended":     cmp.Diff(test.end, ended(p)),
				"completed": cmp.Diff(test.complete, complete),
				"disabled":  cmp.Diff(test.disable, disable),
				"skipped":   cmp.Diff(test.skip, skipped(p)),
			} {
				if diff != "" {
					t.Errorf("%s (-want +got):\n%s", what, diff)
				}
			}
		})
	}
}

func TestUrgency(t *testing.T) {
	s := snapshot(requests(1, 2, 3))
	s.Requests[2].Priority = 5
	s.Limits.CreationsPerCycle = 2
	if diff := cmp.Diff([]int64{3, 1}, created(plan.Make(s))); diff != "" {
		t.Errorf("the highest priority comes first, then the longest wait (-want +got):\n%s", diff)
	}
}

func TestFailuresAreCarriedOn(t *testing.T) {
	s := snapshot(requests(1), job(1, func(j *agentpool.AgentJob) { failed(j); j.Failures = 2 }))
	s.Now = now().Add(time.Hour)
	p := plan.Make(s)
	if len(p.Create) != 1 || p.Create[0].Failures != 3 {
		t.Fatalf("want one creation that carries 3 failures, got %+v", p.Create)
	}
}

func TestBackoff(t *testing.T) {
	for count, want := range []time.Duration{0, 10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second, 160 * time.Second, 320 * time.Second, 10 * time.Minute, 10 * time.Minute} {
		if got := plan.Backoff(count, 10*time.Second, 10*time.Minute); got != want {
			t.Errorf("after %d failures: want %v, got %v", count, want, got)
		}
	}
}

func TestView(t *testing.T) {
	s := snapshot(requests(3, 2), job(1, busy), job(2, starting))
	v := plan.Make(s).View
	if v.Queued != 2 || !v.OldestQueue.Equal(request(2).QueueTime) || !v.Unsettled {
		t.Errorf("the view does not show the queue: %+v", v)
	}
	want := map[agentpool.Phase]int{agentpool.PhaseBusy: 1, agentpool.PhaseStarting: 1}
	if diff := cmp.Diff(want, v.Agents["default"]); diff != "" {
		t.Errorf("agents by phase (-want +got):\n%s", diff)
	}
}

func TestOrderDoesNotMatter(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	shapes := []func(*agentpool.AgentJob){starting, idle, busy, finished, failed}
	for range 200 {
		var jobs []agentpool.AgentJob
		for id := range int64(12) {
			if random.IntN(2) == 0 {
				jobs = append(jobs, job(id, shapes[random.IntN(len(shapes))]))
			}
		}
		s := snapshot(requests(1, 2, 3, 4, 5, 6, 7, 8), jobs...)
		s.Limits.PoolAgents = 6
		want := plan.Make(s)
		shuffled := s
		shuffled.Requests, shuffled.Jobs = slices.Clone(s.Requests), slices.Clone(s.Jobs)
		random.Shuffle(len(shuffled.Requests), func(i, j int) {
			shuffled.Requests[i], shuffled.Requests[j] = shuffled.Requests[j], shuffled.Requests[i]
		})
		random.Shuffle(len(shuffled.Jobs), func(i, j int) {
			shuffled.Jobs[i], shuffled.Jobs[j] = shuffled.Jobs[j], shuffled.Jobs[i]
		})
		if diff := cmp.Diff(want, plan.Make(shuffled)); diff != "" {
			t.Fatalf("another order, another plan (-first +shuffled):\n%s", diff)
		}
	}
}
