package main

// The packages whose tests are to notice defects in what they rest on.
const (
	planTests     = "pkg/plan"
	loopTests     = "pkg/scaler"
	simulation    = "test/simulate"
	clusterTests  = "pkg/cluster"
	jobTests      = "pkg/agentjob"
	serviceTests  = "pkg/azuredevops"
	agentTests    = "pkg/agent"
	programTests  = "cmd/agent-entrypoint"
	appTests      = "pkg/app"
	classTests    = "pkg/agentclass"
	poolTests     = "pkg/agentpool"
	leaveAsItIs   = "if false {"
	nothing       = "_ = 0"
	deletionOrder = "if err := c.endRightsOf(ctx, job); err != nil {\n\t\treturn err\n\t}\n\treturn c.deleteOnly(ctx, job, \"\")"
)

// defects are those that are planted: each breaks one thing that the promises rest on.
func defects() []defect {
	var all []defect
	for _, some := range [][]defect{inThePlan(), inTheLoop(), inTheCluster(), inTheService(), inThePod()} {
		all = append(all, some...)
	}
	return all
}

func inThePlan() []defect {
	tests := []string{planTests, loopTests, simulation}
	return []defect{
		{"an agent with a build counts as free capacity", "pkg/plan/phase.go", "case reserved, job.RanBuild:", "case reserved && job.RanBuild:", tests},
		{"an agent that is being deleted counts as capacity", "pkg/plan/phase.go", "case job.Deleting:", "case false:", tests},
		{"a disabled agent counts as capacity", "pkg/plan/phase.go", "case disabled:", "case false:", tests},
		{"a build that was picked up counts as queued", "pkg/plan/need.go", "again := seen[request.ID] || further[request.ID]", "again := seen[request.ID]", tests},
		{"the queue is served last in, first out", "pkg/plan/need.go", "a.QueueTime.Compare(b.QueueTime),", "b.QueueTime.Compare(a.QueueTime),", tests},
		{"builds that run are not counted against the parallel jobs", "pkg/plan/budget.go", "max(0, b.s.Limits.ParallelJobs-b.running)", "max(0, b.s.Limits.ParallelJobs)", tests},
		{"a class has one agent more than it may", "pkg/plan/budget.go", "n > 0 && b.ofClass[class.Name] >= n", "n > 0 && b.ofClass[class.Name] > n", tests},
		{"a pool has one agent more than it may", "pkg/plan/budget.go", "n > 0 && b.live >= n", "n > 0 && b.live > n", tests},
		{"the count of failures starts anew with each Job", "pkg/plan/budget.go", "Failures: b.history.request[cause{request: request.ID, class: class.Name}].Count,", "Failures: 0,", tests},
		{"there is no back-off", "pkg/plan/history.go", "if count <= 0 {\n\t\treturn 0", "if count >= 0 {\n\t\treturn 0", tests},
		{"a Job gets a name that another one had", "pkg/plan/history.go", "if before {\n\t\tn++", "if !before {\n\t\tn++", tests},
		{"an agent beyond need is ended at once", "pkg/plan/release.go", "case spareFor(s, *job) >= s.Limits.IdleLimit:", "case true:", tests},
		{"an agent beyond need is never ended", "pkg/plan/release.go", "case spareFor(s, *job) >= s.Limits.IdleLimit:", "case false:", tests},
		{"agents are ended on the word of a stale cache", "pkg/plan/make.go", "if s.NoDeletions {", leaveAsItIs, tests},
	}
}

