package entra

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
)

// issuer is an Entra in virtual time.
type issuer struct {
	mu     sync.Mutex
	asked  []time.Time
	fail   error
	takes  time.Duration
	life   time.Duration
	tokens int
	same   bool // It gives out the token it has.
	ends   time.Time
	// hint is the time of renewal that it names, from now; zero for none.
	hint time.Duration
}

func (i *issuer) fetch(ctx context.Context) (grant, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked = append(i.asked, time.Now())
	select {
	case <-time.After(i.takes):
	case <-ctx.Done():
		return grant{}, ctx.Err()
	}
	if i.fail != nil {
		return grant{}, i.fail
	}
	if !i.same || i.tokens == 0 || !time.Now().Before(i.ends) {
		i.tokens++
		i.ends = time.Now().Add(i.life)
	}
	got := grant{token: azuredevops.Secret(rune('a' + i.tokens - 1)), expires: i.ends}
	if i.hint != 0 {
		got.refresh = time.Now().Add(i.hint)
	}
	return got, nil
}

func (i *issuer) source() *Source {
	return newSource("a test", i.fetch, 30*time.Second, time.Second, slog.New(slog.DiscardHandler))
}

// expect asks for the token and how long that takes.
func expect(t *testing.T, s *Source, want string, takes time.Duration) {
	t.Helper()
	start := time.Now()
	token, expires, err := s.Current(t.Context())
	if token.Reveal() != want || (err == nil) != (want != "") || time.Since(start) != takes {
		t.Errorf("token %q after %v, %v; want %q after %v", token.Reveal(), time.Since(start), err, want, takes)
	}
	if err == nil && !time.Now().Before(expires) {
		t.Errorf("token %q has ended", token.Reveal())
	}
}

func TestSourceOverADay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: time.Hour, takes: time.Second}
		s := i.source()
		expect(t, s, "a", time.Second)
		time.Sleep(39 * time.Minute)
		expect(t, s, "a", 0)
		time.Sleep(time.Minute)
		// One caller renews, and the others need not wait for it.
		var group sync.WaitGroup
		group.Go(func() { expect(t, s, "b", time.Second) })
		synctest.Wait()
		for range 10 {
			expect(t, s, "a", 0)
		}
		group.Wait()
		expect(t, s, "b", 0)
		// Nobody asked for long: all wait for one renewal.
		time.Sleep(2 * time.Hour)
		for range 10 {
			group.Go(func() { expect(t, s, "c", time.Second) })
		}
		group.Wait()
		if len(i.asked) != 3 {
			t.Errorf("asked %d times, want 3", len(i.asked))
		}
	})
}

func TestSourceInAnOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: time.Hour}
		s := i.source()
		expect(t, s, "a", 0)
		time.Sleep(40 * time.Minute)
		i.fail = errors.New("down")
		start := len(i.asked)
		for range 18 * 60 {
			expect(t, s, "a", 0)
			time.Sleep(time.Second)
		}
		// 1, 2, 4, 8, 16, 32 seconds, then one a minute.
		if n := len(i.asked) - start; n < 20 || n > 25 {
			t.Errorf("asked %d times in 18 minutes", n)
		}
		time.Sleep(time.Minute)
		expect(t, s, "", 0)
		i.fail = nil
		// Within the back-off the reason is told at once.
		expect(t, s, "", 0)
		time.Sleep(time.Minute)
		expect(t, s, "b", 0)
		time.Sleep(time.Minute)
		expect(t, s, "b", 0)
	})
}

// TestSourceThatHangs has a renewal without an answer.
func TestSourceThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: time.Hour}
		s := i.source()
		expect(t, s, "a", 0)
		i.takes = time.Hour
		time.Sleep(45 * time.Minute)
		expect(t, s, "a", aheadLimit)
		expect(t, s, "a", 0)
		time.Sleep(15 * time.Minute)
		expect(t, s, "", 30*time.Second)
	})
}

// TestSourceOfAnImpatientCaller has the caller who renews give up.
func TestSourceOfAnImpatientCaller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: time.Hour, takes: 10 * time.Second}
		s := i.source()
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var group sync.WaitGroup
		group.Go(func() {
			if _, err := s.Token(impatient); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v", err)
			}
		})
		synctest.Wait()
		// Another one takes over, and waits for no back-off.
		group.Go(func() { expect(t, s, "a", 11*time.Second) })
		synctest.Wait()
		// One who waits gives up alone.
		if _, err := s.Token(impatient); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		group.Wait()
		expect(t, s, "a", 0)
	})
}

func TestSourceRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: time.Hour, takes: time.Second}
		s := i.source()
		expect(t, s, "a", time.Second)
		refused := func(token azuredevops.Secret, want bool) {
			t.Helper()
			if got := s.Refused(token); got != want {
				t.Errorf("refused %q: %t, want %t", token.Reveal(), got, want)
			}
		}
		refused("a", true)
		refused("a", true)
		var group sync.WaitGroup
		for range 5 {
			group.Go(func() { expect(t, s, "b", time.Second) })
		}
		group.Wait()
		refused("a", true)
		refused("b", false) // Within the minute.
		expect(t, s, "b", 0)
		time.Sleep(time.Minute)
		refused("b", true)
		expect(t, s, "c", time.Second)
		// When no other is to be had, the one that was refused is better than none.
		time.Sleep(time.Minute)
		i.fail = errors.New("down")
		refused("c", true)
		expect(t, s, "c", time.Second)
		refused("c", false)
		expect(t, s, "c", 0)
		if len(i.asked) != 4 {
			t.Errorf("asked %d times, want 4", len(i.asked))
		}
	})
}

// TestSourceOfOneThatKeepsTokens is of a metadata service, which gives out the token
// that it has until it ends.
func TestSourceOfOneThatKeepsTokens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: 24 * time.Hour, same: true}
		s := i.source()
		for range 24 * 60 {
			if _, err := s.Token(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
		expect(t, s, "b", 0)
		if n := len(i.asked); n > 25 {
			t.Errorf("asked %d times in a day", n)
		}
	})
}

// TestSourceTakesTheIssuersHint renews when the issuer wants it, but never all the time.
func TestSourceTakesTheIssuersHint(t *testing.T) {
	t.Parallel()
	for hint, want := range map[time.Duration]int{12 * time.Minute: 6, 50 * time.Minute: 2, -time.Minute: 11} {
		synctest.Test(t, func(t *testing.T) {
			i := &issuer{life: time.Hour, hint: hint}
			s := i.source()
			for range 61 {
				if _, err := s.Token(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
			}
			if n := len(i.asked); n != want {
				t.Errorf("hint %v: asked %d times in an hour, want %d", hint, n, want)
			}
		})
	}
}
