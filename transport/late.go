package transport

import "time"

// This file knows what to do about a connection on which nothing is heard. It may be half-open: a
// NAT has forgotten it, or the machine at its other end has gone without a word. Nobody tells, what
// is sent on it is lost, and a new stream or RPC goes the same way. So the replica is asked for an
// answer, and if nothing comes, connected to anew.

// lateEvery is how often calls in flight are looked at. One that was there at the last two looks is
// late: its primary is asked, on the stream, whether it hears; if it has said nothing there by the
// next look but one, it is given a new connection, where the call is issued again.
const lateEvery = 250 * time.Millisecond

// attempted notes that an attempt begins. mu is held.
func (k *call) attempted() {
	c := k.client
	k.look0 = c.looks
	if c.looking {
		return
	}
	c.looking = true
	if c.looker == nil {
		c.looker = time.AfterFunc(lateEvery, c.lookForLate)
	} else {
		c.looker.Reset(lateEvery)
	}
}

// lookForLate looks at the calls in flight, as long as there are any.
func (c *Client) lookForLate() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.looks++
	some, late := false, false
	for s := c.session; s != nil && !late; s = s.before {
		for k := range s.inFlight {
			if k.cancel != nil {
				some, late = true, late || c.looks-k.look0 >= 2
			}
			if late {
				break
			}
		}
	}
	c.looking = some && c.life.ctx.Err() == nil
	if !c.looking {
		return
	}
	c.looker.Reset(lateEvery)
	for _, l := range c.links {
		switch {
		case !late || !l.up || !l.isPrimary():
			l.asked = 0
		case l.asked == 0:
			l.asked, l.hail = c.looks, true
			l.urgent = true
			l.notify()
		case c.looks-l.asked >= 2:
			l.asked = 0
			l.renews()
		}
	}
}

// renew asks for a new connection to the replica: the present one says nothing.
func (l *link) renew() {
	l.client.mu.Lock()
	defer l.client.mu.Unlock()
	l.renews()
}

// unacknowledged also begins the stream anew on the present connection, which may be dead in one
// direction only.
func (l *link) unacknowledged() {
	l.client.mu.Lock()
	defer l.client.mu.Unlock()
	if !l.expecting { // it came meanwhile
		return
	}
	l.renews()
	if l.restart != nil {
		l.restart()
	}
}

// renews is renew with mu held.
func (l *link) renews() {
	l.client.cfg.log.Info("nothing is heard on a connection", "replica", l.name, "addr", l.addr)
	l.connection++
	l.client.lookAgain()
}

// reconnected is called by our load-balancing policy when the new connection to a replica is there:
// what went over the old one begins anew, the stream, and the attempts if that is the primary.
func (c *Client) reconnected(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.links {
		if l.name == name && l.restart != nil {
			l.restart()
		}
	}
	if name != c.primary.Name {
		return
	}
	for s := c.session; s != nil; s = s.before {
		for k := range s.inFlight {
			k.stop()
		}
	}
}
