package chart_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// reaches says whether builds may connect to an address and port.
func reaches(t *testing.T, policy networkingv1.NetworkPolicy, address string, port int32) bool {
	t.Helper()
	to := netip.MustParseAddr(address)
	for _, rule := range policy.Spec.Egress {
		open := len(rule.Ports) == 0
		for _, p := range rule.Ports {
			open = open || p.Port.IntVal == port
		}
		for _, peer := range rule.To {
			if peer.IPBlock == nil || !open || !netip.MustParsePrefix(peer.IPBlock.CIDR).Contains(to) {
				continue
			}
			spared := false
			for _, except := range peer.IPBlock.Except {
				spared = spared || netip.MustParsePrefix(except).Contains(to)
			}
			if !spared {
				return true
			}
		}
	}
	return false
}

// TestNetworkOfBuilds: nobody gets in, builds get to where they have to, and not at the identity of their node.
func TestNetworkOfBuilds(t *testing.T) {
	t.Parallel()
	const agents = "networkPolicy: {agents: "
	for name, c := range map[string]struct {
		values  string
		address string
		port    int32
		want    bool
	}{
		"Azure DevOps":            {"", "13.107.42.20", 443, true},
		"the API server":          {"", "10.0.0.1", 6443, true},
		"by IPv6":                 {"", "2620:1ec:4::1", 443, true},
		"another port":            {"", "10.0.0.5", 5432, false},
		"the metadata service":    {"", "169.254.169.254", 80, false},
		"the one of the platform": {"", "168.63.129.16", 80, false},
		"the one by IPv6":         {"", "fd00:ec2::254", 80, false},
		"metadata, asked for":     {agents + "{allowMetadata: true}}", "169.254.169.254", 80, true},
		"other ranges":            {agents + "{cidrs: [10.0.0.0/8]}}", "13.107.42.20", 443, false},
		"in that range":           {agents + "{cidrs: [10.0.0.0/8]}}", "10.1.1.1", 443, true},
		"other ports":             {agents + "{ports: [22]}}", "10.1.1.1", 22, true},
		"any port":                {agents + "{ports: []}}", "10.1.1.1", 5432, true},
		"nowhere":                 {agents + "{cidrs: []}}", "10.1.1.1", 443, false},
		"port of a server":        {"azureDevOps: {url: 'https://tfs.example.com:8443/tfs/a', pools: [a]}", "10.1.1.1", 8443, true},
		"port of the proxy":       {"agents: {proxy: {url: 'http://proxy.example:3128'}}", "10.1.1.1", 3128, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			values := minimal + c.values
			if name == "port of a server" {
				values = c.values
			}
			policy := find[networkingv1.NetworkPolicy](t, render(t, values), "NetworkPolicy", "azp-agents", "azp-scaler-agents")
			if len(policy.Spec.PodSelector.MatchLabels) > 0 || len(policy.Spec.Ingress) > 0 || len(policy.Spec.PolicyTypes) != 2 {
				t.Errorf("want every pod of the namespace, and nobody to get in: %+v", policy.Spec)
			}
			if got := reaches(t, policy, c.address, c.port); got != c.want {
				t.Errorf("%s:%d can be reached: %t", c.address, c.port, got)
			}
		})
	}
}

// TestNetworkOfTheScaler is open at its port alone, to the agents and to whom the values say.
func TestNetworkOfTheScaler(t *testing.T) {
	t.Parallel()
	objects := render(t, examples(t)["everything"])
	policy := find[networkingv1.NetworkPolicy](t, objects, "NetworkPolicy", "azp", "azp-scaler")
	rule := policy.Spec.Ingress[0]
	var from []string
	for _, peer := range rule.From {
		from = append(from, peer.NamespaceSelector.MatchLabels["kubernetes.io/metadata.name"])
	}
	if rule.Ports[0].Port.String() != "http" || !slices.Equal(from, []string{"azp-agents", "monitoring"}) {
		t.Errorf("ingress %+v", rule)
	}
	// Pods tell the scaler of their claims.
	agents := find[networkingv1.NetworkPolicy](t, objects, "NetworkPolicy", "azp-agents", "azp-scaler-agents")
	open := slices.ContainsFunc(agents.Spec.Egress, func(rule networkingv1.NetworkPolicyEgressRule) bool {
		return slices.ContainsFunc(rule.To, func(peer networkingv1.NetworkPolicyPeer) bool {
			if peer.PodSelector == nil || peer.NamespaceSelector.MatchLabels["kubernetes.io/metadata.name"] != "azp" {
				return false
			}
			for key, value := range peer.PodSelector.MatchLabels {
				if scalerPod(t, objects).Labels[key] != value {
					return false
				}
			}
			return len(rule.Ports) == 1 && rule.Ports[0].Port.String() == "http"
		})
	})
	if !open {
		t.Errorf("the agents do not reach the scaler: %+v", agents.Spec.Egress)
	}
	for key, value := range policy.Spec.PodSelector.MatchLabels {
		if scalerPod(t, objects).Labels[key] != value {
			t.Errorf("selects %s=%s", key, value)
		}
	}
	if off := render(t, minimal+"networkPolicy: {enabled: false}").Kind("NetworkPolicy"); len(off) > 0 {
		t.Errorf("policies are made though they are off: %v", names(off))
	}
}

// TestNamespace of the agents is made on demand, with the level that its pods keep to, and outlives the release.
func TestNamespace(t *testing.T) {
	t.Parallel()
	made := render(t, examples(t)["workload-identity"]).Kind("Namespace")
	if len(made) != 1 {
		t.Fatalf("namespaces %v", names(made))
	}
	namespace := decode[corev1.Namespace](t, made[0])
	want := decode[corev1.Namespace](t, delivered(t, "namespaces.yaml").Kind("Namespace")[1])
	for key, value := range want.Labels {
		if namespace.Labels[key] != value {
			t.Errorf("label %s is %q, want %q", key, namespace.Labels[key], value)
		}
	}
	if namespace.Name != "azp-builds" || namespace.Annotations["helm.sh/resource-policy"] != "keep" {
		t.Errorf("namespace %s with %v", namespace.Name, namespace.Annotations)
	}
	if diff := cmp.Diff(0, len(render(t, minimal).Kind("Namespace"))); diff != "" {
		t.Errorf("namespaces without asking:\n%s", diff)
	}
}
