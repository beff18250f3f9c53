// Package console is what an agent says to the outside: lines on the terminal with
// the agent's timestamps and with every secret masked.
package console

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// mask is what stands in the place of a secret.
const mask = "***"

// Masker takes secrets out of text. It is safe for concurrent use; the zero value
// knows no secret.
type Masker struct {
	mu      sync.RWMutex
	secrets []string
}

// Add makes secret, and each of its lines, one that Mask takes out. Values shorter
// than three characters would hide half the text and are left alone.
func (m *Masker) Add(secret string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for line := range strings.Lines(secret) {
		if line = strings.TrimSpace(line); len(line) >= 3 {
			m.secrets = append(m.secrets, line)
		}
	}
}

// Mask gives text without the secrets.
func (m *Masker) Mask(text string) string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, secret := range m.secrets {
		text = strings.ReplaceAll(text, secret, mask)
	}
	return text
}

// Terminal writes whole lines, one at a time.
type Terminal struct {
	mu     sync.Mutex
	out    io.Writer
	err    io.Writer
	masker *Masker
}

// New makes a terminal that takes masker's secrets out of what it writes.
func New(out, err io.Writer, masker *Masker) *Terminal {
	return &Terminal{out: out, err: err, masker: masker}
}

// Linef writes a line to the standard output.
func (t *Terminal) Linef(format string, args ...any) {
	t.write(t.out, fmt.Sprintf(format, args...))
}

// Stampf writes a line that starts with the time, as the agent's own do:
// "2026-01-02 03:04:05Z: Listening for Jobs".
func (t *Terminal) Stampf(format string, args ...any) {
	t.write(t.out, time.Now().UTC().Format("2006-01-02 15:04:05Z: ")+fmt.Sprintf(format, args...))
}

// Errorf writes a line to the standard error.
func (t *Terminal) Errorf(format string, args ...any) {
	t.write(t.err, fmt.Sprintf(format, args...))
}

// Section writes a heading of configure.
func (t *Terminal) Section(title string) { t.Linef("\n>> %s:\n", title) }

func (t *Terminal) write(w io.Writer, line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	// A terminal that is gone must not stop the agent.
	_, _ = io.WriteString(w, t.masker.Mask(line)+"\n")
}
