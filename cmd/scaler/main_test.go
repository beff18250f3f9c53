package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// clearEnvironment takes away what the surroundings say about the scaler.
func clearEnvironment(t *testing.T) {
	t.Helper()
	for _, variable := range os.Environ() {
		if name, value, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "AZP_") || name == "KUBECONFIG" {
			t.Setenv(name, value) // So that it is put back.
			if err := os.Unsetenv(name); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestCommands(t *testing.T) {
	for name, test := range map[string]struct {
		args   []string
		code   int
		stdout string
		stderr string
	}{
		"version":               {[]string{"version"}, exitDone, "azp-scaler ", ""},
		"help":                  {[]string{"help"}, exitDone, "Usage: scaler [command]", ""},
		"unknown":               {[]string{"foo"}, exitConfiguration, "", `no command "foo"`},
		"too many words":        {[]string{"run", "fast"}, exitConfiguration, "", `"fast"`},
		"too many for plan":     {[]string{"plan", "now"}, exitConfiguration, "", "-o table or -o json"},
		"unknown format":        {[]string{"plan", "-o", "yaml"}, exitConfiguration, "", "-o table or -o json"},
		"unknown flag":          {[]string{"plan", "-x"}, exitConfiguration, "", "-x"},
		"no request":            {[]string{"explain", "build"}, exitConfiguration, "", `not "build"`},
		"two requests":          {[]string{"explain", "1", "2"}, exitConfiguration, "", `"2"`},
		"a plan without pool":   {[]string{"plan", "-o=json"}, exitConfiguration, "", "AZP_POOL is not set"},
		"a reason without pool": {[]string{"explain", "4711"}, exitConfiguration, "", "AZP_POOL is not set"},
		"no pool to clean":      {[]string{"cleanup"}, exitConfiguration, "", "AZP_POOL is not set"},
		"a wait without end":    {[]string{"cleanup", "--wait", "10m", "--timeout", "5m"}, exitConfiguration, "", "--timeout 5m0s"},
		"a negative wait":       {[]string{"cleanup", "--wait=-1s"}, exitConfiguration, "", "--wait -1s"},
		"too many for cleanup":  {[]string{"cleanup", "all"}, exitConfiguration, "", `"all"`},
		"nothing set":           {nil, exitConfiguration, "", "AZP_URL is not set"},
		"nothing to check":      {[]string{"check"}, exitConfiguration, "", "AZP_POOL is not set"},
	} {
		t.Run(name, func(t *testing.T) {
			clearEnvironment(t)
			var stdout, stderr bytes.Buffer
			if code := run(test.args, &stdout, &stderr); code != test.code {
				t.Errorf("want exit code %d, got %d", test.code, code)
			}
			if !strings.Contains(stdout.String(), test.stdout) || !strings.Contains(stderr.String(), test.stderr) {
				t.Errorf("want %q and %q, got:\n%s\n%s", test.stdout, test.stderr, stdout.String(), stderr.String())
			}
		})
	}
}

func TestEmptyVariableCountsAsNotSet(t *testing.T) {
	clearEnvironment(t)
	t.Setenv("AZP_POLL_BUSY", "")
	t.Setenv("AZP_TOKEN_FILE", filepath.Join(t.TempDir(), "token"))
	config, err := loadConfig()
	if err != nil {
		t.Fatal(err)
	}
	if got := config.PollBusy.String(); got != "2s" {
		t.Errorf("want the default of 2s for an empty variable, got %s", got)
	}
}

func TestProxyInEitherCase(t *testing.T) {
	clearEnvironment(t)
	for name, value := range map[string]string{"HTTPS_PROXY": "", "https_proxy": "http://lower:1", "NO_PROXY": ".upper", "no_proxy": ".lower"} {
		t.Setenv(name, value)
	}
	config, err := loadConfig()
	if err != nil {
		t.Fatal(err)
	}
	if config.HTTPSProxy.Reveal() != "http://lower:1" || config.NoProxy != ".upper" {
		t.Errorf("want the lower case where there is no upper, got %q and %q", config.HTTPSProxy.Reveal(), config.NoProxy)
	}
}
