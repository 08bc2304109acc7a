package orderstate

import (
	"fmt"
	"maps"
)

// Takeover is a backup that was elected, from its election until the epoch's first orderNum is fixed: R12, steps 1 to 3. What comes after (the gate) is
// the Primary's: Primary.Held.
//
// Invariants:
//
//	T1  N isn't fixed before every in-sync peer has answered or was evicted, and, below Stable, every session has answered or was given up
//	T2  every entry up to N is held with its message, and none of them is void
type Takeover struct {
	*Backup
	peers    map[Replica]bool // in-sync, and neither answered nor evicted yet
	inSync   map[Replica]bool // answered
	sessions map[Session]bool // not answered yet, nor given up
}

// Elected begins a takeover in epoch e, which the caller was elected in. It waits for the in-sync peers and, below Stable, for every session that it knows; at Stable
// (waitForSessions false) every order that a caller saw is held by every in-sync replica, so peers are enough.
func (b *Backup) Elected(e Epoch, peers []Replica, waitForSessions bool) (*Takeover, error) {
	if e <= b.acknowledged {
		return nil, &FencedError{Epoch: e, Acknowledged: b.acknowledged}
	}
	b.acknowledged, b.started = e, false
	t := &Takeover{Backup: b, peers: map[Replica]bool{}, inSync: map[Replica]bool{}, sessions: map[Session]bool{}}
	for _, p := range peers {
		t.peers[p] = true
	}
	if waitForSessions {
		for s := range b.sessions {
			t.sessions[s] = true
		}
	}
	return t, nil
}

// PeerKnows merges a part of what a peer answers: its table of epochs first, then its order.
func (t *Takeover) PeerKnows(starts []Start, order []Run) error {
	for _, s := range starts {
		if s.Epoch >= t.acknowledged {
			return &FencedError{Epoch: t.acknowledged, Acknowledged: s.Epoch}
		}
		if err := t.epochs.Learn(s); err != nil {
			return err
		}
	}
	return t.merge(order)
}

// PeerAnswered ends a peer's answer; it stays in-sync.
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

// SessionKnows merges announcements that a session still holds (its pendingRemoteOrder).
func (t *Takeover) SessionKnows(order []Run) error { return t.merge(order) }

// SessionAnswered: a session has acknowledged the epoch, and sent all that it has, or was given up.
func (t *Takeover) SessionAnswered(n Session) { delete(t.sessions, n) }

// merge takes entries of any earlier epoch; the table decides which are void, and among the others the highest epoch wins (R12.3).
func (t *Takeover) merge(order []Run) error {
	for _, r := range order {
		if r.Epoch >= t.acknowledged {
			return fmt.Errorf("orderstate: run %v is from an epoch that hasn't begun", r.Envelope)
		}
		if err := t.epochs.Learn(Start{r.Epoch, r.EpochFirst}); err != nil {
			return err
		}
		if err := t.insert(r); err != nil {
			return err
		}
	}
	return nil
}

// Waiting returns whom the takeover waits for.
func (t *Takeover) Waiting() (peers []Replica, sessions []Session) {
	return sorted(maps.Keys(t.peers)), sorted(maps.Keys(t.sessions))
}

// Missing returns messages that are ordered and not held, to be fetched from peers (¶47), up to limit. Unlike Lacks it counts what lies behind a gap in messages, not in orderNums.
func (t *Takeover) Missing(limit int) []MessageID { return t.Lacks(limit) }

// Fix is R12.3: N is the longest prefix with no gap and every message present; the epoch starts at N+1. The caller has no one left to wait for. It returns the new primary: (stable, N]
// is its pendingSourceOrder, as first ordered, and members are the peers that answered. Only then may what is up to N be executed: Backup.Next still hands it out.
func (t *Takeover) Fix(pendingSourceOrderMax int) (*Primary, error) {
	if len(t.peers) > 0 || len(t.sessions) > 0 {
		return nil, fmt.Errorf("orderstate: N can't be fixed: %d peers and %d sessions haven't answered", len(t.peers), len(t.sessions))
	}
	for k, o := range t.pendingDestOrder {
		if t.epochs.Void(o.Epoch, k) {
			delete(t.pendingDestOrder, k)
		}
	}
	for _, o := range t.Above(t.cut) {
		if t.epochs.Void(o.Epoch, o.OrderNum) {
			return nil, &DivergedError{o.OrderNum}
		}
	}
	t.release()
	clear(t.pendingDestOrder)
	p, err := NewPrimary(t.History, t.acknowledged, t.stable, sorted(maps.Keys(t.inSync)), pendingSourceOrderMax)
	if err != nil {
		return nil, err
	}
	t.started = true
	return p, nil
}
