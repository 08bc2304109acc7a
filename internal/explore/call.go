package explore

import (
	"errors"
	"slices"

	"github.com/understudy-rpc/understudy/orderstate"
)

// issue is a source's next call.
func (w *world) issue(j int8) {
	s := w.s(j)
	id := orderstate.MessageID{Session: sessionOf(j), SeqNum: seqNum(len(s.calls) + 1)}
	mark := s.answered()
	m := message{MessageID: id, AnsweredUpTo: mark,
		Digest: uint64(id.Session)<<16 | uint64(id.SeqNum)<<8 | uint64(mark)}
	s.calls = append(s.calls, call{message: m})
	for i := range int8(w.scope.Replicas) {
		if i != s.leader && w.alive(i) && !w.cutOff(i, node(j)) {
			w.send(node(j), i, &packet{kind: frame, list: []message{m}, sealed: w.reflect(s, i)})
		}
	}
	w.request(j, len(s.calls)-1)
	if without(fig8Stays) {
		deleteSent(s.state)
	}
}

// reflect is FIG. 8 at the source: what the next message to a replica reflects.
func (w *world) reflect(s *source, to int8) []orderstate.Announcement {
	list, now := s.state.Multicast(s.marks[to])
	s.marks[to] = now
	return list
}

// request sends the RPC of a call to whom the source takes for the primary.
func (w *world) request(j int8, i int) {
	s := w.s(j)
	c := &s.calls[i]
	c.flight, c.waiting, c.to = nil, orderstate.Reply{}, s.leader
	if !w.alive(s.leader) || w.cutOff(s.leader, node(j)) {
		return // it is issued again in the next epoch, or when the connection is there
	}
	c.flight = w.intern(&packet{kind: request, epoch: s.state.Epoch(), k: s.state.HeldUpTo(),
		list: []message{c.message}, sealed: w.reflect(s, s.leader)})
}

// reissue sends the RPCs of all calls that have no reply.
func (w *world) reissue(j int8) {
	for i, c := range w.sources[j].calls {
		if !c.done {
			w.request(j, i)
		}
	}
	if w.sources[j].read.asked {
		w.requestRead(j)
	}
}

// serve: the RPC arrives at the primary: FIG. 9, FIG. 7, the turn, and FIG. 8.
func (w *world) serve(j int8, i int) {
	c := &w.s(j).calls[i]
	p, to := c.flight, c.to
	c.flight = nil
	r := w.r(to)
	if r.primary == nil || r.primary.Epoch() != p.epoch {
		w.fail("S%d gets a request of epoch %d, which it doesn't lead", to+1, p.epoch)
		return
	}
	envelopes := make([]orderstate.Envelope, len(p.sealed))
	for n, a := range p.sealed {
		envelopes[n] = a.Envelope
	}
	r.primary.Receive(sessionOf(j), p.k, envelopes)
	m := p.list[0]
	now := int64(p.epoch)*1000 + int64(r.primary.Last()) // no two primaries have one clock
	o, v, moved := r.primary.Order(m, now)
	switch v {
	case orderstate.Fresh:
		r.executed = append(r.executed, turn{m.Session, m.SeqNum, o.Kind, o.Time, o.First})
		w.say("S%d orders %s as %d, and executes it", to+1, called(m.MessageID), o.OrderNum)
	case orderstate.Duplicate:
		o.OrderNum = r.turnOf(m.MessageID)
		w.say("S%d has executed %s as %d", to+1, called(m.MessageID), o.OrderNum)
	default:
		w.fail("S%d says that %s is %v, and it has no reply", to+1, called(m.MessageID), v)
		return
	}
	for _, deaf := range r.primary.DetachedAt(m.Session) { // it has this message from nobody else (R11)
		w.send(to, replicaNumber(deaf), &packet{kind: push, epoch: p.epoch, list: []message{m}})
	}
	if moved.Push {
		w.null(to)
	}
	r.owed = append(r.owed, owed{j, m.SeqNum, o.OrderNum, p.k})
	w.pay(to)
}

// turnOf is the orderNum at which a replica executed a message.
func (r *replica) turnOf(id orderstate.MessageID) orderNum {
	return orderNum(slices.IndexFunc(r.executed, func(t turn) bool {
		return t.kind == orderstate.Request && t.session == id.Session && t.seqNum == id.SeqNum
	}) + 1)
}

