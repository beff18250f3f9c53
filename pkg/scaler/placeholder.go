package scaler

import (
	"context"
	"strings"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// ours tells whether an agent of that name is of this installation.
func (c Config) ours(name string) bool {
	return strings.HasPrefix(name, agentjob.NamePrefix(c.Instance)) || strings.HasPrefix(name, agentjob.PlaceholderPrefix(c.Instance))
}

// placeholders names the placeholder of each class, with the class.
func (s *Scaler) placeholders(classes []agentpool.AgentClass) map[string]string {
	wanted := make(map[string]string, len(classes))
	for _, class := range classes {
		wanted[s.placeholder(class)] = class.Name
	}
	return wanted
}

// keepPlaceholders has one placeholder in the pool for each class: without an agent
// that satisfies its demands, the service refuses a build instead of queueing it. A
// class that claims something else gets the new one before it loses the old, one that
// is broken keeps what it has until it is mended, and one that is gone loses its own
// after the grace, in case it is only being replaced.
func (s *Scaler) keepPlaceholders(ctx context.Context, agents []agentpool.Agent, wanted map[string]string, classes Classes) {
	there := map[string]bool{}
	for _, agent := range agents {
		there[agent.Name] = true
	}
	var missing []agentpool.AgentClass
	for _, class := range classes.Usable {
		if !there[s.placeholder(class)] {
			missing = append(missing, class)
		}
	}
	stands := s.addPlaceholders(ctx, missing)
	var outdated []agentpool.Agent
	gone := map[string]bool{}
	for _, agent := range agents {
		if !strings.HasPrefix(agent.Name, agentjob.PlaceholderPrefix(s.config.Instance)) || wanted[agent.Name] != "" {
			continue
		}
		switch {
		case s.isPlaceholderOfAny(agent.Name, classes.Usable):
			if stands {
				outdated = append(outdated, agent)
			}
		case s.isPlaceholderOfBroken(agent.Name, classes.Broken):
		default:
			gone[agent.Name] = true
			if s.memory.orphaned(agent.Name, s.now()) >= s.config.SweepGrace {
				outdated = append(outdated, agent)
			}
		}
	}
	s.memory.forgetOrphans(func(name string) bool {
		return !strings.HasPrefix(name, agentjob.PlaceholderPrefix(s.config.Instance)) || gone[name]
	})
	run(ctx, s, outdated, s.removePlaceholder)
	s.standing = wanted
	if !stands {
		s.due.agents = s.now().Add(s.config.RecheckEvery)
	}
}

// addPlaceholders registers a placeholder for each of the classes and reports whether
// all are there now.
func (s *Scaler) addPlaceholders(ctx context.Context, classes []agentpool.AgentClass) bool {
	failed := make(chan string, len(classes))
	run(ctx, s, classes, func(ctx context.Context, class agentpool.AgentClass) {
		name := s.placeholder(class)
		err := s.service.AddPlaceholder(ctx, s.config.Pool.ID, name, s.placeholderClaims(class))
		if err == nil {
			s.complain.isNew("placeholder "+class.Name, "")
			s.log.Info("registered the placeholder of a class", "class", class.Name, "agent", name)
			return
		}
		failed <- class.Name
		if s.complain.isNew("placeholder "+class.Name, err.Error()) {
			s.log.Warn("the placeholder of a class can't be registered, trying again: while none of its agents is there, the service refuses builds that only it serves",
				"class", class.Name, "agent", name, "error", err)
		}
	})
	return len(failed) == 0 && ctx.Err() == nil
}

func (s *Scaler) isPlaceholderOfAny(name string, classes []agentpool.AgentClass) bool {
	for _, class := range classes {
		if agentjob.IsPlaceholderOf(s.config.Instance, class.Name, name) {
			return true
		}
	}
	return false
}

func (s *Scaler) isPlaceholderOfBroken(name string, broken map[string]string) bool {
	for class := range broken {
		if agentjob.IsPlaceholderOf(s.config.Instance, class, name) {
			return true
		}
	}
	return false
}

func (s *Scaler) removePlaceholder(ctx context.Context, agent agentpool.Agent) {
	gone, err := s.service.WithdrawAgent(ctx, s.config.Pool.ID, agentpool.AgentRef{ID: agent.ID, Name: agent.Name})
	if err != nil {
		s.log.Warn("a placeholder that no class has any more can't be removed, trying again", "agent", agent.Name, "error", err)
		return
	}
	if gone {
		s.memory.removed(agent.Name)
		s.log.Info("removed a placeholder that no class has any more", "agent", agent.Name)
	}
}
