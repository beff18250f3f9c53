package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/azp-scaler/azp-scaler/pkg/agentclass"
	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
)

func TestPackages(t *testing.T) {
	t.Parallel()
	now := time.Now()
	var asked []string
	var refused error
	p := newPackages(func(_ context.Context, platform, version string) (azuredevops.Package, error) {
		asked = append(asked, platform+" "+version)
		if refused != nil {
			return azuredevops.Package{}, refused
		}
		return azuredevops.Package{Version: cmp.Or(version, "4.248."+strconv.Itoa(len(asked))), URL: "https://cdn.test/" + platform, SHA256: "00ff"}, nil
	}, func() time.Time { return now })
	image := agentjob.Settings{AgentSource: agentjob.SourceImage}
	download := agentjob.Settings{AgentSource: agentjob.SourceDownload}
	class := func(architecture string, environment ...corev1.EnvVar) agentclass.Class {
		c := agentclass.Class{Template: agentjob.DefaultTemplate(agentjob.DefaultClass{})}
		c.Capabilities = agentpool.NewCapabilities(map[string]string{"Agent.OSArchitecture": architecture})
		c.Template.Spec.Template.Spec.Containers[0].Env = environment
		return c
	}
	of := func(s agentjob.Settings, c agentclass.Class, version, platform string, questions int) {
		t.Helper()
		want := agentjob.Package{Version: version}
		if platform != "" {
			want.Platform, want.URL, want.SHA256 = platform, "https://cdn.test/"+platform, "00ff"
		}
		if got, err := p.of(t.Context(), s, c); err != nil || got != want || len(asked) != questions {
			t.Errorf("got %+v after the questions %q, %v; want %+v after %d", got, asked, err, want, questions)
		}
	}
	fixed := func(s agentjob.Settings, version string) agentjob.Settings { s.AgentVersion = version; return s }
	of(fixed(image, "3.1.0"), class("X64"), "3.1.0", "", 0)
	of(image, class("X64"), "4.248.1", "linux-x64", 1)
	of(download, class("X64"), "4.248.1", "linux-x64", 1)
	of(download, class("ARM64"), "4.248.2", "linux-arm64", 2)
	of(fixed(download, "3.1.0"), class("X64"), "3.1.0", "linux-x64", 3)
	// What a class says to its pods, as it would to those that ask by themselves.
	musl := class("X64", corev1.EnvVar{Name: "AZP_PLATFORM", Value: "linux-musl-x64"}, corev1.EnvVar{Name: "AZP_AGENT_VERSION", Value: "3.2.0"})
	of(download, musl, "3.2.0", "linux-musl-x64", 4)
	of(fixed(download, "3.1.0"), musl, "3.1.0", "linux-musl-x64", 5)
	now = now.Add(packageAge)
	of(download, class("X64"), "4.248.6", "linux-x64", 6)
	// The last answer holds while the service is away, and not against its word.
	now, refused = now.Add(packageAge), fmt.Errorf("away: %w", azuredevops.ErrUnavailable)
	of(download, class("X64"), "4.248.6", "linux-x64", 7)
	refused = azuredevops.ErrNotFound
	if _, err := p.of(t.Context(), download, class("X64")); !errors.Is(err, refused) {
		t.Errorf("a package that is not offered any more: %v", err)
	}
	refused = azuredevops.ErrUnavailable
	if _, err := p.of(t.Context(), image, class("ARM")); !errors.Is(err, refused) || !strings.Contains(err.Error(), "AZP_AGENT_VERSION") {
		t.Errorf("a version that nobody knows: %v", err)
	}
	if want := "linux-arm "; asked[len(asked)-1] != want {
		t.Errorf("asked for %q, want %q", asked[len(asked)-1], want)
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