func inTheLoop() []defect {
	tests := []string{loopTests, simulation}
	return []defect{
		{"a stale list is trusted", "pkg/scaler/cycle.go", "if unseen > s.config.AssumeLimit {", leaveAsItIs, tests},
		{"a partial answer counts as the whole queue", "pkg/scaler/cycle.go", "if err != nil {\n\t\tif ctx.Err() == nil {\n\t\t\ts.postpone(\"the queue can't be read", "if err != nil && len(requests) == 0 {\n\t\tif ctx.Err() == nil {\n\t\t\ts.postpone(\"the queue can't be read", tests},
		{"a Job that was let run counts as half-made", "pkg/scaler/memory.go", "m.unsuspended[job.UID] = job.AgentID", nothing, tests},
		{"what is known of a Job is forgotten before a cache shows it", "pkg/scaler/memory.go", "return !uids[uid] && !unseen", "return !uids[uid] || unseen", tests},
		{"a lost agent is ended for as long as a cache shows it", "pkg/scaler/memory.go", "delete(m.assumed, job.UID)\n\tdelete(m.lost, job.Name)\n\tdelete(m.gone, job.Name)", "delete(m.assumed, job.UID)", tests},
		{"a new agent has the name of a disabled one", "pkg/scaler/memory.go", "m.attempts[request] = max(m.attempts[request], attempt)", "_, _ = request, attempt", tests},
		{"a turn that comes free is not told of", "pkg/scaler/follow.go", "e.scaler.Notify()", nothing, tests},
		{"an agent that was given a build is deleted all the same", "pkg/scaler/apply.go", "\tif !gone {\n\t\t// It stays disabled", "\tif !gone && false {\n\t\t// It stays disabled", tests},
		{"an error of a withdrawal is swallowed", "pkg/scaler/apply.go", "return false, fmt.Errorf(\"its agent can't be withdrawn: %w\", err)", "gone = true", tests},
		{"an agent with a build is not disabled when its pod shows it", "pkg/scaler/follow.go", "case job.RanBuild && !s.memory.isDisabled(job.Name):", "case false:", tests},
		{"the rights of a build that has ended stay until its Job goes", "pkg/scaler/follow.go", "if !s.memory.isRightless(job.UID) {", leaveAsItIs, tests},
		{"an idle agent whose pod is told to end stays in the pool", "pkg/scaler/follow.go", "over := job.Finished() || (job.Deleting && !job.RanBuild)", "over := job.Finished()", tests},
		{"a registration whose removal failed counts as removed", "pkg/scaler/follow.go", "\tcase err != nil:\n\t\tif s.complain.isNew(subject, err.Error()) {", "\tcase err != nil:\n\t\ts.memory.setDeregistered(job.UID)\n\t\tif s.complain.isNew(subject, err.Error()) {", tests},
		{"a sweep removes registrations on the word of a cache", "pkg/scaler/sweep.go", "alive = liveNames(live)", "_ = live", tests},
		{"a sweep removes the agents of others", "pkg/scaler/sweep.go", "if !strings.HasPrefix(agent.Name, agentjob.NamePrefix(s.config.Instance)) || alive[agent.Name] {", "if alive[agent.Name] {", tests},
		{"a sweep leaves no grace", "pkg/scaler/sweep.go", "if s.memory.orphaned(agent.Name, s.now()) >= s.config.SweepGrace {", "if s.memory.orphaned(agent.Name, s.now()) >= 0 {", tests},
		{"registrations are never swept", "pkg/scaler/sweep.go", "if len(due) == 0 {", "if len(due) >= 0 {", tests},
		{"a Job that was made and is not seen yet is forgotten", "pkg/scaler/memory.go", "jobs = append(jobs, assumed.job)", nothing, tests},
		{"a Job that was deleted and is still seen counts as there", "pkg/scaler/memory.go", "m.ending[job.UID] = now", nothing, tests},
		{"the failure to make a Job is forgotten", "pkg/scaler/memory.go", "m.failures[why] = plan.Failure{RequestID: requestID, Class: class, Count: count, At: now}", "_ = count", tests},
	}
}

func inTheCluster() []defect {
	tests := []string{clusterTests}
	return []defect{
		{"a Job is deleted without what it owns", "pkg/cluster/delete.go", "metav1.DeletePropagationBackground", "metav1.DeletePropagationOrphan", tests},
		{"whatever has the name is deleted", "pkg/cluster/delete.go", "p := &metav1.Preconditions{UID: &uid}", "p := &metav1.Preconditions{}\n\t_ = uid", tests},
		{"what has changed since the look is deleted", "pkg/cluster/delete.go", "p.ResourceVersion = &version", "_ = version", tests},
		{"a Job goes before its build's rights", "pkg/cluster/delete.go", deletionOrder, "return c.deleteOnly(ctx, job, \"\")", tests},
		{"an agent that has started is deleted", "pkg/cluster/delete.go", "if agentBegun(pod) {", "if agentBegun(pod) && false {", tests},
		{"a Job is deleted while the controller may be making its pod", "pkg/cluster/delete.go", "if len(pods) == 0 && !suspendedJob(job) {", leaveAsItIs, tests},
		{"the rights of Jobs that have ended are never swept", "pkg/cluster/sweep.go", "living[string(job.UID)] = jobDone(job) == nil", "living[string(job.UID)] = true", tests},
		{"rights are swept without a grace", "pkg/cluster/sweep.go", "now.Sub(made.Time) >= grace", "now.Sub(made.Time) >= 0", tests},
		{"the rights of Jobs that are there are swept", "pkg/cluster/sweep.go", "if living[binding.Labels[agentjob.LabelJobUID]] {", leaveAsItIs, tests},
		{"a Job that has ended is taken for the one that was to be made", "pkg/cluster/ensure.go", "if err != nil || !c.usable(live) {", "if err != nil {", tests},
		{"a Job whose agent nobody registered is gone on with", "pkg/cluster/ensure.go", "if !made && unregistered(live) {", "if !made && unregistered(live) && false {", tests},
		{"rights of an earlier Job of the name are taken for this one's", "pkg/cluster/ensure.go", "case found.GetLabels()[agentjob.LabelJobUID] == string(job.UID):", "case true:", tests},
		{"what belongs to somebody else is removed", "pkg/cluster/ensure.go", "case !c.isOurs(found):", "case false:", tests},
		{"another Job of the name is let run", "pkg/cluster/ensure.go", "metadata := map[string]any{\"uid\": job.UID}", "metadata := map[string]any{}", tests},
		{"one namespace that is away keeps the rights in others", "pkg/cluster/rights.go", "wrong = append(wrong, c.endRoleBinding(ctx, binding.Namespace, binding.Name, job.UID))", "if err := c.endRoleBinding(ctx, binding.Namespace, binding.Name, job.UID); err != nil {\n\t\t\treturn err\n\t\t}", tests},
		{"a Job's pod is made a second time", "pkg/agentjob/build.go", "spec.BackoffLimit = new(int32(0))", "spec.BackoffLimit = new(int32(1))", []string{jobTests}},
		{"a Job is made running, before its rights are there", "pkg/agentjob/build.go", "spec.Suspend = new(true)", "spec.Suspend = new(false)", []string{jobTests}},
	}
}

