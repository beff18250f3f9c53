package azuredevops

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Recorder is told what the client does, so that a caller can make metrics of it.
// It is called by several goroutines at once and must not block.
type Recorder interface {
	// Request is called once for every attempt that was sent: operation is one of
	// [Operations], outcome one of [Outcomes], and d runs until the answer's body
	// was read or given up.
	Request(operation, outcome string, d time.Duration)
	// RateLimit is called when an answer carries the service's X-RateLimit headers.
	RateLimit(limit RateLimit)
	// Waited is called after a request was held back because of a Retry-After.
	Waited(d time.Duration)
}

// RateLimit is what the service says about the use of a resource: throughput
// units per sliding 5 minutes and identity. Fields are zero where it says nothing.
type RateLimit struct {
	Resource  string
	Limit     int
	Remaining int
	Delay     time.Duration // How long this request was held back by the service.
	Reset     time.Time     // When the use is down to nothing if no more is asked.
}

// rateLimit reads the headers, and says whether there are any.
func rateLimit(h http.Header) (RateLimit, bool) {
	const prefix = "X-Ratelimit-"
	var limit RateLimit
	found := false
	number := func(name string) float64 {
		text := strings.TrimSpace(h.Get(prefix + name))
		if text == "" {
			return 0
		}
		found = true
		n, err := strconv.ParseFloat(text, 64)
		// Beyond this range a duration or an int would overflow. NaN fails too.
		if err != nil || !(n >= 0 && n < 1e12) {
			return 0
		}
		return n
	}
	if limit.Resource = h.Get(prefix + "Resource"); limit.Resource != "" {
		found = true
	}
	limit.Limit = int(number("Limit"))
	limit.Remaining = int(number("Remaining"))
	limit.Delay = seconds(number("Delay"))
	if reset := number("Reset"); reset > 0 {
		limit.Reset = time.Unix(int64(reset), 0)
	}
	return limit, found
}

// seconds turns a number of seconds into a duration, up to a day.
func seconds(n float64) time.Duration {
	const day = 24 * 60 * 60
	return time.Duration(min(max(n, 0), day) * float64(time.Second))
}

// retryAfter reads the header of that name: seconds, or a date.
func retryAfter(h http.Header, now time.Time) (time.Duration, bool) {
	text := strings.TrimSpace(h.Get("Retry-After"))
	if text == "" {
		return 0, false
	}
	if n, err := strconv.ParseFloat(text, 64); err == nil && n == n {
		return seconds(n), n > 0
	}
	if date, err := http.ParseTime(text); err == nil {
		wait := date.Sub(now)
		return max(wait, 0), wait > 0
	}
	return 0, false
}

// silent is the recorder of a client that has none.
type silent struct{}

func (silent) Request(string, string, time.Duration) {}
func (silent) RateLimit(RateLimit)                   {}
func (silent) Waited(time.Duration)                  {}
