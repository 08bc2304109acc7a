//go:build linux

package chaos

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/e2e/cluster"
	"github.com/understudy-rpc/understudy/e2e/journal"
)

// A loss that callers are told of is a broken promise unless two faults explain it, and always at
// Stable.
func TestTwoFaults(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		level   understudy.Level
		phase   phase
		excused bool
	}{
		{"none", understudy.Reflected, phase{}, false},
		{"a replica", understudy.Reflected, phase{replicaHurt: true}, false},
		{"a client", understudy.Reflected, phase{clientKilled: true}, false},
		{"both", understudy.Reflected, phase{replicaHurt: true, clientKilled: true}, true},
		{"both, at Stable", understudy.Stable, phase{replicaHurt: true, clientKilled: true}, false},
		{"a client away for a moment", understudy.Direct,
			phase{replicaHurt: true, clientAway: time.Second, healed: 2 * time.Second}, false},
		{"a client away for long", understudy.Direct,
			phase{replicaHurt: true, clientAway: time.Second, healed: 3 * time.Second}, true},
	} {
		p := test.phase
		p.w = &world{level: test.level, ledgers: []*cluster.Ledger{{Client: "x", Calls: []journal.Call{
			{Call: 1, Code: codes.DataLoss, End: 1},
			{Call: 2, Place: 1, End: 3},
			{Call: 3, Code: codes.DataLoss, End: 4},
		}}}}
		if broken := p.failures(2); test.excused != (len(broken) == 0) || test.excused != (p.w.unmasked == 0) {
			t.Errorf("%s: %d calls, %v", test.name, p.w.unmasked, broken)
		}
	}
}

// What all replicas had executed stays where it was, whatever clients were told.
func TestUndone(t *testing.T) {
	t.Parallel()
	x := func(call uint64) journal.Entry { return journal.Entry{Client: "x", Call: call} }
	w := &world{}
	for _, step := range []struct {
		history []journal.Entry
		undone  int
	}{
		{[]journal.Entry{x(1), x(2)}, 0},
		{[]journal.Entry{x(1), x(2), x(3)}, 0},
		{[]journal.Entry{x(1), x(3), x(2)}, 2},
		{[]journal.Entry{x(1), x(3)}, 3},
	} {
		w.judge(&journal.Dump{Entries: step.history})
		if w.undone != step.undone {
			t.Errorf("%v: %d undone, want %d", step.history, w.undone, step.undone)
		}
	}
}

// What may be drawn is what has a weight; by its name, anything.
func TestNamed(t *testing.T) {
	t.Parallel()
	all, err := named(nil)
	if err != nil || len(all) == 0 {
		t.Fatal(all, err)
	}
	for _, k := range all {
		if k.weight == 0 {
			t.Errorf("%s is drawn", k.name)
		}
	}
	two, err := named([]string{keysDeleted, stepped})
	if err != nil || len(two) != 2 || two[0].weight < 1 || two[0].name != keysDeleted {
		t.Error(two, err)
	}
	if _, err := named([]string{"no such"}); err == nil {
		t.Error("an unknown fault is no error")
	}
}

// Nobody's incarnation may end by what is done to etcd or to clients alone.
func TestSpares(t *testing.T) {
	t.Parallel()
	for _, k := range kinds {
		want := strings.HasPrefix(k.name, "etcd ") || slices.Contains(
			[]string{"client killed", "client stopped", "keys deleted", "twin started"}, k.name)
		if k.spares() != want {
			t.Errorf("%s: %v", k.name, k.spares())
		}
	}
}
