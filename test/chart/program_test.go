package chart_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/kelseyhightower/envconfig"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/azp-scaler/azp-scaler/pkg/app"
	"github.com/azp-scaler/azp-scaler/test/chart"
)

// scalerPod is the Deployment's.
func scalerPod(t *testing.T, objects chart.Objects) corev1.PodTemplateSpec {
	t.Helper()
	deployments := objects.Kind("Deployment")
	if len(deployments) != 1 {
		t.Fatalf("want one Deployment, got %v", names(deployments))
	}
	return decode[appsv1.Deployment](t, deployments[0]).Spec.Template
}

// settings are the variables of the scaler's container.
func settings(t *testing.T, objects chart.Objects) map[string]string {
	t.Helper()
	variables := map[string]string{}
	for _, variable := range scalerPod(t, objects).Spec.Containers[0].Env {
		if _, again := variables[variable.Name]; again {
			t.Errorf("%s is set twice", variable.Name)
		}
		variables[variable.Name] = variable.Value
	}
	return variables
}

// read has the scaler's own code read variables, as in the pod: the files are there that are mounted.
func read(t *testing.T, variables map[string]string) app.Config {
	t.Helper()
	for _, name := range configVariables() {
		t.Setenv(name, "")
		if err := os.Unsetenv(name); err != nil {
			t.Fatal(err)
		}
	}
	root := t.TempDir()
	for name, value := range variables {
		if path, mounted := strings.CutPrefix(value, "/run/azp/"); mounted {
			value = filepath.Join(root, path)
			if err := os.MkdirAll(filepath.Dir(value), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(value, []byte("content"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		t.Setenv(name, value)
	}
	var config app.Config
	if err := envconfig.Process("", &config); err != nil {
		t.Fatal(err)
	}
	return config
}

// configVariables are those that the scaler reads.
func configVariables() (names []string) {
	for field := range reflect.TypeFor[app.Config]().Fields() {
		names = append(names, field.Tag.Get("envconfig"))
	}
	return names
}

// TestScalerTakesWhatTheChartSets: every variable is one that the scaler reads, and its own rules find nothing wrong.
func TestScalerTakesWhatTheChartSets(t *testing.T) {
	known := configVariables()
	for name, values := range examples(t) {
		t.Run(name, func(t *testing.T) {
			variables := settings(t, render(t, values))
			for variable := range variables {
				if !slices.Contains(known, variable) && variable != "GOMEMLIMIT" { // The example's own.
					t.Errorf("the scaler does not read %s", variable)
				}
			}
			if variables["AZP_AUTH"] == "workload-identity" { // The webhook does this.
				variables["AZURE_CLIENT_ID"], variables["AZURE_TENANT_ID"] = "client", "tenant"
				variables["AZURE_FEDERATED_TOKEN_FILE"], variables["AZURE_AUTHORITY_HOST"] = "/run/azp/federated", "https://login.microsoftonline.com/"
			}
			config := read(t, variables)
			if err := config.Validate(); err != nil && !strings.Contains(err.Error(), "certificate") { // It wants a real one.
				t.Error(err)
			}
		})
	}
}

// TestDefaultsAreTheScalersOwn, so that the chart's README tells the truth about what is not set.
func TestDefaultsAreTheScalersOwn(t *testing.T) {
	variables := settings(t, render(t, minimal))
	needed := map[string]string{}
	for _, name := range []string{"AZP_URL", "AZP_POOL", "AZP_NAMESPACE", "AZP_AGENT_IMAGE"} {
		needed[name] = variables[name]
	}
	delete(variables, "AZP_TOKEN_FILE")   // It has no default.
	delete(variables, "AZP_CALLBACK_URL") // The Service, which is not known without a chart.
	if diff := differences(read(t, needed), read(t, variables)); diff != "" {
		t.Errorf("with the chart's defaults the scaler does not do what it does by itself (-itself +chart):\n%s", diff)
	}
}

// differences names the fields that are not alike. The quantities are compared as they are written.
func differences(a, b app.Config) string {
	show := func(c app.Config) (lines []string) {
		v := reflect.ValueOf(c)
		for i, field := range slices.Collect(reflect.TypeFor[app.Config]().Fields()) {
			lines = append(lines, fmt.Sprintf("%s: %v", field.Name, v.Field(i).Interface()))
		}
		return lines
	}
	return cmp.Diff(show(a), show(b))
}

// notOfTheChart are the variables that no value of the chart sets, and why.
func notOfTheChart() map[string]string {
	return map[string]string{
		"AZP_TOKEN":                  "an environment is seen by too many",
		"KUBECONFIG":                 "the pod has an account",
		"AZP_REPLICA":                "the pod's name is good",
		"AZURE_FEDERATED_TOKEN_FILE": "the webhook of workload identity sets it",
	}
}

// everySetting has each value that becomes a variable other than it is by default.
const everySetting = `
azureDevOps: {url: "https://dev.azure.com/acme", pools: [linux, large]}
auth:
  method: client-certificate
  tenantId: t
  clientId: c
  certificateKey: cert.pfx
  certificatePasswordKey: secret
  authorityHost: https://login.example/
  scope: s/.default
ca: {existingConfigMap: corporate, key: root.pem}
proxy: {httpsProxy: "http://p:1", httpProxy: "http://p:2", noProxy: .local, existingSecret: p, usernameKey: u, passwordKey: w}
scaler:
  release: other
  maxAgents: 7
  maxCreations: 8
  respectParallelJobs: false
  pollBusy: 3s
  pollIdle: 11s
  idleLimit: 61s
  maxIdleAge: 25h
  startupLimit: 11m
  configureLimit: 3m
  gracePeriod: 2h
  jobTTL: 3h
  backoffMin: 11s
  backoffMax: 11m
  sweepInterval: 62s
  sweepGrace: 3m
  leaderElection: false
  logLevel: warn
  logFormat: text
agents:
  namespace: builders
  image: {repository: r.example/agent, tag: v1, pullPolicy: Always}
  imagePullSecrets: [one, two]
  source: download
  version: 4.1.2
  registration: jit
  existingSecret: agents-token
  tokenKey: pat
  caConfigMap: agents-ca
  proxy: {url: "http://q:1", noProxy: .inside, existingSecret: q}
  resources: {requests: {cpu: 2, memory: 3Gi}, limits: {cpu: 4, memory: 5Gi}}
  capabilities: [java=17, maven]
  minIdle: 3
targetNamespaces:
  - {name: shop, roles: [{kind: ClusterRole, name: edit}, {kind: Role, name: deployer}]}
  - {name: web, roles: [{kind: ClusterRole, name: view}]}
`

// TestEverySettingHasAValue: there is none of the scaler that the chart can't set, and each value gets where it belongs.
func TestEverySettingHasAValue(t *testing.T) {
	t.Parallel()
	want := map[string]string{
		"AZP_URL": "https://dev.azure.com/acme", "AZP_POOL": "linux,large",
		"AZP_AUTH": "client-certificate", "AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c", "AZURE_AUTHORITY_HOST": "https://login.example/", "AZP_AUTH_SCOPE": "s/.default",
		"AZURE_CLIENT_CERTIFICATE_PATH": "/run/azp/credential/cert.pfx", "AZURE_CLIENT_CERTIFICATE_PASSWORD_FILE": "/run/azp/credential/secret",
		"AZP_CA_FILE": "/run/azp/ca/root.pem", "HTTPS_PROXY": "http://p:1", "HTTP_PROXY": "http://p:2", "NO_PROXY": "$(KUBERNETES_SERVICE_HOST),.local",
		"AZP_PROXY_USERNAME_FILE": "/run/azp/proxy/u", "AZP_PROXY_PASSWORD_FILE": "/run/azp/proxy/w",
		"AZP_RELEASE": "other", "AZP_NAMESPACE": "builders", "AZP_MAX_AGENTS": "7", "AZP_MAX_CREATIONS": "8", "AZP_RESPECT_PARALLEL_JOBS": "false",
		"AZP_POLL_BUSY": "3s", "AZP_POLL_IDLE": "11s", "AZP_IDLE_LIMIT": "61s", "AZP_MAX_IDLE_AGE": "25h", "AZP_STARTUP_LIMIT": "11m", "AZP_CONFIGURE_LIMIT": "3m",
		"AZP_GRACE_PERIOD": "2h", "AZP_JOB_TTL": "3h", "AZP_BACKOFF_MIN": "11s", "AZP_BACKOFF_MAX": "11m", "AZP_SWEEP_INTERVAL": "62s", "AZP_SWEEP_GRACE": "3m",
		"AZP_LEADER_ELECTION": "false", "AZP_LISTEN": ":8080", "AZP_CALLBACK_URL": "http://azp-scaler.azp:8080", "AZP_LOG_LEVEL": "warn", "AZP_LOG_FORMAT": "text",
		"AZP_AGENT_IMAGE": "r.example/agent:v1", "AZP_AGENT_IMAGE_PULL_POLICY": "Always", "AZP_AGENT_IMAGE_PULL_SECRETS": "one,two", "AZP_AGENT_SOURCE": "download",
		"AZP_AGENT_VERSION": "4.1.2", "AZP_REGISTRATION": "jit", "AZP_AGENT_TOKEN_SECRET": "agents-token", "AZP_AGENT_TOKEN_SECRET_KEY": "pat", "AZP_AGENT_CA_CONFIGMAP": "agents-ca",
		"AZP_AGENT_PROXY_URL": "http://q:1", "AZP_AGENT_NO_PROXY": ".inside", "AZP_AGENT_PROXY_SECRET": "q",
		"AZP_AGENT_CPU_REQUEST": "2", "AZP_AGENT_MEMORY_REQUEST": "3Gi", "AZP_AGENT_CPU_LIMIT": "4", "AZP_AGENT_MEMORY_LIMIT": "5Gi",
		"AZP_CAPABILITIES": "java=17,maven", "AZP_MIN_IDLE": "3",
		"AZP_ROLE_BINDINGS": "shop ClusterRole/edit,shop Role/deployer,web ClusterRole/view", "AZP_TARGET_NAMESPACES": "shop,web",
	}
	got := settings(t, render(t, everySetting))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("variables (-want +got):\n%s", diff)
	}
	// Only one way of signing in can be looked at in one pod.
	for method, variable := range map[string]string{"pat": "AZP_TOKEN_FILE", "client-secret": "AZURE_CLIENT_SECRET_FILE"} {
		maps.Copy(got, settings(t, render(t, minimal+"auth: {method: "+method+", tenantId: t, clientId: c, tokenKey: k, clientSecretKey: k}")))
		if got[variable] != "/run/azp/credential/k" {
			t.Errorf("%s of %s is %q", variable, method, got[variable])
		}
	}
	for _, variable := range configVariables() {
		_, not := notOfTheChart()[variable]
		if _, set := got[variable]; set == not {
			t.Errorf("%s: set by the chart: %t; said not to be: %t", variable, set, not)
		}
	}
}
