package cluster_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/test/cluster"
)

// ownerVariable makes this test's program the owner of a cluster, to be killed.
const ownerVariable = "AZP_CLUSTER_TEST_OWNER"

// traces is what a cluster could leave on the machine, by kind.
type traces map[string][]string

func footprint(t *testing.T) traces {
	t.Helper()
	found := traces{}
	glob := func(kind, pattern string) {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		found[kind] = paths
	}
	glob("links", "/sys/class/net/azpbox*")
	glob("directories", filepath.Join(os.TempDir(), "azp-cluster-*"))
	glob("cgroups of version 1", "/sys/fs/cgroup/*/azp-cluster-*")
	glob("cgroups of version 2", "/sys/fs/cgroup/azp-cluster-*")
	glob("named network namespaces", "/run/netns/*")
	glob("directories of the runtime", "/run/containerd/*")
	for _, dir := range []string{"/var/lib/cni", "/var/lib/kubelet", "/var/lib/containerd", "/var/log/pods", "/opt/containerd", "/run/azp", "/run/azp-audit"} {
		if _, err := os.Stat(dir); err == nil {
			found["fixed places"] = append(found["fixed places"], dir)
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	glob("records", filepath.Join(cache, "azp-scaler", "cluster", "runs", "*"))
	mounts, err := os.Open("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mounts.Close() }()
	lines := bufio.NewScanner(mounts)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "azp") {
			found["mounts"] = append(found["mounts"], lines.Text())
		}
	}
	found["processes"] = clusterProcesses(t, filepath.Join(cache, "azp-scaler", "cluster"))
	return found
}

// clusterProcesses lists those whose program is one of ours, and the cleaners.
func clusterProcesses(t *testing.T, cache string) []string {
	t.Helper()
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, entry := range entries {
		program, err := os.Readlink(filepath.Join(entry, "exe"))
		if err != nil {
			continue
		}
		arguments, err := os.ReadFile(filepath.Join(entry, "cmdline"))
		if err != nil {
			continue
		}
		line := strings.ReplaceAll(string(arguments), "\x00", " ")
		if strings.HasPrefix(program, cache) || strings.Contains(line, "azp-cluster-cleaner") || program == "/pause" {
			found = append(found, fmt.Sprintf("%s %s %.80s", filepath.Base(entry), program, line))
		}
	}
	return found
}

// compareFootprint fails if anything is there that was not there before.
// Another test's cluster may come and go meanwhile, so what it finds must stay
// to count: the look is repeated until nothing is left, or the limit.
func compareFootprint(t *testing.T, before traces) {
	t.Helper()
	limit := time.Now().Add(20 * time.Second)
	for {
		left := traces{}
		for kind, now := range footprint(t) {
			for _, one := range now {
				if !slices.Contains(before[kind], one) {
					left[kind] = append(left[kind], one)
				}
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("left on the machine: %v", left)
		}
		<-time.After(100 * time.Millisecond)
	}
}

// TestMain lets the test's own program be the owner that is killed.
func TestMain(m *testing.M) {
	if kind := os.Getenv(ownerVariable); kind != "" {
		os.Exit(own(kind))
	}
	os.Exit(m.Run())
}

func own(text string) int {
	kind, err := cluster.ParseNodeKind(text)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	c, err := cluster.Start(context.Background(), cluster.Options{Node: kind})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("ready", c.AdminKubeconfig())
	// Until killed; the test's limit ends it otherwise.
	<-c.Failed()
	fmt.Println(c.Err())
	return 1
}

func TestKilledOwnerLeavesNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a cluster")
	}
	kinds := []cluster.NodeKind{cluster.Simulated}
	if os.Geteuid() == 0 {
		kinds = append(kinds, cluster.Real)
	}
	for _, kind := range kinds {
		t.Run(kind.String(), func(t *testing.T) {
			before := footprint(t)
			owner := exec.CommandContext(t.Context(), os.Args[0])
			owner.Env = append(os.Environ(), ownerVariable+"="+kind.String())
			output, err := owner.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := owner.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(output).ReadString('\n')
			if err != nil || !strings.HasPrefix(line, "ready ") {
				_ = owner.Process.Kill()
				_ = owner.Wait()
				t.Fatalf("the owner's cluster did not start: %v: %s", err, line)
			}
			if now := footprint(t); len(now["processes"]) <= len(before["processes"]) || len(now["directories"]) <= len(before["directories"]) {
				t.Errorf("the test sees no cluster where there is one: %v", now)
			}
			if err := owner.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := owner.Wait(); err == nil {
				t.Error("the owner was killed and ended well")
			}
			compareFootprint(t, before)
		})
	}
}
