package azuredevops

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	sdk "github.com/microsoft/azure-devops-go-api/azuredevops/v7"
)

const emptyList = `{"count":0,"value":[]}`

// TestRetryAfterIsObeyed shows that the header holds back the next request of the
// whole client, whatever the status it came with.
func TestRetryAfterIsObeyed(t *testing.T) {
	for name, status := range map[string]int{"200": 200, "404": 404, "403": 403} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var at []time.Time
				recorder := &recording{}
				c := inBubble(t, func(w http.ResponseWriter, _ *http.Request) {
					at = append(at, time.Now())
					if len(at) == 1 {
						w.Header().Set("Retry-After", "30")
						if status != 200 {
							answerError(w, status, "X", "no")
							return
						}
					}
					answerJSON(w, 200, emptyList)
				}, func(c *Config) { c.Recorder = recorder })
				_, _, err := poll(t.Context(), c)
				if (err == nil) != (status == 200) {
					t.Fatalf("first poll: %v", err)
				}
				if _, err := c.Agents(t.Context(), 5, AgentQuery{}); err != nil {
					t.Fatalf("second call: %v", err)
				}
				if gap := at[1].Sub(at[0]); gap < 30*time.Second || gap > 31*time.Second {
					t.Errorf("the next request came after %v, want 30 to 31 s", gap)
				}
				if len(recorder.waits) != 1 || recorder.waits[0] < 30*time.Second {
					t.Errorf("recorded waits %v", recorder.waits)
				}
				if _, _, err := poll(t.Context(), c); err != nil || at[2].Sub(at[1]) != 0 {
					t.Errorf("a third request waits %v, error %v", at[2].Sub(at[1]), err)
				}
			})
		})
	}
}

func TestRetryAfterAsDateAndCapped(t *testing.T) {
	for name, test := range map[string]struct {
		header    func() string
		low, high time.Duration
	}{
		"date":     {func() string { return time.Now().Add(40 * time.Second).UTC().Format(http.TimeFormat) }, 39 * time.Second, 42 * time.Second},
		"capped":   {func() string { return "86400" }, DefaultLongestWait, DefaultLongestWait + time.Second},
		"fraction": {func() string { return "2.5" }, 2500 * time.Millisecond, 3 * time.Second},
		"nonsense": {func() string { return "soon" }, 0, 0},
		"negative": {func() string { return "-5" }, 0, 0},
		"NaN":      {func() string { return "NaN" }, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var at []time.Time
				c := inBubble(t, func(w http.ResponseWriter, _ *http.Request) {
					at = append(at, time.Now())
					w.Header().Set("Retry-After", test.header())
					answerJSON(w, 200, emptyList)
				})
				for range 2 {
					if _, _, err := poll(t.Context(), c); err != nil {
						t.Fatal(err)
					}
				}
				if gap := at[1].Sub(at[0]); gap < test.low || gap > test.high {
					t.Errorf("the next request came after %v, want %v to %v", gap, test.low, test.high)
				}
			})
		})
	}
}

