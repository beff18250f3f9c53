package simulate

import (
	"errors"
	"slices"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// Run lets a history take its course. It belongs into a bubble of testing/synctest.
func Run(setup Setup) (History, error) {
	w := newWorld(setup)
	err := w.happen()
	w.mu.Lock()
	defer w.mu.Unlock()
	return History{Setup: setup, Events: w.events}, err
}

// patience is how long one of the builds that are left has to end in.
const patience = 20 * time.Minute

// happen is the script: trouble as long as builds are queued, then calm, then rest.
func (w *world) happen() error {
	s := &staff{world: w, d: w.dice("people", ""), leader: w.start()}
	w.with(func() { w.plague(s.d) })
	for range w.setup.Builds {
		time.Sleep(1 + s.d.upTo(2*w.setup.Within/time.Duration(w.setup.Builds)))
		w.with(func() { w.enqueue(s.wish(), s.d.IntN(2)) })
		s.meddle()
	}
	w.with(func() { w.queues = false })
	time.Sleep(w.longestOutage())
	s.awaitBuilds()
	s.calm()
	// Whatever is learned late, swept or backed off from is over by then.
	time.Sleep(w.setup.settles())
	w.with(func() { w.record(Event{Kind: Rest}) })
	time.Sleep(quiet)
	w.with(func() { w.record(Event{Kind: End}) })
	events := len(w.events)
	s.errs = append(s.errs, s.leader.end())
	for _, r := range w.killed {
		s.errs = append(s.errs, <-r.done)
	}
	w.with(func() { clear(w.requests) })
	// What has begun is over by then, as it must be at a bubble's end.
	time.Sleep(patience)
	w.with(func() { w.events = w.events[:events] })
	return errors.Join(s.errs...)
}

// quiet is for how long nothing is written at rest.
const quiet = 10 * time.Minute

// staff are the people who queue builds, and those who see to cluster and scaler.
type staff struct {
	world  *world
	d      dice
	leader *replica
	second *replica // Another that leads as well, if any.
	errs   []error
}

// wish gives the demands of the next build.
func (s *staff) wish() []agentpool.Demand {
	if s.d.oneIn(40) {
		return []agentpool.Demand{{Name: foreignDemand}}
	}
	return someDemands(s.d, pick(s.d, s.world.classes...).Capabilities)
}

// meddle does one thing or another, or mostly nothing.
func (s *staff) meddle() {
	w, f := s.world, s.world.setup.Faults
	seldom := func(kind bool) bool { return kind && s.d.oneIn(10) }
	if seldom(f.Edits) {
		w.with(func() { w.edit(s.d) })
	}
	if seldom(f.Evictions) {
		w.with(func() { w.evict(s.d) })
	}
	if f.NodeLoss && s.d.oneIn(25) {
		w.with(func() { w.lose(s.d.IntN(nodes)) })
	}
	if seldom(f.Restarts) {
		s.replace((*replica).end)
	}
	if seldom(f.Kills) {
		s.replace((*replica).kill)
	}
	if seldom(f.TwoLeaders) {
		s.double()
	}
}

// replace has another scaler take the place of the one that leads, which may take a while.
func (s *staff) replace(leave func(*replica) error) {
	s.errs = append(s.errs, leave(s.leader))
	if s.second != nil {
		s.leader, s.second = s.second, nil
		return
	}
	time.Sleep(1 + s.d.mostly(15*time.Second))
	s.leader = s.world.start()
}

// double has two lead at the same time, or no longer.
func (s *staff) double() {
	if s.second == nil {
		s.second = s.world.start()
		return
	}
	if s.d.oneIn(2) {
		s.leader, s.second = s.second, s.leader
	}
	leave := (*replica).end
	if s.d.oneIn(2) {
		leave = (*replica).kill
	}
	s.errs = append(s.errs, leave(s.second))
	s.second = nil
}

// awaitBuilds waits until every build has ended that can. As long as others do, one may wait.
func (s *staff) awaitBuilds() {
	w := s.world
	left := func() []int64 {
		return read(w, func() []int64 {
			return slices.DeleteFunc(w.requestIDs(), func(id int64) bool { return isForeign(w.requests[id].Demands) })
		})
	}
	before, waited := left(), time.Duration(0)
	for len(before) > 0 && waited < patience {
		time.Sleep(10 * time.Second)
		waited += 10 * time.Second
		if now := left(); len(now) < len(before) {
			before, waited = now, 0
		}
	}
}

// calm ends all trouble. One scaler is left. Where agents were being replaced for their
// age all the time, it no longer does that, so that there is a rest.
func (s *staff) calm() {
	w := s.world
	if s.second != nil {
		s.errs = append(s.errs, s.second.end())
	}
	w.with(func() { w.calm = true })
	if limits := &w.setup.Config.Limits; limits.MaxIdleAge < longIdle {
		s.errs = append(s.errs, s.leader.end())
		limits.MaxIdleAge = longIdle
		s.leader = w.start()
	}
	w.with(func() { w.record(Event{Kind: Calm}) })
}

// settles is by when nothing changes any more after nothing fails any more: when the world has
// come to an end with what it was about, and the limits have passed that what is left over must
// outlast, in two polls and ten seconds.
func (s Setup) settles() time.Duration { return s.lasts() + s.limits() + s.stable() }

// stable is the time that the scaler has for what is due.
func (s Setup) stable() time.Duration { return 2*s.Config.PollIdle + 10*time.Second }

// lasts is how long things go on by themselves: a lost node's pods are given up, a lock lapses,
// an agent that failed is replaced by one that is slow to start.
func (s Setup) lasts() time.Duration {
	return max(lockLasts, 6*time.Minute) + unattended + 5*time.Minute + s.Config.Limits.BackoffMax
}

// limits is how long something must have been left over before it is ended, at most: a
// registration is found by a list of agents, is old enough at a later one, and an agent that
// does not come back is then beyond need.
func (s Setup) limits() time.Duration {
	c := s.Config
	return 2*s.Lag + c.Limits.IdleLimit + c.SweepGrace + 2*max(c.AgentsEvery, c.SweepEvery)
}

// edit gives a class another version, and perhaps other caps. The caller holds the lock.
func (w *world) edit(d dice) {
	classes := slices.Clone(w.classes)
	class := &classes[d.IntN(len(classes))]
	class.Version += "'"
	if d.oneIn(3) {
		class.MaxAgents = max(1, class.MinIdle) + d.IntN(5)
	}
	w.classes = classes
	w.record(Event{Kind: Serves, By: "people", Classes: classes})
}

// evict has a pod deleted by somebody else. The caller holds the lock.
func (w *world) evict(d dice) {
	var able []*job
	for _, name := range w.names() {
		if j := w.jobs[name]; !j.Scheduled.IsZero() && !j.over && !j.Finished() {
			able = append(able, j)
		}
	}
	if len(able) > 0 {
		w.deletePod(able[d.IntN(len(able))], "cluster", agentpool.ReasonEvicted)
	}
}

// plague sets when everything of a kind fails for a while. The caller holds the lock.
func (w *world) plague(d dice) {
	if !w.setup.Faults.Outages {
		return
	}
	for range 1 + d.IntN(3) {
		o := outage{of: pick(d, toService, toCluster, toRights), how: unavailable}
		switch o.of {
		case toService:
			o.how = pick(d, unavailable, throttled, signIn, slowThere, unexpected)
		case toRights:
			o.how = forbidden
		case toCluster:
			o.how = pick(d, unavailable, slowThere, conflict)
		}
		o.begin = time.Now().Add(d.upTo(w.setup.Within))
		o.over = o.begin.Add(5*time.Second + d.upTo(3*time.Minute))
		w.outages = append(w.outages, o)
		w.record(Event{Kind: Outage, For: time.Until(o.over), Text: string(o.of) + ": " + string(o.how)})
	}
}

// out tells whether there is an outage of the kind now. The caller holds the lock.
func (w *world) out(of target) bool {
	now := time.Now()
	return slices.ContainsFunc(w.outages, func(o outage) bool { return o.of == of && !now.Before(o.begin) && now.Before(o.over) })
}

// longestOutage is until none is left.
func (w *world) longestOutage() time.Duration {
	return read(w, func() (longest time.Duration) {
		for _, o := range w.outages {
			longest = max(longest, time.Until(o.over))
		}
		return longest
	})
}
