package scaler

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// identify learns the mark of the cluster, once.
func (s *Scaler) identify(ctx context.Context) bool {
	if s.config.Mark == nil || s.marked {
		return true
	}
	call, cancel := context.WithTimeout(ctx, s.config.CallTimeout)
	defer cancel()
	mark, err := s.config.Mark(call)
	if err != nil {
		s.postpone("whether another installation has the same id can't be known: " + err.Error())
		return false
	}
	s.mark, s.marked = mark, true
	return true
}

// placeholderClaims are what the placeholder of a class offers: what the class claims, and the mark.
func (s *Scaler) placeholderClaims(class agentpool.AgentClass) map[string]string {
	if s.mark == "" {
		return class.Claims
	}
	claims := maps.Clone(class.Claims)
	if claims == nil {
		claims = map[string]string{}
	}
	claims[agentjob.CapabilityCluster] = s.mark
	return claims
}

// placeholder names the placeholder of a class.
func (s *Scaler) placeholder(class agentpool.AgentClass) string {
	return agentjob.PlaceholderName(s.config.Instance, class.Name, s.placeholderClaims(class))
}

// isAlone looks whether placeholders of this installation's id carry the mark of another
// cluster: two installations that share an id would take each other's agents for what a crash
// has left, and remove them. What a registration carries never changes, so that each is asked
// for once. One without a mark is of a release before there were any.
func (s *Scaler) isAlone(ctx context.Context, agents []agentpool.Agent) bool {
	if s.mark == "" {
		return true
	}
	s.alone = false
	marks := map[int]string{}
	rival := ""
	for _, agent := range agents {
		if !strings.HasPrefix(agent.Name, agentjob.PlaceholderPrefix(s.config.Instance)) {
			continue
		}
		mark, known := s.marks[agent.ID]
		if !known {
			call, cancel := context.WithTimeout(ctx, s.config.CallTimeout)
			offered, registered, err := s.service.AgentCapabilities(call, s.config.Pool.ID, agent.Name)
			cancel()
			if err != nil {
				s.postpone("whether another installation has the same id can't be asked: " + err.Error())
				return false
			}
			if !registered {
				continue
			}
			mark = offered[agentjob.CapabilityCluster]
		}
		marks[agent.ID] = mark
		if mark != "" && mark != s.mark {
			rival = fmt.Sprintf("pool %s has placeholder %s of another installation with the same id %s: that one has the mark %s, and this one %s. Both would remove each other's agents: set another AZP_RELEASE for one of them; or, if the other one is gone for good, run scaler cleanup --take-over here",
				s.config.Pool.Name, agent.Name, s.config.Instance, mark, s.mark)
		}
	}
	s.marks, s.alone = marks, rival == ""
	s.updateStatus(func(status *Status) { status.Rival = rival })
	if !s.alone {
		s.postpone(rival)
	}
	return s.alone
}
