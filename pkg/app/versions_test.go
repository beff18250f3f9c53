package app

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
)

func TestVersions(t *testing.T) {
	t.Parallel()
	now := time.Now()
	var asked []string
	var refused error
	v := newVersions(func(_ context.Context, platform, _ string) (azuredevops.Package, error) {
		asked = append(asked, platform)
		return azuredevops.Package{Version: "4.248." + string(rune('0'+len(asked)))}, refused
	}, func() time.Time { return now })
	of := func(configured, architecture, want string, questions int) {
		t.Helper()
		got, err := v.of(t.Context(), configured, agentpool.NewCapabilities(map[string]string{"Agent.OSArchitecture": architecture}))
		if err != nil || got != want || len(asked) != questions {
			t.Errorf("got %q after the questions %v, %v; want %q after %d", got, asked, err, want, questions)
		}
	}
	of("3.1.0", "X64", "3.1.0", 0)
	of("", "X64", "4.248.1", 1)
	of("", "X64", "4.248.1", 1)
	of("", "ARM64", "4.248.2", 2)
	now = now.Add(versionAge)
	of("", "X64", "4.248.3", 3)
	now, refused = now.Add(versionAge), errors.New("the service is away")
	of("", "X64", "4.248.3", 4)
	if _, err := v.of(t.Context(), "", agentpool.NewCapabilities(map[string]string{"Agent.OSArchitecture": "ARM"})); !errors.Is(err, refused) {
		t.Errorf("a version that nobody knows: %v", err)
	}
	if want := []string{"linux-x64", "linux-arm64", "linux-x64", "linux-x64", "linux-arm"}; len(asked) != len(want) || asked[4] != want[4] || asked[1] != want[1] {
		t.Errorf("asked for %v, want %v", asked, want)
	}
}

func TestWhyAnAgentCannotBeRegistered(t *testing.T) {
	t.Parallel()
	for want, err := range map[agentpool.Reason]error{
		agentpool.ReasonCredential:      azuredevops.ErrAuthorization,
		agentpool.ReasonUnreachable:     &azuredevops.ThrottledError{RetryAfter: time.Minute},
		agentpool.ReasonConfigureFailed: azuredevops.ErrConflict,
	} {
		// As the loop meets it: with what came of taking the Job back.
		met := errors.Join(&registrationError{agent: "azp-a", err: err}, errors.New("the sweep goes on"))
		var reasoned agentpool.ReasonedError
		if !errors.As(met, &reasoned) || reasoned.Reason() != want {
			t.Errorf("%v: got %v, want %q", err, reasoned, want)
		}
	}
}