// TestThrottled shows that a refusal for overuse is told with its wait when that is
// long, and survived when it is short.
func TestThrottled(t *testing.T) {
	refuse := func(w http.ResponseWriter, status int, wait string) {
		if wait != "" {
			w.Header().Set("Retry-After", wait)
		}
		answerError(w, status, "RequestBlockedException", "TF400733: The request has been canceled: Request was blocked due to exceeding usage of resource 'Concurrency'.")
	}
	for name, test := range map[string]struct {
		status int
		header map[string]string
		want   time.Duration // 0: survived.
	}{
		"long":                {429, map[string]string{"Retry-After": "120"}, 120 * time.Second},
		"long, as a 503":      {503, map[string]string{"Retry-After": "120"}, 120 * time.Second},
		"until the reset":     {429, map[string]string{"X-RateLimit-Reset": "946684890", "X-RateLimit-Resource": "Core"}, 90 * time.Second},
		"short":               {429, map[string]string{"Retry-After": "3"}, 0},
		"without any length":  {429, nil, 0},
		"reset in the past":   {429, map[string]string{"X-RateLimit-Reset": "5"}, 0},
		"reset beyond number": {429, map[string]string{"X-RateLimit-Reset": "1e300"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tries := 0
				c := inBubble(t, func(w http.ResponseWriter, _ *http.Request) {
					if tries++; tries > 1 {
						answerJSON(w, 200, emptyList)
						return
					}
					for k, v := range test.header {
						w.Header().Set(k, v)
					}
					refuse(w, test.status, test.header["Retry-After"])
				})
				start := time.Now()
				_, _, err := poll(t.Context(), c)
				if test.want == 0 {
					if err != nil || tries != 2 || time.Since(start) < time.Second {
						t.Errorf("error %v after %d tries and %v", err, tries, time.Since(start))
					}
					return
				}
				var throttled *ThrottledError
				if !errors.As(err, &throttled) || throttled.RetryAfter != test.want || tries != 1 || time.Since(start) != 0 {
					t.Fatalf("got %v after %d tries and %v, want a wait of %v told at once", err, tries, time.Since(start), test.want)
				}
				// A caller without the time for that is told, not kept.
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				before := time.Now()
				if _, _, err = poll(ctx, c); !errors.As(err, &throttled) || time.Since(before) != 0 || throttled.RetryAfter != test.want {
					t.Errorf("with a short limit: %v after %v", err, time.Since(before))
				}
				if _, _, err = poll(t.Context(), c); err != nil || time.Since(start) < test.want {
					t.Errorf("with time: %v after %v", err, time.Since(start))
				}
			})
		})
	}
}

// TestGateIsSharedAndCanBeLeft holds twenty callers back at once; a canceled one
// leaves at once.
func TestGateIsSharedAndCanBeLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := true
		var mu sync.Mutex
		var earliest time.Time
		c := inBubble(t, func(w http.ResponseWriter, _ *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			if first {
				first = false
				w.Header().Set("Retry-After", "60")
			} else if earliest.IsZero() {
				earliest = time.Now()
			}
			answerJSON(w, 200, emptyList)
		})
		start := time.Now()
		if _, _, err := poll(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if _, _, err := poll(t.Context(), c); err != nil {
					t.Error(err)
				}
			})
		}
		left := make(chan error, 1)
		go func() {
			_, _, err := poll(ctx, c)
			left <- err
		}()
		time.Sleep(10 * time.Second)
		cancel()
		if err := <-left; !errors.Is(err, context.Canceled) || time.Since(start) != 10*time.Second {
			t.Errorf("the canceled caller got %v after %v", err, time.Since(start))
		}
		wg.Wait()
		if wait := earliest.Sub(start); wait < 60*time.Second {
			t.Errorf("somebody came through after %v", wait)
		}
	})
}

// TestRetries shows what is tried again, how often and when.
func TestRetries(t *testing.T) {
	broken := errors.New("connection reset")
	operations := map[string]struct {
		run    func(context.Context, *Client) error
		answer string
	}{
		OpJobRequests:  {func(ctx context.Context, c *Client) error { _, _, err := poll(ctx, c); return err }, emptyList},
		OpJobRequest:   {func(ctx context.Context, c *Client) error { _, err := c.JobRequest(ctx, 5, 7); return err }, `{"requestId":7}`},
		OpAddAgent:     {func(ctx context.Context, c *Client) error { return c.AddPlaceholder(ctx, 5, "p", nil) }, ""},
		OpDeleteAgent:  {func(ctx context.Context, c *Client) error { return c.DeleteAgent(ctx, 5, 7) }, ""},
		OpDisableAgent: {func(ctx context.Context, c *Client) error { return c.DisableAgent(ctx, 5, 7) }, `{"id":7}`},
		OpParallelJobs: {func(ctx context.Context, c *Client) error { _, _, err := c.ParallelJobs(ctx); return err }, `{}`},
	}
	for op, test := range operations {
		for _, failures := range []int{1, 2, 3} {
			t.Run(op+"#"+string(rune('0'+failures)), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var tries int
					var bodies []string
					c := inBubble(t, nil, func(c *Config) {
						c.BackOff = DefaultBackOff
						next := inMemory(withRoutes(func(w http.ResponseWriter, r *http.Request) {
							answerJSON(w, 200, test.answer)
						}))
						c.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
							if r.Method == http.MethodOptions {
								return next.RoundTrip(r)
							}
							if r.Body != nil {
								body, _ := io.ReadAll(r.Body)
								bodies = append(bodies, string(body))
							}
							if tries++; tries <= failures {
								return nil, broken
							}
							return next.RoundTrip(r)
						})
					})
					start := time.Now()
					err := test.run(t.Context(), c)
					if failures < DefaultAttempts {
						if err != nil || tries != failures+1 {
							t.Errorf("%v after %d tries", err, tries)
						}
					} else if !errors.Is(err, ErrUnavailable) || !errors.Is(err, broken) || tries != DefaultAttempts {
						t.Errorf("%v after %d tries", err, tries)
					}
					if wait := time.Since(start); wait < DefaultBackOff/2 || wait > 3*DefaultBackOff {
						t.Errorf("waited %v in all", wait)
					}
					if op == OpDisableAgent && !slices.Equal(bodies, slices.Repeat([]string{`{"id":7,"enabled":false}`}, min(failures+1, DefaultAttempts))) {
						t.Errorf("bodies sent: %q", bodies)
					}
				})
			})
		}
	}
}