// pay sends the replies that may leave (R11): FIG. 8 at the primary. One whose RPC has ended
// meanwhile goes nowhere.
func (w *world) pay(i int8) {
	if !slices.ContainsFunc(w.replicas[i].owed, func(o owed) bool {
		return w.replicas[i].primary.MayLeave(sessionOf(o.source), o.orderNum)
	}) {
		return
	}
	r := w.r(i)
	p := r.primary
	r.owed = slices.DeleteFunc(r.owed, func(o owed) bool {
		if !p.MayLeave(sessionOf(o.source), o.orderNum) {
			return false
		}
		if !w.alive(node(o.source)) {
			return true
		}
		s := w.s(o.source)
		c := &s.calls[o.seqNum-1]
		if c.flight != nil || c.done || c.to != i || c.waiting.Epoch != 0 {
			return true
		}
		number, members := p.Required()
		if without(r2Sent) {
			o.held = max(o.held, r.sent[o.source])
			r.sent[o.source] = max(o.held, o.orderNum)
		}
		run := w.trim(i, o, p.Multicast(sessionOf(o.source), o.held, o.orderNum, nil))
		c.flight = w.intern(&packet{
			kind: reply, epoch: p.Epoch(), k: o.orderNum, stable: p.Stable(), number: number, members: members,
			sealed: []orderstate.Announcement{seal(run)},
		})
		w.say("S%d replies to %s with %s", i+1,
			called(orderstate.MessageID{Session: sessionOf(o.source), SeqNum: o.seqNum}), inWords(run))
		return true
	})
}

// trim leaves a reply what fits its header, and puts the rest on the session's stream (R5).
func (w *world) trim(i int8, o owed, r run) run {
	p, n := w.replicas[i].primary, w.scope.Header
	if n == 0 || r.Count <= n {
		return r
	}
	rest := p.Multicast(sessionOf(o.source), r.First-1, r.Last()-orderNum(n), nil)
	w.send(i, node(o.source), &packet{kind: push, epoch: p.Epoch(), sealed: []orderstate.Announcement{seal(rest)}})
	return p.Multicast(sessionOf(o.source), rest.Last(), r.Last(), nil)
}

// replied: the reply arrives at the source: FIG. 9.
func (w *world) replied(j int8, i int) {
	s := w.s(j)
	c := &s.calls[i]
	p := c.flight
	c.flight = nil
	w.learn(j, p)
	s.state.Require(p.epoch, p.number, p.members)
	if w.scope.Header == 0 && p.epoch == s.state.Epoch() && s.state.HeldUpTo() < p.k {
		w.fail("R2: the reply to %s depends on %d, and C%d holds the order up to %d only", called(c.message.MessageID),
			p.k, j+1, s.state.HeldUpTo())
	}
	if p.epoch < w.record.passed && !without(r10) {
		w.say("C%d drops the reply to %s: its primary has no authority", j+1, called(c.message.MessageID))
		return
	}
	c.waiting = orderstate.Reply{Epoch: p.epoch, OrderNum: p.k, Number: p.number, Stable: w.scope.Level == Stable}
	w.handOver(j)
}

// learn takes announcements, and the stable point.
func (w *world) learn(j int8, p *packet) {
	s := w.s(j)
	for _, a := range p.sealed {
		if err := s.state.Receive(a); err != nil {
			w.fail("C%d: %w", j+1, err)
		}
	}
	s.state.LearnStable(p.epoch, p.stable)
}

// handOver hands over the replies that may be.
func (w *world) handOver(j int8) {
	s := w.s(j)
	for i := range s.calls {
		c := &s.calls[i]
		if c.waiting.Epoch == 0 {
			continue
		}
		d := s.state.Accept(c.waiting)
		w.say("C%d: %v the reply to %s", j+1, d, called(c.message.MessageID))
		switch d {
		case orderstate.Accept:
			w.externalised(j, c.waiting)
			c.done, c.epoch, c.orderNum = true, c.waiting.Epoch, c.waiting.OrderNum
			if c.waiting = (orderstate.Reply{}); w.scope.Reads > 0 {
				w.g().accepted = max(w.record.accepted, c.orderNum)
			}
		case orderstate.Drop:
			c.waiting = orderstate.Reply{}
		}
	}
	w.handOverRead(j)
}

// ask: a source that waits under R1 asks for the announcements that it lacks.
func (w *world) ask(j int8) {
	s := w.s(j)
	r := w.replicas[s.leader]
	p, held := r.primary, s.state.HeldUpTo()
	if without(r2Sent) {
		held = max(held, r.sent[j])
	}
	w.learn(j, &packet{epoch: p.Epoch(), stable: p.Stable(),
		sealed: []orderstate.Announcement{seal(p.Multicast(sessionOf(j), held, p.Last(), nil))}})
	w.handOver(j)
}

