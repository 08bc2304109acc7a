package orderstate

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// valid checks H1-H6. early is what a backup holds for sessions that it doesn't know yet.
func (h *History) valid(early map[Session][]SeqNum) error {
	errs := []error{h.epochs.valid()}
	add := func(ok bool, invariant, format string, args ...any) {
		errs = append(errs, check(ok, invariant, format, args...))
	}
	add(h.Last() >= h.cut, "H1", "the order ends at %d, and is cut at %d", h.Last(), h.cut)
	seen, ended := map[MessageID]OrderNum{}, map[Session]OrderNum{}
	for i, o := range h.order.all() {
		k := h.cut + OrderNum(i) + 1
		add(o.OrderNum == k, "H1", "%v is at place %d", o, k)
		errs = append(errs, o.check())
		if i > 0 {
			add(o.Time >= h.order.all()[i-1].Time, "H3", "time goes back at %v", o)
		}
		add(o.Time <= h.lastTime, "H3", "the last time is %d, at %v it is %d", h.lastTime, o, o.Time)
		s := h.sessions.known[o.Session]
		if s == nil {
			return fmt.Errorf("H4: %v is of no session", o)
		}
		add(ended[o.Session] == 0, "H4", "%v is after the end of its session", o)
		if o.Kind == Expire {
			ended[o.Session] = k
			continue
		}
		m, ok := h.messages.held[o.Message()]
		add(ok && m.Digest == o.Digest && m.MessageID == o.Message(), "H1", "the message of %v is %v", o, m)
		add(seen[o.Message()] == 0, "H2", "%v is ordered at %d too", o, seen[o.Message()])
		seen[o.Message()] = k
		if o.Kind == Request {
			add(s.calls[o.SeqNum] == k || o.SeqNum <= s.atCut, "H2", "%v is taken for %d", o, s.calls[o.SeqNum])
		}
	}
	add(h.cutTime <= h.lastTime, "H3", "the cut is at %d, the end at %d", h.cutTime, h.lastTime)

	waiting := map[MessageID]bool{}
	for n, s := range h.sessions.known {
		add(s.number == n, "H6", "session %d is known as %d", s.number, n)
		add(OrderNum(n) <= h.Last(), "H4", "session %d is opened beyond %d", n, h.Last())
		add(s.expired == ended[n] && (s.expired == 0 || s.expired > h.cut), "H5", "session %d ends at %d, and at %d", n,
			s.expired, ended[n])
		if s.expired == 0 {
			opened, _ := h.Opened(s.nonce)
			add(opened == n, "H6", "nonce %v opened %d, and %d", s.nonce, n, opened)
		}
		add(s.atCut <= s.answered, "H6", "session %d had answered %d at the cut, and has %d", n, s.atCut, s.answered)
		for q, k := range s.calls {
			id := MessageID{n, q}
			switch {
			case k == 0:
				waiting[id] = true
				_, held := h.messages.held[id]
				add(held && q > s.answered && s.expired == 0, "H5", "%v waits", id)
			case k > h.cut:
				add(seen[id] == k, "H2", "%v is at %d, and at %d", id, k, seen[id])
			default:
				add(q > s.atCut, "H5", "%v was answered at the cut", id)
			}
		}
	}
	open := h.sessions.numbers()
	add(h.OpenSessions() == len(open), "H5", "%d nonces for the open sessions %v", h.OpenSessions(), open)
	for n, qs := range early {
		add(h.sessions.open(n) == nil && OrderNum(n) > h.Last(), "H5", "session %d isn't early", n)
		for _, q := range qs {
			add(!waiting[MessageID{n, q}], "H5", "%d/%d is early twice", n, q)
			waiting[MessageID{n, q}] = true
		}
	}
	for id := range h.messages.held {
		add(seen[id] != 0 || waiting[id], "H5", "%v is held for nothing", id)
	}
	errs = append(errs, h.messages.counted(h.sessions.known, seen))
	for id := range waiting {
		_, held := h.messages.held[id]
		add(held, "H5", "%v waits, and isn't held", id)
	}
	// H6, by the definition: a replica that starts from a snapshot, and is given the rest, ends
	// here.
	for k := h.cut; k <= h.Last() && errors.Join(errs...) == nil; k++ {
		errs = append(errs, h.replayed(k))
	}
	return errors.Join(errs...)
}

