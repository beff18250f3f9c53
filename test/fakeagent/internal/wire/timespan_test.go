package wire_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/wire"
)

func TestTimeSpan(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		`"00:01:00"`:         time.Minute,
		`"1.02:03:04"`:       26*time.Hour + 3*time.Minute + 4*time.Second,
		`"00:00:00.5000000"`: 500 * time.Millisecond,
		`""`:                 0,
		`null`:               0,
	} {
		var got wire.TimeSpan
		if err := json.Unmarshal([]byte(text), &got); err != nil || time.Duration(got) != want {
			t.Errorf("%s is %s, %v, not %s", text, time.Duration(got), err, want)
		}
	}
	for _, text := range []string{`"soon"`, `60`, `"00:60"`} {
		var got wire.TimeSpan
		if err := json.Unmarshal([]byte(text), &got); err == nil {
			t.Errorf("%s was taken for %s", text, time.Duration(got))
		}
	}
	if text, err := json.Marshal(wire.TimeSpan(90 * time.Minute)); err != nil || string(text) != `"01:30:00"` {
		t.Errorf("90 minutes are %s, %v", text, err)
	}
}
