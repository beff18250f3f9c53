// Package progress tells a person what takes time: on a terminal in one line
// that is rewritten, elsewhere in plain lines.
package progress

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

const (
	redraw    = 200 * time.Millisecond
	heartbeat = 30 * time.Second
)

// Reporter writes progress. The nil Reporter writes nothing.
type Reporter struct {
	mu   sync.Mutex
	out  io.Writer
	live bool
}

// New reports to out; nil gives a Reporter that is silent.
func New(out io.Writer) *Reporter {
	if out == nil {
		return nil
	}
	return &Reporter{out: out, live: terminal(out)}
}

func terminal(out io.Writer) bool {
	file, ok := out.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// Line writes one line that stays.
func (r *Reporter) Line(format string, args ...any) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.write(fmt.Sprintf(format, args...) + "\n")
}

func (r *Reporter) write(text string) {
	if r.live {
		text = "\r\x1b[K" + text
	}
	// A reader who went away must not end the work.
	_, _ = io.WriteString(r.out, text)
}

// Step announces work that takes a while and returns the function that ends it.
// Steps must not overlap on one Reporter.
func (r *Reporter) Step(format string, args ...any) (end func(err error)) {
	if r == nil {
		return func(error) {}
	}
	what := fmt.Sprintf(format, args...)
	begin := time.Now()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		r.tick(what, begin, stop)
	}()
	return func(err error) {
		close(stop)
		<-stopped
		took := time.Since(begin).Round(100 * time.Millisecond)
		if err != nil {
			r.Line("%s: failed after %s", what, took)
			return
		}
		r.Line("%s: %s", what, took)
	}
}

func (r *Reporter) tick(what string, begin time.Time, stop <-chan struct{}) {
	every := heartbeat
	if r.live {
		every = redraw
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-stop:
			return
		case <-ticker.C:
			r.mu.Lock()
			text := fmt.Sprintf("%s … %s", what, time.Since(begin).Round(time.Second))
			if !r.live {
				text += "\n"
			}
			r.write(text)
			r.mu.Unlock()
		}
	}
}
