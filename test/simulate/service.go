package simulate

import (
	"context"
	"slices"
	"strings"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
)

// JobRequests implements scaler.Service.
func (r *replica) JobRequests(ctx context.Context, _ int, visit func(agentpool.JobRequest) error) (malformed int, err error) {
	w := r.world
	if err := r.stopped(ctx); err != nil {
		return 0, err
	}
	r.tempt(ctx, "")
	w.with(func() {
		text := ""
		if r.listened {
			// What it plans with is not what its cache shows.
			text = "live"
		}
		r.listened = false
		w.record(Event{Kind: Looks, By: r.name, Text: text})
	})
	var rows []agentpool.JobRequest
	err = r.call(ctx, toService, "poll", "", func() error {
		rows = w.queue()
		return nil
	})
	if err != nil {
		return 0, err
	}
	// It is the largest answer, and the one that is old the soonest.
	d := w.dice("answer to poll", r.name)
	if err := r.pause(ctx, 1+d.upTo(w.setup.Latency)); err != nil {
		return 0, err
	}
	d.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
	spoilt := read(w, func() bool { return w.fails(w.setup.Faults.Answers) }) && d.oneIn(6)
	if spoilt && len(rows) > 0 && d.oneIn(2) {
		rows, malformed, spoilt = rows[1:], 1, false
		w.with(func() { w.record(Event{Kind: Fault, By: r.name, Text: "poll: a row can't be read"}) })
	}
	if spoilt {
		rows = rows[:d.IntN(len(rows)+1)]
	}
	polled := Event{Kind: Polled, By: r.name}
	for _, row := range rows {
		if row.State() == agentpool.RequestQueued {
			polled.Requests = append(polled.Requests, row.ID)
		}
		if err := visit(row); err != nil {
			return malformed, err
		}
	}
	if spoilt {
		w.with(func() { w.record(Event{Kind: Fault, By: r.name, Text: "poll: the answer is truncated"}) })
		return malformed, &azuredevops.Error{Op: "list job requests", Kind: azuredevops.ErrUnexpectedAnswer, Message: "the answer ended early"}
	}
	slices.Sort(polled.Requests)
	w.with(func() { w.record(polled) })
	return malformed, nil
}

// Agents implements scaler.Service.
func (r *replica) Agents(ctx context.Context, _ int) (list []agentpool.Agent, err error) {
	w := r.world
	err = r.call(ctx, toService, "list agents", "", func() error {
		for _, name := range w.agentNames() {
			list = append(list, w.agents[name].Agent)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	d := w.dice("agents", r.name)
	d.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list, nil
}

// DisableAgent implements scaler.Service.
func (r *replica) DisableAgent(ctx context.Context, _ int, ref agentpool.AgentRef) error {
	id, err := r.lookUp(ctx, ref)
	if err != nil || id == 0 {
		return err
	}
	return r.write(ctx, toService, "disable", agentpool.AgentJob{Name: ref.Name}, func() error {
		r.world.disable(ref.Name, id, r.name)
		return nil
	})
}

// lookUp finds the number of an agent that is not known.
func (r *replica) lookUp(ctx context.Context, ref agentpool.AgentRef) (id int, err error) {
	if ref.ID != 0 {
		return ref.ID, nil
	}
	err = r.call(ctx, toService, "find agent", ref.Name, func() error {
		if a, there := r.world.agents[ref.Name]; there {
			id = a.ID
		}
		return nil
	})
	return id, err
}

// WithdrawAgent implements scaler.Service.
func (r *replica) WithdrawAgent(ctx context.Context, _ int, ref agentpool.AgentRef) (gone bool, err error) {
	r.tempt(ctx, ref.Name)
	return r.withdraw(ctx, ref)
}

// withdraw is several calls to the service, and each may fail.
func (r *replica) withdraw(ctx context.Context, ref agentpool.AgentRef) (gone bool, err error) {
	w := r.world
	id, err := r.lookUp(ctx, ref)
	if err != nil || id == 0 {
		return err == nil, err
	}
	there := func() *agent {
		if a := w.agents[ref.Name]; a != nil && a.ID == id {
			return a
		}
		gone = true
		return nil
	}
	err = r.write(ctx, toService, "withdraw: disable", agentpool.AgentJob{Name: ref.Name}, func() error {
		if there() != nil {
			w.disable(ref.Name, id, r.name)
		}
		return nil
	})
	if err != nil || gone {
		return gone && err == nil, err
	}
	occupied := false
	err = r.call(ctx, toService, "withdraw: look", ref.Name, func() error {
		a := there()
		occupied = a != nil && a.AssignedRequest != 0
		return nil
	})
	if err != nil || gone || occupied {
		return gone && err == nil, err
	}
	err = r.write(ctx, toService, "withdraw: remove", agentpool.AgentJob{Name: ref.Name}, func() error {
		a := there()
		if a == nil {
			return nil
		}
		// The service is known to refuse only one that runs.
		if build := w.requests[a.AssignedRequest]; build != nil && build.State() == agentpool.RequestRunning {
			return nil
		}
		gone = true
		w.deregister(a, r.name)
		return nil
	})
	return gone && err == nil, err
}

// AgentCapabilities implements scaler.Service.
func (r *replica) AgentCapabilities(ctx context.Context, _ int, name string) (offered agentpool.Capabilities, registered bool, err error) {
	err = r.call(ctx, toService, "look at agent", name, func() error {
		if a, there := r.world.agents[name]; there {
			offered, registered = a.Capabilities, true
		}
		return nil
	})
	return offered, registered && err == nil, err
}

// AddPlaceholder implements scaler.Service.
func (r *replica) AddPlaceholder(ctx context.Context, _ int, name string, claims map[string]string) error {
	return r.write(ctx, toService, "add placeholder", agentpool.AgentJob{Name: name}, func() error {
		if _, there := r.world.agents[name]; !there {
			r.world.register(name, "", r.name, agentpool.NewCapabilities(claims))
		}
		return nil
	})
}

// ParallelJobs implements scaler.Service.
func (r *replica) ParallelJobs(ctx context.Context) (total int, known bool, err error) {
	err = r.call(ctx, toService, "parallel jobs", "", func() error {
		total = r.world.setup.Parallel
		return nil
	})
	return total, total > 0 && err == nil, err
}

// queue gives the unfinished requests. The caller holds the lock.
func (w *world) queue() []agentpool.JobRequest {
	rows := make([]agentpool.JobRequest, 0, len(w.requests))
	for _, id := range w.requestIDs() {
		rows = append(rows, w.requests[id].JobRequest)
	}
	return rows
}

// foreign is an agent of somebody else, which is never online.
const foreign = "somebody-elses"

// foreignDemand is what it alone offers.
const foreignDemand = "gpu"

func isForeign(demands []agentpool.Demand) bool {
	return slices.ContainsFunc(demands, func(d agentpool.Demand) bool { return strings.EqualFold(d.Name, foreignDemand) })
}