// roundTripper is a function as a way to the network.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestUnsafeIsNotRepeated covers what none of this client's operations is today.
func TestUnsafeIsNotRepeated(t *testing.T) {
	for _, method := range []string{http.MethodPost, http.MethodPatch, http.MethodConnect} {
		if (call{}).repeatable(method) {
			t.Errorf("%s would be repeated", method)
		}
	}
	if !(call{repeat: true}).repeatable(http.MethodPatch) {
		t.Error("what is marked as safe would not be repeated")
	}
}

// TestWhatIsSent shows the sign-in and the headers, and that the case of the URL's
// path is kept.
func TestWhatIsSent(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var seen []*http.Request
	handler := func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen = append(seen, r)
		mu.Unlock()
		answerJSON(w, 200, emptyList)
	}
	before := sdk.SessionId
	for _, scheme := range []Scheme{"", SchemeBearer} {
		c := newService(t, handler, func(c *Config) {
			c.Scheme, c.UserAgent = scheme, "azp-scaler/1.2.3"
			c.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
				resp, err := http.DefaultTransport.RoundTrip(r)
				if err == nil {
					resp.Header["X-TFS-Session"] = []string{"11111111-2222-3333-4444-555555555555"}
				}
				return resp, err
			})
		})
		if _, _, err := poll(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if sdk.SessionId != before {
		t.Error("the SDK wrote its package variable")
	}
	if user, password, ok := seen[0].BasicAuth(); !ok || user != "" || password != testToken {
		t.Errorf("signed in as %q with %q", user, password)
	}
	if got := seen[1].Header.Get("Authorization"); got != "Bearer "+testToken {
		t.Errorf("bearer sign-in: %q", got)
	}
	r := seen[0]
	if r.URL.Path != "/Acme/_apis/distributedtask/pools/5/jobrequests" || r.URL.RawQuery != "completedRequestCount=0" {
		t.Errorf("asked for %s", r.URL)
	}
	for header, want := range map[string]string{"X-TFS-FedAuthRedirect": "Suppress", "Accept": "application/json;api-version=7.1-preview.1"} {
		if got := r.Header.Get(header); got != want {
			t.Errorf("%s: %q, want %q", header, got, want)
		}
	}
	if got := r.Header.Get("User-Agent"); !strings.HasPrefix(got, "azp-scaler/1.2.3 ") {
		t.Errorf("User-Agent %q", got)
	}
}

