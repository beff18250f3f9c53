package azuredevops

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

const (
	// maxRow bounds what is held of one row. A job request that matches a thousand
	// agents takes about 300 KiB; a longer row than this one is skipped, not held.
	maxRow = 4 << 20
	// maxKey bounds a member's name and the count.
	maxKey = 1 << 10
	// maxDepth bounds how deep a row may nest.
	maxDepth = 512
)

// byteOrderMark may lead an answer.
const byteOrderMark = "\ufeff"

var (
	errPage       = errors.New("a page, not JSON")
	errRowTooLong = fmt.Errorf("over %d bytes long", maxRow)
)

// tally is how many rows an answer had beside how many it said it has.
type tally struct {
	rows  int
	count int // What the answer says; -1 if it does not.
}

// readCollection reads {"count":N,"value":[…]} and hands over each row as it
// comes, in a buffer that is used again for the next one. It finds the rows'
// ends by itself, by brackets and quotes alone, so that one row whose content is
// no valid JSON is the visitor's to skip and takes nothing else with it; memory is
// bounded by the longest row. A row over the bound comes as errRowTooLong.
//
// Anything but that shape, whole and with nothing after it, is an error, and so
// is a count that differs. The visitor's own error ends the reading, as it is.
func readCollection(r io.Reader, visit func(row []byte, problem error) error) (tally, error) {
	s := &scanner{r: bufio.NewReaderSize(r, 32<<10)}
	t := tally{count: -1}
	if err := s.start(); err != nil {
		return t, err
	}
	seen := false
	err := s.members('}', func() error {
		key, err := s.key()
		if err != nil {
			return err
		}
		switch key {
		case "value":
			if seen {
				return errors.New("two lists named value")
			}
			seen = true
			return s.rows(&t, visit)
		case "count":
			return s.count(&t)
		default:
			return s.value(nil, 0)
		}
	})
	if err != nil {
		return t, err
	}
	if _, err := s.next(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = errors.New("something follows the end of the answer")
		}
		return t, err
	}
	if !seen {
		return t, errors.New("no list named value")
	}
	if t.count >= 0 && t.count != t.rows {
		return t, fmt.Errorf("%d rows, but the count says %d", t.rows, t.count)
	}
	return t, nil
}

// scanner finds the borders of JSON values without looking into them.
type scanner struct {
	r *bufio.Reader
}

// start takes the answer's opening brace.
func (s *scanner) start() error {
	if mark, err := s.r.Peek(len(byteOrderMark)); err == nil && string(mark) == byteOrderMark {
		if _, err := s.r.Discard(len(byteOrderMark)); err != nil {
			return err
		}
	}
	switch b, err := s.next(); {
	case errors.Is(err, io.EOF):
		return errors.New("the answer is empty")
	case err != nil:
		return err
	case b == '<':
		return errPage
	case b != '{':
		return fmt.Errorf("the answer begins with %q, not with an object", b)
	default:
		return nil
	}
}

// next takes the next byte that is not white space.
func (s *scanner) next() (byte, error) {
	for {
		b, err := s.r.ReadByte()
		if err != nil {
			return 0, err
		}
		switch b {
		case ' ', '\t', '\r', '\n':
		default:
			return b, nil
		}
	}
}

// must is next where the answer cannot end.
func (s *scanner) must() (byte, error) {
	b, err := s.next()
	return b, midway(err)
}

