package simulate_test

import (
	"testing"

	"github.com/azp-scaler/azp-scaler/test/simulate"
)

// TestASeedGivesTheSameHistoryAgain is what makes a failing seed worth printing.
func TestASeedGivesTheSameHistoryAgain(t *testing.T) {
	seeds := number(t, "SIMULATE_TWICE", 40)
	for seed := range seeds {
		setup := simulate.NewSetup(uint64(seed+1), 20) //nolint:gosec // Seeds are not negative.
		first, second := run(t, setup), run(t, setup)
		if first.Hash() == second.Hash() {
			continue
		}
		for i, event := range first.Events {
			if i >= len(second.Events) || event.String() != second.Events[i].String() {
				t.Errorf("seed %d: event %d is\n%s\nand then\n%s", seed+1, i, event, second.Events[min(i, len(second.Events)-1)])
				break
			}
		}
	}
}
