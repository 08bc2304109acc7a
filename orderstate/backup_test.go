package orderstate

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"testing"
)

func TestSnapshotBeyondTheNewEpochHasDiverged(t *testing.T) {
	p := newPrimary(t, []Replica{"S2", "S3"}, 'a')
	order(t, p, message(1, 1, 0)) // 2
	order(t, p, message(1, 2, 0)) // 3
	join := func() *Backup {
		h, err := NewHistory(3, 1, p.History().Starts(), p.h.SessionStates(3))
		must(t, err)
		b, err := NewBackup(h, 1, 1)
		must(t, err)
		return b
	}
	var diverged *DivergedError

	b := join()
	_, err := b.Answer(2)
	must(t, err)
	if _, err := b.Start(2, 3, []Start{{1, 1}}); !errors.As(err, &diverged) {
		t.Errorf("holding 3, it follows an epoch that starts at 3: %v", err)
	}
	if _, k, ok := b.Acknowledgement(); ok {
		t.Errorf("and acknowledges %d in it", k)
	}

	b = join()
	_, err = b.Answer(2)
	must(t, err)
	taken, err := b.Elected(3, []Replica{"S3"}, false)
	must(t, err)
	err = taken.PeerKnows([]Start{{1, 1}, {2, 3}}, nil)
	taken.PeerAnswered("S3")
	if err == nil {
		_, _, err = taken.Fix(32)
	}
	if !errors.As(err, &diverged) {
		t.Errorf("holding a void 3, it becomes primary: %v", err)
	}

	// Nor does an announcement that overtakes the start hide it.
	b = join()
	_, err = b.Answer(3)
	must(t, err)
	moves(t)(b.Receive(Run{Envelope{3, 5, 4, 1}, []OrderInfo{{OrderNum: 4, Session: 1, SeqNum: 9, First: 2}}}))
	if _, err := b.Start(3, 5, []Start{{1, 1}, {2, 3}}); !errors.As(err, &diverged) {
		t.Errorf("holding a void 3, it follows: %v", err)
	}

	// An older start that the snapshot's table had forgotten is no divergence.
	h, err := NewHistory(3, 1, []Start{{4, 3}}, p.h.SessionStates(3))
	must(t, err)
	b, err = NewBackup(h, 4, 3)
	must(t, err)
	_, err = b.Answer(5)
	must(t, err)
	moves(t)(b.Start(5, 4, []Start{{2, 2}, {4, 3}}))
}

func TestOpeningsInTheLogStay(t *testing.T) {
	p, b := newPrimary(t, []Replica{"S2"}, 'a'), newBackup(t)
	feed(t, b, p, 0)
	b.Message(opening(1, 'z'))
	if m, _ := b.h.Has(MessageID{1, 0}); m.Nonce != (Nonce{'a'}) {
		t.Errorf("the opening of session 1 has become %v", m)
	}
	b.Message(opening(2, 'z')) // 2 is something else
	order(t, p, message(1, 1, 0))
	feed(t, b, p, 0)
	if m, ok := b.h.Has(MessageID{2, 0}); ok {
		t.Errorf("%v is no opening, and held", m)
	}
	b.Executed(b.Last())
	b.Message(opening(1, 'z'))
	if m, ok := b.h.Has(MessageID{1, 0}); ok && m.Nonce == (Nonce{'z'}) {
		t.Errorf("%v", m)
	}
}

func TestExpiryHasNoMessage(t *testing.T) {
	p, b := newPrimary(t, []Replica{"S2"}, 'a'), newBackup(t)
	p.Expire(1, 1)
	feed(t, b, p, 0)
	b.Next()
	if o, m, ok := b.Next(); !ok || o.Kind != Expire || m != (Message{}) {
		t.Errorf("%v %v %v", o, m, ok)
	}
}

func TestNothingIsCutBeforeNextHasHandedItOut(t *testing.T) {
	p, b := newPrimary(t, []Replica{"S2"}, 'a'), newBackup(t)
	feed(t, b, p, 0)
	b.LearnStable(1, 1)
	b.Executed(1)
	if _, _, ok := b.Next(); !ok {
		t.Error("1 was never handed out")
	}
}