// midway turns an end of input into one that came too early.
func midway(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// members calls each for every member up to the closing bracket, which it takes.
func (s *scanner) members(end byte, each func() error) error {
	b, err := s.must()
	if err != nil || b == end {
		return err
	}
	if err := s.r.UnreadByte(); err != nil {
		return err
	}
	for {
		if err := each(); err != nil {
			return err
		}
		switch b, err := s.must(); {
		case err != nil:
			return err
		case b == end:
			return nil
		case b != ',':
			return fmt.Errorf("%q where a comma or %q belongs", b, end)
		}
	}
}

// key takes a member's name and the colon after it.
func (s *scanner) key() (string, error) {
	var raw []byte
	if err := s.value(&raw, maxKey); err != nil {
		return "", err
	}
	var key string
	if err := json.Unmarshal(raw, &key); err != nil {
		return "", fmt.Errorf("name of a member: %w", err)
	}
	b, err := s.must()
	if err == nil && b != ':' {
		err = fmt.Errorf("%q where a colon belongs", b)
	}
	return key, err
}

// count takes the number of rows that the answer says it has.
func (s *scanner) count(t *tally) error {
	var raw []byte
	if err := s.value(&raw, maxKey); err != nil {
		return fmt.Errorf("count: %w", err)
	}
	var count int
	if err := json.Unmarshal(raw, &count); err != nil || count < 0 || string(raw) == "null" {
		return errors.New("the count is not a number of rows")
	}
	t.count = count
	return nil
}

// rows takes the list and hands over its rows.
func (s *scanner) rows(t *tally, visit func([]byte, error) error) error {
	b, err := s.must()
	if err != nil {
		return err
	}
	if b != '[' {
		return errors.New("value is not a list")
	}
	var row []byte
	return s.members(']', func() error {
		row = row[:0]
		err := s.value(&row, maxRow)
		t.rows++
		switch {
		case errors.Is(err, errRowTooLong):
			return visit(nil, err)
		case err != nil:
			return fmt.Errorf("row %d: %w", t.rows, err)
		default:
			return visit(row, nil)
		}
	})
}

// value takes one value and, where keep is given, appends it there. One longer
// than limit is taken to its end all the same and gives errRowTooLong.
func (s *scanner) value(keep *[]byte, limit int) error {
	first, err := s.must()
	if err != nil {
		return err
	}
	k := keeper{to: keep, limit: limit}
	k.add(first)
	switch first {
	case '{', '[':
		err = s.nested(first, &k)
	case '"':
		err = s.text(&k)
	default:
		err = s.literal(first, &k)
	}
	if err == nil && k.over {
		return errRowTooLong
	}
	return err
}

// nested takes the rest of an object or list.
func (s *scanner) nested(first byte, k *keeper) error {
	open := []byte{first}
	for len(open) > 0 {
		b, err := s.r.ReadByte()
		if err != nil {
			return midway(err)
		}
		k.add(b)
		switch b {
		case '"':
			if err := s.text(k); err != nil {
				return err
			}
		case '{', '[':
			if len(open) == maxDepth {
				return fmt.Errorf("nested over %d deep", maxDepth)
			}
			open = append(open, b)
		case '}', ']':
			// The brackets' distance in ASCII: { and }, [ and ].
			if b-open[len(open)-1] != 2 {
				return fmt.Errorf("%q closes %q", b, open[len(open)-1])
			}
			open = open[:len(open)-1]
		}
	}
	return nil
}

// text takes the rest of a string, a buffer at a time: strings are most of an
// answer.
func (s *scanner) text(k *keeper) error {
	escaped := false
	for {
		chunk, err := s.buffered()
		if err != nil {
			return err
		}
		n, ended := textEnd(chunk, &escaped)
		k.add(chunk[:n]...)
		if _, err := s.r.Discard(n); err != nil {
			return err
		}
		if ended {
			return nil
		}
	}
}

// buffered gives what can be looked at without reading on, at least one byte.
func (s *scanner) buffered() ([]byte, error) {
	if _, err := s.r.Peek(1); err != nil {
		return nil, midway(err)
	}
	return s.r.Peek(s.r.Buffered())
}

// textEnd finds how much of a chunk belongs to a string that is open where the
// chunk begins, and whether it ends there. escaped says that the chunk's first
// byte, or then the next chunk's, follows a backslash.
func textEnd(chunk []byte, escaped *bool) (n int, ended bool) {
	for {
		if *escaped {
			if n == len(chunk) {
				return n, false
			}
			n, *escaped = n+1, false
		}
		rest := chunk[n:]
		quote := bytes.IndexByte(rest, '"')
		if quote >= 0 {
			rest = rest[:quote]
		}
		if slash := bytes.IndexByte(rest, '\\'); slash >= 0 {
			n, *escaped = n+slash+1, true
			continue
		}
		if quote < 0 {
			return len(chunk), false
		}
		return n + quote + 1, true
	}
}

// literal takes the rest of a number or word.
func (s *scanner) literal(first byte, k *keeper) error {
	switch first {
	case ',', ':', '}', ']':
		return fmt.Errorf("%q where a value belongs", first)
	}
	for {
		b, err := s.r.ReadByte()
		if err != nil {
			return midway(err)
		}
		switch b {
		case ',', '}', ']', ':', ' ', '\t', '\r', '\n':
			return s.r.UnreadByte()
		}
		k.add(b)
	}
}

// keeper holds a value's bytes, if they are wanted and not too many.
type keeper struct {
	to    *[]byte
	limit int
	over  bool
}

func (k *keeper) add(b ...byte) {
	switch {
	case k.to == nil || k.over:
	case len(*k.to)+len(b) > k.limit:
		k.over = true
	default:
		*k.to = append(*k.to, b...)
	}
}
