package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
)

// pool finds the pool by its name, waiting for an unreachable service as long as
// the context allows.
func (s *Supervisor) pool(ctx context.Context, again func(error) bool) (agentpool.Pool, error) {
	var pool agentpool.Pool
	err := s.retry(ctx, "finding the pool", again, func(ctx context.Context) error {
		var err error
		pool, err = s.service.PoolByName(ctx, s.settings.Pool)
		return err
	})
	return pool, err
}

// removeByName deletes the agent of our name if there is one that is offline and
// unoccupied, and reports whether there was. An online one is another's.
func (s *Supervisor) removeByName(ctx context.Context, again func(error) bool) (bool, error) {
	pool, err := s.pool(ctx, again)
	if err != nil {
		return false, err
	}
	var agent agentpool.Agent
	err = s.retry(ctx, "finding the agent", again, func(ctx context.Context) error {
		var err error
		agent, err = s.service.AgentByName(ctx, pool.ID, s.settings.AgentName)
		if errors.Is(err, azuredevops.ErrNotFound) {
			return nil
		}
		return err
	})
	switch {
	case err != nil:
		return false, err
	case agent.ID == 0:
		return false, nil
	case agent.Online:
		return false, fmt.Errorf("agent %q (id %d) in pool %q is online: it is another's and stays; give this one a name of its own in AZP_AGENT_NAME", agent.Name, agent.ID, s.settings.Pool)
	case agent.AssignedRequest != 0:
		return false, fmt.Errorf("agent %q (id %d) in pool %q is occupied by request %d and stays", agent.Name, agent.ID, s.settings.Pool, agent.AssignedRequest)
	}
	if err := s.deleteAgent(ctx, registration{AgentID: agent.ID, AgentName: agent.Name, PoolID: pool.ID}, again); err != nil {
		return false, err
	}
	return true, nil
}

// deleteAgent deletes a registration. One that is gone is what was wanted.
func (s *Supervisor) deleteAgent(ctx context.Context, reg registration, again func(error) bool) error {
	err := s.retry(ctx, "deleting the agent", again, func(ctx context.Context) error {
		err := s.service.DeleteAgent(ctx, reg.PoolID, reg.AgentID)
		if errors.Is(err, azuredevops.ErrNotFound) {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("agent %q (id %d) is still in the pool: %w", reg.AgentName, reg.AgentID, err)
	}
	s.log.Info("the agent is out of the pool", "agent", reg.AgentName, "agent_id", reg.AgentID, "pool_id", reg.PoolID)
	return nil
}

// disableAgent keeps the service from giving the agent another build, trying until
// the context ends. A missing agent gets no build either.
func (s *Supervisor) disableAgent(ctx context.Context, reg registration) error {
	err := s.retry(ctx, "disabling the agent", persistent, func(ctx context.Context) error {
		err := s.service.DisableAgent(ctx, reg.PoolID, reg.AgentID)
		if errors.Is(err, azuredevops.ErrNotFound) {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("agent %q (id %d) can't be disabled: %w", reg.AgentName, reg.AgentID, err)
	}
	s.log.Info("the agent has its build and is disabled, so that it gets no second one", "agent", reg.AgentName, "agent_id", reg.AgentID)
	return nil
}

// withdraw asks the service for the verdict on an agent, trying until the context ends.
func (s *Supervisor) withdraw(ctx context.Context, reg registration) (verdict, error) {
	v := verdictNone
	err := s.retry(ctx, "withdrawing the agent", persistent, func(ctx context.Context) error {
		withdrawn, err := s.service.Withdraw(ctx, reg.PoolID, reg.AgentID)
		switch {
		case err != nil:
			return err
		case withdrawn:
			v = verdictWithdrawn
		default:
			v = verdictBusy
		}
		return nil
	})
	if err != nil {
		return verdictNone, fmt.Errorf("whether agent %q (id %d) is idle is not known: %w", reg.AgentName, reg.AgentID, err)
	}
	return v, nil
}

// recorded gives the registration that configure recorded, or finds the agent by
// its name. Zero is none.
func (s *Supervisor) recorded(ctx context.Context) (registration, error) {
	reg, err := readRegistration(s.settings.RegistrationDir)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return reg, err
	}
	pool, err := s.pool(ctx, persistent)
	if err != nil {
		return registration{}, err
	}
	agent, err := s.service.AgentByName(ctx, pool.ID, s.settings.AgentName)
	if errors.Is(err, azuredevops.ErrNotFound) {
		return registration{}, nil
	}
	if err != nil {
		return registration{}, err
	}
	return registration{AgentID: agent.ID, AgentName: agent.Name, PoolID: pool.ID}, nil
}
