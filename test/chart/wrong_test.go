package chart_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/azp-scaler/azp-scaler/test/chart"
)

// TestWrongValuesAreRefused before anything is made, each with the name of its field.
func TestWrongValuesAreRefused(t *testing.T) {
	t.Parallel()
	const target = "targetNamespaces: [{name: shop, roles: [{kind: ClusterRole, name: edit}]}]\n"
	for name, test := range map[string]struct{ values, want string }{
		// What the schema sees.
		"unknown key":                {"replicas: 2", "additional properties 'replicas' not allowed"},
		"unknown key of an object":   {"scaler: {poll: 2s}", "at '/scaler': additional properties 'poll' not allowed"},
		"unknown key of a class":     {"agents: {classes: {java: {maxAgent: 2}}}", "at '/agents/classes/java': additional properties 'maxAgent' not allowed"},
		"unknown key of a target":    {"targetNamespaces: [{name: shop, role: edit, roles: [{kind: Role, name: a}]}]", "at '/targetNamespaces/0': additional properties 'role' not allowed"},
		"address without scheme":     {"azureDevOps: {url: dev.azure.com/contoso}", "at '/azureDevOps/url'"},
		"address with a password":    {"azureDevOps: {url: 'https://user:secret@dev.azure.com/contoso'}", "at '/azureDevOps/url'"},
		"address with a query":       {"azureDevOps: {url: 'https://dev.azure.com/contoso?a=b'}", "at '/azureDevOps/url'"},
		"pools in one string":        {"azureDevOps: {pools: linux}", "at '/azureDevOps/pools': got string, want array"},
		"pool with a comma":          {"azureDevOps: {pools: ['a,b']}", "at '/azureDevOps/pools/0'"},
		"pool twice":                 {"azureDevOps: {pools: [a, a]}", "at '/azureDevOps/pools'"},
		"way to sign in":             {"auth: {method: password}", "at '/auth/method'"},
		"name of a Secret":           {"auth: {existingSecret: Azp_Token}", "at '/auth/existingSecret'"},
		"key of a Secret":            {"auth: {tokenKey: a/b}", "at '/auth/tokenKey'"},
		"pull policy":                {"image: {pullPolicy: Sometimes}", "at '/image/pullPolicy'"},
		"digest":                     {"image: {digest: 'sha256:abc'}", "at '/image/digest'"},
		"tag as a number":            {"image: {tag: 1.2}", "at '/image/tag': got number, want string"},
		"duration without unit":      {"scaler: {pollBusy: '2'}", "at '/scaler/pollBusy'"},
		"duration as a number":       {"scaler: {gracePeriod: 3600}", "at '/scaler/gracePeriod': got number, want string"},
		"no agents":                  {"scaler: {maxAgents: 0}", "at '/scaler/maxAgents'"},
		"switch as a word":           {"scaler: {leaderElection: 'yes'}", "at '/scaler/leaderElection': got string, want boolean"},
		"log level":                  {"scaler: {logLevel: trace}", "at '/scaler/logLevel'"},
		"agents' namespace":          {"agents: {namespace: Azp Agents}", "at '/agents/namespace'"},
		"registration":               {"agents: {registration: jti}", "at '/agents/registration'"},
		"source of the agent":        {"agents: {source: web}", "at '/agents/source'"},
		"token's Secret of agents":   {"agents: {existingSecret: ''}", "at '/agents/existingSecret'"},
		"quantity":                   {"agents: {resources: {requests: {memory: 1 GB}}}", "at '/agents/resources/requests/memory'"},
		"resource that is not known": {"agents: {resources: {requests: {gpu: 1}}}", "at '/agents/resources/requests'"},
		"capability with a comma":    {"agents: {capabilities: ['java,maven']}", "at '/agents/capabilities/0'"},
		"idle agents below zero":     {"agents: {minIdle: -1}", "at '/agents/minIdle'"},
		"name of a class":            {"agents: {classes: {Java: {}}}", "'Java'"},
		"registration of a class":    {"agents: {classes: {java: {registration: none}}}", "at '/agents/classes/java/registration'"},
		"spot of another cloud":      {"agents: {classes: {java: {spot: eks}}}", "at '/agents/classes/java/spot'"},
		"capabilities as a map":      {"agents: {classes: {java: {capabilities: {java: 17}}}}", "at '/agents/classes/java/capabilities': got object, want array"},
		"role binding without kind":  {"agents: {classes: {java: {roleBindings: [{namespace: shop, name: edit}]}}}", "at '/agents/classes/java/roleBindings/0': missing property 'kind'"},
		"target without roles":       {"targetNamespaces: [{name: shop}]", "at '/targetNamespaces/0': missing property 'roles'"},
		"target with an empty list":  {"targetNamespaces: [{name: shop, roles: []}]", "at '/targetNamespaces/0/roles'"},
		"target as a string":         {"targetNamespaces: [shop]", "at '/targetNamespaces/0': got string, want object"},
		"kind of a role":             {"targetNamespaces: [{name: shop, roles: [{kind: Clusterrole, name: edit}]}]", "at '/targetNamespaces/0/roles/0/kind'"},
		"mode":                       {"rbac: {mode: escalate}", "at '/rbac/mode'"},
		"no certificate":             {"ca: {certificate: /etc/ssl/ca.pem}", "at '/ca/certificate'"},
		"variable without a name":    {"extraEnv: [{value: a}]", "at '/extraEnv/0': missing property 'name'"},
		"label that is no string":    {"podLabels: {a: 1}", "at '/podLabels/a': got number, want string"},
		"wait below zero":            {"cleanup: {waitSeconds: -1}", "at '/cleanup/waitSeconds'"},
		"port":                       {"service: {port: 70000}", "at '/service/port'"},
		"address range":              {"networkPolicy: {agents: {cidrs: [10.0.0.1]}}", "at '/networkPolicy/agents/cidrs/0'"},

		// What it can't see: values that contradict one another.
		"no address":                   {"azureDevOps: {url: ''}", "azureDevOps.url is not set"},
		"no pool":                      {"azureDevOps: {pools: []}", "azureDevOps.pools is empty"},
		"secret without tenant":        {"auth: {method: client-secret, clientId: a}", "auth.tenantId is not set"},
		"certificate without client":   {"auth: {method: client-certificate, tenantId: a}", "auth.clientId is not set"},
		"workload identity of nobody":  {"auth: {method: workload-identity}", "auth.clientId is not set"},
		"workload identity and volume": {"auth: {method: workload-identity, clientId: a, volume: {emptyDir: {}}}", "auth.volume is set"},
		"account that nobody names":    {"serviceAccount: {create: false}", "serviceAccount.name is not set"},
		"agents beside the scaler":     {"agents: {namespace: azp}", "agents.namespace is the release's own, azp"},
		"builds among the agents":      {"targetNamespaces: [{name: azp-agents, roles: [{kind: Role, name: a}]}]", "targetNamespaces[0].name is the agents' namespace, azp-agents"},
		"builds beside the scaler":     {"targetNamespaces: [{name: azp, roles: [{kind: Role, name: a}]}]", "targetNamespaces[0].name is the scaler's namespace, azp"},
		"target twice":                 {"targetNamespaces: [{name: a, roles: [{kind: Role, name: a}]}, {name: a, roles: [{kind: Role, name: b}]}]", "targetNamespaces[1].name: a is there twice"},
		"two authorities":              {"ca: {existingConfigMap: a, certificate: '-----BEGIN CERTIFICATE-----'}", "ca.existingConfigMap is set together with ca.certificate"},
		"proxy's Secret without it":    {"proxy: {existingSecret: a}", "proxy.existingSecret is set, and neither"},
		"agents' proxy without it":     {"agents: {proxy: {existingSecret: a}}", "agents.proxy.existingSecret is set, and agents.proxy.url is not"},
		"one Secret for two":           {"agents: {proxy: {url: 'http://a:1', existingSecret: azp-token}}", "agents.proxy.existingSecret is also agents.existingSecret"},
		"two without an election":      {"replicaCount: 2\nscaler: {leaderElection: false}", "replicaCount is 2, and scaler.leaderElection is false"},
		"more idle than allowed":       {"scaler: {maxAgents: 1}\nagents: {minIdle: 2}", "agents.minIdle is 2"},
		"two monitors":                 {"serviceMonitor: {enabled: true}\npodMonitor: {enabled: true}", "podMonitor.enabled is true together with serviceMonitor.enabled"},
		"no class at all":              {"agents: {builtinClass: false}", "agents.builtinClass is false, and agents.classes is empty"},
		"more idle than a class has":   {"agents: {classes: {java: {minIdle: 2, maxAgents: 1}}}", "agents.classes.java.minIdle is 2"},
		"role that can't be given":     {target + "agents: {classes: {java: {roleBindings: [{namespace: shop, kind: ClusterRole, name: admin}]}}}", "agents.classes.java.roleBindings[0] is shop ClusterRole/admin, which the scaler may not give"},
		"shared account with roles":    {target + "agents: {classes: {java: {sharedServiceAccount: a, roleBindings: [{namespace: shop, kind: ClusterRole, name: edit}]}}}", "agents.classes.java.roleBindings is set together with sharedServiceAccount"},
		"variable of the chart's own":  {"extraEnv: [{name: AZP_URL, value: a}]", "extraEnv: AZP_URL is set by the chart"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// What every install needs comes first, so that nothing but the case is wrong.
			out, err := run(t, test.values, "template", chart.Release, dir.Chart, "--namespace", chart.Namespace,
				"--values", filepath.Join(dir.Chart, "ci", "minimal-values.yaml"), "--values", "-")
			if err == nil {
				t.Fatalf("was taken, and rendered to:\n%s", out)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("want an error with %q, got:\n%v", test.want, err)
			}
			if strings.Count(err.Error(), "\n- ") > 1 {
				t.Errorf("want one thing to be wrong, got:\n%v", err)
			}
		})
	}
}

// TestEverythingWrongIsToldAtOnce, so that nobody has to try again for each value.
func TestEverythingWrongIsToldAtOnce(t *testing.T) {
	t.Parallel()
	_, err := run(t, "replicaCount: 2\nscaler: {leaderElection: false}\nagents: {namespace: azp}", "template", chart.Release, dir.Chart, "--namespace", chart.Namespace, "--values", "-")
	if err == nil {
		t.Fatal("was taken")
	}
	for _, want := range []string{"azureDevOps.url", "azureDevOps.pools", "replicaCount", "agents.namespace"} {
		if !strings.Contains(err.Error(), "- "+want) {
			t.Errorf("%s is not among what is wrong:\n%v", want, err)
		}
	}
}
