package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
)

// scripted is a registry that answers as told. The fake service, by which the
// process tests go, cannot be brought to some of these answers at will.
type scripted struct {
	agent    agentpool.Agent
	missing  bool
	deletes  []error // One answer a call; the last one stays.
	disables []error
	verdicts []error // nil is withdrawn, errBusy is not.
	calls    []string
	at       []time.Time
}

var errBusy = errors.New("busy")

func (s *scripted) record(call string) {
	s.calls = append(s.calls, call)
	s.at = append(s.at, time.Now())
}

func (s *scripted) answer(call string, answers *[]error) error {
	s.record(call)
	if len(*answers) == 0 {
		return nil
	}
	err := (*answers)[0]
	if len(*answers) > 1 {
		*answers = (*answers)[1:]
	}
	return err
}

func (s *scripted) PoolByName(context.Context, string) (agentpool.Pool, error) {
	s.record("pool")
	return agentpool.Pool{ID: 3, Name: "pool"}, nil
}

func (s *scripted) AgentByName(context.Context, int, string) (agentpool.Agent, error) {
	s.record("agent")
	if s.missing {
		return agentpool.Agent{}, &azuredevops.Error{Kind: azuredevops.ErrNotFound}
	}
	return s.agent, nil
}

func (s *scripted) DisableAgent(context.Context, int, int) error {
	return s.answer("disable", &s.disables)
}

func (s *scripted) DeleteAgent(context.Context, int, int) error {
	return s.answer("delete", &s.deletes)
}

func (s *scripted) Withdraw(context.Context, int, int) (bool, error) {
	err := s.answer("withdraw", &s.verdicts)
	if errors.Is(err, errBusy) {
		return false, nil
	}
	return err == nil, err
}

func (s *scripted) Package(context.Context, string, string) (azuredevops.Package, error) {
	return azuredevops.Package{}, errors.New("not scripted")
}

func (s *scripted) Download(context.Context, azuredevops.Package, io.Writer, func(done, total int64)) error {
	return errors.New("not scripted")
}

// with makes a supervisor over a registry and folders of its own.
func with(t *testing.T, s *scripted) *Supervisor {
	t.Helper()
	settings := valid()
	settings.RegistrationDir, settings.ClaimedDir, settings.VerdictDir = t.TempDir(), t.TempDir(), t.TempDir()
	return New(settings, s, slog.New(slog.DiscardHandler), io.Discard, io.Discard)
}

func kind(err error) error { return &azuredevops.Error{Kind: err} }

func TestRemoveByName(t *testing.T) {
	tests := []struct {
		name     string
		registry scripted
		removed  bool
		says     string
		calls    []string
	}{
		{"offline", scripted{agent: agentpool.Agent{ID: 7, Name: "a"}}, true, "", []string{"pool", "agent", "delete"}},
		{"none", scripted{missing: true}, false, "", []string{"pool", "agent"}},
		{"online", scripted{agent: agentpool.Agent{ID: 7, Name: "a", Online: true}}, false, "online", []string{"pool", "agent"}},
		{"occupied", scripted{agent: agentpool.Agent{ID: 7, Name: "a", AssignedRequest: 12}}, false, "request 12", []string{"pool", "agent"}},
		{"refused", scripted{agent: agentpool.Agent{ID: 7, Name: "a"}, deletes: []error{kind(azuredevops.ErrAuthorization)}}, false, "still in the pool", []string{"pool", "agent", "delete"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			removed, err := with(t, &tt.registry).removeByName(t.Context(), transient)
			if removed != tt.removed || (err == nil) != (tt.says == "") || (err != nil && !strings.Contains(err.Error(), tt.says)) {
				t.Errorf("removeByName = %t, %v, want %t, %q", removed, err, tt.removed, tt.says)
			}
			if diff := cmp.Diff(tt.calls, tt.registry.calls); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRemoveWaitsForABusyAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// The service may take a while to see that the build is over.
		r := &scripted{deletes: []error{kind(azuredevops.ErrAgentBusy), kind(azuredevops.ErrAgentBusy), kind(azuredevops.ErrNotFound)}}
		s := with(t, r)
		if err := writeRegistration(s.settings.RegistrationDir, registration{AgentID: 7, AgentName: "a", PoolID: 3}); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		stop()
		if o := s.Remove(ctx); o.Code != ExitDone {
			t.Errorf("Remove = %v, want done", o)
		}
		if diff := cmp.Diff([]string{"delete", "delete", "delete"}, r.calls); diff != "" {
			t.Errorf("calls (-want +got):\n%s", diff)
		}
	})
}

func TestRemoveGivesUpAtTheEndOfItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &scripted{deletes: []error{kind(azuredevops.ErrAgentBusy)}}
		s := with(t, r)
		if err := writeRegistration(s.settings.RegistrationDir, registration{AgentID: 7, AgentName: "a", PoolID: 3}); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		stop()
		began := time.Now()
		o := s.Remove(ctx)
		if o.Code != ExitUnreachable || !strings.Contains(o.Message, "agent is running a job") {
			t.Errorf("Remove = %v, want 13 and the service's reason", o)
		}
		if took := time.Since(began); took != s.settings.RemoveShare {
			t.Errorf("took %s, want the share of %s", took, s.settings.RemoveShare)
		}
		if n := len(r.calls); n < 6 || n > 30 {
			t.Errorf("%d tries within a minute, want them spread out", n)
		}
	})
}

func TestWithdrawTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &scripted{verdicts: []error{kind(azuredevops.ErrUnavailable), kind(azuredevops.ErrUnexpectedAnswer), errBusy}}
		s := with(t, r)
		s.settings.WithdrawLimit = 30 * time.Second
		if err := writeRegistration(s.settings.RegistrationDir, registration{AgentID: 7, AgentName: "a", PoolID: 3}); err != nil {
			t.Fatal(err)
		}
		if o := s.Withdraw(t.Context()); o.Code != ExitDone || readVerdict(s.settings.VerdictDir) != verdictBusy {
			t.Errorf("Withdraw = %v with the verdict %v, want busy", o, readVerdict(s.settings.VerdictDir))
		}
	})
}

func TestWithdrawEndsBeforeRunStopsWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &scripted{verdicts: []error{kind(azuredevops.ErrUnavailable)}}
		s := with(t, r)
		s.settings.WithdrawLimit = 30 * time.Second
		if err := writeRegistration(s.settings.RegistrationDir, registration{AgentID: 7, AgentName: "a", PoolID: 3}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if o := s.Withdraw(t.Context()); o.Code != ExitUnreachable {
			t.Errorf("Withdraw = %v, want 13", o)
		}
		if took := time.Since(began); took >= s.settings.WithdrawLimit {
			t.Errorf("took %s, as long as run waits", took)
		}
		if got := readVerdict(s.settings.VerdictDir); got != verdictNone {
			t.Errorf("verdict %v without an answer", got)
		}
	})
}

func TestRetryObeysTheService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &scripted{deletes: []error{kind(&azuredevops.ThrottledError{RetryAfter: 40 * time.Second}), nil}}
		s := with(t, r)
		if err := s.deleteAgent(t.Context(), registration{AgentID: 7, PoolID: 3}, persistent); err != nil {
			t.Fatal(err)
		}
		if wait := r.at[1].Sub(r.at[0]); wait < 40*time.Second {
			t.Errorf("tried again after %s, want at least 40s", wait)
		}
	})
}

func TestRetryTellsWhyAndNotThatItWasCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := with(t, &scripted{})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		n := 0
		err := s.retry(ctx, "it", persistent, func(ctx context.Context) error {
			if n++; n == 1 {
				return kind(azuredevops.ErrAuthorization)
			}
			<-ctx.Done()
			return ctx.Err()
		})
		if !errors.Is(err, azuredevops.ErrAuthorization) {
			t.Errorf("error %v, want the first try's", err)
		}
	})
}

func TestRetryStopsAtOnceForWhatIsForGood(t *testing.T) {
	for _, err := range []error{kind(azuredevops.ErrNotFound), kind(azuredevops.ErrAuthentication), errors.New("else")} {
		r := &scripted{deletes: []error{err}}
		if got := with(t, r).deleteAgent(t.Context(), registration{AgentID: 7, PoolID: 3}, transient); (got == nil) != errors.Is(err, azuredevops.ErrNotFound) {
			t.Errorf("deleteAgent = %v for %v", got, err)
		}
		if len(r.calls) != 1 {
			t.Errorf("%d tries for %v, want 1", len(r.calls), err)
		}
	}
}

func TestDisableAgentOfOneThatIsGone(t *testing.T) {
	r := &scripted{disables: []error{kind(azuredevops.ErrNotFound)}}
	if err := with(t, r).disableAgent(t.Context(), registration{AgentID: 7, PoolID: 3}); err != nil {
		t.Errorf("disableAgent = %v, though what is gone gets no build", err)
	}
	if !slices.Equal(r.calls, []string{"disable"}) {
		t.Errorf("calls %v, want one", r.calls)
	}
}
