package agent

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"regexp"
	"slices"
	"strings"
)

// lineKind is what a line of the listener tells.
type lineKind int

const (
	lineOther lineKind = iota
	// lineListening is the listener's session being open: a build may come.
	lineListening
	// lineRunning is a build being handed to a worker.
	lineRunning
	// lineResult is a build having ended.
	lineResult
)

// event is one line of the listener, understood.
type event struct {
	kind   lineKind
	job    string
	result string
}

// stamp is the time that the agent program puts before each line.
var stamp = regexp.MustCompile(`^\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}Z: `)

// results are those that a build can end with, in the agent's spelling.
func results() []string {
	return []string{"Succeeded", "SucceededWithIssues", "Failed", "Canceled", "Skipped", "Abandoned"}
}

// parseLine understands a line of Agent.Listener. The name of a job is chosen by
// whoever writes the pipeline and may look like another line, so each form is
// recognised by how it begins, and the result by how the line ends.
func parseLine(line string) event {
	line = strings.TrimRight(line, "\r\n")
	line = stamp.ReplaceAllString(line, "")
	if strings.TrimSpace(line) == "Listening for Jobs" {
		return event{kind: lineListening}
	}
	if job, found := strings.CutPrefix(line, "Running job: "); found {
		return event{kind: lineRunning, job: job}
	}
	if rest, found := strings.CutPrefix(line, "Job "); found {
		const middle = " completed with result: "
		if at := strings.LastIndex(rest, middle); at >= 0 {
			if result := strings.TrimSpace(rest[at+len(middle):]); slices.Contains(results(), result) {
				return event{kind: lineResult, job: rest[:at], result: result}
			}
		}
	}
	return event{}
}

// longestLine is how much of a line is looked at. Longer ones pass through whole.
const longestLine = 64 << 10

// teeLines copies r to w as it comes and calls each with every line, or with the
// beginning of one that is too long to hold. A failing w does not stop it: the
// program behind r must not be held up by a log that nobody takes.
func teeLines(r io.Reader, w io.Writer, each func(line string)) error {
	reader := bufio.NewReaderSize(r, longestLine)
	middle := false // Of a line whose beginning was already given.
	for {
		chunk, err := reader.ReadSlice('\n')
		if len(chunk) > 0 {
			_, _ = w.Write(chunk)
			if !middle {
				each(string(chunk))
			}
			middle = errors.Is(err, bufio.ErrBufferFull)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// maskWriter passes lines on with the secret replaced. It holds a line back until
// it is complete, so that a secret written in two pieces is found.
type maskWriter struct {
	w       io.Writer
	secret  string
	pending []byte
}

// Write takes what a program prints.
func (m *maskWriter) Write(p []byte) (int, error) {
	m.pending = append(m.pending, p...)
	if end := bytes.LastIndexByte(m.pending, '\n'); end >= 0 {
		m.emit(m.pending[:end+1])
		m.pending = append(m.pending[:0], m.pending[end+1:]...)
	}
	if len(m.pending) >= longestLine {
		// With whole secrets replaced, only the end can still hold the beginning of one.
		masked := mask(string(m.pending), m.secret)
		cut := len(masked) - len(m.secret)
		_, _ = io.WriteString(m.w, masked[:cut])
		m.pending = append(m.pending[:0], masked[cut:]...)
	}
	return len(p), nil
}

// Flush passes on what is left of a last line.
func (m *maskWriter) Flush() {
	m.emit(m.pending)
	m.pending = nil
}

func (m *maskWriter) emit(p []byte) {
	if len(p) > 0 {
		_, _ = io.WriteString(m.w, mask(string(p), m.secret))
	}
}

// mask replaces the secret wherever it stands.
func mask(text, secret string) string {
	if secret == "" {
		return text
	}
	return strings.ReplaceAll(text, secret, "[redacted]")
}
