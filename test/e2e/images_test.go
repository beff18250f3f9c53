package e2e_test

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/azp-scaler/azp-scaler/test/cluster"
	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// anewVariable has the image built again with nothing of an earlier time.
const anewVariable = "IMAGES_ANEW"

// needImages skips a test that builds images and runs them, where the machine can't.
func needImages(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("builds images")
	}
	if why := env.CanBuildImages(t.Context()); why != "" {
		t.Skip(why)
	}
}

// TestScalerImage builds Dockerfile.scaler as it is, and the same program outside of a
// container: it is the same, and what the image says of itself is right.
func TestScalerImage(t *testing.T) {
	needImages(t)
	t.Parallel()
	programs, err := cluster.Ensure(t.Context(), cluster.Options{Node: cluster.Real, Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	builder, err := env.NewImageBuilder(t.Context(), "", programs, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	outside := filepath.Join(dir, "outside")
	command := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version="+env.ImageVersion, "-o", outside, "./cmd/scaler")
	command.Dir = filepath.Join("..", "..")
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := exec.CommandContext(t.Context(), outside, "version").Output(); err != nil || string(out) != "azp-scaler "+env.ImageVersion+"\n" {
		t.Errorf("it says %q, %v", out, err)
	}
	ways := []bool{false}
	if os.Getenv(anewVariable) != "" {
		ways = append(ways, true)
	}
	for _, anew := range ways {
		image, err := builder.Scaler(t.Context(), anew)
		if err != nil {
			t.Fatal(err)
		}
		inside := filepath.Join(dir, "inside")
		if err := builder.Copy(t.Context(), image, "/usr/local/bin/scaler", inside); err != nil {
			t.Fatal(err)
		}
		if in, out := sumOf(t, inside), sumOf(t, outside); in != out {
			t.Errorf("built anew: %t: the program in the image has the SHA-256 %s, and outside of it %s", anew, in, out)
		}
		config, err := builder.Config(t.Context(), image)
		if err != nil {
			t.Fatal(err)
		}
		if label := config.Config.Labels["org.opencontainers.image.version"]; label != env.ImageVersion || config.Config.User != "65532:65532" {
			t.Errorf("the image says that it is %q, for user %q", label, config.Config.User)
		}
	}
}

func sumOf(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}
