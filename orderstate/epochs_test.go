package orderstate

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// Prune(k) tells no entry above k otherwise than before, whatever is learned or pruned before or
// after.
func TestPruneAgainstAnUnprunedTable(t *testing.T) {
	for seed := range uint64(2000) {
		random := rand.New(rand.NewPCG(seed, 0))
		var pruned, whole epochTable
		epoch, above := Epoch(0), OrderNum(0)
		for range 1 + random.IntN(12) {
			switch random.IntN(3) {
			case 0:
				above = max(above, OrderNum(random.IntN(10)))
				pruned.prune(above)
			case 1: // an older epoch, learned late or again
				e := Epoch(1 + random.IntN(int(epoch)+1))
				s := Start{e, 1 + OrderNum(random.IntN(10))}
				if first, ok := whole.first(e); ok {
					s.First = first
				}
				must(t, whole.learn(s))
				must(t, pruned.learn(s))
				epoch = max(epoch, e)
			default:
				epoch += Epoch(1 + random.IntN(2))
				s := Start{epoch, 1 + OrderNum(random.IntN(10))}
				must(t, whole.learn(s))
				must(t, pruned.learn(s))
			}
			must(t, pruned.valid())
			for a := Epoch(0); a <= epoch+1; a++ {
				for k := above + 1; k <= 12; k++ {
					if want, got := whole.void(a, k), pruned.void(a, k); want != got {
						t.Fatalf("seed %d: Void(%d, %d) is %v of %v, %v of %v pruned at %d", seed, a, k, want,
							whole.starts, got, pruned.starts, above)
					}
				}
			}
			if whole.newest() != pruned.newest() {
				t.Fatalf("seed %d: the newest of %v is forgotten: %v", seed, whole.starts, pruned.starts)
			}
		}
	}
}

func TestPruneIsBounded(t *testing.T) {
	var table epochTable
	for e := range OrderNum(100) {
		must(t, table.learn(Start{Epoch(e + 1), e + 1}))
	}
	table.prune(49) // 50 is the newest of those that start at or below 50
	if starts := table.starts; len(starts) != 51 || starts[0] != (Start{50, 50}) {
		t.Errorf("%d are left, from %v on", len(starts), starts[0])
	}
	table.prune(1<<64 - 1)
	if starts := table.starts; len(starts) != 1 {
		t.Errorf("%v are left", starts)
	}
}

func TestNoEpochStartsTwice(t *testing.T) {
	var table epochTable
	for _, bad := range []Start{{0, 1}, {1, 0}} {
		if table.learn(bad) == nil {
			t.Errorf("learns %v", bad)
		}
	}
	must(t, table.learn(Start{2, 7}))
	must(t, table.learn(Start{2, 7}))
	if err := table.learn(Start{2, 8}); err == nil {
		t.Error("one epoch has two starts")
	}
	if got := fmt.Sprint(table.starts); got != "[{2 7}]" {
		t.Error(got)
	}
}

// Epochs in which nothing was ordered, or nothing that is left, are forgotten, however many they
// are.
func TestPruneForgetsWhatDecidesNothing(t *testing.T) {
	var table epochTable
	for e := Epoch(1); e <= 2000; e++ {
		must(t, table.learn(Start{e, 7}))
		table.prune(0)
	}
	if got := table.starts; !slices.Equal(got, []Start{{2000, 7}}) {
		t.Errorf("%d are left", len(got))
	}
	must(t, table.learn(Start{2001, 9}))
	must(t, table.learn(Start{2002, 8}))
	table.prune(0)
	if got := table.starts; !slices.Equal(got, []Start{{2000, 7}, {2002, 8}}) {
		t.Errorf("left are %v", got)
	}
}
