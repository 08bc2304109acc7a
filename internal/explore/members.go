package explore

import (
	"github.com/understudy-rpc/understudy/orderstate"
)

// end takes a process out: what has reached the network may still arrive.
func (w *world) end(n int8, f fate) {
	if n >= maxReplicas {
		s := w.s(n - maxReplicas)
		*s = source{fate: f, told: s.told}
	} else {
		r := w.r(n)
		*r = replica{fate: f}
		for j, s := range w.sources { // RPCs to it fail
			for i, c := range s0(s).calls {
				if c.flight != nil && c.to == n {
					w.s(int8(j)).calls[i].flight = nil
				}
			}
		}
	}
	for from := range int8(maxNodes) {
		if at := between(from, n); len(w.links[at].packets) > 0 {
			w.setLink(at, nil)
		}
	}
}

// s0 is a source, or none.
func s0(s *source) *source {
	if s == nil {
		return &source{}
	}
	return s
}

// crash is of a replica, or of a source.
func (w *world) crash(n int8) {
	if g := w.g(); n >= maxReplicas {
		g.left.Deaths--
	} else {
		g.left.Crashes--
	}
	w.end(n, gone)
}

// gonePush: the primary sees that a source is gone, and pushes its messages and orders (R4).
func (w *world) gonePush(i, j int8) {
	r := w.r(i)
	r.ended |= 1 << j
	w.pushAll(i, j)
}

func (w *world) pushAll(i, j int8) {
	var list []message
	for _, m := range w.held(i) {
		if m.Session == sessionOf(j) {
			list = append(list, m)
		}
	}
	p := w.replicas[i].primary
	w.multicast(i, p.Push(p.Stable()), list)
}

// cut drops what is on its way between two, and opens the stream again.
func (w *world) cut(a, b int8) {
	w.g().left.Cuts--
	w.clear(a, b)
	w.connect(a, b)
}

// connect is what a new stream carries, and what the two ends do about the old one's end. a is the
// lower node.
func (w *world) connect(a, b int8) {
	if !w.alive(a) || !w.alive(b) {
		return
	}
	if b >= maxReplicas {
		w.connectSource(a, b-maxReplicas)
		return
	}
	for _, ends := range [...][2]int8{{a, b}, {b, a}} {
		i, to := ends[0], ends[1]
		switch r := w.replicas[i]; {
		case r.primary != nil && w.member(i, to):
			w.tellStart(i, to)
		case r.takeover != nil && w.inSync(to):
			w.send(i, to, &packet{kind: newEpoch, epoch: r.takeover.Epoch()})
		case r.backup != nil && r.leader == to:
			w.acknowledgeTo(i, to)
			w.tellAgain(i, to)
		}
	}
}

// tellAgain: a backup's new stream to its primary begins with no session attached, there first, and
// says whom it hears, and whom it doesn't any more (R11).
func (w *world) tellAgain(i, to int8) {
	if !w.scope.Attaching || w.replicas[to].primary == nil {
		return
	}
	w.r(to).primary.DetachAll(replicaName(i))
	r := w.r(i)
	for _, n := range r.backup.Attached() {
		if r.answered[sourceOf(n)] != 0 {
			w.send(i, to, &packet{kind: hears, session: n})
		} else if number, ok := r.backup.Detach(n); ok {
			w.send(i, to, &packet{kind: deaf, session: n, number: number})
		}
	}
}

func (w *world) member(i, of int8) bool {
	_, member := w.replicas[i].primary.Acknowledged(replicaName(of))
	return member
}

func (w *world) connectSource(i, j int8) {
	if w.cutOff(i, node(j)) {
		return
	}
	s := w.s(j)
	list, now := s.state.Multicast(0)
	s.marks[i] = now
	r := w.replicas[i]
	if r.primary == nil {
		w.detach(i, j)
		w.send(node(j), i, &packet{kind: hello, epoch: w.answering(s), list: s.messages(), sealed: list})
		w.acknowledgeTo(i, node(j))
		if r.takeover != nil {
			w.send(i, node(j), &packet{kind: newEpoch, epoch: r.takeover.Epoch()})
		}
		return
	}
	if r.open {
		w.tellSource(i, j)
	}
	if s.leader != i || !s.ready {
		return
	}
	w.pushAll(i, j) // R4: a session's stream has closed
	for n := range s.calls {
		s.calls[n].flight = nil
	}
	w.reissue(j)
}

