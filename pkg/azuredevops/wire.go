package azuredevops

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// trimMark drops a byte order mark at the start.
func trimMark(text []byte) []byte { return bytes.TrimPrefix(text, []byte(byteOrderMark)) }

// stamp is a point in time as the service writes it: RFC 3339 with 0 to 7 fraction
// digits. The service's empty time, of the year 1 and without a zone, is zero here.
type stamp struct{ time.Time }

// UnmarshalJSON reads null, an empty time or a point in time.
func (s *stamp) UnmarshalJSON(raw []byte) error {
	if string(raw) == "null" {
		return nil
	}
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		return err
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		// Some times come without a zone and mean UTC.
		var zoneless error
		if t, zoneless = time.Parse("2006-01-02T15:04:05.999999999", text); zoneless != nil {
			return err
		}
	}
	if t.Year() > 1 {
		s.Time = t.UTC()
	}
	return nil
}

// enum reads an enumeration, which comes as a name or as a number.
type enum string

// UnmarshalJSON keeps a name as it is and a number in decimal digits.
func (e *enum) UnmarshalJSON(raw []byte) error {
	var text string
	switch {
	case string(raw) == "null":
		return nil
	case bytes.HasPrefix(raw, []byte(`"`)):
		if err := json.Unmarshal(raw, &text); err != nil {
			return err
		}
	default:
		n, err := strconv.Atoi(string(raw))
		if err != nil {
			return fmt.Errorf("enumeration is %.40q, neither a name nor a number", raw)
		}
		text = strconv.Itoa(n)
	}
	*e = enum(text)
	return nil
}

// named gives the name of the value, which may have come as a number.
func (e enum) named(names ...string) string {
	if n, err := strconv.Atoi(string(e)); err == nil && n >= 0 && n < len(names) {
		return names[n]
	}
	for _, name := range names {
		if strings.EqualFold(name, string(e)) {
			return name
		}
	}
	return string(e)
}

// lenient reads a value that is only shown to people: one of another type than
// expected is left empty instead of losing the row that it is in.
type lenient[T any] struct{ value T }

// UnmarshalJSON reads what fits and never fails.
func (l *lenient[T]) UnmarshalJSON(raw []byte) error {
	var value T
	if json.Unmarshal(raw, &value) == nil {
		l.value = value
	}
	return nil
}

// interner makes equal strings of one answer share their memory: two thousand
// requests that each name the same hundred agents hold a hundred names.
type interner struct {
	known map[string]string
}

// maxInterned bounds what an interner remembers.
const maxInterned = 10_000

func newInterner() *interner { return &interner{known: map[string]string{}} }

func (i *interner) share(text string) string {
	if known, ok := i.known[text]; ok {
		return known
	}
	if len(i.known) < maxInterned {
		i.known[text] = text
	}
	return text
}
