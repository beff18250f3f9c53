package azuredevopstest

import (
	"fmt"
	"time"

	"github.com/google/uuid"
)

// historicRow makes up a row of the past from its number. It is the same each
// time.
func (c *call) historicRow(p *pool, id int64) rowJSON {
	s := c.srv
	n := s.noise("history", id)
	guid := func(kind string) uuid.UUID { return uuid.NewSHA1(s.hostID, fmt.Appendf(nil, "%s/%d", kind, id)) }
	ended := []string{
		ResultSucceeded, ResultSucceeded, ResultSucceeded, ResultSucceededWithIssues,
		ResultFailed, ResultCanceled, ResultAbandoned, ResultSkipped,
	}
	result := ended[n%uint64(len(ended))]
	queued := p.created.Add(-time.Duration(n%(90*24*3600))*time.Second - time.Hour)
	made := progress{queued: queued, result: result, finishedAt: queued.Add(time.Duration(60+n%600) * time.Second)}
	if result != ResultCanceled && result != ResultSkipped {
		made.assignedAt = queued.Add(time.Duration(n%40) * time.Second)
		made.received = made.assignedAt.Add(1234567 * time.Microsecond)
		// Registrations long gone: their ids are below every living agent's.
		made.agentID, made.agentName, made.agentVer = int(n%pastAgents)+1, fmt.Sprintf("past-agent-%d", n%1000), "3.220.5"
	}
	// Some of the service's finished rows carry no time of their end.
	if n%5 == 0 {
		made.finishedAt = time.Time{}
	}
	r := &request{
		id: id, pool: p, name: fmt.Sprintf("past-%d", id%97), demands: []demand{{name: capAgentVersion, op: opGTVersion, value: s.opts.MinAgentVersion}},
		scopeID: guid("scope"), planID: guid("plan"), jobID: guid("job"), runID: int(id), definitionID: int(id%97) + 1,
	}
	return c.row(r, made, nil)
}
