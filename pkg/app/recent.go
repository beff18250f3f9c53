package app

import (
	"context"
	"sync"
	"time"
)

// recent remembers for a time what was read by name, so that a burst of Jobs asks once and
// a change is seen soon.
type recent[T any] struct {
	read func(ctx context.Context, name string) (T, error)
	age  time.Duration // How long what was read holds.
	now  func() time.Time

	mu    sync.Mutex
	known map[string]reading[T]
}

type reading[T any] struct {
	value T
	at    time.Time
}

func newRecent[T any](read func(context.Context, string) (T, error), age time.Duration, now func() time.Time) *recent[T] {
	return &recent[T]{read: read, age: age, now: now, known: map[string]reading[T]{}}
}

// get reads unless that was done just now. Errors are not remembered; beside one it gives
// what was read last, if anything was.
func (r *recent[T]) get(ctx context.Context, name string) (T, error) {
	r.mu.Lock()
	last, known := r.known[name]
	r.mu.Unlock()
	if known && r.now().Sub(last.at) < r.age {
		return last.value, nil
	}
	value, err := r.read(ctx, name)
	if err != nil {
		return last.value, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known[name] = reading[T]{value: value, at: r.now()}
	return value, nil
}