// TestTokenRotation replaces the token while the client is in use, in the way that
// Kubernetes does and by writing over the file.
func TestTokenRotation(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, token string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := func(target string) {
		t.Helper()
		tmp := filepath.Join(dir, "..data_tmp")
		if err := os.Symlink(target, tmp); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	write("..1/token", "first\n")
	write("..2/token", "other\n")
	link("..1")
	if err := os.Symlink("..data/token", filepath.Join(dir, "token")); err != nil {
		t.Fatal(err)
	}
	// Both files look alike but for their inode.
	old := time.Now().Add(-time.Hour)
	for _, name := range []string{"..1/token", "..2/token"} {
		if err := os.Chtimes(filepath.Join(dir, name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	var valid, used atomic.Value
	valid.Store("first")
	c := newService(t, func(w http.ResponseWriter, r *http.Request) {
		_, password, _ := r.BasicAuth()
		used.Store(password)
		if password != valid.Load() {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		answerJSON(w, 200, emptyList)
	}, func(c *Config) { c.Token = FileToken(filepath.Join(dir, "token")) })
	expect := func(token string) {
		t.Helper()
		if _, _, err := poll(t.Context(), c); err != nil || used.Load() != token {
			t.Errorf("used %q: %v", used.Load(), err)
		}
	}
	expect("first")
	valid.Store("other")
	if _, _, err := poll(t.Context(), c); !errors.Is(err, ErrAuthentication) {
		t.Errorf("with the old token: %v", err)
	}
	link("..2")
	expect("other")
	valid.Store("third")
	write("..2/token", "third")
	expect("third")
	// The same file, length and time of change, as of two writes within the clock's
	// grain.
	now := time.Now()
	same := func(token string) {
		t.Helper()
		valid.Store(token)
		write("..2/token", token)
		if err := os.Chtimes(filepath.Join(dir, "..2/token"), now, now); err != nil {
			t.Fatal(err)
		}
		expect(token)
	}
	same("third")
	same("thing")
	if err := os.Remove(filepath.Join(dir, "token")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := poll(t.Context(), c); !errors.Is(err, ErrAuthentication) || !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "token") {
		t.Errorf("without the file: %v", err)
	}
}

func TestRateLimitHeadersAreRecorded(t *testing.T) {
	t.Parallel()
	recorder := &recording{}
	c := newService(t, func(w http.ResponseWriter, _ *http.Request) {
		for k, v := range map[string]string{"Resource": "core.ThroughputUnits", "Delay": "1.5", "Limit": "200", "Remaining": "13", "Reset": "1700000000"} {
			w.Header().Set("X-RateLimit-"+k, v)
		}
		answerJSON(w, 200, emptyList)
	}, func(c *Config) { c.Recorder = recorder })
	if _, _, err := poll(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	want := []RateLimit{{Resource: "core.ThroughputUnits", Limit: 200, Remaining: 13, Delay: 1500 * time.Millisecond, Reset: time.Unix(1700000000, 0)}}
	if !reflect.DeepEqual(recorder.limits, want) {
		t.Errorf("recorded %+v", recorder.limits)
	}
	for _, nonsense := range []string{"NaN", "-1", "1e300", "x"} {
		if got, ok := rateLimit(http.Header{"X-Ratelimit-Limit": {nonsense}, "X-Ratelimit-Delay": {nonsense}}); !ok || got != (RateLimit{}) {
			t.Errorf("%s gives %+v", nonsense, got)
		}
	}
}

// TestTooLongAnswer shows that an answer that is read whole is bounded.
func TestTooLongAnswer(t *testing.T) {
	t.Parallel()
	c := newService(t, func(w http.ResponseWriter, _ *http.Request) {
		answerJSON(w, 200, `{"x":"`+strings.Repeat("x", maxAnswer)+`"}`)
	})
	if _, _, err := c.ParallelJobs(t.Context()); !errors.Is(err, ErrUnexpectedAnswer) || !strings.Contains(err.Error(), "bytes long") {
		t.Errorf("got %v", err)
	}
}

// TestWholeAnswerCut shows that a cut answer that is read whole is tried again.
func TestWholeAnswerCut(t *testing.T) {
	t.Parallel()
	var tries atomic.Int32
	c := newService(t, func(w http.ResponseWriter, r *http.Request) {
		if tries.Add(1) == 1 {
			cutBody(`{"resourceLimit":`)(w, r)
			return
		}
		answerJSON(w, 200, `{"resourceLimit":{"totalCount":4}}`)
	})
	if total, known, err := c.ParallelJobs(t.Context()); err != nil || !known || total != 4 || tries.Load() != 2 {
		t.Errorf("%d, %t, %v after %d tries", total, known, err, tries.Load())
	}
}

// TestConcurrentUse is for the race detector: the SDK's discovery, the gate, the
// token and the log of changes are shared.
func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	c := newService(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-TFS-Session", time.Now().String())
		answerJSON(w, 200, `{"count":2,"value":[{"requestId":1},{}]}`)
	})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				if _, stats, err := poll(t.Context(), c); err != nil || stats != (RequestStats{Rows: 1, Malformed: 1}) {
					t.Errorf("%+v %v", stats, err)
				}
			}
		})
	}
	wg.Wait()
}
