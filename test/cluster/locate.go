package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// toolModulePath is where the tool module is in this repository.
const toolModulePath = "test/cluster/tools"

// cacheDir gives the directory for what is kept between runs.
func cacheDir(option string) (string, error) {
	if option != "" {
		return filepath.Abs(option)
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the user's cache directory: %w: set HOME or XDG_CACHE_HOME, or Options.CacheDir", err)
	}
	return filepath.Join(base, "azp-scaler", "cluster"), nil
}

// BaseImageCache is the directory for image.Debian to keep base images in, next
// to the built programs. option is Options.CacheDir.
func BaseImageCache(option string) (string, error) {
	dir, err := cacheDir(option)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "bases"), nil
}

// toolModule finds the tool module from the working directory upwards. It
// can't be embedded: the go command embeds no file of another module.
func toolModule(option string) (string, error) {
	if option != "" {
		return filepath.Abs(option)
	}
	start, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the working directory: %w", err)
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		candidate := filepath.Join(dir, toolModulePath)
		_, err := os.Stat(filepath.Join(candidate, "go.mod"))
		if err == nil {
			return candidate, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("looking for the tool module of the Kubernetes programs: %w", err)
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no %s/go.mod in %s or above it: run inside the repository, or set Options.ToolModule", toolModulePath, start)
		}
	}
}
