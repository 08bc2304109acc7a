package orderstate

import (
	"errors"
	"testing"
)

func TestSnapshotIsNotStable(t *testing.T) {
	p := newPrimary(t, []Replica{"S2", "S3"}, 'a')
	order(t, p, message(1, 1, 0))
	h, err := NewHistory(p.Last(), 1, p.History().Starts(), p.h.SessionStates(p.Last()))
	must(t, err)
	joiner, err := NewBackup(h, 1, 1)
	must(t, err)
	if joiner.Stable() > p.Stable() {
		t.Errorf("the joiner says %d is stable, the primary %d", joiner.Stable(), p.Stable())
	}
	taken, err := joiner.Elected(2, []Replica{"S2"}, false)
	must(t, err)
	taken.PeerAnswered("S2")
	np, _, err := taken.Fix(32)
	must(t, err)
	if np.Held() {
		t.Errorf("the gate is open, and S2 has acknowledged nothing")
	}
	if o, ok := np.Unpushed(); ok {
		t.Errorf("%v is to be pushed, and nothing is ordered yet", o)
	}
	order(t, np, message(1, 2, 0))
	if o, ok := np.Unpushed(); !ok || o.OrderNum != np.Last() {
		t.Errorf("the oldest to be pushed is %v", o)
	}
}

func TestReturningSessionIsTold(t *testing.T) {
	p := newPrimary(t, nil, 'a')
	order(t, p, message(1, 1, 0)) // 2
	s := NewSource()
	s.NewEpoch(1)
	must(t, s.Start(1, 1, 0, nil))
	must(t, s.Receive(Announcement{Envelope: Envelope{1, 1, 1, 3}}))
	if d := s.Accept(Reply{Epoch: 1, OrderNum: 3}); d != Accept {
		t.Fatal(d)
	}
	// 3 dies with its primary.
	p2, err := NewPrimary(p.h, 2, 2, nil, 32)
	must(t, err)
	order(t, p2, message(1, 8, 0)) // 3
	p3, err := NewPrimary(p2.h, 3, 3, nil, 32)
	must(t, err)
	order(t, p3, message(1, 9, 0)) // 4
	p3.Executed(4)

	s.NewEpoch(3)
	var lost *LostError
	if err := s.Start(3, p3.First(), p3.Stable(), p3.History().Starts()); !errors.As(err, &lost) || lost.OrderNum != 3 {
		t.Errorf("told %v", err)
	}
}

func TestFencedTakeoverIsOver(t *testing.T) {
	b := newBackup(t)
	taken, err := b.Elected(2, nil, false)
	must(t, err)
	if _, err := taken.Answer(3); err != nil {
		t.Fatal(err)
	}
	var fenced *FencedError
	if p, _, err := taken.Fix(32); !errors.As(err, &fenced) {
		t.Errorf("primary of epoch %d: %v", p.Epoch(), err)
	}
}

func TestTakeoverHoldsMessagesOfSessionsItLearns(t *testing.T) {
	p := newPrimary(t, []Replica{"S2", "S3"}, 'a')
	order(t, p, message(1, 1, 0))
	taken, err := newBackup(t).Elected(2, []Replica{"S3"}, false)
	must(t, err)
	must(t, taken.PeerKnows(p.History().Starts(), []Run{p.Push(0)}))
	for range 3 {
		for _, id := range taken.Lacks(10) {
			m, _ := p.h.Has(id)
			taken.Message(m)
		}
	}
	if missing := taken.Lacks(10); len(missing) > 0 {
		t.Errorf("was sent %v, and misses it", missing)
	}
	taken.PeerAnswered("S3")
	np, _, err := taken.Fix(32)
	must(t, err)
	if np.First() != 3 {
		t.Errorf("the epoch starts at %d", np.First())
	}
	if _, ok := np.h.Has(MessageID{1, 1}); !ok {
		t.Error("1/1 is ordered and gone")
	}
}

// R12.4: that all up to N was stable before isn't enough: every peer must know where the epoch
// starts, too.
func TestGateWaitsForEveryPeer(t *testing.T) {
	p, b := newPrimary(t, []Replica{"S2", "S3"}, 'a'), newBackup(t)
	feed(t, b, p, 0)
	b.LearnStable(1, 1)
	taken, err := b.Elected(2, []Replica{"S3", "S4"}, false)
	must(t, err)
	taken.PeerAnswered("S3")
	taken.PeerAnswered("S4")
	np, _, err := taken.Fix(32)
	must(t, err)
	if np.Stable() != 1 || np.First() != 2 {
		t.Fatal(np.Stable(), np.First())
	}
	for _, r := range []Replica{"S3", "S4"} { // so that no reply waits for what they acknowledge
		np.Attach(r, 1)
	}
	if np.Held() {
		t.Error("the gate is open, and nobody has acknowledged")
	}
	moved, err := np.Acknowledge("S3", 2, 1)
	must(t, err)
	if np.Held() || moved != (Moved{}) {
		t.Error("the gate is open, and S4 hasn't acknowledged")
	}
	if moved = np.Clone().Release("S4"); !moved.Gate {
		t.Error("nobody is told that the gate may open, S4 being evicted")
	}
	moved, err = np.Acknowledge("S4", 2, 1)
	must(t, err)
	if !np.Held() || !moved.Gate {
		t.Error("the gate stays closed, or nobody is told that it may open")
	}
	if np.Require("S5"); !np.Held() {
		t.Error("a joiner closes the gate")
	}
}

// An epoch that starts at 1, with nothing before it: an acknowledgement of nothing is one.
func TestGateOfAnEmptyGroup(t *testing.T) {
	np, err := NewPrimary(newHistory(t), 2, 0, []Replica{"S3"}, 32)
	must(t, err)
	if np.Held() {
		t.Error("the gate is open")
	}
	moved, err := np.Acknowledge("S3", 2, 0)
	must(t, err)
	if !np.Held() || !moved.Gate {
		t.Error("the gate stays closed")
	}
}
