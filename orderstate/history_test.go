package orderstate

import (
	"math"
	"testing"
)

func TestLeapingMarkKeepsOrderedMessages(t *testing.T) {
	p := newPrimary(t, []Replica{"S2"}, 'a')
	order(t, p, message(1, 1, 0))
	order(t, p, message(1, 2, 1))
	order(t, p, message(1, 100, 99))
	for _, q := range []SeqNum{1, 2, 100} {
		if _, ok := p.h.Has(MessageID{1, q}); !ok {
			t.Errorf("message 1/%d is ordered above the cut, and gone", q)
		}
	}
}

func TestMarkAtTheEndOfNumbers(t *testing.T) {
	p, b := newPrimary(t, []Replica{"S2"}, 'a'), newBackup(t)
	order(t, p, message(1, math.MaxUint64-1, math.MaxUint64-2))
	feed(t, b, p, 0)
	// No honest primary orders this, since it is answered by itself.
	m := message(1, math.MaxUint64, math.MaxUint64)
	b.Message(m)
	_, _ = b.Receive(Run{Envelope{1, 1, 3, 1},
		[]OrderInfo{{OrderNum: 3, Session: 1, SeqNum: m.SeqNum, Digest: m.Digest, First: 1, Time: 1}}})
}

func TestSnapshotIsAsOfItsTurn(t *testing.T) {
	p := newPrimary(t, []Replica{"S2"}, 'a', 'b') // 1, 2
	order(t, p, message(1, 1, 0))                 // 3
	k := p.Last()
	order(t, p, message(1, 2, 1)) // 4
	order(t, p, message(2, 1, 0)) // 5
	p.Expire(2, 1)                // 6
	order(t, p, message(1, 3, 2)) // 7
	h, err := NewHistory(k, 1, p.History().Starts(), p.h.SessionStates(k))
	must(t, err)
	joiner, err := NewBackup(h, 1, 1)
	must(t, err)
	feed(t, joiner, p, k)
	if joiner.Last() != p.Last() {
		t.Errorf("from the snapshot at %d the joiner gets to %d of %d; it lacks %v", k, joiner.Last(), p.Last(),
			joiner.Lacks(10))
	}
}
