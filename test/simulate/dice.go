package simulate

import (
	"hash/fnv"
	"io"
	"math/rand/v2"
	"time"
)

// dice are thrown for one thing that happens.
type dice struct{ *rand.Rand }

// oneIn is true once in n times.
func (d dice) oneIn(n int) bool { return d.IntN(n) == 0 }

// upTo gives a duration below most.
func (d dice) upTo(most time.Duration) time.Duration { return time.Duration(d.Int64N(int64(most))) }

// mostly gives a short duration, and now and then one up to most.
func (d dice) mostly(most time.Duration) time.Duration {
	if d.oneIn(6) {
		return d.upTo(most)
	}
	return d.upTo(most/10 + 1)
}

func pick[T any](d dice, from ...T) T { return from[d.IntN(len(from))] }

// dice gives those for one thing that happens: the n-th of its kind to its subject. What
// is thrown for it does not depend on what else happens at the time, and two things never
// take quite the same time. So goroutines never race for who is first, and a seed gives
// the same history again.
func (w *world) dice(kind, subject string) dice {
	key := kind + " " + subject
	w.diceMu.Lock()
	w.thrown[key]++
	n := w.thrown[key]
	w.diceMu.Unlock()
	return dice{rand.New(rand.NewPCG(w.setup.Seed, mix(hashOf(key), n)))}
}

// fixed gives dice that depend on the names alone.
func (w *world) fixed(kind, subject string) dice {
	return dice{rand.New(rand.NewPCG(w.setup.Seed, hashOf(kind+"\x00"+subject)))}
}

func hashOf(text string) uint64 {
	sum := fnv.New64a()
	_, _ = io.WriteString(sum, text)
	return sum.Sum64()
}

func mix(a, b uint64) uint64 { return a ^ (b * 0x9e3779b97f4a7c15) }