// counted checks what is counted of the messages, those that are ordered above the cut among them.
func (l *messageLog) counted(sessions map[Session]*session, ordered map[MessageID]OrderNum) error {
	var waiting load
	logged, of := 0, map[Session]*session{}
	for n, s := range sessions {
		of[n] = &session{}
		for q, k := range s.calls {
			if k != 0 && q > s.answered {
				of[n].ordered++
			}
		}
	}
	for id, m := range l.held {
		s := of[id.Session]
		if s == nil {
			s = &session{}
		}
		switch {
		case ordered[id] == 0:
			waiting.add(1, m.Size)
			s.waiting.add(1, m.Size)
		default:
			logged += m.Size
			if id.SeqNum != 0 {
				s.logged += m.Size
			}
		}
	}
	errs := []error{check(waiting == l.waiting && logged == l.logged, "H5",
		"%+v wait, and %d bytes are logged, not %+v and %d", waiting, logged, l.waiting, l.logged)}
	for n, s := range sessions {
		c := of[n]
		errs = append(errs, check(c.waiting == s.waiting && c.logged == s.logged && c.ordered == s.ordered, "H5",
			"session %d has %+v waiting, %d ordered, of %d bytes; not %+v, %d, %d", n, c.waiting, c.ordered, c.logged,
			s.waiting, s.ordered, s.logged))
	}
	return errors.Join(errs...)
}

// replayed checks that a snapshot at k, and the order after it, lead to what h is.
func (h *History) replayed(k OrderNum) error {
	c, err := NewHistory(k, h.TimeAt(k), h.epochs.starts, h.SessionStates(k))
	if err != nil {
		return fmt.Errorf("H6: %w", err)
	}
	for _, o := range h.Above(k) {
		if m := h.messages.held[o.Message()]; o.Kind == Open {
			c.messages.keep(nil, m)
		} else if o.Kind == Request && !c.log(m) {
			return fmt.Errorf("H6: from a snapshot at %d on, %v can't be logged", k, m.MessageID)
		}
		if !c.fits(o.OrderInfo) {
			return fmt.Errorf("H6: from a snapshot at %d on, %v doesn't fit", k, o)
		}
		c.append(o)
	}
	if c.lastTime != h.lastTime {
		return fmt.Errorf("H6: from a snapshot at %d on, the time becomes %d, not %d", k, c.lastTime, h.lastTime)
	}
	equal := slices.EqualFunc(c.SessionStates(c.Last()), h.SessionStates(h.Last()), func(a, b SessionState) bool {
		return a.Session == b.Session && a.Nonce == b.Nonce && a.AnsweredUpTo == b.AnsweredUpTo &&
			maps.Equal(a.Ordered, b.Ordered)
	})
	return check(equal, "H6", "from a snapshot at %d on, the sessions become\n%v, not\n%v", k,
		c.SessionStates(c.Last()), h.SessionStates(h.Last()))
}

// Valid checks P1-P3, and H1-H6. Like the other roles' it is for tests and explorers: it takes time
// that grows with the square of what is held.
func (p *Primary) Valid() error {
	errs := []error{p.h.valid(nil)}
	add := func(ok bool, invariant, format string, args ...any) {
		errs = append(errs, check(ok, invariant, format, args...))
	}
	add(p.stable <= p.Last(), "P1", "stable is %d of %d", p.stable, p.Last())
	add(len(p.members) > 0 || p.stable == p.Last(), "P1", "nobody need acknowledge, and stable is %d of %d", p.stable,
		p.Last())
	for r, a := range p.members {
		add(a.upTo <= p.Last() && (a.any || a.upTo == 0), "P1", "%s acknowledges %+v of %d", r, a, p.Last())
	}
	joiners := slices.ContainsFunc(slices.Collect(maps.Values(p.members)), func(a acknowledgement) bool {
		return a.joined
	})
	add(!p.Held() || joiners || p.stable >= p.first-1, "P1", "the gate is open: stable is %d, the epoch starts at %d",
		p.stable, p.first)
	add(p.h.cut <= max(p.stable, p.first-1), "P2", "stable is %d, cut at %d", p.stable, p.h.cut)
	for _, o := range p.h.order.all() {
		add((o.OrderNum >= p.first) == (o.Epoch == p.epoch) && (o.OrderNum < p.first || o.First == p.epoch) &&
			o.First <= o.Epoch, "P3", "%v of %d, first ordered in %d: epoch %d "+
			"starts at %d", o, o.Epoch, o.First, p.epoch, p.first)
		add(!p.h.epochs.void(o.Epoch, o.OrderNum), "P3", "%v of %d is void", o, o.Epoch)
	}
	add(p.pushed <= p.Last(), "R4", "pushed %d of %d", p.pushed, p.Last())
	for n := range p.reflected {
		add(p.h.Known(n), "P2", "session %d isn't open", n)
	}
	for n := range p.held {
		add(p.h.Known(n), "P2", "session %d isn't open", n)
	}
	for n := range p.declared {
		add(p.h.Known(n), "P2", "session %d isn't open", n)
	}
	for r, sessions := range p.attached {
		add(len(sessions) > 0, "R11", "%s has attached nobody", r)
		for n, attached := range sessions {
			add(p.h.Known(n) && attached, "R11", "%s has attached session %d: %v", r, n, attached)
		}
	}
	return errors.Join(errs...)
}

