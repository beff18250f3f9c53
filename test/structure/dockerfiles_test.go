package structure

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/azp-scaler/azp-scaler/test/dockerfile"
)

var (
	// pinned is an image with its registry and a tag or a digest.
	pinned = regexp.MustCompile(`^[a-z0-9.-]+\.[a-z]+/[a-z0-9./-]+(:[A-Za-z0-9._-]+|@sha256:[0-9a-f]{64})$`)
	// numeric is a user and a group by number, and not root.
	numeric = regexp.MustCompile(`^[1-9][0-9]*:[1-9][0-9]*$`)
	fetches = regexp.MustCompile(`\b(curl|wget)\b`)
)

// ociLabels are those of https://specs.opencontainers.org/image-spec/annotations/ that tell where an image comes from.
func ociLabels() []string {
	return []string{"title", "description", "url", "source", "documentation", "licenses", "version", "revision", "created"}
}

// dockerfileViolations are what is wrong with a Dockerfile.
func dockerfileViolations(instructions []dockerfile.Instruction) []string {
	var violations []string
	for _, base := range dockerfile.Bases(instructions) {
		if !pinned.MatchString(base) || strings.HasSuffix(base, ":latest") {
			violations = append(violations, "starts from "+base+": want a registry, and a version or a digest")
		}
	}
	labels, user, entrypoint := "", "", ""
	for _, in := range instructions {
		switch in.Name {
		case "FROM":
			labels, user, entrypoint = "", "", "" // Of the last stage only.
			if !strings.Contains(in.Text, "${") {
				violations = append(violations, in.Text+": want an argument, so that a mirror can take its place")
			}
		case "ADD":
			violations = append(violations, "ADD "+in.Text+": checks nothing of what it fetches: COPY, or a script that compares a SHA-256")
		case "RUN":
			if fetches.MatchString(in.Text) {
				violations = append(violations, "RUN "+in.Text+": fetches: a script does that, and compares a SHA-256 or a key")
			}
		case "LABEL":
			labels += " " + in.Text
		case "USER":
			user = in.Text
		case "ENTRYPOINT":
			entrypoint = in.Text
		}
	}
	for _, label := range ociLabels() {
		if !strings.Contains(labels, " org.opencontainers.image."+label+"=") {
			violations = append(violations, "no label org.opencontainers.image."+label)
		}
	}
	if !numeric.MatchString(user) {
		violations = append(violations, "USER "+user+": want numbers, as Kubernetes can't tell of a name that it is not root")
	}
	if !strings.HasPrefix(entrypoint, `["/`) {
		violations = append(violations, "ENTRYPOINT "+entrypoint+": want a list that begins with a path: a shell would keep signals from the program")
	}
	return violations
}

func TestDockerfiles(t *testing.T) {
	files, err := filepath.Glob("../../Dockerfile.*")
	if err != nil || len(files) != 2 {
		t.Fatalf("Dockerfiles %v, %v: want two", files, err)
	}
	for _, name := range files {
		instructions, err := dockerfile.Read(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, violation := range dockerfileViolations(instructions) {
			t.Errorf("%s: %s", filepath.Base(name), violation)
		}
	}
}

// TestDockerfilesGoWithTheModules: the versions that the images are built with are those that everything is tested with.
func TestDockerfilesGoWithTheModules(t *testing.T) {
	for _, c := range []struct{ file, argument, module, line string }{
		{"Dockerfile.scaler", "GO_VERSION", "go.mod", `(?m)^go (\S+)$`},
		{"Dockerfile.agent", "GO_VERSION", "go.mod", `(?m)^go (\S+)$`},
		{"Dockerfile.agent", "KUBECTL_VERSION", "test/cluster/tools/go.mod", `(?m)^\s*k8s.io/kubernetes (\S+)`},
	} {
		instructions, err := dockerfile.Read(filepath.Join("..", "..", c.file))
		if err != nil {
			t.Fatal(err)
		}
		module, err := os.ReadFile(filepath.Join("..", "..", c.module))
		if err != nil {
			t.Fatal(err)
		}
		want := regexp.MustCompile(c.line).FindSubmatch(module)
		if want == nil {
			t.Fatalf("%s has no line %s", c.module, c.line)
		}
		if got := dockerfile.Defaults(instructions)[c.argument]; got != string(want[1]) {
			t.Errorf("%s: %s=%s, but %s has %s", c.file, c.argument, got, c.module, want[1])
		}
	}
}

// TestDockerfileRulesCanFail has a file that breaks each of them.
func TestDockerfileRulesCanFail(t *testing.T) {
	text := "FROM ubuntu:latest\nADD https://example.com/x /x\nRUN curl -O https://example.com/y\nUSER agent\nENTRYPOINT start.sh\n"
	got := strings.Join(dockerfileViolations(dockerfile.Parse(text)), "\n")
	want := []string{"starts from ubuntu:latest", "want an argument", "ADD https", "RUN curl", "USER agent", "ENTRYPOINT start.sh"}
	for _, label := range ociLabels() {
		want = append(want, "no label org.opencontainers.image."+label)
	}
	for _, part := range want {
		if !strings.Contains(got, part) {
			t.Errorf("not told of %q:\n%s", part, got)
		}
	}
}

// TestBuildContextIsChosen: only what is named gets to a builder.
func TestBuildContextIsChosen(t *testing.T) {
	text, err := os.ReadFile("../../.dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	lines := slices.DeleteFunc(strings.Split(string(text), "\n"), func(line string) bool { return line == "" || strings.HasPrefix(line, "#") })
	if lines[0] != "*" {
		t.Errorf("the first rule is %q, want * and then what is let in", lines[0])
	}
	if slices.Contains(lines, "!.git") || slices.Contains(lines, "!.") {
		t.Errorf("rules %v let everything in", lines)
	}
}
