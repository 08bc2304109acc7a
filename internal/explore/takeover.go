package explore

import (
	"errors"
	"slices"

	"github.com/understudy-rpc/understudy/orderstate"
)

// mayStand says whether a replica may be elected (R8).
func (w *world) mayStand(i int8) bool {
	r := w.replicas[i]
	return r.fate == up && w.inSync(i) && r.backup != nil && w.record.primary != i &&
		w.record.epoch < w.scope.Epochs
}

// elect is R8, and the first step of R12.
func (w *world) elect(i int8) {
	g := w.g()
	if w.alive(g.primary) {
		g.left.Depositions--
	}
	if !without(r8Former) {
		g.inSync &^= 1 << g.primary
	}
	g.epoch, g.primary = g.epoch+1, i
	for n := range int8(w.scope.Replicas) { // a transfer begun in an older epoch starts again (R13)
		if w.alive(n) && w.replicas[n].joining > 0 && !w.inSync(n) {
			w.end(n, absent)
		}
	}
	r := w.r(i)
	t, err := r.backup.Elected(g.epoch, w.peers(i), w.scope.Level != Stable)
	if err != nil {
		w.fail("S%d is in-sync, and can't take over: %w", i+1, err)
		return
	}
	r.backup, r.takeover, r.leader = nil, t, i
	for _, peer := range w.peers(i) {
		w.send(i, replicaNumber(peer), &packet{kind: newEpoch, epoch: g.epoch})
	}
	for j := range int8(w.scope.Sources) {
		w.send(i, node(j), &packet{kind: newEpoch, epoch: g.epoch})
	}
	w.fix(i)
}

func (w *world) peers(i int8) []name {
	var peers []name
	for n := range int8(w.scope.Replicas) {
		if n != i && w.inSync(n) {
			peers = append(peers, replicaName(n))
		}
	}
	return peers
}

// ids are the messages that there can be.
func (w *world) ids() []orderstate.MessageID {
	var ids []orderstate.MessageID
	for j := range int8(w.scope.Sources) {
		for q := range w.scope.Calls[j] + 1 {
			ids = append(ids, orderstate.MessageID{Session: sessionOf(j), SeqNum: seqNum(q)})
		}
	}
	return ids
}

// held is the messages that a replica holds.
func (w *world) held(i int8) []message {
	var list []message
	for _, id := range w.ids() {
		if m, ok := w.replicas[i].history().Has(id); ok {
			list = append(list, m)
		}
	}
	return list
}

// runs makes of what a replica knows runs of one epoch with no gap.
func runs(known []orderstate.Ordered, h *orderstate.History) []run {
	var rs []run
	for _, o := range known {
		last := len(rs) - 1
		if last < 0 || rs[last].Epoch != o.Epoch || rs[last].Last()+1 != o.OrderNum {
			first, _ := h.StartOf(o.Epoch)
			rs, last = append(rs,
				run{Envelope: orderstate.Envelope{Epoch: o.Epoch, EpochFirst: first, First: o.OrderNum}}), last+1
		}
		rs[last].Count++
		rs[last].Entries = append(rs[last].Entries, o.OrderInfo)
	}
	return rs
}

// peerAnswers: a peer acknowledges an epoch (R12.1), and says what it knows.
func (w *world) peerAnswers(i, from int8, e epoch) {
	r := w.r(i)
	f := r.follows()
	if f == nil {
		return
	}
	known, err := f.Answer(e)
	if err != nil {
		w.diverged(i, err)
		return
	}
	r.leader = from
	w.send(i, from, &packet{
		kind: peerKnows, epoch: e, table: slices.Clone(f.History().Starts()),
		runs: runs(known, f.History()), list: w.held(i),
	})
}

// peerAnswered: the takeover merges it.
func (w *world) peerAnswered(i, from int8, p *packet) {
	r := w.r(i)
	if r.takeover == nil || r.takeover.Epoch() != p.epoch {
		return
	}
	if err := r.takeover.PeerKnows(p.table, p.runs); err != nil {
		w.fail("S%d, of S%d: %w", i+1, from+1, err)
	}
	w.taken(i, nil, p.list)
	r.takeover.PeerAnswered(replicaName(from))
	w.fix(i)
}

// sessionAnswers: a source acknowledges an epoch (R9), and says what it holds.
func (w *world) sessionAnswers(j, from int8, e epoch) {
	s := w.s(j)
	moved := w.moveOn(s, e)
	if s.state.Epoch() != e {
		return
	}
	if moved {
		w.answersAll(j, from)
	}
	w.send(node(j), from, &packet{kind: sessionHas, epoch: e, sealed: s.state.PendingRemoteOrder(), list: s.messages()})
}

// moveOn: a source acknowledges an epoch; replies that it hasn't accepted are dropped (R9).
func (w *world) moveOn(s *source, e epoch) bool {
	if !s.state.NewEpoch(e) {
		return false
	}
	s.ready = false
	for i := range s.calls {
		s.calls[i].waiting = orderstate.Reply{}
	}
	s.read.waiting = orderstate.Reply{}
	return true
}

