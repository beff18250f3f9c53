package scaler

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// What a pod that says that its agent has claimed a build may be told.
var (
	// ErrUnknownJob says that no Job of the pool whose agent the scaler has registered, and
	// that has not ended, has the UID.
	ErrUnknownJob = errors.New("no Job that has not ended has this UID")
	// ErrClaimUnderWay says that the agent is just being disabled for an earlier call, or that
	// this has just failed.
	ErrClaimUnderWay = errors.New("the agent is being disabled for an earlier call, or that has just failed")
)

// claims are the agents that pods have said to have a build, by the UIDs of their Jobs. They
// live as long as the Scaler and not as its loop, for a replica that stands by is called as
// well as another.
type claims struct {
	mu    sync.Mutex
	known map[string]claim
}

// claim is how far the disabling of one agent has come. The zero value is under way.
type claim struct {
	done  bool
	again time.Time // After a failure, when it may be tried again.
}

// begin reports whether the agent is disabled already, and else takes that on.
func (c *claims) begin(uid string, now time.Time) (done bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, found := c.known[uid]
	switch {
	case known.done:
		return true, nil
	case found && (known.again.IsZero() || now.Before(known.again)):
		return false, ErrClaimUnderWay
	}
	c.known[uid] = claim{}
	return false, nil
}

// end says what has become of what was begun.
func (c *claims) end(uid string, done bool, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known[uid] = claim{done: done, again: now.Add(followRetry)}
}

// isDone reports whether the agent of a Job was disabled so.
func (c *claims) isDone(uid string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.known[uid].done
}

// keep forgets the Jobs that are gone.
func (c *claims) keep(jobs []agentpool.AgentJob) {
	there := map[string]bool{}
	for _, job := range jobs {
		there[job.UID] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for uid, claim := range c.known {
		if !there[uid] && !claim.again.IsZero() {
			delete(c.known, uid)
		}
	}
}

// Claimed disables the agent of a Job, whose pod says that the agent has claimed a build, and
// returns when the service assigns it nothing more. It works whether Run does or not. The UID
// is known to the pod and to who may read Jobs, so it is taken for proof; what is disabled in
// error runs its build, if it has one, and is replaced, if not.
func (s *Scaler) Claimed(ctx context.Context, uid string) error {
	jobs := s.cluster.Jobs()
	s.claims.keep(jobs)
	for _, job := range jobs {
		if job.UID != uid || job.Finished() || job.Registration != agentpool.RegistrationJIT {
			continue
		}
		done, err := s.claims.begin(uid, s.now())
		if done || err != nil {
			return err
		}
		call, cancel := context.WithTimeout(ctx, s.config.CallTimeout)
		defer cancel()
		err = s.service.DisableAgent(call, job.PoolID, agentOf(job))
		s.claims.end(uid, err == nil, s.now())
		return err
	}
	return ErrUnknownJob
}
