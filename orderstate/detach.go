package orderstate

import "maps"

// Detaching (R11) keeps a session that one backup can't hear from holding up that backup's takeover. The two sides agree in this order:
//
//	backup                       primary                        backup
//	Detach  ── number ─────────► Detach ── all up to upTo, ───► Confirmed
//	                                       then the confirmation
//	Attach  ── number ─────────► Attach
//
// From the primary's Detach to its Attach replies to that session wait for that backup: MayLeave. From Confirmed to the backup's Attach its takeover doesn't wait for that session; this lies
// within the other on the side of the primary, whatever is delayed, lost, or overtaken, because both name what was asked by its number.

// detachment is a session that can't be heard here.
type detachment struct {
	number uint64
	// confirmed: the primary holds replies back, and those that it has sent depend on nothing above upTo.
	confirmed bool
	upTo      OrderNum
}

// Detach says that this backup can't hear a session. The primary is told the number, again on a new stream; until it has confirmed, a takeover waits for that session. An epoch starts with
// no session detached: whoever still can't be heard is told to its primary anew. It returns false for a session that isn't known here, or before the epoch has started.
func (b *Backup) Detach(n Session) (number uint64, ok bool) {
	if b.open(n) == nil || !b.started {
		return 0, false
	}
	d, ok := b.detached[n]
	if !ok {
		b.detachings++
		d.number = b.detachings
		d.confirmed = without("R11: detached when confirmed")
		b.detached[n] = d
	}
	return d.number, true
}

// Confirmed takes the primary's confirmation of what Detach asked as number, in an epoch. One of another epoch, or of what isn't asked any more, is passed over.
func (b *Backup) Confirmed(epoch Epoch, n Session, number uint64, upTo OrderNum) {
	if d, ok := b.detached[n]; ok && epoch == b.acknowledged && b.started && (d.number == number || without("R11: a confirmation has a number")) && !d.confirmed {
		b.detached[n] = detachment{number, true, upTo}
	}
}

// Attach says that this backup hears a session again, and holds its past: it has logged what the session had sent before, and not yet forgotten. A takeover waits for the session
// from now on; the primary is told the number, on a new stream too. It returns false if nothing was asked.
func (b *Backup) Attach(n Session) (number uint64, ok bool) {
	d, ok := b.detached[n]
	delete(b.detached, n)
	return d.number, ok
}

// AttachAll forgets what was asked, before a new stream to the primary begins: a takeover waits for every session again.
func (b *Backup) AttachAll() { clear(b.detached) }

// Detached says whether a takeover of this backup needn't wait for a session: the primary has confirmed, and all that was sent before it did is held.
func (b *Backup) Detached(n Session) bool {
	d := b.detached[n]
	return d.confirmed && (d.upTo <= b.Last() || without("R11: the confirmation follows what replies depend on"))
}

// Detach: a member says that it can't hear a session, and numbers that. From now on replies to the session wait for that member. The caller sends it all that is ordered up to upTo, and the messages, then on the same
// stream the confirmation (Epoch, n, number, upTo); later, every message of that session, as it is ordered. It returns false, and nothing is confirmed, for who isn't a member, and for a session that isn't open.
func (p *Primary) Detach(r Replica, n Session, number uint64) (upTo OrderNum, ok bool) {
	if _, member := p.members[r]; !member || p.open(n) == nil {
		return 0, false
	}
	if p.detached[n] == nil {
		p.detached[n] = map[Replica]uint64{}
	}
	p.detached[n][r] = max(number, p.detached[n][r])
	return p.Last(), true
}

// Attach: a member hears a session again; what it has asked with a higher number stays. It says whether what MayLeave says has changed.
func (p *Primary) Attach(r Replica, n Session, number uint64) bool {
	asked, ok := p.detached[n][r]
	if !ok || asked > number && !without("R11: attaching has a number") {
		return false
	}
	p.attach(r, n)
	return true
}

func (p *Primary) attach(r Replica, n Session) {
	if delete(p.detached[n], r); len(p.detached[n]) == 0 {
		delete(p.detached, n)
	}
}

// AttachAll forgets what a member has asked, which has forgotten it, too, before its new stream began. It says whether what MayLeave says has changed.
func (p *Primary) AttachAll(r Replica) (changed bool) {
	for n, members := range p.detached {
		if _, ok := members[r]; ok {
			p.attach(r, n)
			changed = true
		}
	}
	return changed
}

// deaf says whether a session is detached at a member.
func (p *Primary) deaf(r Replica) bool {
	for _, members := range p.detached {
		if _, ok := members[r]; ok {
			return true
		}
	}
	return false
}

// DetachedAt returns the members that can't hear a session, sorted: the primary sends them its messages, and its replies wait for them.
func (p *Primary) DetachedAt(n Session) []Replica {
	if len(p.detached) == 0 {
		return nil
	}
	return sorted(maps.Keys(p.detached[n]))
}

// MayLeave says whether a reply to a session, which depends on the order up to k, may be sent: every member that can't hear the session holds that (R11). A reply that may not is asked about
// again after Acknowledge, Release and Attach.
func (p *Primary) MayLeave(n Session, k OrderNum) bool {
	for r := range p.detached[n] {
		if p.members[r].upTo < k && !without("R11: replies wait for the deaf") {
			return false
		}
	}
	return true
}