func TestRunThatOvertakesTheStartWaitsForIt(t *testing.T) {
	p, b := newPrimary(t, []Replica{"S2"}, 'a'), newBackup(t)
	_, err := b.Answer(2)
	must(t, err)
	p2, err := NewPrimary(p.h, 2, 0, []Replica{"S2"}, 32)
	must(t, err)
	b.Message(opening(1, 'a'))
	moves(t)(b.Receive(p2.Push(0)))
	if b.Last() != 0 {
		t.Errorf("grows to %d before the start (R12.1)", b.Last())
	}
	// Were there another election now, it would have to say where the epoch of this announcement
	// starts.
	known, err := b.Clone().Answer(3)
	must(t, err)
	if first, ok := b.h.StartOf(2); len(known) != 1 || known[0].Epoch != 2 || !ok || first != 2 {
		t.Errorf("answers %v, of an epoch that starts at %d", known, first)
	}
	moves(t)(b.Start(2, p2.First(), nil))
	if b.Last() != 1 {
		t.Errorf("holds %d", b.Last())
	}
}

func TestMalformedRunsAreRefused(t *testing.T) {
	entry := func(k OrderNum) OrderInfo { return OrderInfo{OrderNum: k, Session: 1, SeqNum: SeqNum(k), First: 1} }
	one := func(o OrderInfo) Run {
		o.OrderNum = 2
		return Run{Envelope{1, 1, 2, 1}, []OrderInfo{o}}
	}
	const last = math.MaxUint64
	for name, r := range map[string]Run{
		"count":           {Envelope{1, 1, 2, 2}, []OrderInfo{entry(2)}},
		"negative count":  {Envelope{1, 1, 2, -1}, nil},
		"hole":            {Envelope{1, 1, 2, 3}, []OrderInfo{entry(2), entry(3), entry(5)}},
		"zero":            {Envelope{1, 1, 0, 2}, []OrderInfo{entry(0), entry(1)}},
		"overflow":        {Envelope{1, 1, last, 2}, []OrderInfo{entry(last), entry(0)}},
		"last":            {Envelope{1, 1, last, 1}, []OrderInfo{entry(last)}},
		"first ordered":   one(OrderInfo{Session: 1, SeqNum: 1, First: 2}),
		"kind":            one(OrderInfo{Session: 1, SeqNum: 1, Kind: 9, First: 1}),
		"request 0":       one(OrderInfo{Session: 1, First: 1}),
		"opening of else": one(OrderInfo{Session: 3, Kind: Open, First: 1}),
		"opening 1":       one(OrderInfo{Session: 2, SeqNum: 1, Kind: Open, First: 1}),
		"expiry 1":        one(OrderInfo{Session: 1, SeqNum: 1, Kind: Expire, First: 1}),
		"future session":  one(OrderInfo{Session: 2, SeqNum: 1, First: 1}),
		"break":           one(OrderInfo{Session: 1, SeqNum: 1, Kind: Break, First: 1}),
		"mark":            one(OrderInfo{Session: 1, SeqNum: 1, Kind: Mark, First: 1}),
		"outcome":         one(OrderInfo{SeqNum: 1, Kind: Outcome, First: 1}),
		"timer":           one(OrderInfo{SeqNum: 1, Kind: Timer, First: 1}),
	} {
		b := newBackup(t)
		if _, err := b.Receive(r); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if n := len(b.pendingDestOrder); n > 0 {
			t.Errorf("%s: %d entries are pending", name, n)
		}
	}
}

func TestRightBytesStay(t *testing.T) {
	p, b := newPrimary(t, []Replica{"S2"}, 'a'), newBackup(t)
	feed(t, b, p, 0)
	order(t, p, message(1, 1, 0)) // 2
	order(t, p, message(1, 2, 0)) // 3
	moves(t)(b.Receive(p.Multicast(0, 1, 3, nil)))
	wrong := message(1, 2, 0)
	wrong.Digest++
	b.Message(wrong)
	b.Message(message(1, 2, 0))
	b.Message(wrong)
	b.Message(message(1, 1, 0))
	if b.Last() != 3 {
		t.Errorf("stays at %d, lacks %v", b.Last(), b.Lacks(9))
	}
}

