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

	"k8s.io/client-go/tools/clientcmd"

	"github.com/azp-scaler/azp-scaler/test/cluster"
	"github.com/azp-scaler/azp-scaler/test/cluster/internal/proc"
)

// ownerVariable makes this test's program the owner of a cluster, to be killed.
const ownerVariable = "AZP_CLUSTER_TEST_OWNER"

// footprint is what one cluster has on the machine. Other clusters may run at
// the same time, so everything is found by what is this one's alone.
type footprint struct {
	// paths are files and directories: the cluster's own, its cgroups, its
	// record, the machine's end of its link.
	paths []string
	// namespaces are the PID namespaces of its processes other than ours.
	namespaces []string
	// processes are those that its record names.
	processes []proc.ID
	// record is the path that is an argument of its cleaner.
	record string
	// directory is its own, which shows in mounts.
	directory string
	// places are those outside that Kubernetes would use, and that were not there.
	places []string
}

// fixedPlaces are written into by Kubernetes' programs when nobody hinders them.
func fixedPlaces() []string {
	var absent []string
	for _, place := range []string{
		"/etc/cni", "/opt/cni", "/opt/containerd", "/run/azp", "/run/azp-audit", "/run/containerd/s", "/run/flannel",
		"/var/lib/cni", "/var/lib/containerd", "/var/lib/kubelet", "/var/log/containers", "/var/log/pods", "/var/run/kubernetes",
	} {
		if _, err := os.Stat(place); err != nil {
			absent = append(absent, place)
		}
	}
	return absent
}

// footprintOf finds all that a running cluster has, by its kubeconfig.
func footprintOf(t *testing.T, kubeconfig string, absent []string) footprint {
	t.Helper()
	f := footprint{directory: filepath.Dir(kubeconfig), places: absent}
	f.paths = append(f.paths, f.directory)
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	f.record = recordOf(t, filepath.Join(cache, "azp-scaler", "cluster", "runs"), f.directory)
	f.paths = append(f.paths, f.record)
	text, err := os.ReadFile(f.record)
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		kind, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch kind {
		case "cgroup":
			f.paths = append(f.paths, value)
		case "process":
			var id proc.ID
			if _, err := fmt.Sscan(value, &id.PID, &id.Start); err != nil {
				t.Fatal(err)
			}
			f.processes = append(f.processes, id)
			namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", id.PID))
			if err == nil && namespace != own && !slices.Contains(f.namespaces, namespace) {
				f.namespaces = append(f.namespaces, namespace)
			}
		}
	}
	if config, err := clientcmd.BuildConfigFromFlags("", kubeconfig); err != nil {
		t.Error(err)
	} else if rest, found := strings.CutPrefix(config.Host, "https://10.201."); found {
		number, _, _ := strings.Cut(rest, ".")
		f.paths = append(f.paths, "/sys/class/net/azpbox"+number)
	}
	if len(f.processes) == 0 {
		t.Error("the cluster's record names no process")
	}
	if missing := len(f.paths) - len(f.left(t, "path")); missing != 0 {
		t.Errorf("%d of the paths %v are not there while the cluster runs", missing, f.paths)
	}
	return f
}

func recordOf(t *testing.T, runs, directory string) string {
	t.Helper()
	records, err := filepath.Glob(filepath.Join(runs, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, record := range records {
		text, err := os.ReadFile(record)
		if err == nil && strings.Contains(string(text), "directory "+directory+"\n") {
			return record
		}
	}
	t.Fatalf("no record in %s names %s", runs, directory)
	return ""
}

// left lists what is still there; kind, if given, limits it.
func (f footprint) left(t *testing.T, kind string) []string {
	t.Helper()
	var left []string
	add := func(of, what string) {
		if kind == "" || kind == of {
			left = append(left, of+" "+what)
		}
	}
	for _, path := range f.paths {
		if _, err := os.Lstat(path); err == nil {
			add("path", path)
		}
	}
	for _, place := range f.places {
		if _, err := os.Lstat(place); err == nil {
			add("place", place)
		}
	}
	for _, id := range f.processes {
		if id.Alive() {
			add("process", fmt.Sprint(id.PID))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), f.directory) {
		add("mount", f.directory)
	}
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if namespace, err := os.Readlink(filepath.Join(entry, "ns", "pid")); err == nil && slices.Contains(f.namespaces, namespace) {
			add("process", entry)
		}
		if arguments, err := os.ReadFile(filepath.Join(entry, "cmdline")); err == nil && strings.Contains(string(arguments), f.record) {
			add("cleaner", entry)
		}
	}
	return left
}

// gone fails the test if anything stays. After Stop nothing may be left at once;
// after a kill the kernel and the cleaner are given a moment.
func (f footprint) gone(t *testing.T, within time.Duration) {
	t.Helper()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	limit := time.After(within)
	for {
		left := f.left(t, "")
		if len(left) == 0 {
			return
		}
		select {
		case <-limit:
			t.Fatalf("left on the machine after %s: %v", within, left)
		case <-ticker.C:
		}
	}
}

// TestMain lets the test's own program be the owner that is killed.
func TestMain(m *testing.M) {
	if kind := os.Getenv(ownerVariable); kind != "" {
		own(kind)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// own starts a cluster and keeps it until it is killed. It returns only when
// something is wrong.
func own(text string) {
	kind, err := cluster.ParseNodeKind(text)
	if err != nil {
		fmt.Println(err)
		return
	}
	c, err := cluster.Start(context.Background(), cluster.Options{Node: kind})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("ready", c.AdminKubeconfig())
	// Until killed; the test's limit ends it otherwise.
	<-c.Failed()
	fmt.Println(c.Err())
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
			absent := fixedPlaces()
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
			left := footprintOf(t, strings.TrimSpace(strings.TrimPrefix(line, "ready ")), absent)
			if kind == cluster.Real && len(left.namespaces) != 1 {
				t.Errorf("the real node has %d PID namespaces, want 1", len(left.namespaces))
			}
			if err := owner.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := owner.Wait(); err == nil {
				t.Error("the owner was killed and ended well")
			}
			left.gone(t, 30*time.Second)
		})
	}
}
