package orderstate

import "maps"

// Detaching (R11) keeps a session that a backup can't hear from holding up that backup's takeover,
// and what such a session was told from being lost in it. A session begins detached at every
// backup: when it is opened, with each epoch, and with each new stream of a backup to the primary.
// A backup attaches it by saying so, and detaches it again:
//
//	backup                       primary                        backup
//	Attach  ───────────────────► Attach
//	Detach  ── number ─────────► Detach ── all up to upTo, ───► Confirmed
//	                                       then the confirmation
//
// A takeover of this backup waits for a session from before the backup's Attach to its Confirmed;
// all other sessions are Detached. Replies to it leave without this backup from the primary's
// Attach to its Detach; all others wait for it: MayLeave. This span lies within that one, whatever
// is delayed or lost: the backup has attached before it says so, and counts a confirmation only by
// the number of what it has asked last. One thing is the caller's to see to: what an old stream
// carried is never taken after what the new one has.
//
// So a takeover needn't wait for a session that is detached here. Whatever that session was told is
// held here, or is void:
//
//  1. In this epoch, while the primary took it for detached: its replies waited until what they
//     depend on was held here (MayLeave).
//  2. In this epoch, while the primary took it for attached, up to the Detach that was confirmed:
//     its replies depend on nothing above upTo, and all up to there is held here.
//  3. In an earlier epoch, below this epoch's first orderNum: all that is held here.
//  4. In an earlier epoch, from there on: it is void, and the session was told.
//
// For 3 and 4, marks of one epoch say nothing in the next. They are forgotten when that starts, and
// no session counts as detached until all that is below its start is held here. A backup that has
// answered a newer epoch, and hasn't learned where it starts, keeps the marks that it has: nobody
// was told anything in that epoch, since its gate waits for this backup (R12.4).

// attachment is a session that a takeover of this backup waits for, because the primary may take it
// for attached.
type attachment struct {
	// number is of the Detach that is to end it; 0 while the session is heard.
	number uint64
	// confirmed: replies wait for this backup, and those that were sent depend on nothing above
	// upTo.
	confirmed bool
	upTo      OrderNum
}

// unknownBase is where Backup.base is while no epoch has started: nobody holds so much.
const unknownBase = lastOrderNum + 1

// Attach says that this backup hears a session, and holds its past: it has logged what the session
// had sent before, and not yet forgotten. From now on a takeover waits for that session. The
// primary is told afterwards, and again on a new stream. It returns false, and there is nothing to
// tell, for a session that isn't open here, or before the epoch has started.
func (b *Backup) Attach(n Session) bool {
	if b.h.sessions.open(n) == nil || !b.started {
		return false
	}
	if !without(r11Attached) {
		b.attached[n] = attachment{}
	}
	return true
}

// Detach says that this backup can't hear a session any more. The primary is told the number, again
// on a new stream; until it has confirmed, a takeover waits for that session. It returns false, and
// there is nothing to tell, if the session isn't attached, or that was confirmed, or before the
// epoch has started.
func (b *Backup) Detach(n Session) (number uint64, ok bool) {
	a, ok := b.attached[n]
	if !ok || a.confirmed || !b.started {
		return 0, false
	}
	if a.number == 0 {
		b.detachings++ // never used again
		a = attachment{number: b.detachings, confirmed: without(r11Confirmed)}
		b.attached[n] = a
	}
	return a.number, true
}

// Attached returns the sessions that were attached in this epoch, and whose detaching isn't
// confirmed, sorted: what a new stream tells the primary again.
func (b *Backup) Attached() []Session {
	if !b.started {
		return nil
	}
	return sorted(func(yield func(Session) bool) {
		for n, a := range b.attached {
			if !a.confirmed && !yield(n) {
				return
			}
		}
	})
}

// Confirmed takes the primary's confirmation of what Detach asked as number. One of what isn't
// asked any more is passed over.
func (b *Backup) Confirmed(n Session, number uint64, upTo OrderNum) {
	a, ok := b.attached[n]
	if !ok || a.confirmed || (a.number != number || number == 0) && !without(r11Number) {
		return
	}
	if upTo <= b.Last() || without(r11Follows) {
		delete(b.attached, n)
		return
	}
	b.attached[n] = attachment{a.number, true, upTo}
}

// Detached says whether a takeover of this backup needn't wait for a session: all that the session
// was told depends on what is held here.
func (b *Backup) Detached(n Session) bool {
	if b.Last() < b.base && !without(r11BelowEpoch) {
		return false
	}
	a, ok := b.attached[n]
	return !ok || a.confirmed && a.upTo <= b.Last()
}

// Attach: a follower hears a session, and its takeover would wait for it. Who joins may say so
// before it is counted.
func (p *Primary) Attach(r Replica, n Session) Moved {
	if p.h.sessions.open(n) == nil || p.Hears(r, n) {
		return Moved{}
	}
	p.attach(r, n)
	_, member := p.members[r]
	return Moved{Leave: member}
}

func (p *Primary) attach(r Replica, n Session) {
	if p.attached[r] == nil {
		p.attached[r] = map[Session]bool{}
	}
	p.attached[r][n] = true
}

// Detach: a follower can't hear a session any more. From now on replies to the session wait for it,
// if it is a member. The caller sends it all that is ordered up to upTo, and the session's
// messages, then on the same stream the confirmation; later, every message of the session, as it is
// ordered. It returns false, and nothing is confirmed, for a session that isn't open.
func (p *Primary) Detach(r Replica, n Session) (upTo OrderNum, ok bool) {
	if p.h.sessions.open(n) == nil {
		return 0, false
	}
	p.detach(r, n)
	return p.Last(), true
}

// DetachAll begins anew with a follower, whose new stream begins: it attaches again whom it hears.
func (p *Primary) DetachAll(r Replica) {
	if !without(r11Stream) {
		delete(p.attached, r)
	}
}

func (p *Primary) detach(r Replica, n Session) {
	if delete(p.attached[r], n); len(p.attached[r]) == 0 {
		delete(p.attached, r)
	}
}

// Hears says whether a follower has attached a session.
func (p *Primary) Hears(r Replica, n Session) bool { return p.attached[r][n] }

// deaf says whether some session is detached at a member.
func (p *Primary) deaf(r Replica) bool { return len(p.attached[r]) < len(p.h.sessions.byNonce) }

// Attached says whether a session is attached at every member, so that no reply to it waits for
// one.
func (p *Primary) Attached(n Session) bool {
	for r := range p.members {
		if !p.Hears(r, n) {
			return false
		}
	}
	return true
}

// DetachedAt returns the members that don't hear a session, sorted: the primary sends them its
// messages, and its replies wait for them.
func (p *Primary) DetachedAt(n Session) []Replica {
	if p.Attached(n) {
		return nil
	}
	return sorted(func(yield func(Replica) bool) {
		for r := range maps.Keys(p.members) {
			if !p.Hears(r, n) && !yield(r) {
				return
			}
		}
	})
}

// MayLeave says whether a reply to a session, which depends on the order up to k, may be sent:
// every member hears the session, or holds that (R11). A reply that may not is asked about again
// after Acknowledge, Release and Attach.
func (p *Primary) MayLeave(n Session, k OrderNum) bool {
	for r, a := range p.members {
		if a.upTo < k && !p.Hears(r, n) && !without(r11Replies) {
			return false
		}
	}
	return true
}