// Valid checks B1-B5, of a takeover's backup too.
func (b *Backup) Valid() error {
	errs := []error{b.h.valid(b.early)}
	add := func(ok bool, invariant, format string, args ...any) {
		errs = append(errs, check(ok, invariant, format, args...))
	}
	add(b.h.epochs.newest() <= b.acknowledged, "B1", "acknowledged %d, and knows where %d starts", b.acknowledged,
		b.h.epochs.newest())
	for k, o := range b.pendingDestOrder {
		add(o.OrderNum == k && k > b.Last(), "B2", "%v is pending at %d, and %d are held", o, k, b.Last())
		add(o.Epoch <= b.acknowledged, "B1", "%v of epoch %d is pending in %d", o, o.Epoch, b.acknowledged)
		add(!b.h.epochs.void(o.Epoch, k), "B2", "%v of epoch %d is void, and pending", o, o.Epoch)
		errs = append(errs, o.check())
	}
	if o, ok := b.pendingDestOrder[b.Last()+1]; ok && b.started && b.diverged == 0 {
		add(!b.present(o.OrderInfo), "B3", "%v could be released", o)
	}
	for _, o := range b.h.order.all() {
		add(b.diverged != 0 || !b.h.epochs.void(o.Epoch, o.OrderNum), "B5", "%v of %d is void, and held", o, o.Epoch)
	}
	add(b.stable <= b.Last(), "B4", "stable is %d of %d", b.stable, b.Last())
	for n, a := range b.attached {
		add(b.h.Known(n) && a.number <= b.detachings && (!a.confirmed || a.number != 0) && (a.confirmed || a.upTo == 0),
			"R11", "session %d is attached: %+v", n, a)
	}
	add(!b.started || b.base != unknownBase, "R11", "epoch %d has started, and isn't known where", b.acknowledged)
	add(b.h.cut <= b.executed && b.executed <= b.Last(), "B4", "cut at %d, executed up to %d, of %d", b.h.cut,
		b.executed, b.Last())
	return errors.Join(errs...)
}

// Valid checks T1-T3, until N is fixed.
func (t *Takeover) Valid() error {
	errs := []error{t.b.Valid()}
	add := func(ok bool, invariant, format string, args ...any) {
		errs = append(errs, check(ok, invariant, format, args...))
	}
	add(t.b.acknowledged != t.epoch || !t.b.started, "T1", "epoch %d has started, and isn't fixed", t.epoch)
	add(t.b.acknowledged >= t.epoch, "T3", "elected in %d, acknowledged %d", t.epoch, t.b.acknowledged)
	for p := range t.peers {
		add(!t.inSync[p], "T1", "%s has answered, and hasn't", p)
	}
	return errors.Join(errs...)
}

func (t *epochTable) valid() error {
	for i, s := range t.starts {
		if s.Epoch == 0 || s.First == 0 || i > 0 && t.starts[i-1].Epoch >= s.Epoch {
			return fmt.Errorf("epochs: %v", t.starts)
		}
	}
	return nil
}

// check returns an error that begins with the number of the invariant, if ok is false.
func check(ok bool, invariant, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf("%s: %s", invariant, fmt.Sprintf(format, args...))
}
