package agentpool_test

import (
	"testing"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

func TestParseDemand(t *testing.T) {
	for text, want := range map[string]agentpool.Demand{
		"npm":                                {Name: "npm"},
		"  npm ":                             {Name: "npm"},
		"Agent.OS -equals Linux":             {Name: "Agent.OS", Op: agentpool.Equals, Value: "Linux"},
		"Agent.Version -gtVersion 2.182.1":   {Name: "Agent.Version", Op: agentpool.AtLeast, Value: "2.182.1"},
		"team -equals payments and shipping": {Name: "team", Op: agentpool.Equals, Value: "payments and shipping"},
		`team -equals "payments"`:            {Name: "team", Op: agentpool.Equals, Value: `"payments"`},
	} {
		got, err := agentpool.ParseDemand(text)
		if err != nil || got != want {
			t.Errorf("%q: want %+v, got %+v, %v", text, want, got, err)
		}
		if err == nil {
			if again, err := agentpool.ParseDemand(got.String()); err != nil || again != got {
				t.Errorf("%q is written as %q, which reads as %+v, %v", text, got, again, err)
			}
		}
	}
	for _, text := range []string{"", "   ", "java -atLeast 17", "java -GTVERSION 17", "java 17", "java -equals"} {
		if got, err := agentpool.ParseDemand(text); err == nil {
			t.Errorf("%q does not parse, got %+v", text, got)
		}
	}
}

func TestSatisfies(t *testing.T) {
	capabilities := agentpool.NewCapabilities(map[string]string{
		"Agent.OS": "Linux", "java": "17.0.2-ea", "maven": "3.9", "docker": "", "broken": "new",
	})
	for text, want := range map[string]bool{
		"docker":                          true,
		"DOCKER":                          true,
		"podman":                          false,
		"agent.os -equals linux":          true,
		"Agent.OS -equals Windows_NT":     false,
		`Agent.OS -equals "Linux"`:        false, // Quotes are literal.
		"java -gtVersion 17.0.2":          true,  // It means this or later, up to the dash.
		"java -gtVersion 17.0.3":          false,
		"java -gtVersion 9":               true,
		"maven -gtVersion 3.9.0":          true,
		"maven -gtVersion 3.10":           false,
		"broken -gtVersion 0":             false, // What does not parse is lowest.
		"broken -gtVersion other":         true,
		"Agent.Version -gtVersion 99.0.0": true, // The service sees to that one.
	} {
		demand, err := agentpool.ParseDemand(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := capabilities.Satisfies(demand); got != want {
			t.Errorf("%q: want %v, got %v", text, want, got)
		}
		if missing, lacks := capabilities.Missing([]agentpool.Demand{demand}); lacks == want || (lacks && missing != demand) {
			t.Errorf("%q: missing is %v, %v", text, missing, lacks)
		}
	}
}

func TestParseRoleBinding(t *testing.T) {
	for _, text := range []string{"shop Role/deployer", "shop ClusterRole/edit", "shop ClusterRole/system:aggregate-to-edit"} {
		binding, err := agentpool.ParseRoleBinding(text)
		if err != nil || binding.String() != text {
			t.Errorf("%q: got %q, %v", text, binding, err)
		}
	}
	for _, text := range []string{"", "shop", "shop edit", "shop Role/", "shop Group/x", "shop Role/a b"} {
		if binding, err := agentpool.ParseRoleBinding(text); err == nil {
			t.Errorf("%q does not parse, got %+v", text, binding)
		}
	}
}
