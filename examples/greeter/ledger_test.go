package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// set makes numbers.
func set(all ...uint64) numbers {
	var s numbers
	for _, n := range all {
		s.add(n)
	}
	return s
}

// upTo makes 1..n.
func upTo(n uint64) numbers { return numbers{{1, n}} }

// numbers against a map, in random order.
func TestNumbersAreASet(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 0))
		var s numbers
		oracle := map[uint64]bool{}
		for range rng.IntN(60) {
			n := 1 + rng.Uint64N(30)
			if got, want := s.add(n), !oracle[n]; got != want {
				t.Fatalf("seed %d: add(%d) = %v to %v", seed, n, got, s)
			}
			oracle[n] = true
			if err := s.valid(); err != nil {
				t.Fatalf("seed %d: after add(%d): %v", seed, n, err)
			}
		}
		members := slices.Sorted(maps.Keys(oracle))
		if diff := cmp.Diff(members, s.all()); diff != "" {
			t.Fatalf("seed %d: %v: %s", seed, s, diff)
		}
		last := rng.Uint64N(35)
		var missing []uint64
		above := 0
		for n := uint64(1); n <= 40; n++ {
			if n <= last && !oracle[n] {
				missing = append(missing, n)
			}
			if n > last && oracle[n] {
				above++
			}
		}
		if diff := cmp.Diff(missing, s.missing(last).all()); diff != "" {
			t.Fatalf("seed %d: %v.missing(%d): %s", seed, s, last, diff)
		}
		if got := s.above(last); got != above {
			t.Fatalf("seed %d: %v.above(%d) = %d, want %d", seed, s, last, got, above)
		}
		if len(members) > 0 && s.max() != members[len(members)-1] || len(members) == 0 && s.max() != 0 {
			t.Fatalf("seed %d: %v.max() = %d", seed, s, s.max())
		}
	}
}

// valid checks what the type says of itself.
func (s numbers) valid() error {
	for i, sp := range s {
		if sp[0] < 1 || sp[0] > sp[1] || i > 0 && sp[0] <= s[i-1][1]+1 {
			return fmt.Errorf("%v isn't ascending with gaps", s)
		}
	}
	return nil
}

func (s numbers) all() []uint64 {
	var all []uint64
	for _, sp := range s {
		for n := sp[0]; n <= sp[1]; n++ {
			all = append(all, n)
		}
	}
	return all
}

// A broken server can say any number.
func TestNumbersAtTheEdge(t *testing.T) {
	t.Parallel()
	const most = 1<<64 - 1
	s := set(most, most-1, 1, most)
	if diff := cmp.Diff(numbers{{1, 1}, {most - 1, most}}, s); diff != "" {
		t.Error(diff)
	}
	if n := s.above(1); n != 2 {
		t.Errorf("above(1) = %d", n)
	}
	if diff := cmp.Diff(numbers{{2, most - 2}}, s.missing(most)); diff != "" {
		t.Error(diff)
	}
	if n := set(1).unaccounted(most, []uint64{0, 5, most}); n != 1<<63-1 {
		t.Errorf("unaccounted = %d", n)
	}
}

// unaccounted against trying every way to give calls the missing numbers.
func TestUnaccountedIsTheLeast(t *testing.T) {
	t.Parallel()
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var s numbers
		for range rng.IntN(8) {
			s.add(1 + rng.Uint64N(10))
		}
		last := rng.Uint64N(11)
		var floors []uint64
		for range rng.IntN(5) {
			floors = append(floors, rng.Uint64N(11))
		}
		before := slices.Clone(floors)
		got, want := s.unaccounted(last, floors), leastUnaccounted(s.missing(last).all(), floors)
		if got != want {
			t.Fatalf("seed %d: %v.unaccounted(%d, %v) = %d, want %d", seed, s, last, floors, got, want)
		}
		if !slices.Equal(before, floors) {
			t.Fatalf("seed %d: the floors were changed", seed)
		}
	}
}

func leastUnaccounted(missing, floors []uint64) int {
	if len(missing) == 0 {
		return 0
	}
	least := 1 + leastUnaccounted(missing[1:], floors)
	for i, floor := range floors {
		if floor < missing[0] {
			others := slices.Delete(slices.Clone(floors), i, i+1)
			least = min(least, leastUnaccounted(missing[1:], others))
		}
	}
	return least
}

