package orderstate

import (
	"fmt"
	"maps"
	"slices"
)

// call: a source issues a call, to all replicas (FIG. 6).
func (w *world) call(name, label, _ string) error {
	s := w.sources[name]
	if s == nil || s.dead || s.told != nil {
		return fmt.Errorf("%w: %s calls", errWorld, name)
	}
	m := message(s.session, SeqNum(len(s.calls)+1), s.answered())
	w.names[m.MessageID] = label
	s.calls = append(s.calls, &call{message: m})
	w.issue(s, m)
	return nil
}

// answered is the source's low-water mark.
func (s *source) answered() SeqNum {
	for i, c := range s.calls {
		if !c.done {
			return SeqNum(i)
		}
	}
	return SeqNum(len(s.calls))
}

// issue is FIG. 8 at the source: one RPC, and frames to the others.
func (w *world) issue(s *source, m Message) {
	for _, name := range sorted(maps.Keys(w.replicas)) {
		r := w.replicas[name]
		list, now := s.state.Multicast(s.reflected[name])
		s.reflected[name] = now
		epoch, held := s.state.Epoch(), s.state.HeldUpTo()
		what := "with " + w.announcements(list)
		if len(list) == 0 {
			what = "alone"
		}
		w.send(s.name, string(name), w.names[m.MessageID]+" "+what, func() bool {
			if r.primary == nil {
				return w.frame(r, m, list)
			}
			return w.request(r, s, m, epoch, held, list)
		})
	}
}

// request: the RPC at the primary: FIG. 9, FIG. 7, and the turn.
func (w *world) request(r *replica, s *source, m Message, epoch Epoch, held OrderNum, list []Announcement) bool {
	p := r.primary
	if epoch != p.Epoch() {
		w.say("%s refuses %s of epoch %d", r.name, w.names[m.MessageID], epoch)
		return true
	}
	if !p.Held() {
		w.say("%s holds %s up: its gate is closed", r.name, w.names[m.MessageID])
		return false
	}
	envelopes := make([]Envelope, len(list))
	for i, a := range list {
		envelopes[i] = a.Envelope
	}
	p.Receive(s.session, held, envelopes)
	o, v, moved := p.Order(m, w.tick())
	switch v {
	case Fresh:
		w.say("%s orders %s as %d, and executes it", r.name, w.names[m.MessageID], o.OrderNum)
		w.executeOne(r, Ordered{OrderInfo: o})
	case Duplicate:
		o.OrderNum = r.turnOf(w.label(Ordered{OrderInfo: OrderInfo{Session: m.Session, SeqNum: m.SeqNum}}))
		w.say("%s has executed %s as %d", r.name, w.names[m.MessageID], o.OrderNum)
	default:
		w.say("%s refuses %s: %v", r.name, w.names[m.MessageID], v)
		return true
	}
	r.owed = append(r.owed, owed{s, m.MessageID, o.OrderNum, held})
	if moved.Push {
		w.nullFrom(r)
	}
	return true
}

// turnOf is the orderNum at which a replica executed a message.
func (r *replica) turnOf(what string) OrderNum {
	i := slices.IndexFunc(r.executed, func(e execution) bool { return e.what == what })
	return OrderNum(i + 1)
}

func (w *world) label(o Ordered) string {
	if o.Kind == Request {
		return o.Message().String()
	}
	return o.OrderInfo.String()
}

func (w *world) executeOne(r *replica, o Ordered) {
	r.executed = append(r.executed, execution{w.label(o), o.Time, o.First})
}

// execute takes messageOrder.
func (w *world) execute(r *replica) {
	if r.backup != nil && r.backup.Started() {
		w.executeAll(r, r.backup)
	}
	if r.backup == nil { // the founder
		for _, o := range r.primary.h.Above(OrderNum(len(r.executed))) {
			w.executeOne(r, o)
		}
	}
}

func (w *world) executeAll(r *replica, messageOrder interface {
	Next() (Ordered, Message, bool)
}) {
	for o, m, ok := messageOrder.Next(); ok; o, m, ok = messageOrder.Next() {
		if o.Kind == Request && m.Digest != o.Digest {
			panic("executes other bytes than were ordered")
		}
		w.say("%s executes %s as %d", r.name, w.name(o.OrderInfo), o.OrderNum)
		w.executeOne(r, o)
	}
}

// frame: a message and reflected announcements at a backup: FIG. 10.
func (w *world) frame(r *replica, m Message, list []Announcement) bool {
	if held, _ := r.backup.Message(m); !held {
		w.say("%s has no place for %s", r.name, w.names[m.MessageID])
	}
	for _, a := range list {
		w.received(r, w.unseal(a))
	}
	w.execute(r)
	return true
}

