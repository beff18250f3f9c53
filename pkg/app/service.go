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
