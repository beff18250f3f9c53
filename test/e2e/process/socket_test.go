package process_test

import (
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/test/e2e/process"
)

// TestSocketAt finds a connection's own end, who has it, and what nobody has read of it.
func TestSocketAt(t *testing.T) {
	t.Parallel()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	client, err := new(net.Dialer).DialContext(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	if _, err := server.Write([]byte("four")); err != nil {
		t.Fatal(err)
	}
	unread := func() int {
		socket, found, err := process.SocketAt(client.LocalAddr().String())
		if err != nil || !found {
			t.Fatalf("the socket is not found: %v", err)
		}
		return socket.Unread
	}
	for deadline := time.Now().Add(10 * time.Second); unread() != 4; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are unread, want 4", unread())
		}
	}
	if _, err := client.Read(make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	if n := unread(); n != 0 {
		t.Errorf("%d bytes are unread when all were read", n)
	}
	socket, _, err := process.SocketAt(client.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	other := exec.CommandContext(t.Context(), "sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = other.Process.Kill()
		_ = other.Wait()
	}()
	if !socket.HeldBy(os.Getpid()) || socket.HeldBy(other.Process.Pid) {
		t.Errorf("held by this process: %t, by another one: %t", socket.HeldBy(os.Getpid()), socket.HeldBy(other.Process.Pid))
	}
	if _, found, err := process.SocketAt("127.0.0.1:1"); found || err != nil {
		t.Errorf("a socket that is not there is found: %v", err)
	}
}
