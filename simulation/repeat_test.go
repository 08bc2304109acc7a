//go:build !race

package simulation

import (
	"slices"
	"testing"
)

// TestRepeats plays seeds twice, and compares all that happened, moment by moment, so that a seed
// that fails can be played again. The order within one moment is the scheduler's: where two
// replicas decide in the same one, a run may take another turn. That is rare, but under the race
// detector, which makes the scheduler as random as it can be: there one seed in two repeats, and
// this test isn't built. make test runs it apart.
func TestRepeats(t *testing.T) {
	if *seeds > 0 || *seed > 0 {
		t.Skip("other seeds were asked for")
	}
	played := []uint64{1, 2, 3, 25}
	runs, same := len(played), 0
	for _, seed := range played {
		p := Draw(seed, live(seed))
		one, _ := play(t, p, nil)
		two, _ := play(t, p, nil)
		if slices.Equal(one.Trace, two.Trace) {
			same++
			continue
		}
		for i, m := range one.Trace {
			if i >= len(two.Trace) || m != two.Trace[i] {
				t.Logf("seed %d differs: %v, %v", seed, m, two.Trace[min(i, len(two.Trace)-1)])
				break
			}
		}
	}
	if same < runs/2 {
		t.Errorf("%d of %d seeds repeat", same, runs)
	}
}