func TestBackupOfACorruptPrimaryDiverges(t *testing.T) {
	for name, second := range map[string]OrderInfo{
		"twice":           {OrderNum: 3, Session: 1, SeqNum: 1, First: 1, Time: 1, Digest: message(1, 1, 0).Digest},
		"time goes back":  {OrderNum: 3, Session: 1, SeqNum: 2, First: 1, Time: 0, Digest: message(1, 2, 0).Digest},
		"expired unknown": {OrderNum: 3, Session: 2, Kind: Expire, First: 1, Time: 1},
	} {
		p, b := newPrimary(t, []Replica{"S2"}, 'a'), newBackup(t)
		order(t, p, message(1, 1, 0))
		feed(t, b, p, 0)
		b.Message(message(1, 2, 0))
		_, err := b.Receive(Run{Envelope{1, 1, 3, 1}, []OrderInfo{second}})
		var diverged *DivergedError
		if b.Last() != 2 || !errors.As(err, &diverged) {
			t.Errorf("%s: follows to %d: %v", name, b.Last(), err)
		}
	}
}

// What is stable is in every later epoch: an epoch that lacks it was begun by who wasn't in-sync,
// and is refused without giving up anything.
func TestEpochBelowTheStablePointIsRefused(t *testing.T) {
	p, b := newPrimary(t, []Replica{"S2"}, 'a'), newBackup(t)
	for q := range SeqNum(2) {
		b.Message(message(1, q+1, 0))
		order(t, p, message(1, q+1, 0)) // 2 and 3
	}
	feed(t, b, p, 0)
	b.LearnStable(1, 3)
	_, err := b.Answer(2)
	must(t, err)
	state := b.AppendTo(nil)
	var unstable *UnstableError
	_, err = b.Start(2, 3, []Start{{1, 1}})
	if !errors.As(err, &unstable) || unstable.Stable != 3 || unstable.In != 1 {
		t.Errorf("3 being stable, it follows an epoch that starts at 3: %v", err)
	}
	if _, err := b.Receive(Run{Envelope{2, 3, 3, 1},
		[]OrderInfo{{OrderNum: 3, Session: 1, SeqNum: 9, First: 2}}}); !errors.As(err, &unstable) {
		t.Errorf("nor does it take an announcement of that: %v", err)
	}
	if !bytes.Equal(state, b.AppendTo(nil)) {
		t.Error("the refusals have changed it")
	}
	moves(t)(b.Start(2, 5, []Start{{1, 1}}))
}

// A backup finds what it is told of an announced message, however much is pending, and whatever has
// come or gone since it was asked first.
func TestAnnouncesFindsAnnouncedMessages(t *testing.T) {
	p, b := newPrimary(t, []Replica{"S2"}, 'a'), newBackup(t)
	feed(t, b, p, 0)
	announced := func(when string, want ...SeqNum) {
		t.Helper()
		for q := SeqNum(1); q <= 4; q++ {
			m := message(1, q, 0)
			if got := b.Announces(m); got != slices.Contains(want, q) {
				t.Errorf("%s: message %d is announced: %v", when, q, got)
			}
			if m.Digest++; b.Announces(m) {
				t.Errorf("%s: message %d is announced with other bytes", when, q)
			}
		}
	}
	announced("nothing is pending")
	for q := SeqNum(1); q <= 3; q++ {
		order(t, p, message(1, q, 0))
	}
	moves(t)(b.Receive(p.Multicast(0, 1, 3, nil)))
	announced("two are", 1, 2)
	moves(t)(b.Receive(p.Multicast(0, 3, 4, nil)))
	announced("three are", 1, 2, 3)
	b.Message(message(1, 1, 0))
	announced("the first has come", 2, 3)
	b.Message(message(1, 3, 0))
	b.Message(message(1, 2, 0))
	announced("all have")
	must(t, b.Valid())
}