func (w *world) received(r *replica, run Run) {
	before := r.backup.AppendTo(nil)
	var err error
	if r.takeover != nil {
		_, err = r.takeover.Receive(run)
	} else {
		_, err = r.backup.Receive(run)
	}
	if err != nil {
		w.say("%s: %v", r.name, err)
	}
	if run.Epoch < r.backup.Epoch() && string(before) != string(r.backup.AppendTo(nil)) {
		panic("I6: a backup takes an announcement from below its epoch")
	}
}

// reply is FIG. 8 at the primary, and FIG. 9 at the source.
func (w *world) reply(name, label, _ string) error {
	r := w.replicas[Replica(name)]
	if r == nil || r.dead || r.primary == nil {
		return fmt.Errorf("%w: %s replies", errWorld, name)
	}
	i := slices.IndexFunc(r.owed, func(o owed) bool { return w.names[o.id] == label })
	if i < 0 {
		return fmt.Errorf("%w: %s owes no reply to %s", errWorld, name, label)
	}
	o := r.owed[i]
	if !r.primary.MayLeave(o.id.Session, o.orderNum) {
		w.say("%s keeps the reply to %s: %v can't hear %s", name, label, r.primary.DetachedAt(o.id.Session), o.to.name)
		return nil
	}
	r.owed = slices.Delete(r.owed, i, i+1)
	p := r.primary
	run := p.Multicast(o.id.Session, o.held, o.orderNum, nil)
	a := w.seal(run)
	number, members := p.Required()
	reply := Reply{Epoch: p.Epoch(), OrderNum: o.orderNum, Number: number, Stable: w.level == "stable"}
	stable := p.Stable()
	w.say("%s replies to %s with %s", name, label, w.run(run))
	w.send(name, o.to.name, "reply to "+label, func() bool {
		w.sourceReceives(o.to, a, stable)
		o.to.state.Require(reply.Epoch, number, members)
		c := o.to.calls[o.id.SeqNum-1]
		if reply.Epoch < o.to.at {
			w.say("%s drops the reply to %s: its primary has no authority", o.to.name, label)
			return true
		}
		if !slices.Contains(c.replies, reply) {
			c.replies = append(c.replies, reply)
		}
		w.handOver(o.to)
		return true
	})
	return nil
}

func (w *world) sourceReceives(s *source, a Announcement, stable OrderNum) {
	before := s.state.AppendTo(nil)
	if err := s.state.Receive(a); err != nil {
		w.end(s, err)
	}
	s.state.LearnStable(a.Epoch, stable)
	if a.Epoch < s.state.Epoch() && string(before) != string(s.state.AppendTo(nil)) {
		panic("I6: a source takes an announcement from below its epoch")
	}
}

func (w *world) end(s *source, err error) {
	w.say("%s is told: %v", s.name, err)
	s.told = err
}

// handOver hands over the replies that may be.
func (w *world) handOver(s *source) {
	for _, c := range s.calls {
		label := w.names[c.message.MessageID]
		c.replies = slices.DeleteFunc(c.replies, func(r Reply) bool {
			if c.done {
				return true
			}
			d := s.state.Accept(r)
			if d == Accept {
				c.done = true
				s.accepted = append(s.accepted, accepted{r.Epoch, r.OrderNum, c.message.MessageID})
				w.externalised(s, r)
			}
			w.say("%s: %v the reply to %s", s.name, d, label)
			return d != Wait
		})
	}
}

// null is a null message to the backups (FIG. 7, R4).
func (w *world) null(name, _, _ string) error {
	r := w.replicas[Replica(name)]
	if r == nil || r.dead || r.primary == nil {
		return fmt.Errorf("%w: %s sends null messages", errWorld, name)
	}
	w.nullFrom(r)
	return nil
}

func (w *world) nullFrom(r *replica) {
	run := r.primary.Null()
	w.say("%s multicasts a null message with %s", r.name, w.run(run))
	w.toBackups(r, "null "+w.run(run), run, nil)
}

// push is what a new stream, or the end of a session's, makes the primary send: orders and messages
// (R4).
func (w *world) push(name, _, _ string) error {
	r := w.replicas[Replica(name)]
	if r == nil || r.dead || r.primary == nil {
		return fmt.Errorf("%w: %s pushes", errWorld, name)
	}
	w.toBackups(r, "push", r.primary.Push(r.primary.Stable()), slices.Collect(maps.Values(r.primary.h.messages.held)))
	return nil
}

func (w *world) toBackups(r *replica, label string, run Run, messages []Message) {
	p, epoch, stable := r.primary, r.primary.Epoch(), r.primary.Stable()
	_, members := p.Required()
	for _, m := range members {
		b := w.replicas[m]
		w.send(string(r.name), string(m), label, func() bool {
			if b.backup == nil || b.primary != nil {
				return true
			}
			for _, m := range messages {
				b.backup.Message(m)
			}
			w.received(b, run)
			w.execute(b)
			w.stable(b, epoch, stable)
			return true
		})
	}
}

