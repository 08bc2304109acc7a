package cluster

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/understudy-rpc/understudy/e2e/journal"
)

// A sound run stays sound, and each planted fault is found as what it is.
func TestJudge(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	ok := func(call uint64, place uint64, start, end time.Duration) journal.Call {
		return journal.Call{Call: call, Place: place, Start: start, End: end}
	}
	failed := func(call uint64, code codes.Code, start, end time.Duration) journal.Call {
		return journal.Call{Call: call, Code: code, Start: start, End: end}
	}
	x := func(call uint64) journal.Entry { return journal.Entry{Client: "x", Call: call} }
	y := func(call uint64) journal.Entry { return journal.Entry{Client: "y", Call: call} }
	history := []journal.Entry{x(1), y(1), x(2)}
	ledgers := func(change func(x, y *Ledger)) []Ledger {
		a := Ledger{Client: "x", Begun: 2, Calls: []journal.Call{ok(1, 1, 0, 1*ms), ok(2, 3, 2*ms, 3*ms)}}
		b := Ledger{Client: "y", Begun: 1, Calls: []journal.Call{ok(1, 2, 1*ms, 5*ms)}}
		if change != nil {
			change(&a, &b)
		}
		return []Ledger{a, b}
	}
	sound := Verdict{Calls: 3}
	for _, test := range []struct {
		name    string
		history []journal.Entry
		change  func(x, y *Ledger)
		want    Verdict
	}{
		{"sound", history, nil, sound},
		{"lost at the end", history[:2], nil, Verdict{Calls: 3, Lost: 1}},
		{"lost, and another in its place", []journal.Entry{x(1), x(2), x(3)}, func(x, _ *Ledger) {
			x.Killed = true
		}, Verdict{Calls: 3, Lost: 1, Contradicted: 1}},
		{"twice", append(history, x(1)), nil, Verdict{Calls: 3, Duplicated: 1}},
		{"unknown and executed", history, func(_, y *Ledger) {
			y.Calls[0] = failed(1, codes.DeadlineExceeded, 1*ms, 5*ms)
		}, Verdict{Calls: 3, Failed: 1}},
		{"unknown and not executed", history, func(x, _ *Ledger) {
			x.Begun, x.Calls = 3, append(x.Calls, failed(3, codes.DeadlineExceeded, 1*ms, 5*ms))
		}, Verdict{Calls: 4, Failed: 1}},
		{"refused and executed", history, func(_, y *Ledger) {
			y.Calls[0] = failed(1, codes.Unavailable, 1*ms, 5*ms)
		}, Verdict{Calls: 3, Failed: 1, Refused: 1}},
		{"never called", append(history, x(3)), nil, Verdict{Calls: 3, Stray: 1}},
		{"unheard of", append(history, x(3)), func(x, _ *Ledger) { x.Killed = true }, sound},
		{"by nobody", append(history, journal.Entry{Client: "z", Call: 1}), nil, Verdict{Calls: 3, Stray: 1}},
		{"out of order", history, func(x, y *Ledger) {
			x.Calls[0].Start, x.Calls[0].End = 4*ms, 5*ms
		}, Verdict{Calls: 3, Reordered: 1}},
		{"told", history[:2], func(x, _ *Ledger) {
			x.Begun, x.Calls = 3, append(x.Calls, failed(3, codes.DataLoss, 4*ms, 5*ms))
		}, Verdict{Calls: 4, Failed: 1, Told: 1}},
		{"told before it began", history[:2], func(x, _ *Ledger) {
			x.Begun, x.Calls = 3, append(x.Calls, failed(3, codes.DataLoss, 0, 1*ms))
		}, Verdict{Calls: 4, Failed: 1, Lost: 1}},
		{"forgiven", history[:2], func(x, _ *Ledger) { x.Forgiven = true }, Verdict{Calls: 3, Told: 1}},
	} {
		got := Judge(test.history, ledgers(test.change))
		findings := len(got.Findings)
		got.Findings = nil
		if got.String() != test.want.String() {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
		if got.Sound() != (findings == 0) {
			t.Errorf("%s: sound %v with %d findings", test.name, got.Sound(), findings)
		}
	}
}

func TestLongest(t *testing.T) {
	t.Parallel()
	l := []Ledger{{Calls: []journal.Call{{Start: 0, End: 9}, {Start: 10, End: 15}, {Start: 14, End: 16},
		{Start: 30, End: 90}}}}
	if got := Longest(l, 12, 20); got != 5 {
		t.Errorf("Longest = %v, want 5", got)
	}
	if got := Longest(l, 17, 20); got != 0 {
		t.Errorf("Longest = %v, want 0", got)
	}
}
