package filelock

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/test/cluster/internal/progress"
)

func TestSecondWaitsForTheFirst(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	release, err := Acquire(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var shown bytes.Buffer
	if _, err := Acquire(ctx, path, progress.New(&shown)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v while another holds the lock, want the deadline's", err)
	}
	if !strings.Contains(shown.String(), "waiting") {
		t.Errorf("progress %q does not say that it waits", shown.String())
	}
	got := make(chan error, 1)
	go func() {
		again, err := Acquire(t.Context(), path, nil)
		if err == nil {
			again()
		}
		got <- err
	}()
	release()
	if err := <-got; err != nil {
		t.Errorf("after it was released: %v", err)
	}
}

func TestNoSuchDirectory(t *testing.T) {
	if _, err := Acquire(t.Context(), filepath.Join(t.TempDir(), "absent", "lock"), nil); err == nil {
		t.Error("locked a file that can't be")
	}
}
