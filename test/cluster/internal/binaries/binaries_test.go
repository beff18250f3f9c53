package binaries

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/azp-scaler/azp-scaler/test/cluster/internal/progress"
)

const toolModule = "../../tools"

func TestVersionIsThatOfTheToolModule(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(toolModule, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "k8s.io/kubernetes v"+kubernetesVersion+" ") {
		t.Errorf("the tool module does not require k8s.io/kubernetes v%s: change kubernetesVersion with it", kubernetesVersion)
	}
	arguments := strings.Join(targets()[0].arguments("out"), " ")
	if !strings.Contains(arguments, "gitVersion=v"+kubernetesVersion) || !strings.Contains(arguments, "gitMajor=1 ") || strings.Contains(arguments, "gitMinor=0") {
		t.Errorf("the version is not stamped: %s", arguments)
	}
}

func TestEveryProgramIsAToolOfTheModule(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(toolModule, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range targets() {
		if target.pkg != "" && !strings.Contains(string(text), "\t"+target.pkg+"\n") {
			t.Errorf("%s: the tool module has no directive for %s, so a tidy would drop it", target.name, target.pkg)
		}
	}
}

func TestKeyDependsOnTheModule(t *testing.T) {
	module := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(module, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	keys := map[string]string{}
	for _, state := range [][2]string{{"a", "b"}, {"a", "c"}, {"ab", "b"}, {"", "ab"}} {
		write("go.mod", state[0])
		write("go.sum", state[1])
		key, err := cacheKey(module)
		if err != nil {
			t.Fatal(err)
		}
		if again, _ := cacheKey(module); again != key {
			t.Errorf("the key of %q is not always the same", state)
		}
		if other, taken := keys[key]; taken {
			t.Errorf("%q and %s have the same key", state, other)
		}
		keys[key] = state[0] + "," + state[1]
	}
	if _, err := cacheKey(t.TempDir()); err == nil || !strings.Contains(err.Error(), "go.mod") {
		t.Errorf("no module: error %v, want one that names go.mod", err)
	}
}

func TestMissingProgramsAreThoseNotBuilt(t *testing.T) {
	dir := t.TempDir()
	all, plane := missing(dir, true), missing(dir, false)
	if len(all) != len(targets()) || len(plane) >= len(all) || len(plane) == 0 {
		t.Fatalf("%d and %d of %d are missing from an empty directory", len(all), len(plane), len(targets()))
	}
	if err := os.WriteFile(filepath.Join(dir, all[0].name), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if now := missing(dir, true); len(now) != len(all)-1 {
		t.Errorf("%d are missing after one was built, want %d", len(now), len(all)-1)
	}
}

func TestFailedBuildSaysWhyAndLeavesNothing(t *testing.T) {
	module, dir := t.TempDir(), t.TempDir()
	for name, text := range map[string]string{"go.mod": "module example.org/m\n\ngo 1.24\n", "main.go": "package main\n\nfunc main() { undefined() }\n"} {
		if err := os.WriteFile(filepath.Join(module, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	err := build(t.Context(), target{name: "broken", pkg: "."}, module, dir)
	if err == nil || !strings.Contains(err.Error(), "building broken") || !strings.Contains(err.Error(), "undefined") {
		t.Errorf("error %v, want one that names the program and what the compiler said", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left in the cache: %v", left)
	}
}

func TestEmbeddedProgramIsBuilt(t *testing.T) {
	dir := t.TempDir()
	if err := build(t.Context(), target{name: "pause", source: pauseFile}, toolModule, dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "pause"))
	if err != nil || !bytes.HasPrefix(text, []byte("\x7fELF")) {
		t.Errorf("no program was built: %v", err)
	}
}

func TestBuiltProgramsAreNotBuiltAgain(t *testing.T) {
	cache := t.TempDir()
	key, err := cacheKey(toolModule)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(cache, key), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, target := range targets() {
		if err := os.WriteFile(filepath.Join(cache, key, target.name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// Without a go command nothing could be built.
	t.Setenv("PATH", t.TempDir())
	var shown bytes.Buffer
	set, err := Ensure(t.Context(), Options{Module: toolModule, Cache: cache, Node: true, Report: progress.New(&shown)})
	if err != nil || set.Path("etcd") != filepath.Join(cache, key, "etcd") || shown.Len() != 0 {
		t.Errorf("path %s, error %v, progress %q", set.Path("etcd"), err, shown.String())
	}
	if err := os.Remove(set.Path("etcd")); err != nil {
		t.Fatal(err)
	}
	if _, err := Ensure(t.Context(), Options{Module: toolModule, Cache: cache}); err == nil || !strings.Contains(err.Error(), "no go command") {
		t.Errorf("error %v, want one that says there is no go command", err)
	}
}
