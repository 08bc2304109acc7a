package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func at(ms int) time.Time { return time.Unix(1000, 0).Add(time.Duration(ms) * time.Millisecond) }

func ms(n int) time.Duration { return time.Duration(n) * time.Millisecond }

func TestGaps(t *testing.T) {
	t.Parallel()
	type calls [][2]int // begun and ended, in ms
	for _, c := range []struct {
		claim string
		calls calls
		marks []int
		want  [][2]int // {0, 0}: none
	}{
		{claim: "no call, no gap", marks: []int{100}, want: [][2]int{{}}},
		{claim: "no mark", calls: calls{{0, 50}}},
		{claim: "a call in flight counts from its own beginning", calls: calls{{90, 300}}, marks: []int{100},
			want: [][2]int{{90, 300}}},
		{claim: "one that ended before doesn't", calls: calls{{0, 90}}, marks: []int{100}, want: [][2]int{{}}},
		{claim: "a later one does", calls: calls{{90, 150}, {200, 900}}, marks: []int{100}, want: [][2]int{{200, 900}}},
		{claim: "the longest counts", calls: calls{{90, 150}, {95, 300}, {97, 250}}, marks: []int{100},
			want: [][2]int{{95, 300}}},
		{claim: "each mark has its own", calls: calls{{90, 150}, {1090, 1190}, {1200, 1210}}, marks: []int{100, 1100},
			want: [][2]int{{90, 150}, {1090, 1190}}},
		{claim: "a call before the next mark isn't the next one's", calls: calls{{150, 450}, {490, 520}},
			marks: []int{100, 500}, want: [][2]int{{150, 450}, {490, 520}}},
		{claim: "a call in flight at the next mark is the next one's only", calls: calls{{150, 750}},
			marks: []int{100, 500}, want: [][2]int{{}, {150, 750}}},
		{claim: "a call in flight at both counts for both", calls: calls{{50, 750}}, marks: []int{100, 500},
			want: [][2]int{{50, 750}, {50, 750}}},
		{claim: "begun at the mark", calls: calls{{100, 150}}, marks: []int{100}, want: [][2]int{{100, 150}}},
		{claim: "ended at the mark", calls: calls{{50, 100}}, marks: []int{100}, want: [][2]int{{50, 100}}},
		{claim: "the slowest of a slot is kept", calls: calls{{199, 201}, {100, 202}, {200, 203}}, marks: []int{150},
			want: [][2]int{{100, 202}}},
		{claim: "calls added late", calls: calls{{90, 400}, {95, 200}, {96, 299}, {97, 201}, {98, 150}},
			marks: []int{100, 350}, want: [][2]int{{90, 400}, {90, 400}}},
	} {
		t.Run(c.claim, func(t *testing.T) {
			t.Parallel()
			var h holdups
			for _, call := range c.calls {
				h.add(at(call[0]), at(call[1]))
			}
			marks, want := []time.Time{}, []heldCall{}
			for i := range c.marks {
				marks, want = append(marks, at(c.marks[i])), append(want, heldCall{})
				if w := c.want[i]; w[1] > 0 {
					want[i] = heldCall{at(w[0]), ms(w[1] - w[0])}
				}
			}
			if diff := cmp.Diff(want, h.gaps(marks)); diff != "" {
				t.Error(diff)
			}
			for i := 1; i < len(h.slots); i++ {
				if h.slots[i].end().Before(h.slots[i-1].end()) {
					t.Errorf("slot %d is before slot %d", i, i-1)
				}
			}
		})
	}
}

func TestHoldupsSince(t *testing.T) {
	t.Parallel()
	var h holdups
	for _, c := range [][2]int{{0, 500}, {590, 600}, {650, 700}, {790, 800}} {
		h.add(at(c[0]), at(c[1]))
	}
	for since, want := range map[int]int{0: 500, 500: 50, 600: 50, 700: 10, 800: 0} {
		if got := h.since(at(since)); got != ms(want) {
			t.Errorf("since %d ms: %v, want %d ms", since, got, want)
		}
	}
}

// One hour's memory is bounded by the slots, however many calls there are.
func TestHoldupsAreBounded(t *testing.T) {
	t.Parallel()
	var h holdups
	for i := range 100_000 {
		h.add(at(i/100), at(i/100+1))
	}
	if got, most := len(h.slots), int(time.Second/slotLength)+2; got > most {
		t.Errorf("%d slots for a second, want %d at most", got, most)
	}
}
