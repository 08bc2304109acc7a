package orderstate

import (
	"fmt"
	"maps"
	"slices"
)

// Takeover is a backup that was elected, from its election until the epoch's first orderNum is
// fixed: R12, steps 1 to 3. What comes after (the gate) is the Primary's: Primary.Held. It owns the
// Backup that it was, and logs as that does; but once it has answered a newer epoch, nothing comes
// of it, and it follows as a backup that can't be elected.
//
// Invariants:
//
//	T1  N isn't fixed before every in-sync peer has answered or was evicted, and, below Stable,
//	    every session has answered, was given up, or is detached here, and nothing that is
//	    lacked is its (R11, R12.2)
//	T2  every entry up to N is held with its message, and none of them is void
//	T3  the primary that comes of it is one of the epoch in which this replica was elected (I7)
type Takeover struct {
	b      *Backup // nil once N is fixed
	epoch  Epoch
	peers  map[Replica]bool // in-sync, and neither answered nor evicted yet
	inSync map[Replica]bool // answered
	// not answered yet, nor given up; false for one that is detached here, and waited for only
	// while a message of its is lacked
	sessions map[Session]bool
}

// Elected begins a takeover in epoch e, which the caller was elected in. It waits for the in-sync
// peers and, below Stable, for every session that it knows; at Stable (waitForSessions false) every
// order that a caller saw is held by every in-sync replica, so peers are enough. A session that it
// doesn't know needn't be waited for: no reply that depends on it has left (R11). One that is
// detached here is waited for only while an announcement names a message of its that is lacked
// (R12.2): all that its replies depend on is here. The takeover owns the backup from now on. A
// FencedError, or a DivergedError, changes nothing.
func (b *Backup) Elected(e Epoch, peers []Replica, waitForSessions bool) (*Takeover, error) {
	if e <= b.acknowledged {
		return nil, &FencedError{Epoch: e, Acknowledged: b.acknowledged}
	}
	if b.diverged != 0 {
		return nil, &DivergedError{b.diverged}
	}
	b.acknowledged, b.started = e, false
	t := &Takeover{b: b, epoch: e, peers: map[Replica]bool{}, inSync: map[Replica]bool{},
		sessions: map[Session]bool{}}
	for _, p := range peers {
		if without(r122Peers) {
			t.inSync[p] = true
			continue
		}
		t.peers[p] = true
	}
	if waitForSessions && !without(r122Sessions) {
		for _, n := range b.h.Sessions() {
			t.sessions[n] = !b.Detached(n)
		}
	}
	return t, nil
}

// Receive refuses announcements of its own epoch, in which there are none yet; for others it is
// Backup.Receive.
func (t *Takeover) Receive(r Run) (Moved, error) {
	if r.Epoch == t.epoch {
		return Moved{}, nil
	}
	return t.b.Receive(r)
}

// Start refuses to be told where its own epoch starts; for others it is Backup.Start.
func (t *Takeover) Start(e Epoch, first OrderNum, earlier []Start) (Moved, error) {
	if e == t.epoch {
		return Moved{}, fmt.Errorf("orderstate: epoch %d is this replica's to start", e)
	}
	return t.b.Start(e, first, earlier)
}

// PeerKnows merges a part of what a peer answers: its table of epochs, and its order. A FencedError
// says that there is a newer epoch; a DivergedError that
// what is held here isn't in the order, so that this replica can't take over.
func (t *Takeover) PeerKnows(starts []Start, order []Run) error {
	for _, s := range starts {
		if s.Epoch >= t.epoch {
			return &FencedError{Epoch: t.epoch, Acknowledged: s.Epoch}
		}
	}
	if err := t.b.learn(starts...); err != nil {
		return err
	}
	return t.merge(order)
}

// PeerAnswered ends a peer's answer; it stays in-sync. What it may have executed must be in the new
// order, so the caller has asked it for Missing by then, and logged (Message) what it had.
func (t *Takeover) PeerAnswered(r Replica) {
	if t.peers[r] {
		delete(t.peers, r)
		t.inSync[r] = true
	}
}

// Evicted: a peer was taken out of in-sync in etcd.
func (t *Takeover) Evicted(r Replica) {
	delete(t.peers, r)
	delete(t.inSync, r)
}

// SessionKnows merges announcements that a session still holds (its pendingRemoteOrder). Errors as
// of PeerKnows.
func (t *Takeover) SessionKnows(order []Run) error { return t.merge(order) }

// SessionAnswered: a session has acknowledged the epoch, and sent all that it has, or was given up.
func (t *Takeover) SessionAnswered(n Session) { delete(t.sessions, n) }

// merge takes entries of any earlier epoch; the table decides which are void, and among the others
// the highest epoch wins (R12.3).
func (t *Takeover) merge(order []Run) error {
	for _, r := range order {
		if r.Epoch >= t.epoch {
			return fmt.Errorf("orderstate: run %v is from an epoch that hasn't begun", r.Envelope)
		}
		if err := r.check(); err != nil {
			return err
		}
		if err := t.b.learn(Start{r.Epoch, r.EpochFirst}); err != nil {
			return err
		}
		if err := t.b.insert(r); err != nil {
			return err
		}
	}
	return nil
}

