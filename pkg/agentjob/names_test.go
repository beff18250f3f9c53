package agentjob_test

import (
	"math"
	"regexp"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"
	"pgregory.net/rapid"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
)

func TestInstanceIDTellsInstallationsApart(t *testing.T) {
	t.Parallel()
	base := agentjob.InstanceID("https://dev.azure.com/acme", "linux", "agents", "azp")
	if !regexp.MustCompile(`^[a-z0-9]{8}$`).MatchString(base) {
		t.Fatalf("instance id %q is not eight characters of [a-z0-9]", base)
	}
	same := agentjob.InstanceID("https://DEV.azure.com/Acme/", "Linux", "agents", "azp")
	if same != base {
		t.Errorf("case and trailing slash gave another id: %q, not %q", same, base)
	}
	others := map[string]string{
		"organisation": agentjob.InstanceID("https://dev.azure.com/acme2", "linux", "agents", "azp"),
		"pool":         agentjob.InstanceID("https://dev.azure.com/acme", "linux2", "agents", "azp"),
		"namespace":    agentjob.InstanceID("https://dev.azure.com/acme", "linux", "agents2", "azp"),
		"release":      agentjob.InstanceID("https://dev.azure.com/acme", "linux", "agents", "azp2"),
		"shift":        agentjob.InstanceID("https://dev.azure.com/acme", "linux", "agentsa", "zp"),
	}
	seen := map[string]string{base: "base"}
	for what, id := range others {
		if before, taken := seen[id]; taken {
			t.Errorf("another %s has the same id as %s: %q", what, before, id)
		}
		seen[id] = what
	}
}

func TestJobNamesAreLabelsAndParseBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		instance := rapid.StringMatching(`[a-z2-7]{8}`).Draw(t, "instance")
		pool := rapid.IntRange(1, math.MaxInt32).Draw(t, "pool")
		request := rapid.Int64Range(1, math.MaxInt64).Draw(t, "request")
		attempt := rapid.IntRange(0, 99_999).Draw(t, "attempt")
		name := agentjob.JobName(instance, pool, request, attempt)
		// The Job controller puts a dash and five characters behind it for the pod.
		if problems := validation.IsDNS1123Label(name + "-xxxxx"); len(problems) > 0 {
			t.Fatalf("name %q: %v", name, problems)
		}
		p, r, n, ok := agentjob.ParseJobName(instance, name)
		if !ok || p != pool || r != request || n != attempt {
			t.Fatalf("name %q parsed to %d, %d, %d, %t", name, p, r, n, ok)
		}
	})
}

func TestParseJobNameRefusesWhatIsNotOurs(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"", "azp", "azp-abcdefgh", "azp-abcdefgh-1-2", "azp-abcdefgh-1-2-3-4", "azp-abcdefgh-1-2-x", "azp-abcdefgh-01-2-3",
		"azp-abcdefgh-1-+2-3", "azp-abcdefgh-1--2-3", "azp-abcdefgi-1-2-3", "xazp-abcdefgh-1-2-3", "azp-abcdefgh-1-99999999999999999999-3",
	} {
		if _, _, _, ok := agentjob.ParseJobName("abcdefgh", name); ok {
			t.Errorf("%q was taken for a name of ours", name)
		}
	}
}
