// Command pause is process 1 of a PID namespace: of a pod's sandbox, and of the
// box that holds a whole node. It reaps every orphan that the kernel hands it
// and ends on SIGINT or SIGTERM, with which the namespace ends too.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, syscall.SIGCHLD, syscall.SIGINT, syscall.SIGTERM)
	for received := range signals {
		if received != syscall.SIGCHLD {
			return
		}
		// Signals merge: one SIGCHLD may stand for many orphans.
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if err == syscall.EINTR {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
		}
	}
}
