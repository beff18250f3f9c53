package env

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/e2e/canary"
)

// Where what was gathered for the sweep is, below Options.Dir.
const (
	containersDir = "containers" // What containers have said.
	pagesDir      = "pages"      // What scalers have answered.
	buildsDir     = "builds"     // The builds' logs, as the service has them.
)

// built are the folders of programs, which are older than every secret.
func builtDirs() []string { return []string{"bin", "agent"} }

// scalerPages is what a scaler answers to everybody who reaches its port.
func scalerPages() []string {
	return []string{"/", "/metrics", "/healthz", "/readyz", "/debug/pprof/cmdline"}
}

// sweep looks for the pool's tokens and the agents' keys in everything that a run has
// left or shown: logs of scaler, containers and builds, both audit logs, all versions of
// all objects, metrics and other pages. It is an error to find one anywhere but in the
// Secrets that are there to hold it.
func (e *Env) sweep() error {
	if err := e.keepBuildLogs(); err != nil {
		return fmt.Errorf("look for secrets: %w", err)
	}
	set, err := e.observer.canaries(e.Service.tokens())
	if err != nil {
		return fmt.Errorf("look for secrets: %w", err)
	}
	ran := func(build azuredevopstest.BuildStatus) bool { return build.AgentName != "" }
	if e.options.Registration == registrationJIT && slices.ContainsFunc(e.Service.Builds(e.Service.PoolID), ran) && len(e.observer.keys) == 0 {
		return errors.New("look for secrets: builds have run, and no key of an agent was seen: the observer has missed what it is for")
	}
	found, err := e.observer.search(set, e.holders())
	inFiles, errFiles := searchTree(e.dir, set)
	if err := errors.Join(err, errFiles); err != nil {
		return fmt.Errorf("look for secrets: %w", err)
	}
	return exposed(append(found, inFiles...))
}

// Canaries are the pool's tokens, to be looked for.
func (e *Env) Canaries() (*canary.Set, error) {
	set := &canary.Set{}
	tokens := e.Service.tokens()
	for _, name := range slices.Sorted(maps.Keys(tokens)) {
		if err := set.Add(name, tokens[name]); err != nil {
			return nil, err
		}
	}
	return set, nil
}

// holders are the Secrets that are there to hold a token, with the token's name.
func (e *Env) holders() map[string]string {
	holders := map[string]string{}
	for _, in := range e.installations {
		holders["Secret "+in.AgentsNamespace+"/"+TokenSecret] = TokenName(in.Name)
		if in.release != nil {
			holders["Secret "+in.ScalerNamespace+"/"+TokenSecret] = TokenName(in.Name)
		}
	}
	return holders
}

// exposed makes an error of findings.
func exposed(found []string) error {
	if len(found) == 0 {
		return nil
	}
	const shown = 20
	slices.Sort(found)
	found = slices.Compact(found)
	more := ""
	if len(found) > shown {
		found, more = found[:shown], fmt.Sprintf("\nand %d more", len(found)-shown)
	}
	return fmt.Errorf("secrets are where they must not be:\n%s%s", strings.Join(found, "\n"), more)
}

// search looks into every object that was observed. A token is allowed in its Secret, and
// an agent's key in its own.
func (o *observer) search(set *canary.Set, holders map[string]string) ([]string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.problems) > 0 {
		return nil, errors.Join(o.problems...)
	}
	if _, err := o.objects.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	var found []string
	lines := bufio.NewReader(o.objects)
	for {
		line, err := lines.ReadBytes('\n')
		name, _, _ := strings.Cut(string(line), "\t")
		for _, secret := range set.In(line) {
			if secret != holders[name] && !strings.HasPrefix(secret, keyPrefix+name+" ") {
				found = append(found, fmt.Sprintf("%s in %s", secret, name))
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return found, nil
		case err != nil:
			return nil, err
		}
	}
}

// searchTree looks into every file of a run's directory, but for the programs.
func searchTree(dir string, set *canary.Set) ([]string, error) {
	var found []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && filepath.Dir(path) == dir && slices.Contains(builtDirs(), entry.Name()) {
			return fs.SkipDir
		}
		if !entry.Type().IsRegular() {
			return nil
		}
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		names, err := set.Read(file)
		for _, name := range names {
			found = append(found, fmt.Sprintf("%s in file %s", name, path))
		}
		return err
	})
	return found, err
}

// keepBuildLogs writes down what the service has of the builds' logs.
func (e *Env) keepBuildLogs() error {
	dir := filepath.Join(e.dir, buildsDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, build := range e.Service.Builds(e.Service.PoolID) {
		log, err := e.Service.Log(build.RequestID)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.log", build.RequestID)), []byte(log), 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// keepPages writes down what a running scaler answers to everybody.
func (in *Installation) keepPages(ctx context.Context) error {
	if in.Scaler == nil || !in.Scaler.Running() {
		return nil
	}
	err := keepPages(ctx, in.Scaler.URL(), filepath.Join(in.env.dir, pagesDir), in.Name)
	if !in.Scaler.Running() {
		return nil // It has ended before it could answer.
	}
	return err
}

func keepPages(ctx context.Context, url, dir, prefix string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("keep the scaler's pages: %w", err)
	}
	for _, page := range scalerPages() {
		if err := keepPage(ctx, url+page, filepath.Join(dir, prefix+strings.ReplaceAll(page, "/", "_")+".txt")); err != nil {
			return fmt.Errorf("keep the scaler's pages: %w", err)
		}
	}
	return nil
}

func keepPage(ctx context.Context, url, path string) error {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(response.Write(file), file.Close())
}
