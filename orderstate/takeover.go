package orderstate

import (
	"fmt"
	"maps"
	"slices"
)

// Takeover is a backup that was elected, from its election until the epoch's first orderNum is
// fixed: R12, steps 1 to 3. What comes after (the gate) is the Primary's: Primary.Held.
//
// Invariants:
//
//	T1  N isn't fixed before every in-sync peer has answered or was evicted, and, below Stable,
//	    every session has answered, was given up, or is
//	    detached here, and nothing that is lacked is its (R11, R12.2)
//	T2  every entry up to N is held with its message, and none of them is void
//	T3  the primary that comes of it is one of the epoch in which this replica was elected (I7)
type Takeover struct {
	*Backup
	epoch  Epoch
	peers  map[Replica]bool // in-sync, and neither answered nor evicted yet
	inSync map[Replica]bool // answered
	// not answered yet, nor given up; false for one that is detached here, and waited for only
	// while a message of its is lacked
	sessions map[Session]bool
	fixed    bool
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
	t := &Takeover{Backup: b, epoch: e, peers: map[Replica]bool{}, inSync: map[Replica]bool{},
		sessions: map[Session]bool{}}
	for _, p := range peers {
		if without(r122Peers) {
			t.inSync[p] = true
			continue
		}
		t.peers[p] = true
	}
	if waitForSessions && !without(r122Sessions) {
		for _, n := range b.Sessions() {
			t.sessions[n] = !b.Detached(n)
		}
	}
	return t, nil
}

// Receive refuses announcements of its own epoch, in which there are none yet; for others it is
// Backup.Receive.
func (t *Takeover) Receive(r Run) error {
	if r.Epoch == t.epoch {
		return nil
	}
	return t.Backup.Receive(r)
}

// Start refuses to be told where its own epoch starts; for others it is Backup.Start.
func (t *Takeover) Start(e Epoch, first OrderNum, earlier []Start) error {
	if e == t.epoch {
		return fmt.Errorf("orderstate: epoch %d is this replica's to start", e)
	}
	return t.Backup.Start(e, first, earlier)
}

// PeerKnows merges a part of what a peer answers: its table of epochs, and its order. It changes
// nothing once N is fixed. A FencedError says that there is a newer epoch; a DivergedError that
// what is held here isn't in the order, so that this replica can't take over.
func (t *Takeover) PeerKnows(starts []Start, order []Run) error {
	for _, s := range starts {
		if s.Epoch >= t.epoch {
			return &FencedError{Epoch: t.epoch, Acknowledged: s.Epoch}
		}
	}
	if t.fixed {
		return nil
	}
	if err := t.learn(starts...); err != nil {
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

// SessionKnows merges announcements that a session still holds (its pendingRemoteOrder). It changes
// nothing once N is fixed. Errors as of PeerKnows.
func (t *Takeover) SessionKnows(order []Run) error {
	if t.fixed {
		return nil
	}
	return t.merge(order)
}

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
		if err := t.learn(Start{r.Epoch, r.EpochFirst}); err != nil {
			return err
		}
		if err := t.insert(r); err != nil {
			return err
		}
	}
	return nil
}

// Waiting returns whom the takeover waits for, sorted.
func (t *Takeover) Waiting() (peers []Replica, sessions []Session) {
	lacked := map[Session]bool{}
	for _, id := range t.Lacks(len(t.pendingDestOrder)) {
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

// Missing returns messages that are ordered and not held, to be fetched from peers (¶47), up to
// limit: Lacks, of the merged order.
func (t *Takeover) Missing(limit int) []MessageID { return t.Lacks(limit) }

// Fix is R12.3: N is the longest prefix with no gap and every message present; the epoch starts at
// N+1. The caller has no one left to wait for. It returns the new primary: (stable, N] is its
// pendingSourceOrder, as first ordered, and members are the peers that answered. Only then may what
// is up to N be executed: Backup.Next still hands it out. The two share their History: of the
// takeover, only Next and Taken are of use afterwards. A FencedError says that a newer epoch was
// acknowledged meanwhile, a DivergedError that what is held here can't be the order's.
func (t *Takeover) Fix(pendingSourceOrderMax int) (*Primary, error) {
	peers, sessions := t.Waiting()
	switch {
	case t.acknowledged != t.epoch:
		return nil, &FencedError{Epoch: t.epoch, Acknowledged: t.acknowledged}
	case t.fixed:
		return nil, fmt.Errorf("orderstate: epoch %d is fixed already", t.epoch)
	case len(peers) > 0 || len(sessions) > 0:
		return nil, fmt.Errorf("orderstate: N can't be fixed: %d peers and %d sessions haven't answered", len(peers),
			len(sessions))
	}
	if err := t.adopt(t.epochs); err != nil {
		return nil, err
	}
	if err := t.release(); err != nil {
		return nil, err
	}
	p, err := NewPrimary(t.History, t.epoch, t.stable, sorted(maps.Keys(t.inSync)), pendingSourceOrderMax)
	if err != nil {
		return nil, err
	}
	clear(t.pendingDestOrder)
	t.named = nil
	clear(t.attached)
	for n := range t.early {
		t.settle(n)
	}
	t.fixed, t.started = true, true
	return p, nil
}

// Clone returns an independent copy. After Fix, the takeover's copy doesn't share its History with
// the primary's.
func (t *Takeover) Clone() *Takeover {
	c := *t
	c.Backup = t.Backup.Clone()
	c.peers, c.inSync, c.sessions = maps.Clone(t.peers), maps.Clone(t.inSync), maps.Clone(t.sessions)
	return &c
}