// evict: the primary, or who takes over, takes a replica out of in-sync: etcd first, then the
// required set, then its streams are cut (R13).
func (w *world) evict(i, out int8) {
	if w.alive(out) {
		w.g().left.Evictions--
	}
	if !without(r13EtcdFirst) {
		w.g().inSync &^= 1 << out
	} else if w.alive(out) && w.replicas[i].primary != nil {
		w.release(i, out)
		return
	}
	switch {
	case w.alive(out) && w.scope.Faults.Restores > 0:
		w.sleeps(out)
	case w.alive(out):
		w.end(out, gone)
	}
	w.release(i, out)
}

// sleeps: a replica is cut off from all.
func (w *world) sleeps(n int8) {
	w.r(n).fate = asleep
	for other := range int8(maxNodes) {
		w.clear(other, n)
	}
}

// restore: the store is as it was before a replica was evicted, which wakes up.
func (w *world) restore(n int8) {
	g := w.g()
	g.left.Restores--
	g.restored = true
	g.inSync |= 1 << n
	w.r(n).fate = up
	for other := range int8(maxNodes) {
		if other != n && (other >= maxReplicas && other-maxReplicas < int8(w.scope.Sources) ||
			other < int8(w.scope.Replicas)) {
			w.connect(min(n, other), max(n, other))
		}
	}
}

func (w *world) release(i, out int8) {
	r := w.r(i)
	switch {
	case r.primary != nil:
		r.primary.Release(replicaName(out))
		if !without(r1bPushed) {
			w.tellRequired(i)
		}
		w.moved(i)
	case r.takeover != nil:
		r.takeover.Evicted(replicaName(out))
		w.fix(i)
	}
}

// tellRequired pushes the required set on the sessions' streams (R1b).
func (w *world) tellRequired(i int8) {
	p := w.replicas[i].primary
	number, members := p.Required()
	for j := range int8(w.scope.Sources) {
		w.send(i, node(j), &packet{kind: requires, epoch: p.Epoch(), number: number, members: members})
	}
}

// counted says whether a replica is counted by another, or kept in-sync.
func (w *world) counted(i, n int8) bool {
	return w.inSync(n) || w.replicas[i].primary != nil && w.member(i, n)
}

// mayJoin says whether a replica may begin to join, with the snapshot of a donor (R13).
func (w *world) mayJoin(n, donor int8) bool {
	i := w.record.primary
	p, d := w.replicas[i], w.replicas[donor]
	if w.replicas[n].fate != absent || p.fate != up || p.primary == nil || !p.open || d.fate != up || !w.inSync(donor) {
		return false
	}
	return d.primary != nil || d.backup != nil && d.backup.Started() && d.backup.Epoch() == w.record.epoch
}

// join is R13, grow: it is counted in first, then has a snapshot, and the log after it.
func (w *world) join(n, donor int8) {
	i := w.record.primary
	p := w.r(i).primary
	if !without(r13Counted) {
		p.Require(replicaName(n))
		w.tellRequired(i)
	}

	d := w.replicas[donor]
	h, k := d.history(), orderNum(len(d.executed))
	state, err := orderstate.NewHistory(k, h.TimeAt(k), h.Starts(), h.SessionStates(k))
	must(err)
	b, err := orderstate.NewBackup(state, p.Epoch(), p.First())
	must(err)
	w.take(ownReplica + int(n))
	w.replicas[n] = &replica{backup: b, executed: append([]turn(nil), d.executed...), joining: k, leader: i}
	after := run{Envelope: orderstate.Envelope{Epoch: p.Epoch(), EpochFirst: p.First(), First: k + 1}}
	for _, o := range h.Above(k) {
		after.Entries = append(after.Entries, o.OrderInfo)
	}
	after.Count = len(after.Entries)
	w.taken(n, []run{after}, w.held(donor))
	w.send(i, n, &packet{kind: push, epoch: p.Epoch(), stable: p.Stable(), runs: []run{p.Push(k)}, list: w.held(i)})
	w.attachAll(n)
	for j := range int8(w.scope.Sources) {
		if w.alive(node(j)) {
			w.connectSource(n, j)
		}
	}
}

