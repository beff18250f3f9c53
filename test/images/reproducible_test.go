package images

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// goBuild finds the line that compiles a program in its Dockerfile: the flags, and the package.
var goBuild = regexp.MustCompile(`go build (.*) -o \S+ (\./cmd/\S+)`)

// anewVariable has everything compiled anew for the second program, with an empty build cache, which takes minutes.
const anewVariable = "IMAGES_ANEW"

// TestProgramsAreReproducible compiles each program as its Dockerfile does, here and from a copy of the sources elsewhere,
// and compares the bytes.
func TestProgramsAreReproducible(t *testing.T) {
	t.Parallel()
	here, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := t.TempDir()
	for _, name := range []string{"cmd", "pkg"} {
		if err := os.CopyFS(filepath.Join(elsewhere, name), os.DirFS(filepath.Join(here, name))); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		content, err := os.ReadFile(filepath.Join(here, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(elsewhere, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"Dockerfile.scaler", "Dockerfile.agent"} {
		t.Run(file, func(t *testing.T) {
			content, err := os.ReadFile(filepath.Join(here, file))
			if err != nil {
				t.Fatal(err)
			}
			found := goBuild.FindSubmatch(content)
			if found == nil {
				t.Fatalf("%s compiles nothing that is known here", file)
			}
			flags := strings.ReplaceAll(string(found[1]), `"${VERSION}"`, "v1")
			flags = strings.ReplaceAll(flags, "${VERSION}", "v1")
			cache := ""
			if os.Getenv(anewVariable) != "" {
				cache = t.TempDir()
			}
			first := compile(t, here, flags, string(found[2]), "")
			if second := compile(t, elsewhere, flags, string(found[2]), cache); first != second {
				t.Errorf("the program has the SHA-256 %s here and %s elsewhere", first, second)
			}
		})
	}
}

// compile gives the SHA-256 of a program, with a build cache of its own where one is named.
func compile(t *testing.T, dir, flags, pkg, cache string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "go build "+flags+` -o "$0" "$1"`, program, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if cache != "" {
		cmd.Env = append(cmd.Env, "GOCACHE="+cache)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", flags, err, out)
	}
	content, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}
