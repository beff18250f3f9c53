package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/azp-scaler/azp-scaler/test/cluster/internal/ledger"
	"github.com/azp-scaler/azp-scaler/test/cluster/internal/proc"
)

const (
	// boxDir is the cluster's directory inside the box: a short path, because
	// sockets and overlay mounts have limits on theirs.
	boxDir = "/run/azp"
	// boxAudit is the directory of the audit log inside the box.
	boxAudit = "/run/azp-audit"
	// linkPrefix begins the names of the host's ends of the boxes' links.
	linkPrefix = "azpbox"
	// links is how many boxes can run at once on one machine.
	links = 254
)

// boxNamespaces are those that the box has for itself.
const boxNamespaces = syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET

// box holds a whole node: its own network, mounts and processes. Ending its
// first process ends everything in it.
type box struct {
	first *proc.Process
	// host and inside are the two ends of the link between machine and box.
	host, inside string
	path         string
}

// canBox tells whether this process may make a box, and if not, why.
func canBox(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("not root")
	}
	cmd := exec.CommandContext(ctx, "/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: boxNamespaces}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("making namespaces: %w", err)
	}
	return nil
}

// newBox makes a box in which dir is seen as boxDir and programs are found in
// binDir first. Its processes end with us.
//
// auditDir is seen as boxAudit; it may be empty.
func newBox(ctx context.Context, dir, auditDir, binDir string, record *ledger.Ledger) (*box, error) {
	cmd := exec.Command(filepath.Join(binDir, "pause")) //nolint:noctx // It lives as long as the cluster, which ends it.
	cmd.Dir = "/"
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: boxNamespaces, Setsid: true}
	first, err := proc.Start("the node's box", cmd)
	if err != nil {
		return nil, err
	}
	b := &box{first: first, path: binDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	if err := record.AddProcess(first.ID()); err != nil {
		return nil, errors.Join(err, first.Kill(ctx))
	}
	if err := b.furnish(ctx, dir, auditDir); err != nil {
		return nil, errors.Join(err, first.Kill(ctx))
	}
	return b, nil
}

func (b *box) furnish(ctx context.Context, dir, auditDir string) error {
	if err := b.mount(ctx, dir, auditDir); err != nil {
		return err
	}
	return b.link(ctx)
}

// sysctls are what the kubelet wants of the kernel. The machine's own values
// stay as they are: inside the box, files with the wanted values hide them.
func sysctls() map[string]string {
	return map[string]string{
		"vm/overcommit_memory":      "1",
		"vm/panic_on_oom":           "0",
		"kernel/panic":              "10",
		"kernel/panic_on_oops":      "1",
		"kernel/keys/root_maxkeys":  "1000000",
		"kernel/keys/root_maxbytes": "25000000",
	}
}

func (b *box) mount(ctx context.Context, dir, auditDir string) error {
	var script strings.Builder
	// First of all, or the mounts that follow would show on the machine.
	script.WriteString("set -eu\nmount --make-rprivate /\n")
	script.WriteString("mount -t proc proc /proc\n")
	// The directories may lie below what is hidden next.
	script.WriteString("exec 3<\"$1\" 4<\"${2:-/}\"\n")
	script.WriteString("mount -t tmpfs -o mode=0755 tmpfs /run\n")
	fmt.Fprintf(&script, "mkdir -p %s %s /run/lock /run/netns /run/var/upper /run/var/work /run/sysctl\n", boxDir, boxAudit)
	fmt.Fprintf(&script, "mount --bind /proc/self/fd/3 %s\n", boxDir)
	fmt.Fprintf(&script, "[ -z \"$2\" ] || mount --bind /proc/self/fd/4 %s\n", boxAudit)
	// Some paths below /var/lib are fixed in the programs; they are written into
	// memory, over the machine's.
	script.WriteString("mount -t overlay -o lowerdir=/var/lib,upperdir=/run/var/upper,workdir=/run/var/work overlay /var/lib\n")
	fmt.Fprintf(&script, "mkdir -p %[1]s/log && mount --bind %[1]s/log /var/log\n", boxDir)
	for key, value := range sysctls() {
		file := "/run/sysctl/" + strings.ReplaceAll(key, "/", ".")
		fmt.Fprintf(&script, "if [ -e /proc/sys/%[1]s ]; then echo %[2]s >%[3]s; mount --bind %[3]s /proc/sys/%[1]s; fi\n", key, value, file)
	}
	script.WriteString("echo 1 >/proc/sys/net/ipv4/ip_forward\n")
	if err := b.run(ctx, "/bin/sh", "-c", script.String(), "sh", dir, auditDir); err != nil {
		return fmt.Errorf("making the box's mounts: %w", err)
	}
	return nil
}

// link connects the box with the machine. The machine's end is made together
// with the box's end inside the box, so it goes when the box goes, whatever
// happens; its name is what keeps two boxes from using the same addresses.
func (b *box) link(ctx context.Context) error {
	first := rand.IntN(links)
	var last error
	for i := range links {
		number := (first+i)%links + 1
		name := linkPrefix + strconv.Itoa(number)
		pid := strconv.Itoa(b.first.ID().PID)
		last = command(exec.CommandContext(ctx, "ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", pid))
		if last == nil {
			b.host, b.inside = fmt.Sprintf("10.201.%d.1", number), fmt.Sprintf("10.201.%d.2", number)
			return b.address(ctx, name)
		}
		if !strings.Contains(last.Error(), "File exists") {
			break
		}
	}
	return fmt.Errorf("making the link between machine and box: %w", last)
}

func (b *box) address(ctx context.Context, name string) error {
	outside := fmt.Sprintf("set -eu\nip addr add %s/30 dev %s\nip link set %s up\n", b.host, name, name)
	if err := command(exec.CommandContext(ctx, "/bin/sh", "-c", outside)); err != nil {
		return fmt.Errorf("setting up the machine's end of the box's link: %w", err)
	}
	// Without a default route, Service addresses have no way out, and packets for
	// them are dropped before kube-proxy's rules see them.
	inside := fmt.Sprintf("set -eu\nip link set lo up\nip addr add %s/30 dev eth0\nip link set eth0 up\nip route add default via %s\n", b.inside, b.host)
	if err := b.run(ctx, "/bin/sh", "-c", inside); err != nil {
		return fmt.Errorf("setting up the box's end of its link: %w", err)
	}
	return nil
}

// command makes a command that runs inside the box.
func (b *box) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	pid := strconv.Itoa(b.first.ID().PID)
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--target", pid, "--mount", "--net", "--pid", "--", name}, args...)...)
	cmd.Env = []string{"PATH=" + b.path, "HOME=/root"}
	cmd.Dir = "/"
	return cmd
}

func (b *box) run(ctx context.Context, name string, args ...string) error {
	return command(b.command(ctx, name, args...))
}

// command runs cmd; its error carries what the command said.
func command(cmd *exec.Cmd) error {
	output, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	said := strings.TrimSpace(string(output))
	if said == "" {
		said = "it said nothing"
	}
	return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, said)
}
