package app

import (
	"context"
	"errors"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
)

// service is Azure DevOps as the loop sees it.
type service struct{ client *azuredevops.Client }

// JobRequests implements scaler.Service.
func (s service) JobRequests(ctx context.Context, poolID int, visit func(agentpool.JobRequest) error) (int, error) {
	stats, err := s.client.JobRequests(ctx, poolID, visit)
	return stats.Malformed, err
}

// JobRequest implements scaler.History.
func (s service) JobRequest(ctx context.Context, poolID int, id int64) (agentpool.JobRequest, bool, error) {
	request, err := s.client.JobRequest(ctx, poolID, id)
	if errors.Is(err, azuredevops.ErrNotFound) {
		return agentpool.JobRequest{}, false, nil
	}
	return request, err == nil, err
}

// FinishedRequests implements scaler.History.
func (s service) FinishedRequests(ctx context.Context, poolID, count int, visit func(agentpool.JobRequest) error) error {
	return s.client.FinishedRequests(ctx, poolID, count, visit)
}

// Agents implements scaler.Service.
func (s service) Agents(ctx context.Context, poolID int) ([]agentpool.Agent, error) {
	return s.client.Agents(ctx, poolID, azuredevops.AgentQuery{})
}

// DisableAgent implements scaler.Service.
func (s service) DisableAgent(ctx context.Context, poolID int, agent agentpool.AgentRef) error {
	id, err := s.find(ctx, poolID, agent)
	if err != nil || id == 0 {
		return err
	}
	return ignoreMissing(s.client.DisableAgent(ctx, poolID, id))
}

// WithdrawAgent implements scaler.Service.
func (s service) WithdrawAgent(ctx context.Context, poolID int, agent agentpool.AgentRef) (bool, error) {
	id, err := s.find(ctx, poolID, agent)
	if err != nil {
		return false, err
	}
	if id == 0 {
		return true, nil
	}
	return s.client.Withdraw(ctx, poolID, id)
}

// AgentCapabilities implements scaler.Service.
func (s service) AgentCapabilities(ctx context.Context, poolID int, name string) (agentpool.Capabilities, bool, error) {
	agent, err := s.client.AgentByName(ctx, poolID, name)
	if errors.Is(err, azuredevops.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	agent, err = s.client.Agent(ctx, poolID, agent.ID)
	return agent.Capabilities, err == nil, ignoreMissing(err)
}

// AddPlaceholder implements scaler.Service.
func (s service) AddPlaceholder(ctx context.Context, poolID int, name string, claims map[string]string) error {
	return s.client.AddPlaceholder(ctx, poolID, name, claims)
}

// RegisterAgent registers an agent with a key. An agent of that name that is there without
// a session is what an earlier attempt left, whose answer was lost: it is removed, and the
// error then says that the name was taken.
func (s service) RegisterAgent(ctx context.Context, poolID int, r azuredevops.Registration) (azuredevops.Registered, error) {
	registered, err := s.client.RegisterAgent(ctx, poolID, r)
	if err == nil {
		return registered, nil
	}
	return registered, errors.Join(err, s.removeOffline(ctx, poolID, r.Name))
}

// removeOffline removes an agent that has no session and no build, if there is one.
func (s service) removeOffline(ctx context.Context, poolID int, name string) error {
	agent, err := s.client.AgentByName(ctx, poolID, name)
	if err := ignoreMissing(err); err != nil || agent.ID == 0 || agent.Online {
		return err
	}
	_, err = s.client.Withdraw(ctx, poolID, agent.ID)
	return err
}

// ParallelJobs implements scaler.Service.
func (s service) ParallelJobs(ctx context.Context) (int, bool, error) {
	return s.client.ParallelJobs(ctx)
}

// find gives the agent's id, 0 when it is not registered.
func (s service) find(ctx context.Context, poolID int, agent agentpool.AgentRef) (int, error) {
	if agent.ID != 0 {
		return agent.ID, nil
	}
	found, err := s.client.AgentByName(ctx, poolID, agent.Name)
	if err := ignoreMissing(err); err != nil {
		return 0, err
	}
	return found.ID, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, azuredevops.ErrNotFound) {
		return nil
	}
	return err
}
