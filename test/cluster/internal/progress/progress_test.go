package progress

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestPlainLines(t *testing.T) {
	var out bytes.Buffer
	r := New(&out)
	r.Step("one")(nil)
	r.Step("two")(errors.New("x"))
	r.Line("three %d", 3)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "one: ") || !strings.HasPrefix(lines[1], "two: failed after ") || lines[2] != "three 3" {
		t.Errorf("lines %q", lines)
	}
	if strings.ContainsAny(out.String(), "\r\x1b") {
		t.Errorf("control characters in what is no terminal: %q", out.String())
	}
}

func TestLiveLineIsReplaced(t *testing.T) {
	var out bytes.Buffer
	r := &Reporter{out: &out, live: true}
	r.Step("one")(nil)
	if !strings.HasPrefix(out.String(), "\r\x1b[K") || !strings.HasSuffix(out.String(), "\n") {
		t.Errorf("output %q, want it to begin by clearing the line and to end it", out.String())
	}
}

func TestSilence(t *testing.T) {
	r := New(nil)
	r.Line("nothing")
	r.Step("nothing")(nil)
}
