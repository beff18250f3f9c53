package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/kelseyhightower/envconfig"

	"github.com/azp-scaler/azp-scaler/pkg/app"
)

// loadConfig reads the environment. A variable that is set and empty counts as
// not set, so that a manifest may leave one blank: envconfig would pass over the
// default for it.
func loadConfig() (app.Config, error) {
	for _, variable := range os.Environ() {
		if name, value, _ := strings.Cut(variable, "="); value == "" && strings.HasPrefix(name, "AZP_") {
			if err := os.Unsetenv(name); err != nil {
				return app.Config{}, fmt.Errorf("%w:\n%s: %w", app.ErrConfiguration, name, err)
			}
		}
	}
	// Programs take these in either case.
	for _, name := range []string{"HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"} {
		if value := os.Getenv(strings.ToLower(name)); value != "" && os.Getenv(name) == "" {
			if err := os.Setenv(name, value); err != nil {
				return app.Config{}, fmt.Errorf("%w:\n%s: %w", app.ErrConfiguration, name, err)
			}
		}
	}
	var config app.Config
	if err := envconfig.Process("", &config); err != nil {
		return app.Config{}, fmt.Errorf("%w:\n%w", app.ErrConfiguration, err)
	}
	return config, nil
}
