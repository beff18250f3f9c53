package console_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/console"
)

func TestTerminal(t *testing.T) {
	t.Parallel()
	masker := &console.Masker{}
	masker.Add("t0ken")
	masker.Add("first\nsecond\n")
	masker.Add("x") // Too short to hide.
	masker.Add("")
	var out, err strings.Builder
	terminal := console.New(&out, &err, masker)
	terminal.Linef("a %s b", "t0ken")
	terminal.Stampf("Listening for %s", "Jobs")
	terminal.Errorf("no second try, x")
	if want := regexp.MustCompile(`^a \*\*\* b\n\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ: Listening for Jobs\n$`); !want.MatchString(out.String()) {
		t.Errorf("the output is %q", out.String())
	}
	if err.String() != "no *** try, x\n" {
		t.Errorf("the error output is %q", err.String())
	}
}
