package process

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// tcpTable is the kernel's list of TCP sockets over IPv4 (proc(5)).
const tcpTable = "/proc/net/tcp"

// Socket is the end of a TCP connection on this machine.
type Socket struct {
	inode  string
	Unread int // Bytes that have come and that no process has read.
}

// SocketAt finds the socket whose own address this is, IPv4 and with its port.
func SocketAt(address string) (Socket, bool, error) {
	local, err := netip.ParseAddrPort(address)
	if err != nil {
		return Socket{}, false, fmt.Errorf("find a socket: %w", err)
	}
	if !local.Addr().Unmap().Is4() {
		return Socket{}, false, fmt.Errorf("find the socket of %s: only IPv4 is known here", address)
	}
	file, err := os.Open(tcpTable)
	if err != nil {
		return Socket{}, false, fmt.Errorf("find a socket: %w", err)
	}
	defer func() { _ = file.Close() }()
	ip := local.Addr().Unmap().As4()
	// The table has the address as a number in the machine's own order.
	want := fmt.Sprintf("%08X:%04X", binary.NativeEndian.Uint32(ip[:]), local.Port())
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || fields[1] != want {
			continue
		}
		_, queue, _ := strings.Cut(fields[4], ":")
		unread, err := strconv.ParseInt(queue, 16, 64)
		if err != nil {
			return Socket{}, false, fmt.Errorf("%s: unread bytes %q: %w", tcpTable, queue, err)
		}
		if fields[9] != "0" { // Nobody has one that is only waiting for its end.
			return Socket{inode: fields[9], Unread: int(unread)}, true, nil
		}
	}
	return Socket{}, false, lines.Err()
}

// HeldBy tells whether a process, or one that it has started, has the socket open.
func (s Socket) HeldBy(pid int) bool {
	for _, one := range append([]int{pid}, Descendants(pid)...) {
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", one))
		if err != nil {
			continue // It has ended meanwhile.
		}
		for _, file := range files {
			if target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", one, file.Name())); err == nil && target == "socket:["+s.inode+"]" {
				return true
			}
		}
	}
	return false
}

// Descendants lists the children of a process, and theirs.
func Descendants(pid int) []int {
	var found []int
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil
	}
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue // It has ended meanwhile.
		}
		for field := range strings.FieldsSeq(string(text)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				continue
			}
			found = append(append(found, child), Descendants(child)...)
		}
	}
	return found
}
