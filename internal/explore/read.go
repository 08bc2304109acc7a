package explore

import "github.com/understudy-rpc/understudy/orderstate"

// read is a source's read-only call: no order, no log, no fan-out; it names the orderNum that it
// saw (R1).
type read struct {
	asked   bool
	floor   orderNum // what had been accepted, by anyone, when it was issued
	to      int8
	flight  *packet
	waiting orderstate.Reply
}

func (r *read) appendTo(b []byte) []byte {
	b = appendInts(b, uint64(r.floor), uint64(r.to), uint64(r.waiting.Epoch), uint64(r.waiting.OrderNum))
	b = appendBools(b, r.asked, r.flight != nil)
	if r.flight != nil {
		b = appendInts(b, r.flight.id)
	}
	return b
}

// issueRead is a source's next read.
func (w *world) issueRead(j int8) {
	s := w.s(j)
	s.reads++
	s.read = read{asked: true, floor: w.record.accepted}
	w.requestRead(j)
}

func (w *world) requestRead(j int8) {
	s := w.s(j)
	s.read.flight, s.read.waiting, s.read.to = nil, orderstate.Reply{}, s.leader
	if w.alive(s.leader) && !w.cutOff(s.leader, node(j)) {
		s.read.flight = w.intern(&packet{kind: request, epoch: s.state.Epoch(), k: s.state.HeldUpTo()})
	}
}

// undisputed says whether no source accepts anything of an older epoch any more. At Stable the gate
// opens before the sessions have answered: what is accepted then, an older primary, which still has
// authority, doesn't show to whom it serves a read. So calls and reads wait there until each
// session has acknowledged the epoch, or A has passed.
func (w *world) undisputed(i int8) bool {
	r := w.replicas[i]
	if e := r.primary.Epoch(); w.scope.Level != Stable || w.scope.Reads == 0 || e == 1 || w.record.passed >= e {
		return true
	}
	for j := range int8(w.scope.Sources) {
		if w.alive(node(j)) && r.heard&(1<<j) == 0 {
			return false
		}
	}
	return true
}

// serves says whether a primary serves the calls that arrive.
func (w *world) serves(i int8) bool {
	r := w.replicas[i]
	return r.primary != nil && r.open && (w.undisputed(i) || without(r124Calls))
}

// shows says whether a primary answers a read of a source. A takeover by a backup that can't hear
// the source doesn't wait for it, nor for A: so that backup must hold what the read depends on, and
// still follow this epoch when the read has arrived (R11). To order the read, and wait for the
// acknowledgement, comes to the same.
func (w *world) shows(i, j int8) bool {
	r := w.replicas[i]
	if r.primary == nil || !r.open || !w.undisputed(i) {
		return false
	}
	if !r.primary.MayLeave(sessionOf(j), r.primary.Last()) {
		return false
	}
	for _, deaf := range r.primary.DetachedAt(sessionOf(j)) {
		f := w.replicas[replicaNumber(deaf)].follows()
		if without(r11Reads) {
			continue
		}
		if f == nil {
			return false
		}
		if e, _, ok := f.Acknowledgement(); !ok || e != r.primary.Epoch() {
			return false
		}
	}
	return true
}

// serveRead answers with the state as it is.
func (w *world) serveRead(j int8) {
	s := w.s(j)
	to, p := s.read.to, s.read.flight
	primary := w.replicas[to].primary
	number, members := primary.Required()
	w.say("S%d shows C%d its state at %d", to+1, j+1, primary.Last())
	s.read.flight = w.intern(&packet{
		kind: reply, epoch: p.epoch, k: primary.Last(), stable: primary.Stable(), number: number, members: members,
		sealed: []orderstate.Announcement{seal(primary.Multicast(sessionOf(j), p.k, primary.Last(), nil))},
	})
}

// readReplied: the reply arrives.
func (w *world) readReplied(j int8) {
	s := w.s(j)
	p := s.read.flight
	s.read.flight = nil
	w.learn(j, p)
	s.state.Require(p.epoch, p.number, p.members)
	if p.epoch < w.record.passed && !without(r10) {
		w.say("C%d drops it: its primary has no authority", j+1)
		return
	}
	s.read.waiting = orderstate.Reply{Epoch: p.epoch, OrderNum: p.k, Number: p.number, Stable: w.scope.Level == Stable}
	w.handOver(j)
}

// handOverRead hands a read's reply over: it mustn't be older than what anyone had accepted before
// it was issued.
func (w *world) handOverRead(j int8) {
	s := w.s(j)
	if s.read.waiting.Epoch == 0 {
		return
	}
	switch d := s.state.Accept(s.read.waiting); d {
	case orderstate.Accept:
		saw := s.read.waiting.OrderNum
		w.say("C%d accepts what it read at %d", j+1, saw)
		if saw < s.read.floor {
			w.fail("R10: C%d reads the state at %d of epoch %d, and the call at %d was accepted before", j+1, saw,
				s.read.waiting.Epoch, s.read.floor)
		}
		s.read = read{}
	case orderstate.Drop:
		s.read.waiting = orderstate.Reply{}
	}
}

// forgetLost: what was accepted beyond N is lost, and told (I5): nobody need see it.
func (w *world) forgetLost(n orderNum) {
	if n >= w.record.accepted {
		return
	}
	w.g().accepted = n
	for j := range int8(w.scope.Sources) {
		if w.alive(node(j)) && w.sources[j].read.floor > n {
			w.s(j).read.floor = n
		}
	}
}

// authorityEnds: A has passed since the last election, so that no older primary transmits, and no
// source accepts what it has (R10).
func (w *world) authorityEnds() { w.g().passed = w.record.epoch }