// sessionAnswered: the takeover merges it.
func (w *world) sessionAnswered(i int8, j int8, p *packet) {
	r := w.r(i)
	if w.scope.Reads > 0 && w.scope.Level == Stable {
		r.heard |= 1 << j
	}
	if r.takeover == nil || r.takeover.Epoch() != p.epoch {
		return
	}
	if err := r.takeover.SessionKnows(unsealAll(p.sealed)); err != nil {
		w.fail("S%d, of C%d: %w", i+1, j+1, err)
	}
	w.taken(i, nil, p.list)
	r.takeover.SessionAnswered(sessionOf(j))
	w.fix(i)
}

// waitsFor says whether a takeover waits for a source.
func (w *world) waitsFor(i, j int8) bool {
	r := w.replicas[i]
	if r.fate != up || r.takeover == nil {
		return false
	}
	_, sessions := r.takeover.Waiting()
	return slices.Contains(sessions, sessionOf(j))
}

// giveUp: the takeover waits no longer for a source: A has passed, so that this accepts nothing of
// an older epoch (R10).
func (w *world) giveUp(i, j int8) {
	r := w.r(i)
	g := w.g()
	if g.passed = max(g.passed, r.takeover.Epoch()); w.alive(node(j)) {
		g.left.Skips--
		g.skipped |= 1 << j
	}
	r.takeover.SessionAnswered(sessionOf(j))
	w.fix(i)
}

// fix is R12.3, as soon as nobody is waited for: whatever comes later might as well have been late.
func (w *world) fix(i int8) {
	r := w.r(i)
	if r.takeover == nil {
		return
	}
	if peers, _ := r.takeover.Waiting(); len(peers) == 0 {
		w.fetch(i) // ¶47: what the peers may have got since they answered (R12.1)
	}
	if peers, sessions := r.takeover.Waiting(); len(peers)+len(sessions) > 0 {
		w.say("S%d waits for %v %v", i+1, peers, sessions)
		return
	}
	p, tail, err := r.takeover.Fix(w.scope.Max)
	if errors.As(err, new(*orderstate.FencedError)) {
		w.say("S%d: %v", i+1, err)
		return
	}
	if err != nil {
		w.fail("S%d is in-sync, and can't take over: %w", i+1, err)
		return
	}
	w.say("S%d: epoch %d starts at %d", i+1, p.Epoch(), p.First())
	w.execute(r, tail)
	r.primary, r.takeover, r.answered = p, nil, [maxSources]epoch{}
	if w.record.primary == i { // else it was deposed meanwhile, and its epoch never opens
		w.keptAll(i)
		w.forgetLost(p.First() - 1)
	}
	_, members := p.Required()
	for _, m := range members {
		w.tellStart(i, replicaNumber(m))
	}
	w.gate(i)
}

// tellStart tells a peer where the epoch starts, and what it may lack (R12.4).
func (w *world) tellStart(i, to int8) {
	p := w.replicas[i].primary
	start := &packet{
		kind: starts, epoch: p.Epoch(), first: p.First(), stable: p.Stable(), table: slices.Clone(p.History().Starts()),
		runs: []run{p.Push(p.Stable())}, list: w.held(i),
	}
	if w.scope.Attaching { // the one may come without the other
		push := &packet{kind: push, epoch: p.Epoch(), stable: p.Stable(), runs: start.runs, list: start.list}
		start.runs, start.list = nil, nil
		w.send(i, to, start)
		w.send(i, to, push)
		return
	}
	w.send(i, to, start)
}

// started: a backup learns it.
func (w *world) started(i, from int8, p *packet) {
	r := w.r(i)
	f := r.follows()
	if f == nil {
		return
	}
	if _, err := f.Start(p.epoch, p.first, p.table); err != nil {
		w.diverged(i, err)
		return
	}
	r.leader = from
	w.taken(i, p.runs, p.list)
	f.LearnStable(p.epoch, p.stable)
	w.attachAll(i)
}

// gate is R12.4: when every in-sync peer holds what is up to N, the sessions learn N, and calls are
// taken.
func (w *world) gate(i int8) {
	r := w.r(i)
	if r.open || r.primary == nil || !r.primary.Held() {
		return
	}
	r.open = true
	for j := range int8(w.scope.Sources) {
		w.tellSource(i, j)
	}
}

func (w *world) tellSource(i, j int8) {
	p := w.replicas[i].primary
	number, members := p.Required()
	w.send(i, node(j), &packet{kind: starts, epoch: p.Epoch(), first: p.First(), stable: p.Stable(),
		table: slices.Clone(p.History().Starts()), number: number, members: members})
}

// resumes: a source learns where the epoch starts, and issues its calls again.
func (w *world) resumes(j, from int8, p *packet) {
	s := w.s(j)
	if w.moveOn(s, p.epoch) {
		w.answersAll(j, from)
	}
	known := s.ready && s.state.Epoch() == p.epoch
	err := s.state.Start(p.epoch, p.first, p.stable, p.table)
	switch {
	case errors.As(err, new(*orderstate.FencedError)):
		return
	case errors.As(err, new(*orderstate.LostError)):
		w.lost(j, err)
		return
	case err != nil:
		w.fail("C%d: %w", j+1, err)
	}
	s.leader, s.ready = from, true
	s.state.Require(p.epoch, p.number, p.members)
	w.handOver(j)
	if !known {
		w.reissue(j)
	}
}
