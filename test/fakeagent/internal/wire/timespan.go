package wire

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"time"
)

// TimeSpan is a duration as .NET writes it: [d.]hh:mm:ss[.fffffff].
type TimeSpan time.Duration

var timeSpan = regexp.MustCompile(`^(?:(\d+)\.)?(\d{1,2}):(\d{2}):(\d{2})(?:\.(\d{1,7}))?$`)

// UnmarshalJSON reads the string form; null and "" are zero.
func (t *TimeSpan) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return fmt.Errorf("time span %s is not a string: %w", data, err)
	}
	if text == "" {
		*t = 0
		return nil
	}
	parts := timeSpan.FindStringSubmatch(text)
	if parts == nil {
		return fmt.Errorf("time span %q is not of the form [d.]hh:mm:ss[.fffffff]", text)
	}
	var total time.Duration
	for i, unit := range []time.Duration{24 * time.Hour, time.Hour, time.Minute, time.Second} {
		if n, err := strconv.Atoi(parts[i+1]); err == nil {
			total += time.Duration(n) * unit
		}
	}
	if fraction, err := strconv.ParseFloat("0."+parts[5], 64); err == nil && parts[5] != "" {
		total += time.Duration(fraction * float64(time.Second))
	}
	*t = TimeSpan(total)
	return nil
}

// MarshalJSON writes the string form to whole seconds.
func (t TimeSpan) MarshalJSON() ([]byte, error) {
	seconds := int64(time.Duration(t) / time.Second)
	return json.Marshal(fmt.Sprintf("%02d:%02d:%02d", seconds/3600, seconds/60%60, seconds%60))
}
