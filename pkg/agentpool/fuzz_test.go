package agentpool_test

import (
	"strings"
	"testing"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// FuzzParseDemand holds that what is taken as a demand is written the same way again, and
// that nothing satisfies it that has no capability of its name.
func FuzzParseDemand(f *testing.F) {
	for _, seed := range []string{"npm", "Agent.OS -equals Linux", "java -gtVersion 17", "java -gtversion 17", "x -equals", `x -equals "a b"`, " -equals y", "Agent.Version -gtVersion 4.0"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := agentpool.ParseDemand(text)
		if err != nil {
			return
		}
		if d.Name == "" || strings.ContainsAny(d.Name, " \t\n") {
			t.Errorf("%q asks for the name %q", text, d.Name)
		}
		again, err := agentpool.ParseDemand(d.String())
		if err != nil || again != d {
			t.Errorf("%q is %+v, and written again %q it is %+v, %v", text, d, d.String(), again, err)
		}
		if (agentpool.Capabilities{}).Satisfies(d) != strings.EqualFold(d.Name, agentpool.AgentVersion) {
			t.Errorf("an agent without capabilities and %q: %t", text, agentpool.Capabilities{}.Satisfies(d))
		}
		own := agentpool.NewCapabilities(map[string]string{d.Name: d.Value})
		if !own.Satisfies(d) {
			t.Errorf("an agent that has just what %q asks for does not satisfy it", text)
		}
	})
}

// FuzzParseRoleBinding holds that a right that is taken is written the same way again.
func FuzzParseRoleBinding(f *testing.F) {
	for _, seed := range []string{"shop Role/deployer", "shop ClusterRole/edit", "shop  Role/a", "shop Role/", "shop ClusterRole/system:x", "shop Group/x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		binding, err := agentpool.ParseRoleBinding(text)
		if err != nil {
			return
		}
		again, err := agentpool.ParseRoleBinding(binding.String())
		if err != nil || again != binding {
			t.Errorf("%q is %+v, and written again %q it is %+v, %v", text, binding, binding, again, err)
		}
	})
}