// lacks says whether a source waits under R1, and could ask.
func (w *world) lacks(j int8) bool {
	s := w.sources[j]
	r := w.replicas[s.leader]
	return s.ready && r.fate == up && r.primary != nil && r.primary.Epoch() == s.state.Epoch() &&
		!w.cutOff(s.leader, node(j)) &&
		(s.read.waiting.OrderNum > s.state.HeldUpTo() || slices.ContainsFunc(s.calls, func(c call) bool {
			return c.waiting.Epoch != 0 && s.state.HeldUpTo() < c.waiting.OrderNum
		}))
}

// null is a null message to the backups (FIG. 7, R4).
func (w *world) null(i int8) {
	r := w.r(i)
	order := r.primary.Null()
	w.say("S%d multicasts a null message with %s", i+1, inWords(order))
	w.multicast(i, order, nil)
}

// multicast sends order, and messages, to the members of the required set.
func (w *world) multicast(i int8, order run, list []message) {
	p := w.replicas[i].primary
	_, members := p.Required()
	for _, m := range members {
		w.send(i, replicaNumber(m),
			&packet{kind: push, epoch: p.Epoch(), stable: p.Stable(), runs: []run{order}, list: list})
	}
}

// taken: a backup, or a takeover, is given messages and order: FIG. 10.
func (w *world) taken(i int8, rs []run, list []message) {
	r := w.r(i)
	f := r.follows()
	if f == nil {
		return
	}
	for range 2 { // some make the session of others known
		for _, m := range list {
			f.Message(m)
		}
	}
	for _, order := range rs {
		w.receive(i, order)
	}
	for _, m := range list {
		f.Message(m)
	}
	w.execute(r, f)
}

// receive is FIG. 10, with I6.
func (w *world) receive(i int8, order run) {
	r := w.r(i)
	f := r.follows()
	var before []byte
	old := order.Epoch < f.Epoch()
	if old {
		before = r.appendTo(nil)
	}
	_, err := f.Receive(order)
	w.diverged(i, err)
	if old && string(before) != string(r.appendTo(nil)) {
		w.fail("I6: S%d is in epoch %d, and takes %s", i+1, f.Epoch(), inWords(order))
	}
}

// diverged: an in-sync replica can't have.
func (w *world) diverged(i int8, err error) {
	if errors.As(err, new(*orderstate.UnstableError)) && w.record.restored {
		w.say("S%d refuses: %v", i+1, err)
		return
	}
	d := (*orderstate.DivergedError)(nil)
	if errors.As(err, &d) && w.inSync(i) {
		w.fail("S%d is in-sync: %w", i+1, err)
	} else if err != nil {
		w.say("S%d: %v", i+1, err)
	}
}

// execute takes messageOrder: a backup's, or the tail of what a takeover found ordered.
func (w *world) execute(r *replica, messageOrder interface {
	Next() (orderstate.Ordered, message, bool)
}) {
	for o, m, ok := messageOrder.Next(); ok; o, m, ok = messageOrder.Next() {
		if o.Kind.HasMessage() && m.Digest != o.Digest {
			w.fail("I1: %v is executed with other bytes than were ordered", o)
		}
		r.executed = append(r.executed, turned(o))
	}
}

// acknowledge: a backup says what it holds, if that is news: to its primary, and at Stable to the
// sources.
func (w *world) acknowledge(i int8) {
	r := w.replicas[i]
	if r.fate != up || r.backup == nil {
		return
	}
	e, k, ok := r.backup.Acknowledgement()
	if now := (acked{e, k}); ok && now != r.acked {
		w.r(i).acked = now
		w.acknowledgeTo(i, r.leader)
		for j := range int8(w.scope.Sources) {
			if w.scope.Level == Stable {
				w.acknowledgeTo(i, node(j))
			}
		}
	}
}

func (w *world) acknowledgeTo(i, to int8) {
	if e, k, ok := w.replicas[i].follows().Acknowledgement(); ok && i != to {
		w.send(i, to, &packet{kind: ack, epoch: e, k: k})
	}
}

// acknowledged: the primary hears it.
func (w *world) acknowledged(i, from int8, p *packet) {
	r := w.r(i)
	if r.primary == nil {
		return
	}
	if _, err := r.primary.Acknowledge(replicaName(from), p.epoch, p.k); err != nil {
		w.fail("S%d: %w", i+1, err)
	}
	w.moved(i)
}

// moved: the stable point has moved, or the required set has changed.
func (w *world) moved(i int8) {
	w.gate(i)
	w.pay(i)
}
