package scaler_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// The service.

func (w *world) JobRequests(ctx context.Context, _ int, visit func(agentpool.JobRequest) error) (int, error) {
	w.tempt("")
	var rows []agentpool.JobRequest
	err := w.call(ctx, "poll", "", func() error {
		rows, w.polled = slices.Collect(maps.Values(w.requests)), 0
		for _, row := range rows {
			if row.State() == agentpool.RequestQueued {
				w.polled++
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	// It is the largest answer, and the one that is old the soonest.
	time.Sleep(w.dice("answer to poll", "").upTo(w.latency))
	for _, row := range rows {
		if err := visit(row); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

func (w *world) Agents(ctx context.Context, _ int) (list []agentpool.Agent, err error) {
	err = w.call(ctx, "list agents", "", func() error {
		list = slices.Collect(maps.Values(w.agents))
		return nil
	})
	return list, err
}

func (w *world) DisableAgent(ctx context.Context, _ int, agent agentpool.AgentRef) error {
	return w.write(ctx, "disable", agent.Name, func() error {
		w.disable(agent.Name)
		return nil
	})
}

// WithdrawAgent is three calls to the service, and each may fail.
func (w *world) WithdrawAgent(ctx context.Context, _ int, ref agentpool.AgentRef) (gone bool, err error) {
	w.tempt(ref.Name)
	return w.withdraw(ctx, ref)
}

func (w *world) withdraw(ctx context.Context, ref agentpool.AgentRef) (gone bool, err error) {
	find := func() (agentpool.Agent, bool) {
		agent, there := w.agents[ref.Name]
		return agent, there && (ref.ID == 0 || ref.ID == agent.ID)
	}
	occupied := false
	err = w.write(ctx, "withdraw: disable", ref.Name, func() error {
		_, there := find()
		gone = !there
		w.disable(ref.Name)
		return nil
	})
	if err != nil || gone {
		return gone && err == nil, err
	}
	err = w.call(ctx, "withdraw: look", ref.Name, func() error {
		agent, there := find()
		gone, occupied = !there, agent.AssignedRequest != 0
		return nil
	})
	if err != nil || gone || occupied {
		if occupied {
			w.with(func() { w.saw("an agent that was to be withdrawn has a build") })
		}
		return gone && err == nil, err
	}
	err = w.write(ctx, "withdraw: remove", ref.Name, func() error {
		agent, there := find()
		gone = true
		if !there {
			return nil
		}
		if request, occupied := w.requests[agent.AssignedRequest]; occupied {
			// The service is known to refuse only one that runs.
			if request.State() != agentpool.RequestRunning {
				w.accuse("the registration of %s was removed, which has request %d", ref.Name, request.ID)
			}
			gone = false
			return nil
		}
		w.saw("an idle agent was withdrawn")
		delete(w.agents, ref.Name)
		go w.notice(w.jobs[ref.Name])
		return nil
	})
	return gone && err == nil, err
}

func (w *world) AgentCapabilities(ctx context.Context, _ int, name string) (offered agentpool.Capabilities, registered bool, err error) {
	err = w.call(ctx, "look at", name, func() error {
		agent, there := w.agents[name]
		offered, registered = agent.Capabilities, there
		return nil
	})
	return offered, registered && err == nil, err
}

func (w *world) AddPlaceholder(ctx context.Context, poolID int, name string, claims map[string]string) error {
	if err := w.write(ctx, "placeholder", name, func() error { return nil }); err != nil {
		return err
	}
	return w.model.AddPlaceholder(ctx, poolID, name, claims)
}

// ours gives the registrations of agents that are no placeholders.
func (w *world) ours() map[string]agentpool.Agent {
	ours := maps.Clone(w.agents)
	maps.DeleteFunc(ours, func(name string, _ agentpool.Agent) bool {
		return strings.HasPrefix(name, agentjob.PlaceholderPrefix("test"))
	})
	return ours
}

// request queues a build, which the service gives to an agent sooner or later, and
// which somebody may cancel. The caller holds the lock.
func (w *world) request(demands []agentpool.Demand, priority int) int64 {
	w.lastID++
	id := w.lastID
	w.requests[id] = agentpool.JobRequest{ID: id, PoolID: 7, QueueTime: time.Now(), Demands: demands, Priority: priority}
	w.cancelled[id] = make(chan struct{})
	w.note("queued: %d %v", id, demands)
	go w.assignSoon(id)
	d := w.dice("cancel", fmt.Sprint(id))
	if d.oneIn(4) {
		time.AfterFunc(d.mostly(5*time.Minute), func() { w.with(func() { w.cancel(id) }) })
	}
	return id
}

func (w *world) cancel(id int64) {
	switch request, there := w.requests[id]; {
	case !there:
	case request.State() == agentpool.RequestQueued:
		w.saw("a queued build was cancelled")
		delete(w.requests, id)
	default:
		w.saw("a running build was cancelled")
		close(w.cancelled[id])
	}
}

// assignSoon gives a request to an agent as soon as the service comes to it.
func (w *world) assignSoon(id int64) {
	d := w.dice("assign", fmt.Sprint(id))
	time.Sleep(d.mostly(20 * time.Second))
	for !w.assignNow(id, d) {
		time.Sleep(d.upTo(2 * time.Second))
	}
}

func (w *world) assignNow(id int64, d dice) (over bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	request, there := w.requests[id]
	if !there || request.State() != agentpool.RequestQueued {
		return true
	}
	if name := w.leastConvenient(request, d); name != "" {
		w.assign(id, name)
		return true
	}
	return false
}

// free tells whether the service would give the agent a build.
func free(agent agentpool.Agent) bool {
	return agent.Enabled && agent.Online && agent.AssignedRequest == 0
}

// leastConvenient picks an agent as the stand-in for the service does: not the one that
// was made for the request, and the one with the most capabilities.
func (w *world) leastConvenient(request agentpool.JobRequest, d dice) string {
	able := slices.Sorted(maps.Keys(w.agents))
	able = slices.DeleteFunc(able, func(name string) bool {
		_, lacks := w.agents[name].Capabilities.Missing(request.Demands)
		return lacks || !free(w.agents[name])
	})
	if len(able) == 0 {
		return ""
	}
	d.Shuffle(len(able), func(i, j int) { able[i], able[j] = able[j], able[i] })
	rank := func(name string) (int, int) {
		if w.jobs[name].RequestID == request.ID {
			return 0, 0
		}
		return 1, len(w.agents[name].Capabilities)
	}
	return slices.MaxFunc(able, func(a, b string) int {
		ownA, offersA := rank(a)
		ownB, offersB := rank(b)
		return cmp.Or(cmp.Compare(ownA, ownB), cmp.Compare(offersA, offersB))
	})
}

// assign gives a request to an agent. The caller holds the lock.
func (w *world) assign(id int64, name string) {
	request, agent, job := w.requests[id], w.agents[name], w.jobs[name]
	request.AssignTime, request.Reserved = time.Now(), agentpool.AgentRef{ID: agent.ID, Name: name}
	agent.AssignedRequest = id
	w.requests[id], w.agents[name] = request, agent
	w.note("assigned: %d to %s", id, name)
	if job.RequestID != id {
		w.seen["a build went to an agent that was made for another"]++
	}
	if l := w.lives[job.UID]; l != nil && l.exiting {
		w.saw("an agent that was ending was given a second build")
		return // It never takes it up.
	}
	go w.build(id, job)
}

// tempt lets an agent be claimed, or start, just while the loop is about something with
// it; without a name, any that is free.
func (w *world) tempt(name string) {
	d := w.dice("tempt", name)
	if !d.oneIn(2) {
		return
	}
	time.AfterFunc(d.mostly(3*w.latency), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !w.queues || w.seen["tempted"] >= w.temptations {
			return
		}
		name := name
		if name == "" {
			names := slices.Sorted(maps.Keys(w.ours()))
			names = slices.DeleteFunc(names, func(name string) bool { return !free(w.agents[name]) })
			if len(names) == 0 {
				return
			}
			name = names[d.IntN(len(names))]
		}
		if l := w.lives[w.jobs[name].UID]; l != nil && !l.begun && !l.hurried {
			l.hurried = true
			close(l.hurry)
			return
		}
		agent, there := w.agents[name]
		if !there || !free(agent) {
			return
		}
		w.saw("tempted")
		w.assign(w.request(someDemands(d, agent.Capabilities), 0), name)
	})
}

// someDemands gives some of what is offered.
func someDemands(d dice, offered agentpool.Capabilities) []agentpool.Demand {
	var demands []agentpool.Demand
	for _, name := range slices.Sorted(maps.Keys(offered)) {
		if d.oneIn(2) {
			demands = append(demands, agentpool.Demand{Name: name})
		}
	}
	return demands
}
