package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A takeover by `to`, suspected, elected and opened at so many ms.
func took(from, to string, epoch uint64, suspected, elected, opened int) failover {
	return failover{From: from, To: to, Epoch: epoch, Suspected: at(suspected), Elected: at(elected),
		Opened: at(opened)}
}

func TestRows(t *testing.T) {
	t.Parallel()
	no := unknownDuration
	for _, c := range []struct {
		claim     string
		kills     []kill
		failovers []failover
		want      []row
	}{
		{claim: "nothing happened", want: []row{}},
		{claim: "a kill and its failover",
			kills: []kill{{"a", at(3000)}}, failovers: []failover{took("a", "b", 9, 3012, 3016, 3025)},
			want: []row{{at(3000), "a", "b", 9, ms(12), ms(4), ms(9), heldCall{}}}},
		{claim: "in the order of time, whoever told first; told twice is one",
			kills: []kill{{"a", at(3000)}, {"b", at(6000)}},
			failovers: []failover{
				took("b", "a", 30, 6001, 6002, 6003), took("a", "b", 9, 3001, 3003, 3006),
				took("b", "a", 30, 6001, 6002, 6003),
			},
			want: []row{
				{at(3000), "a", "b", 9, ms(1), ms(2), ms(3), heldCall{}},
				{at(6000), "b", "a", 30, ms(1), ms(1), ms(1), heldCall{}},
			}},
		{claim: "a kill that nobody took over from",
			kills: []kill{{"a", at(3000)}},
			want:  []row{{at(3000), "a", "", 0, no, no, no, heldCall{}}}},
		{claim: "a failover that nobody was killed for",
			failovers: []failover{took("a", "b", 9, 3012, 3016, 3025)},
			want:      []row{{at(3012), "-", "b", 9, no, ms(4), ms(9), heldCall{}}}},
		{claim: "a kill doesn't explain a failover before it",
			kills:     []kill{{"a", at(3000)}},
			failovers: []failover{took("a", "b", 9, 2000, 2001, 2002)},
			want: []row{
				{at(2000), "-", "b", 9, no, ms(1), ms(1), heldCall{}},
				{at(3000), "a", "", 0, no, no, no, heldCall{}},
			}},
		{claim: "a kill explains the first failover after it from somebody who was elected in between",
			kills:     []kill{{"c", at(3000)}},
			failovers: []failover{took("a", "b", 9, 3040, 3050, 3060), took("b", "a", 12, 3100, 3101, 3102)},
			want: []row{
				{at(3000), "c", "b", 9, ms(40), ms(10), ms(10), heldCall{}},
				{at(3100), "-", "a", 12, no, ms(1), ms(1), heldCall{}},
			}},
		{claim: "a kill that has its failover explains no other",
			kills: []kill{{"a", at(3000)}},
			failovers: []failover{took("c", "a", 8, 1000, 1001, 1002), took("a", "b", 9, 3001, 3002, 3003),
				took("b", "c", 10, 4000, 4001, 4002)},
			want: []row{
				{at(1000), "-", "a", 8, no, ms(1), ms(1), heldCall{}},
				{at(3000), "a", "b", 9, ms(1), ms(1), ms(1), heldCall{}},
				{at(4000), "-", "c", 10, no, ms(1), ms(1), heldCall{}},
			}},
		{claim: "each kill explains one failover, the latest first",
			kills:     []kill{{"a", at(3000)}, {"a", at(9000)}},
			failovers: []failover{took("a", "b", 9, 3001, 3002, 3003), took("a", "b", 20, 9001, 9002, 9003)},
			want: []row{
				{at(3000), "a", "b", 9, ms(1), ms(1), ms(1), heldCall{}},
				{at(9000), "a", "b", 20, ms(1), ms(1), ms(1), heldCall{}},
			}},
		{claim: "a failover follows the latest kill before it",
			kills:     []kill{{"a", at(3000)}, {"a", at(9000)}},
			failovers: []failover{took("a", "b", 20, 9001, 9002, 9003)},
			want: []row{
				{at(3000), "a", "", 0, no, no, no, heldCall{}},
				{at(9000), "a", "b", 20, ms(1), ms(1), ms(1), heldCall{}},
			}},
		{claim: "suspected just before it died",
			kills: []kill{{"a", at(3000)}}, failovers: []failover{took("a", "b", 9, 2999, 3016, 3025)},
			want: []row{{at(3000), "a", "b", 9, 0, ms(17), ms(9), heldCall{}}}},
		{claim: "a time that isn't known",
			kills:     []kill{{"a", at(3000)}},
			failovers: []failover{{From: "a", To: "b", Epoch: 9, Elected: at(3016), Opened: at(3025)}},
			want:      []row{{at(3000), "a", "b", 9, no, no, ms(9), heldCall{}}}},
	} {
		t.Run(c.claim, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(c.want, rows(c.kills, c.failovers), cmp.AllowUnexported(row{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestPrintTable(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	printTable(&b, at(0), []row{
		{at(3000), "a", "b", 9, ms(12), ms(4), 9400 * time.Microsecond, heldCall{at(2999), ms(41)}},
		{at(16040), "-", "a", 1234, unknownDuration, ms(4), ms(9), heldCall{at(17140), ms(1041)}},
		{at(18000), "a", "", 0, unknownDuration, unknownDuration, unknownDuration, heldCall{}},
	})
	want := `
      at  died  took over  epoch   detection   election   takeover    held up  begun
   3.0 s  a     b              9     12.0 ms     4.0 ms     9.4 ms    41.0 ms  before
  16.0 s  -     a           1234           -     4.0 ms     9.0 ms  1041.0 ms  1.1 s after
  18.0 s  a     nobody         -           -          -          -     0.0 ms  -
`
	if diff := cmp.Diff(strings.TrimPrefix(want, "\n"), b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestOutcome(t *testing.T) {
	t.Parallel()
	gap := func(tookOver string, ms int) row {
		return row{tookOver: tookOver, longest: heldCall{Took: time.Duration(ms) * time.Millisecond}}
	}
	for _, c := range []struct {
		tally   tally
		verdict verdict
		table   []row
		want    string
		ok      bool
	}{
		{want: "calls=0 failed=0 lost=0 duplicated=0 failovers=0 gap_p50_ms=0 gap_max_ms=0", ok: true},
		{tally: tally{Calls: 9000}, table: []row{gap("a", 30), gap("b", 10), gap("a", 20)},
			want: "calls=9000 failed=0 lost=0 duplicated=0 failovers=3 gap_p50_ms=20 gap_max_ms=30", ok: true},
		{tally: tally{Calls: 9000}, table: []row{gap("a", 40), gap("b", 10), gap("", 9999), gap("a", 20), gap("a", 30)},
			want: "calls=9000 failed=0 lost=0 duplicated=0 failovers=4 gap_p50_ms=20 gap_max_ms=40", ok: true},
		{tally: tally{Calls: 9000, Failed: 3}, table: []row{gap("b", 7)},
			want: "calls=9000 failed=3 lost=0 duplicated=0 failovers=1 gap_p50_ms=7 gap_max_ms=7"},
		{verdict: verdict{Lost: 4}, want: "calls=0 failed=0 lost=4 duplicated=0 failovers=0 gap_p50_ms=0 gap_max_ms=0"},
		{verdict: verdict{Duplicated: 5},
			want: "calls=0 failed=0 lost=0 duplicated=5 failovers=0 gap_p50_ms=0 gap_max_ms=0"},
		{table: []row{{tookOver: "a"}},
			want: "calls=0 failed=0 lost=0 duplicated=0 failovers=1 gap_p50_ms=0 gap_max_ms=0", ok: true},
		{table: []row{{tookOver: "a", longest: heldCall{Took: 1500 * time.Microsecond}}},
			want: "calls=0 failed=0 lost=0 duplicated=0 failovers=1 gap_p50_ms=2 gap_max_ms=2", ok: true},
	} {
		o := newOutcome(c.tally, c.verdict, c.table)
		if got := o.String(); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
		if o.ok() != c.ok {
			t.Errorf("%s: ok is %v", c.want, o.ok())
		}
	}
}

func TestPrintFailuresAndFindings(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	tally{Failures: map[string]failure{"Unknown": {1, "one"}, "DataLoss": {12, "told"}}}.print(&b)
	verdict{Findings: []string{"this", "that"}, More: 3}.print(&b)
	want := "failed: 12 with DataLoss, the first: told\nfailed: 1 with Unknown, the first: one\nthis\nthat\nand 3 " +
		"findings more\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestStatsLine(t *testing.T) {
	t.Parallel()
	for want, s := range map[string][2]stats{
		"  1s    8232 calls/s":           {{at(0), 0, 0}, {at(1000), 8232, 0}},
		" 12s    4000 calls/s, 3 failed": {{at(11000), 1000, 2}, {at(11500), 3000, 5}},
		"  0s       0 calls/s":           {{at(0), 0, 0}, {at(0), 7, 0}},
	} {
		if got := statsLine(at(0), s[0], s[1]); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}