func (w *world) stable(r *replica, epoch Epoch, stable OrderNum) {
	if r.backup != nil {
		r.backup.LearnStable(epoch, stable)
	}
}

// nested is a request of the primary's own turn to another group, T, with the order that it depends
// on (¶28, ¶73).
func (w *world) nested(name, label, to string) error {
	r, s := w.replicas[Replica(name)], w.sources[to]
	if r == nil || s == nil || r.primary == nil {
		return fmt.Errorf("%w: %s calls %s", errWorld, name, to)
	}
	run := r.primary.Multicast(s.session, s.state.HeldUpTo(), r.primary.Last(), nil)
	a, stable := w.seal(run), r.primary.Stable()
	w.say("%s sends %s to %s with %s", name, label, to, w.run(run))
	w.send(name, to, label, func() bool {
		w.sourceReceives(s, a, stable)
		w.say("%s executes %s", to, label)
		return true
	})
	return nil
}

// reflect is a message that isn't ordered, and brings what its sender reflects: T's reply to the
// replicas of S, or a read.
func (w *world) reflect(name, label, _ string) error {
	s := w.sources[name]
	if s == nil {
		return fmt.Errorf("%w: %s reflects", errWorld, name)
	}
	for _, to := range sorted(maps.Keys(w.replicas)) {
		r := w.replicas[to]
		list, now := s.state.Multicast(s.reflected[to])
		s.reflected[to] = now
		w.send(name, string(to), label+" with "+w.announcements(list), func() bool {
			for _, a := range list {
				if r.primary == nil {
					w.received(r, w.unseal(a))
				} else {
					r.primary.Receive(s.session, 0, []Envelope{a.Envelope})
				}
			}
			w.execute(r)
			return true
		})
	}
	return nil
}

// ack: a backup acknowledges to the primary and to the sources.
func (w *world) ack(name, _, _ string) error {
	r := w.replicas[Replica(name)]
	if r == nil || r.dead || r.backup == nil || r.primary != nil {
		return fmt.Errorf("%w: %s acknowledges", errWorld, name)
	}
	epoch, k, ok := r.backup.Acknowledgement()
	if !ok {
		w.say("%s acknowledges nothing", name)
		return nil
	}
	w.say("%s acknowledges %d", name, k)
	for _, to := range sorted(maps.Keys(w.replicas)) {
		p := w.replicas[to]
		if p == r {
			continue
		}
		w.send(name, string(to), fmt.Sprint("ack ", k), func() bool {
			if p.primary == nil {
				return true
			}
			before := p.primary.Stable()
			if _, err := p.primary.Acknowledge(r.name, epoch, k); err != nil {
				panic(err)
			}
			if stable := p.primary.Stable(); stable > before {
				w.say("%s: stable up to %d", p.name, stable)
			}
			return true
		})
	}
	for _, to := range sorted(maps.Keys(w.sources)) {
		s := w.sources[to]
		w.send(name, to, fmt.Sprint("ack ", k), func() bool {
			s.state.Acknowledge(r.name, epoch, k)
			w.handOver(s)
			return true
		})
	}
	return nil
}

// fetch: a backup gets what it lacks from whoever lives and has it (¶47).
func (w *world) fetch(name, _, _ string) error {
	r := w.replicas[Replica(name)]
	if r == nil || r.dead || r.backup == nil || r.primary != nil {
		return fmt.Errorf("%w: %s fetches", errWorld, name)
	}
	for _, id := range r.backup.Lacks(100) {
		from, m, ok := w.holder(r, id)
		if !ok {
			continue
		}
		if held, _ := r.backup.Message(m); held {
			w.say("%s fetches %s from %s", name, w.names[id], from)
		}
	}
	w.execute(r)
	return nil
}

func (w *world) holder(not *replica, id MessageID) (string, Message, bool) {
	for _, name := range sorted(maps.Keys(w.replicas)) {
		r := w.replicas[name]
		if r == not || r.dead {
			continue
		}
		if m, ok := r.history().Has(id); ok {
			return string(name), m, true
		}
	}
	for _, name := range sorted(maps.Keys(w.sources)) {
		if s := w.sources[name]; s.session == id.Session && !s.dead && id.SeqNum != 0 {
			return name, s.calls[id.SeqNum-1].message, true
		}
	}
	return "", Message{}, false
}

func (r *replica) history() *History {
	if r.primary != nil {
		return r.primary.h
	}
	return r.backup.h
}

// cut: a replica forgets what is executed and stable.
func (w *world) cut(name, _, _ string) error {
	r := w.replicas[Replica(name)]
	if r == nil || r.dead {
		return fmt.Errorf("%w: %s forgets", errWorld, name)
	}
	if r.primary != nil {
		r.primary.Executed(OrderNum(len(r.executed)))
	} else {
		r.backup.Executed(OrderNum(len(r.executed)))
	}
	w.say("%s is cut at %d", name, r.history().CutAt())
	return nil
}