// Waiting returns whom the takeover waits for, sorted.
func (t *Takeover) Waiting() (peers []Replica, sessions []Session) {
	lacked := map[Session]bool{}
	for _, id := range t.Lacks(len(t.b.pendingDestOrder)) {
		lacked[id.Session] = true
	}
	for n, attached := range t.sessions {
		if attached || lacked[n] && !without(r122Lacked) {
			sessions = append(sessions, n)
		}
	}
	slices.Sort(sessions)
	return sorted(maps.Keys(t.peers)), sessions
}

// Fix is R12.3: N is the longest prefix with no gap and every message present; the epoch starts at
// N+1. The caller has no one left to wait for. It returns the new primary: (stable, N] is its
// pendingSourceOrder, as first ordered, and members are the peers that answered. Only then may what
// is up to N be executed: the tail hands it out. Nothing may be asked of the takeover afterwards. A
// FencedError says that a newer epoch was acknowledged meanwhile, a DivergedError that what is held
// here can't be the order's.
func (t *Takeover) Fix(pendingSourceOrderMax int) (*Primary, *Tail, error) {
	if t.b == nil {
		return nil, nil, fmt.Errorf("orderstate: epoch %d is fixed already", t.epoch)
	}
	switch peers, sessions := t.Waiting(); {
	case t.b.acknowledged != t.epoch:
		return nil, nil, &FencedError{Epoch: t.epoch, Acknowledged: t.b.acknowledged}
	case len(peers) > 0 || len(sessions) > 0:
		return nil, nil, fmt.Errorf("orderstate: N can't be fixed: %d peers and %d sessions haven't answered",
			len(peers), len(sessions))
	}
	b := t.b
	if err := b.adopt(b.h.epochs); err != nil {
		return nil, nil, err
	}
	if err := b.release(); err != nil {
		return nil, nil, err
	}
	p, err := NewPrimary(b.h, t.epoch, b.stable, sorted(maps.Keys(t.inSync)), pendingSourceOrderMax)
	if err != nil {
		return nil, nil, err
	}
	for n := range b.early {
		b.endEarly(n)
	}
	tail := newTail(b.h, b.executed)
	*b, t.b = Backup{}, nil // the history is the primary's
	return p, tail, nil
}

// Clone returns an independent copy, before Fix.
func (t *Takeover) Clone() *Takeover {
	c := *t
	c.b = t.b.Clone()
	c.peers, c.inSync, c.sessions = maps.Clone(t.peers), maps.Clone(t.inSync), maps.Clone(t.sessions)
	return &c
}

// Tail is what was ordered before an epoch, and isn't executed yet where that was taken over.
type Tail struct {
	left []ready
}

// ready is an entry with its message.
type ready struct {
	entry   Ordered
	message Message
}

// newTail is the order above executed.
func newTail(h *History, executed OrderNum) *Tail {
	t := &Tail{}
	for _, o := range h.Above(executed) {
		next := ready{entry: o}
		if o.Kind.HasMessage() {
			next.message = h.messages.held[o.Message()]
		}
		t.left = append(t.left, next)
	}
	return t
}

// Next takes the next entry, ready to be executed, with its message, if it has one.
func (t *Tail) Next() (Ordered, Message, bool) {
	if len(t.left) == 0 {
		return Ordered{}, Message{}, false
	}
	next := t.left[0]
	t.left[0] = ready{}
	t.left = t.left[1:]
	return next.entry, next.message, true
}

// What a takeover does as the backup that it is.

// History is what this takeover holds, to be read.
func (t *Takeover) History() *History { return t.b.h }

// Last is Backup.Last.
func (t *Takeover) Last() OrderNum { return t.b.Last() }

// Epoch is the highest epoch that was acknowledged: its own, or a newer one that was answered.
func (t *Takeover) Epoch() Epoch { return t.b.acknowledged }

// Message is Backup.Message.
func (t *Takeover) Message(m Message) (held bool, moved Moved) { return t.b.Message(m) }

// Announces is Backup.Announces.
func (t *Takeover) Announces(m Message) bool { return t.b.Announces(m) }

// Lacks is Backup.Lacks, of the merged order: what is to be fetched from peers (¶47).
func (t *Takeover) Lacks(limit int) []MessageID { return t.b.Lacks(limit) }

// Executed is Backup.Executed: what Next handed out before the election may be executed since.
func (t *Takeover) Executed(k OrderNum) { t.b.Executed(k) }

// What a takeover does when a newer epoch is begun: it answers, and follows. Before that starts
// there is nothing in these.

// Answer is Backup.Answer: this replica won't lead the epoch in which it was elected.
func (t *Takeover) Answer(e Epoch) ([]Ordered, error) { return t.b.Answer(e) }

// LearnStable is Backup.LearnStable.
func (t *Takeover) LearnStable(e Epoch, stable OrderNum) Moved { return t.b.LearnStable(e, stable) }

// Next is Backup.Next.
func (t *Takeover) Next() (Ordered, Message, bool) { return t.b.Next() }

// Acknowledgement is Backup.Acknowledgement.
func (t *Takeover) Acknowledgement() (Epoch, OrderNum, bool) { return t.b.Acknowledgement() }

// Attach is Backup.Attach.
func (t *Takeover) Attach(n Session) bool { return t.b.Attach(n) }

// Confirmed is Backup.Confirmed.
func (t *Takeover) Confirmed(n Session, number uint64, upTo OrderNum) { t.b.Confirmed(n, number, upTo) }
