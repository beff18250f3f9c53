package app

import (
	"context"
	"sync"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
)

// accountAge is how long what was read of a ServiceAccount holds: a burst of Jobs asks
// once, and a change is seen soon.
const accountAge = 10 * time.Second

// accounts remembers for a short time what the ServiceAccounts that classes name pass
// on to those of their builds.
type accounts struct {
	read func(ctx context.Context, name string) (agentjob.ServiceAccountTemplate, error)
	now  func() time.Time

	mu    sync.Mutex
	known map[string]account
}

type account struct {
	template agentjob.ServiceAccountTemplate
	at       time.Time
}

func newAccounts(read func(context.Context, string) (agentjob.ServiceAccountTemplate, error), now func() time.Time) *accounts {
	return &accounts{read: read, now: now, known: map[string]account{}}
}

// get asks the cluster unless it has answered just now. Errors are not remembered.
func (a *accounts) get(ctx context.Context, name string) (agentjob.ServiceAccountTemplate, error) {
	a.mu.Lock()
	found, known := a.known[name]
	a.mu.Unlock()
	if known && a.now().Sub(found.at) < accountAge {
		return found.template, nil
	}
	template, err := a.read(ctx, name)
	if err != nil {
		return agentjob.ServiceAccountTemplate{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.known[name] = account{template: template, at: a.now()}
	return template, nil
}
