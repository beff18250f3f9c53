package listener

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/faults"
	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/root"
	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/wire"
)

// Waits of the session protocol, as long as those of the real agent unless a
// tunable says otherwise.
const (
	retryInterval     = 30 * time.Second
	keepAliveInterval = 30 * time.Second
	// conflictLimit is how long a session that another process holds is waited for.
	conflictLimit = 4 * time.Minute
	// farewellLimit bounds each call on the way out.
	farewellLimit = 30 * time.Second
)

// errRevoked is a credential that the service takes no more: the agent is gone from
// its pool, and the real agent then ends as if all were well.
var errRevoked = errors.New("the agent's credential was revoked")

// session is the listener's session with its pool. It is safe for concurrent use.
type session struct {
	l        *listener
	client   *wire.Client
	settings root.Settings

	mu   sync.Mutex
	id   string
	last int64 // Of the messages received.
}

// open opens the session, again and again until the service lets it or refuses for
// good.
func (s *session) open(ctx context.Context) error {
	s.l.term.Linef("Scanning for tool capabilities.")
	capabilities := map[string]string{}
	if !s.settings.SkipCapabilitiesScan {
		var err error
		if capabilities, err = s.l.capabilities(s.settings.AgentName); err != nil {
			return err
		}
	}
	owner := s.l.Host
	if owner == "" {
		owner = ownerFallback
	}
	wanted := wire.Session{
		OwnerName: owner,
		Agent: wire.Agent{
			ID:            s.settings.AgentID,
			Name:          s.settings.AgentName,
			Version:       s.l.release.Version,
			OSDescription: "Linux " + kernel(),
		},
		SystemCapabilities: capabilities,
	}
	s.l.term.Linef("Connecting to the server.")
	troubled := false
	start := time.Now()
	for {
		err := s.openOnce(ctx, wanted)
		if err == nil {
			if troubled {
				s.l.term.Stampf("Agent reconnected.")
			}
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.l.log.Warn("session not opened", "error", err)
		conflict := wire.HasKey(err, wire.KeySessionConflict)
		switch {
		case wire.HasKey(err, wire.KeyTokenExpired):
			return errRevoked
		case conflict && time.Since(start) > conflictLimit, !conflict && final(err):
			return fmt.Errorf("failed to create a session: %w", err)
		}
		if !troubled {
			troubled = true
			if conflict {
				s.l.term.Errorf("A session for this agent already exists.")
			}
			s.l.term.Stampf("Agent connect error: %v. Retrying until reconnected.", err)
		}
		if err := sleep(ctx, s.l.faults.Duration(faults.RetryInterval, retryInterval)); err != nil {
			return err
		}
	}
}

func (s *session) openOnce(ctx context.Context, wanted wire.Session) error {
	if _, err := s.client.Connect(ctx); err != nil {
		return err
	}
	if err := s.client.Discover(ctx); err != nil {
		return err
	}
	created, err := s.client.CreateSession(ctx, s.settings.PoolID, wanted)
	if err != nil {
		return err
	}
	if key := created.EncryptionKey; key != nil && key.Value != "" {
		return errors.New("the service wants the messages encrypted, which the stand-in cannot do")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.id, s.last = created.ID, 0
	s.l.log.Info("session opened", "session", created.ID)
	return nil
}

// final tells whether trying again is of no use.
func final(err error) bool {
	return wire.IsUnauthorized(err) ||
		wire.HasKey(err, wire.KeyAgentNotFound, wire.KeyPoolNotFound, wire.KeyAccessDenied, wire.KeyUnauthorized)
}

func (s *session) state() (id string, last int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.id, s.last
}

// next gives the next message, however long that takes.
func (s *session) next(ctx context.Context) (*wire.Message, error) {
	troubled := false
	for {
		id, last := s.state()
		message, err := s.client.NextMessage(ctx, s.settings.PoolID, id, last)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err == nil:
			if troubled {
				troubled = false
				s.l.term.Stampf("Agent reconnected.")
			}
			if message == nil {
				if err := sleep(ctx, s.l.faults.Duration(faults.PollPause, 0)); err != nil {
					return nil, err
				}
				continue
			}
			s.mu.Lock()
			s.last = message.ID
			s.mu.Unlock()
			return message, nil
		case wire.HasKey(err, wire.KeyTokenExpired):
			return nil, errRevoked
		case wire.HasKey(err, wire.KeySessionExpired) && !s.settings.SkipSessionRecover:
			s.l.log.Warn("session expired, opening another")
			if err := s.open(ctx); err != nil {
				return nil, err
			}
			continue
		case final(err) || wire.HasKey(err, wire.KeySessionExpired):
			return nil, fmt.Errorf("get next message failed with a non-retryable error: %w", err)
		}
		s.l.log.Warn("no message", "error", err)
		if !troubled {
			troubled = true
			s.l.term.Stampf("Agent connect error: %v. Retrying until reconnected.", err)
		}
		if err := sleep(ctx, s.l.faults.Duration(faults.RetryInterval, retryInterval)); err != nil {
			return nil, err
		}
	}
}

// keepAlive polls besides the listener's own polling, so that the agent stays
// online while that one pauses. What it is given it drops: nothing is deleted, so
// the other poll gets it too.
func (s *session) keepAlive(ctx context.Context) {
	interval := s.l.faults.Duration(faults.KeepAliveInterval, keepAliveInterval)
	for sleep(ctx, interval) == nil {
		id, _ := s.state()
		if _, err := s.client.NextMessage(ctx, s.settings.PoolID, id, 0); err != nil && ctx.Err() == nil {
			s.l.log.Warn("keep-alive failed", "error", err)
		}
	}
}

// deleteMessage takes a message that was handled out of the queue.
func (s *session) deleteMessage(ctx context.Context, message int64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewellLimit)
	defer cancel()
	id, _ := s.state()
	if err := s.client.DeleteMessage(ctx, s.settings.PoolID, id, message); err != nil {
		s.l.log.Warn("message not deleted", "message", message, "error", err)
	}
}

// close ends the session, also when ctx has ended.
func (s *session) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewellLimit)
	defer cancel()
	id, _ := s.state()
	if id == "" {
		return
	}
	if err := s.client.DeleteSession(ctx, s.settings.PoolID, id); err != nil {
		s.l.log.Warn("session not deleted", "session", id, "error", err)
	}
}
