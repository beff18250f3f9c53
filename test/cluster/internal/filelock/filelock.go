// Package filelock keeps runs that make the same thing from doing so at once.
package filelock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/azp-scaler/azp-scaler/test/cluster/internal/progress"
)

// pollEvery is how often one who waits looks whether the lock is free.
const pollEvery = 200 * time.Millisecond

// Acquire takes the file lock at path, or waits for it until ctx ends. The kernel
// releases it when its holder dies.
func Acquire(ctx context.Context, path string, report *progress.Reporter) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening a lock: %w", err)
	}
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	var endWait func(error)
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), file.Close())
		}
		if endWait == nil {
			endWait = report.Step("waiting for another run that makes the same")
		}
		select {
		case <-ctx.Done():
			endWait(ctx.Err())
			return nil, errors.Join(context.Cause(ctx), file.Close())
		case <-ticker.C:
		}
	}
	if endWait != nil {
		endWait(nil)
	}
	return func() { _ = file.Close() }, nil
}
