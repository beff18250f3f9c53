package dockerfile_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/azp-scaler/azp-scaler/test/dockerfile"
)

const text = `# A comment.
ARG RELEASE=24.04
arg BASE=docker.io/library/ubuntu:${RELEASE}

FROM --platform=${BUILDPLATFORM} golang:1 AS build
ARG LATER=x
RUN one \
    # Inside.
    two
FROM build AS again
FROM ${BASE}
USER 1000:1000`

func TestInstructionsAreJoined(t *testing.T) {
	t.Parallel()
	want := []dockerfile.Instruction{
		{2, "ARG", "RELEASE=24.04"},
		{3, "ARG", "BASE=docker.io/library/ubuntu:${RELEASE}"},
		{5, "FROM", "--platform=${BUILDPLATFORM} golang:1 AS build"},
		{6, "ARG", "LATER=x"},
		{7, "RUN", "one two"},
		{10, "FROM", "build AS again"},
		{11, "FROM", "${BASE}"},
		{12, "USER", "1000:1000"},
	}
	if diff := cmp.Diff(want, dockerfile.Parse(text)); diff != "" {
		t.Error(diff)
	}
}

func TestBasesFollowTheArguments(t *testing.T) {
	t.Parallel()
	instructions := dockerfile.Parse(text)
	if diff := cmp.Diff([]string{"golang:1", "docker.io/library/ubuntu:24.04"}, dockerfile.Bases(instructions)); diff != "" {
		t.Error(diff)
	}
	want := map[string]string{"RELEASE": "24.04", "BASE": "docker.io/library/ubuntu:24.04"}
	if diff := cmp.Diff(want, dockerfile.Defaults(instructions)); diff != "" {
		t.Error(diff)
	}
}

func TestCopiedIsOfTheContextAlone(t *testing.T) {
	t.Parallel()
	instructions := dockerfile.Parse("FROM a AS build\nCOPY go.mod go.sum ./\nCOPY --chmod=0755 cmd cmd\nFROM b\nCOPY --from=build --chmod=0755 /out/x /bin/x\n")
	if diff := cmp.Diff([]string{"go.mod", "go.sum", "cmd"}, dockerfile.Copied(instructions)); diff != "" {
		t.Error(diff)
	}
}