// mayAdmit says whether a joiner may be written to in-sync.
func (w *world) mayAdmit(n int8) bool {
	i := w.record.primary
	r, j := w.replicas[i], w.replicas[n]
	if r.fate != up || r.primary == nil || j.fate != up || j.joining == 0 || w.inSync(n) {
		return false
	}
	if without(r13Counted) {
		return j.backup.Last() >= r.primary.Last() && r.primary.Stable() >= j.joining
	}
	k, ok := r.primary.Acknowledged(replicaName(n))
	if without(r13Holds) {
		return ok
	}
	if without(r13Stable) {
		return ok && k >= r.primary.Last()
	}
	return ok && k >= r.primary.Last() && r.primary.Stable() >= j.joining
}

func (w *world) admit(n int8) {
	w.g().inSync |= 1 << n
	w.r(n).joining = 0
}

// sever: a source and a backup can't hear each other any more.
func (w *world) sever(i, j int8) {
	g := w.g()
	g.left.Breaks--
	g.broken |= deafness(j, i)
	w.clear(i, node(j))
	w.detach(i, j)
}

// detach: a source's stream to a backup has ended; the backup tells its primary (R11).
func (w *world) detach(i, j int8) {
	if !w.scope.Attaching {
		return
	}
	r := w.r(i)
	if r.answered[j] = 0; r.backup == nil {
		return
	}
	if number, ok := r.backup.Detach(sessionOf(j)); ok {
		w.send(i, r.leader, &packet{kind: deaf, session: sessionOf(j), number: number})
	}
}

// confirm: the primary notes it; the confirmation follows what the replies that it has sent depend
// on.
func (w *world) confirm(i, to int8, p *packet) {
	r := w.r(i)
	if r.primary == nil {
		return
	}
	upTo, ok := r.primary.Detach(replicaName(to), p.session)
	if !ok {
		return
	}
	e := r.primary.Epoch()
	if !without(r11Follows) {
		w.send(i, to, &packet{kind: push, epoch: e, stable: r.primary.Stable(),
			runs: []run{r.primary.Push(r.primary.Stable())}, list: w.held(i)})
	}
	w.send(i, to, &packet{kind: confirmed, epoch: e, session: p.session, number: p.number, k: upTo})
}

// mend: they hear each other again.
func (w *world) mend(i, j int8) {
	w.g().broken &^= deafness(j, i)
	w.connect(i, node(j))
}

// answering is the epoch that a source acknowledges on its streams to backups, where that is
// explored.
func (w *world) answering(s *source) epoch {
	if !w.scope.Attaching {
		return 0
	}
	return s.state.Epoch()
}

// answersAll: a source acknowledges an epoch to those that don't lead it, too.
func (w *world) answersAll(j, but int8) {
	s := w.sources[j]
	for i := range int8(w.scope.Replicas) {
		if i != but && w.scope.Attaching && w.alive(i) && w.replicas[i].primary == nil {
			w.send(node(j), i, &packet{kind: hello, epoch: s.state.Epoch(), list: s.messages(),
				sealed: s.state.PendingRemoteOrder()})
		}
	}
}

// answers: the backup has heard all that the source holds, which has acknowledged an epoch.
func (w *world) answers(i, j int8, e epoch) {
	if r := w.r(i); r.primary == nil && w.scope.Attaching {
		r.answered[j] = e
		w.attach(i, j)
	}
}

// attach: a backup that hears a source, in the epoch that it follows itself, tells the primary
// (R11).
func (w *world) attach(i, j int8) {
	r := w.r(i)
	if r.backup == nil || r.answered[j] < r.backup.Epoch() || r.answered[j] == 0 {
		return
	}
	if r.backup.Attach(sessionOf(j)) {
		w.send(i, r.leader, &packet{kind: hears, session: sessionOf(j)})
	}
}

// attachAll: a backup hears all sources, and its primary knows, where attaching isn't explored.
func (w *world) attachAll(i int8) {
	r := w.r(i)
	for j := range int8(w.scope.Sources) {
		if w.scope.Attaching {
			w.attach(i, j)
			continue
		}
		if r.follows().Attach(sessionOf(j)) && w.replicas[r.leader].fate == up && w.replicas[r.leader].primary != nil {
			w.r(r.leader).primary.Attach(replicaName(i), sessionOf(j))
		}
	}
}

// truncate cuts the history wherever it may be.
func (w *world) truncate() {
	for i := range int8(w.scope.Replicas) {
		if w.owned&(1<<(ownReplica+int(i))) == 0 || w.replicas[i].fate != up {
			continue
		}
		r := w.replicas[i]
		if k := orderNum(len(r.executed)); r.primary != nil {
			r.primary.Executed(k)
		} else {
			r.follows().Executed(k)
		}
	}
}