func TestJudge(t *testing.T) {
	t.Parallel()
	type states = map[string]map[string]uint64
	alike := func(counts map[string]uint64) states { return states{"a": counts, "b": maps.Clone(counts)} }
	for _, c := range []struct {
		claim            string
		accounts         map[string]account
		states           states
		lost, duplicated int
	}{
		{claim: "nothing is nothing"},
		{claim: "all numbers given once", states: alike(map[string]uint64{"ann": 3, "ben": 1}),
			accounts: map[string]account{"ann": {Given: upTo(3)}, "ben": {Given: upTo(1)}}},
		{claim: "a number given three times is duplicated twice", states: alike(map[string]uint64{"ann": 3}),
			duplicated: 2,
			accounts:   map[string]account{"ann": {Given: upTo(3), Repeated: 2}}},
		{claim: "a number that nobody was given is lost", states: alike(map[string]uint64{"ann": 3}), lost: 1,
			accounts: map[string]account{"ann": {Given: set(1, 3)}}},
		{claim: "also the last ones", states: alike(map[string]uint64{"ann": 5}), lost: 2,
			accounts: map[string]account{"ann": {Given: upTo(3)}}},
		{claim: "unless a call of unknown outcome may have it", states: alike(map[string]uint64{"ann": 3}),
			accounts: map[string]account{"ann": {Given: set(1, 3), Unknown: []uint64{1}}}},
		{claim: "even when it was executed later", states: alike(map[string]uint64{"ann": 9}),
			accounts: map[string]account{"ann": {Given: upTo(8), Unknown: []uint64{2}}}},
		{claim: "but no call has a number given before it began", states: alike(map[string]uint64{"ann": 3}), lost: 1,
			accounts: map[string]account{"ann": {Given: set(1, 3), Unknown: []uint64{3}}}},
		{claim: "one call accounts for one number", states: alike(map[string]uint64{"ann": 4}), lost: 1,
			accounts: map[string]account{"ann": {Given: set(1, 4), Unknown: []uint64{1}}}},
		{claim: "one name's call doesn't account for another's number",
			states: alike(map[string]uint64{"ann": 2, "ben": 1}), lost: 1,
			accounts: map[string]account{"ann": {Given: set(2)}, "ben": {Given: upTo(1), Unknown: []uint64{0}}}},
		{claim: "a call of unknown outcome needn't have taken a number", states: alike(map[string]uint64{"ann": 3}),
			accounts: map[string]account{"ann": {Given: upTo(3), Unknown: []uint64{0, 1, 3}}}},
		{claim: "what was given and isn't in the state is lost", states: alike(map[string]uint64{"ann": 3}), lost: 2,
			accounts: map[string]account{"ann": {Given: upTo(5)}}},
		{claim: "a name that was forgotten, too", states: alike(map[string]uint64{}), lost: 2,
			accounts: map[string]account{"ann": {Given: upTo(2)}}},
		{claim: "greetings of a name that nobody knows are lost", states: alike(map[string]uint64{"ann": 2}), lost: 2},
		{claim: "replicas that differ have lost, one for each name", lost: 2,
			states:   states{"a": {"ann": 3, "ben": 1}, "b": {"ann": 2, "ben": 1}, "c": {"ann": 3, "ben": 2}},
			accounts: map[string]account{"ann": {Given: upTo(3)}, "ben": {Given: upTo(1)}}},
		{claim: "a replica without the name differs", lost: 1, states: states{"a": {"ann": 3}, "b": {}},
			accounts: map[string]account{"ann": {Given: upTo(3)}}},
		{claim: "a replica with a name too many differs", lost: 1,
			states:   states{"a": {"ann": 3}, "b": {"ann": 3, "ben": 1}},
			accounts: map[string]account{"ann": {Given: upTo(3)}}},
		{claim: "without a state, the highest number given is the last", lost: 1, duplicated: 1,
			accounts: map[string]account{"ann": {Given: set(1, 3), Repeated: 1}, "ben": {Given: upTo(7)}}},
		{claim: "all at once", states: alike(map[string]uint64{"ann": 4}), lost: 2, duplicated: 1,
			accounts: map[string]account{"ann": {Given: set(1, 2, 5), Repeated: 1, Unknown: []uint64{2}}}},
	} {
		t.Run(c.claim, func(t *testing.T) {
			t.Parallel()
			v := judge(c.accounts, c.states, "a")
			if v.Lost != c.lost || v.Duplicated != c.duplicated {
				t.Errorf("lost %d, duplicated %d, want %d and %d: %q", v.Lost, v.Duplicated, c.lost, c.duplicated,
					v.Findings)
			}
			if (len(v.Findings) > 0) != (c.lost+c.duplicated > 0) {
				t.Errorf("findings: %q", v.Findings)
			}
		})
	}
}

func TestJudgeSaysWhat(t *testing.T) {
	t.Parallel()
	accounts := map[string]account{
		"ann": {Given: set(1, 2, 4), Repeated: 1},
		"ben": {Given: upTo(9)},
	}
	states := map[string]map[string]uint64{"a": {"ann": 4, "ben": 8}, "b": {"ann": 4, "ben": 7}}
	want := verdict{Lost: 3, Duplicated: 1, Findings: []string{
		"ann: 1 numbers were given more than once",
		"ann: 1 of the numbers up to 4 were given to nobody",
		"ben: 1 numbers up to 9 were given, but a has counted to 8 only",
		"ben: b has counted to 7, a to 8",
	}}
	if diff := cmp.Diff(want, judge(accounts, states, "a")); diff != "" {
		t.Error(diff)
	}

	for i := range 30 {
		accounts[fmt.Sprintf("carl-%02d", i)] = account{Given: set(2)}
	}
	v := judge(accounts, nil, "")
	if len(v.Findings) != maxFindings || len(v.Findings)+v.More != 32 {
		t.Errorf("%d findings and %d more", len(v.Findings), v.More)
	}
}

func TestLedger(t *testing.T) {
	t.Parallel()
	l := newLedger()
	for _, n := range []uint64{1, 2, 2, 5, 4} {
		l.begin("ann")
		l.given("ann", n)
	}
	if floor := l.begin("ann"); floor != 5 {
		t.Errorf("the floor is %d", floor)
	}
	l.unknown("ann", 5)
	l.unknown("ben", l.begin("ben"))
	got := l.copy()
	l.given("ann", 3) // not in the copy
	want := map[string]account{
		"ann": {Given: numbers{{1, 2}, {4, 5}}, Repeated: 1, Unknown: []uint64{5}},
		"ben": {Unknown: []uint64{0}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// It travels to the parent.
	b, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	var back map[string]account
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, back); diff != "" {
		t.Error(diff)
	}
}
