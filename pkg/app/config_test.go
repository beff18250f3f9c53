package app_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kelseyhightower/envconfig"

	"github.com/azp-scaler/azp-scaler/pkg/app"
)

// load reads a configuration from the given variables over a good one.
func load(t *testing.T, variables map[string]string) app.Config {
	t.Helper()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("a-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := map[string]string{
		"AZP_URL": "https://dev.azure.com/contoso", "AZP_POOL": "k8s", "AZP_TOKEN_FILE": token,
		"AZP_NAMESPACE": "agents", "AZP_AGENT_IMAGE": "registry.example.com/agent:1", "AZP_ROLE_BINDINGS": "shop ClusterRole/edit",
	}
	for name, value := range variables {
		good[name] = value
	}
	for name, value := range good {
		t.Setenv(name, value)
		if value == "" {
			// What the program does with a variable that is set and empty.
			if err := os.Unsetenv(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	var config app.Config
	if err := envconfig.Process("", &config); err != nil {
		t.Fatalf("envconfig must leave it to Validate to tell what is wrong: %v", err)
	}
	return config
}

func TestGoodConfiguration(t *testing.T) {
	for name, variables := range map[string]map[string]string{
		"least":             {},
		"server collection": {"AZP_URL": "https://tfs.example.com/tfs/DefaultCollection"},
		"old host name":     {"AZP_URL": "https://contoso.visualstudio.com"},
		"several bindings":  {"AZP_ROLE_BINDINGS": "shop ClusterRole/edit, bank Role/deployer\nbank Role/viewer"},
		"capabilities":      {"AZP_CAPABILITIES": "docker, java=17"},
		"no rights":         {"AZP_ROLE_BINDINGS": ""},
		"jit and download":  {"AZP_REGISTRATION": "jit", "AZP_AGENT_SOURCE": "download"},
		"agents' proxy": {
			"AZP_CALLBACK_URL":    "http://azp-scaler.azp-scaler:8080",
			"AZP_AGENT_PROXY_URL": "http://proxy:3128", "AZP_AGENT_PROXY_SECRET": "proxy", "AZP_AGENT_NO_PROXY": ".example.com, 10.1.2.3:8080",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := load(t, variables).Validate(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestWhatIsWrongIsNamed(t *testing.T) {
	tests := []struct {
		variable, value string
		want            []string // In the error, besides the variable's name.
	}{
		{"AZP_URL", "", []string{"is not set", "https://dev.azure.com/contoso"}},
		{"AZP_URL", "https://dev.azure.com", []string{`"https://dev.azure.com"`, "names no organisation", "append it"}},
		{"AZP_URL", "https://dev.azure.com/", []string{"names no organisation"}},
		{"AZP_URL", "dev.azure.com/contoso", []string{"no scheme"}},
		{"AZP_URL", "https:///contoso", []string{"no host"}},
		{"AZP_URL", "https://me:hunter2@dev.azure.com/contoso", []string{"user name or password", "take it out"}},
		{"AZP_URL", "https://dev.azure.com/contoso?x=1", []string{"query"}},
		{"AZP_URL", "https://dev azure.com/contoso", []string{"is no URL"}},
		{"AZP_POOL", "", []string{"is not set"}},
		{"AZP_POOL", " , ", []string{"is not set"}},
		{"AZP_POOL", "linux,Linux", []string{`"Linux"`, "twice"}},
		{"AZP_TARGET_NAMESPACES", "shop,No_Name", []string{`"No_Name"`}},
		{"AZP_TARGET_NAMESPACES", "agents", []string{`"agents"`, "own"}},
		{"AZP_MIN_IDLE", "some", []string{`"some"`}},
		{"AZP_MIN_IDLE", "101", []string{"101", "AZP_MAX_AGENTS"}},
		{"AZP_MIN_IDLE", "-1", []string{"-1", "out of bounds"}},
		{"AZP_TOKEN_FILE", "", []string{"is not set", "Agent Pools (read & manage)"}},
		{"AZP_TOKEN_FILE", "/does/not/exist", []string{"/does/not/exist", "no such file"}},
		{"AZP_TOKEN", "hunter2", []string{"together with AZP_TOKEN_FILE"}},
		{"AZP_CA_FILE", "/does/not/exist", []string{"/does/not/exist"}},
		{"HTTPS_PROXY", "ftp://me:hunter2@proxy", []string{"URL is none", "http://proxy.example:3128"}},
		{"AZP_PROXY_USERNAME_FILE", "/does/not/exist", []string{"/does/not/exist", "HTTPS_PROXY", "name both"}},
		{"AZP_PROXY_PASSWORD_FILE", "/does/not/exist", []string{"/does/not/exist", "no such file"}},
		{"AZP_NAMESPACE", "", []string{"is not set"}},
		{"AZP_NAMESPACE", "Agents", []string{`"Agents"`}},
		{"AZP_RELEASE", "a b", []string{`"a b"`}},
		{"AZP_AGENT_IMAGE", "two images", []string{`"two images"`}},
		{"AZP_AGENT_IMAGE_PULL_POLICY", "Sometimes", []string{`"Sometimes"`, "Always, IfNotPresent, Never"}},
		{"AZP_AGENT_SOURCE", "magic", []string{`"magic"`, "image, download"}},
		{"AZP_AGENT_TOKEN_SECRET", "No_Name", []string{`"No_Name"`}},
		{"AZP_AGENT_TOKEN_SECRET_KEY", "a/b", []string{`"a/b"`}},
		{"AZP_AGENT_CA_CONFIGMAP", "No_Name", []string{`"No_Name"`}},
		{"AZP_CALLBACK_URL", "azp-scaler:8080", []string{`"azp-scaler:8080"`, "http://azp-scaler.azp-scaler:8080"}},
		{"AZP_CALLBACK_URL", "http://me:hunter2@azp-scaler:8080", []string{"http://azp-scaler.azp-scaler:8080"}},
		{"AZP_AGENT_PROXY_URL", "proxy:3128", []string{"is no URL", "http://proxy.example:3128"}},
		{"AZP_AGENT_PROXY_URL", "http://me:hunter2@proxy:3128", []string{"user or password", "the Secret is for that"}},
		{"AZP_AGENT_PROXY_SECRET", "No_Name", []string{`"No_Name"`, "AZP_AGENT_PROXY_URL is not"}},
		{"AZP_AGENT_PROXY_SECRET", "azp-token", []string{"AZP_AGENT_TOKEN_SECRET"}},
		{"AZP_AGENT_NO_PROXY", "10.0.0.0/8", []string{`"10.0.0.0/8"`, "no networks"}},
		{"AZP_AGENT_IMAGE_PULL_SECRETS", "fine,No_Name", []string{`"No_Name"`}},
		{"AZP_AGENT_CPU_REQUEST", "much", []string{`"much"`, "500m"}},
		{"AZP_AGENT_CPU_LIMIT", "-1", []string{"above zero"}},
		{"AZP_AGENT_MEMORY_REQUEST", "1 GB", []string{`"1 GB"`, "2Gi"}},
		{"AZP_AGENT_MEMORY_LIMIT", "x", []string{`"x"`}},
		{"AZP_ROLE_BINDINGS", "shop edit", []string{`"shop edit"`, "shop ClusterRole/edit"}},
		{"AZP_ROLE_BINDINGS", "agents ClusterRole/edit", []string{"agents' own namespace"}},
		{"AZP_ROLE_BINDINGS", "Shop ClusterRole/edit", []string{"no valid namespace"}},
		{"AZP_CAPABILITIES", "two words", []string{`"two words"`}},
		{"AZP_MAX_AGENTS", "many", []string{`"many"`}},
		{"AZP_MAX_AGENTS", "0", []string{"above zero"}},
		{"AZP_MAX_CREATIONS", "-1", []string{"above zero"}},
		{"AZP_RESPECT_PARALLEL_JOBS", "maybe", []string{`"maybe"`}},
		{"AZP_POLL_BUSY", "2", []string{`"2"`, "90s"}},
		{"AZP_POLL_BUSY", "1m", []string{"AZP_POLL_IDLE"}},
		{"AZP_POLL_IDLE", "1h", []string{"out of bounds"}},
		{"AZP_IDLE_LIMIT", "0s", []string{"out of bounds"}},
		{"AZP_MAX_IDLE_AGE", "1s", []string{"out of bounds"}},
		{"AZP_STARTUP_LIMIT", "1s", []string{"out of bounds"}},
		{"AZP_CONFIGURE_LIMIT", "1s", []string{"out of bounds"}},
		{"AZP_GRACE_PERIOD", "30s", []string{"out of bounds", "2m0s"}},
		{"AZP_JOB_TTL", "x", []string{`"x"`}},
		{"AZP_BACKOFF_MIN", "20m", []string{"AZP_BACKOFF_MAX"}},
		{"AZP_BACKOFF_MAX", "x", []string{`"x"`}},
		{"AZP_SWEEP_INTERVAL", "x", []string{`"x"`}},
		{"AZP_SWEEP_GRACE", "x", []string{`"x"`}},
		{"AZP_LOG_LEVEL", "loud", []string{`"loud"`, "debug, info, warn or error"}},
		{"AZP_LOG_FORMAT", "xml", []string{`"xml"`, "json, text"}},
	}
	for _, test := range tests {
		t.Run(test.variable+"="+test.value, func(t *testing.T) {
			err := load(t, map[string]string{test.variable: test.value}).Validate()
			if err == nil {
				t.Fatal("nothing was found wrong")
			}
			for _, want := range append(test.want, test.variable) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q:\n%v", want, err)
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error gives a secret away:\n%v", err)
			}
		})
	}
}

func TestEverythingWrongIsToldAtOnce(t *testing.T) {
	err := load(t, map[string]string{
		"AZP_URL": "", "AZP_POOL": "", "AZP_MAX_AGENTS": "x", "AZP_POLL_BUSY": "y", "AZP_LOG_LEVEL": "z", "AZP_ROLE_BINDINGS": "shop,edit",
	}).Validate()
	if err == nil {
		t.Fatal("nothing was found wrong")
	}
	for _, variable := range []string{"AZP_URL", "AZP_POOL", "AZP_MAX_AGENTS", "AZP_POLL_BUSY", "AZP_LOG_LEVEL", `"shop"`, `"edit"`} {
		if !strings.Contains(err.Error(), variable) {
			t.Errorf("%s is missing from:\n%v", variable, err)
		}
	}
}

func TestConfigPrintsNoToken(t *testing.T) {
	config := load(t, map[string]string{"AZP_TOKEN": "hunter2", "HTTPS_PROXY": "http://me:hunter2@proxy"})
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(verb, config); strings.Contains(text, "hunter2") {
			t.Errorf("%s prints the token: %s", verb, text)
		}
	}
}