func inTheService() []defect {
	tests := []string{serviceTests}
	return []defect{
		{"a sign-in page passes for an answer", "pkg/azuredevops/classify.go", "case r.status == http.StatusNonAuthoritativeInfo:", "case false:", tests},
		{"HTML passes for JSON", "pkg/azuredevops/classify.go", "html := strings.Contains(mediaType, \"html\") || bytes.HasPrefix(content, []byte(\"<\"))", "html := mediaType == \"none\" && len(content) < 0", tests},
		{"an agent is deleted without a look at its build", "pkg/azuredevops/agents.go", "if agent.AssignedRequest != 0 {\n\t\treturn false, nil", "if agent.AssignedRequest < 0 {\n\t\treturn false, nil", tests},
		{"a busy agent counts as removed", "pkg/azuredevops/agents.go", "case errors.Is(err, ErrAgentBusy):\n\t\treturn false, nil", "case errors.Is(err, ErrAgentBusy):\n\t\treturn true, nil", tests},
		{"an agent is withdrawn while it may be given a build", "pkg/azuredevops/agents.go", "if err := c.DisableAgent(ctx, poolID, id); err != nil {\n\t\treturn gone(err)\n\t}", nothing, tests},
		{"an answer with fewer rows than it says is whole", "pkg/azuredevops/collection.go", "if t.count >= 0 && t.count != t.rows {", leaveAsItIs, tests},
		{"a token that replaces another of its length is not read", "pkg/azuredevops/token.go", "t.info.ModTime().Equal(info.ModTime()) &&", "", tests},
		{"the wait that the service asks for is not kept", "pkg/azuredevops/classify.go", "wait, ok := retryAfter(r.header, now)", "wait, ok := time.Duration(0), true\n\t\t_ = now", tests},
		{"gtVersion means greater", "pkg/agentpool/demand.go", "compareVersions(value, d.Value) >= 0", "compareVersions(value, d.Value) > 0", []string{poolTests}},
	}
}

func inThePod() []defect {
	return []defect{
		{"a build sees the entrypoint's settings", "pkg/agent/environment.go", "strings.HasPrefix(upper, ownPrefix) || ", "", []string{agentTests, programTests}},
		{"a build sees the token under another name", "pkg/agent/environment.go", "leaked = append(leaked, name)\n\t\t\tcontinue", "leaked = append(leaked, name)", []string{agentTests, programTests}},
		{"a build that was cut off counts as done", "pkg/agent/decide.go", "case e.cut:", "case false:", []string{agentTests, programTests}},
		{"an agent that crashed during its build counts as done", "pkg/agent/decide.go", "return end(ExitBuildLost, \"the agent program ended with exit code %d while the build ran\", e.code)", "return end(ExitDone, \"the build ended with exit code %d\", e.code)", []string{agentTests}},
		{"ready comes up again after a claim", "pkg/agent/probes.go", "ok = p.listening.Load() && !p.claimed.Load()", "ok = p.listening.Load()", []string{programTests}},
		{"a claimed agent is not disabled", "pkg/agent/remove.go", "if reg.AgentID != 0 {\n\t\tif err := s.disableAgent", "if false {\n\t\tif err := s.disableAgent", []string{programTests}},
		{"a build begins before its agent is disabled", "pkg/agent/hold.go", "h.signal(worker, syscall.SIGSTOP)", nothing, []string{programTests}},
		{"a build that was held stays held", "pkg/agent/hold.go", "h.signal(worker, syscall.SIGCONT)", nothing, []string{programTests}},
		{"a registration that can't be removed counts as removed", "pkg/agent/registry.go", "return fmt.Errorf(\"agent %q (id %d) is still in the pool: %w\", reg.AgentName, reg.AgentID, err)", "return nil", []string{agentTests, programTests}},
		{"a package with another hash is unpacked", "pkg/azuredevops/packages.go", "if sum := hex.EncodeToString(hash.Sum(nil)); sum != p.SHA256 {", "if sum := hex.EncodeToString(hash.Sum(nil)); sum == \"\" {", []string{serviceTests, programTests}},
	}
}
