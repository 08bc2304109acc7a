package source

import "time"

// This file knows what to do about a connection on which nothing is heard. It may be half-open: a
// NAT has forgotten it, or the machine at its other end has gone without a word. Nobody tells, what
// is sent on it is lost, and a new stream or RPC goes the same way. So the replica is asked for an
// answer, and if nothing comes, connected to anew.

// lateEvery is how often calls in flight are looked at. One that was there at the last two looks is
// late: its primary is asked, on the stream, whether it hears; if it has said nothing there by the
// next look but one, it is given a new connection, where the call is issued again.
const lateEvery = 250 * time.Millisecond

// attempted notes that an attempt begins.
func (k *call) attempted() {
	src := k.session.of
	late := &src.late
	k.try.look = late.looks
	if late.looking {
		return
	}
	late.looking = true
	if late.timer == nil {
		late.timer = time.AfterFunc(lateEvery, src.lookForLate)
	} else {
		late.timer.Reset(lateEvery)
	}
}

// lookForLate is what the timer calls. It looks at the calls in flight, as long as there are any.
func (src *Source) lookForLate() {
	src.mu.Lock()
	defer src.mu.Unlock()
	src.late.looks++
	looks := src.late.looks
	some, late := src.someLate()
	if src.late.looking = some && src.ctx.Err() == nil; !src.late.looking {
		return
	}
	src.late.timer.Reset(lateEvery)
	for _, l := range src.links {
		switch {
		case !late || !l.up || !l.isPrimary():
			l.hailed = 0
		case l.hailed == 0:
			l.hailed, l.sender.hail = looks, true
			l.sender.hurry()
		case looks-l.hailed >= 2:
			l.hailed = 0
			l.renew()
		}
	}
}

// someLate says whether attempts are under way, and whether one of them is late.
func (src *Source) someLate() (some, late bool) {
	for s := src.session; s != nil; s = s.before {
		for k := range s.inFlight {
			if k.try.cancel == nil {
				continue
			}
			if some = true; src.late.looks-k.try.look >= 2 {
				return true, true
			}
		}
	}
	return some, false
}
