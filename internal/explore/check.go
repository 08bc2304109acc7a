package explore

import (
	"fmt"
	"slices"

	"github.com/understudy-rpc/understudy/orderstate"
)

// checkReplica is what holds of one replica, whatever the others are. It is asked once of each that
// is reached.
func checkReplica(r *replica) error {
	if r.fate != up {
		return nil
	}
	var err error
	switch {
	case r.primary != nil:
		err = r.primary.Valid()
	case r.takeover != nil:
		err = r.takeover.Valid()
	default:
		err = r.backup.Valid()
	}
	if err != nil && !mutated {
		return err
	}
	for i, t := range r.executed {
		for k, other := range r.executed[:i] {
			if t.session == other.session && t.seqNum == other.seqNum && t.kind == other.kind {
				return fmt.Errorf("I4: %s is executed as %d and as %d",
					called(orderstate.MessageID{Session: t.session, SeqNum: t.seqNum}), k+1, i+1)
			}
		}
	}
	if h, k := r.history(), orderNum(len(r.executed)); k > h.Last() || k < h.CutAt() {
		return fmt.Errorf("I2: %d are executed, and the order is held from %d to %d", k, h.CutAt(), h.Last())
	}
	return nil
}

func checkSource(s *source) error {
	if s.fate != up || mutated {
		return nil
	}
	return s.state.Valid()
}

// check is what holds of every state.
func (w *world) check() {
	for i := range int8(w.scope.Replicas) {
		if r := w.replicas[i]; r.fate == up && w.inSync(i) && !w.record.restored {
			w.agrees(i, r)
			w.holdsStable(i, r)
		}
	}
	p := w.replicas[w.record.primary]
	if p.fate != up || p.primary == nil {
		return
	}
	for j := range int8(w.scope.Sources) {
		s := w.sources[j]
		if s.fate != up || !s.ready || s.state.Epoch() != p.primary.Epoch() {
			continue
		}
		for _, c := range s.calls { // I5, when nothing was said
			if k := int(c.orderNum); c.done && (k > len(p.executed) || !p.executed[k-1].is(c.message.MessageID)) {
				w.fail("I5: C%d has accepted %s as %d in epoch %d; in epoch %d it isn't there, and nobody has said so",
					j+1, called(c.message.MessageID), k, c.epoch, p.primary.Epoch())
			}
		}
	}
}

func (t turn) is(id orderstate.MessageID) bool {
	return t.kind == orderstate.Request && t.session == id.Session && t.seqNum == id.SeqNum
}

// agrees is I1.
func (w *world) agrees(i int8, r *replica) {
	for n := range i {
		other := w.replicas[n]
		if other.fate != up || !w.inSync(n) {
			continue
		}
		for k := range min(len(r.executed), len(other.executed)) {
			if r.executed[k] != other.executed[k] {
				w.fail("I1: as %d, S%d executes %v and S%d %v", k+1, n+1, other.executed[k], i+1, r.executed[k])
			}
		}
	}
}

// holdsStable is R3: what anyone knows to be stable is held.
func (w *world) holdsStable(i int8, r *replica) {
	last := r.history().Last()
	for n := range int8(w.scope.Replicas) {
		if p := w.replicas[n]; p.fate == up && p.primary != nil && last < p.primary.Stable() {
			w.fail("R3: S%d takes %d for stable, and S%d, which is in-sync, holds %d", n+1, p.primary.Stable(), i+1,
				last)
		}
	}
	for j := range int8(w.scope.Sources) {
		if s := w.sources[j]; s.fate == up && last < s.state.Stable() {
			w.fail("R3: C%d takes %d for stable, and S%d, which is in-sync, holds %d", j+1, s.state.Stable(), i+1, last)
		}
	}
}

// externalised is I3, R1b, and I6, where a reply is handed over.
func (w *world) externalised(j int8, reply orderstate.Reply) {
	s := w.sources[j]
	if reply.Epoch != s.state.Epoch() {
		w.fail("I6: C%d accepts a reply of epoch %d in %d", j+1, reply.Epoch, s.state.Epoch())
	}
	for k := s.state.Stable() + 1; k <= reply.OrderNum; k++ {
		if !slices.ContainsFunc(s.state.PendingRemoteOrder(), func(a orderstate.Announcement) bool {
			return a.Epoch == reply.Epoch && a.First <= k && k <= a.Last()
		}) {
			w.fail("I3: C%d accepts %d without the announcement of %d", j+1, reply.OrderNum, k)
		}
	}
	for i := range int8(w.scope.Replicas) {
		if r := w.replicas[i]; w.scope.Level == Stable && !w.record.restored && r.fate == up && w.inSync(i) &&
			r.history().Last() < reply.OrderNum {
			w.fail("R1b: C%d accepts %d, S%d is in-sync and holds %d", j+1, reply.OrderNum, i+1, r.history().Last())
		}
	}
}

// keptAll is I5 where N is fixed: below Stable what a source has accepted is lost only if a message
// died with all its holders, or the source was given up; at Stable, never.
func (w *world) keptAll(i int8) {
	if w.record.restored {
		return // what is lost is told
	}
	p := w.replicas[i].primary
	n := p.First() - 1
	for j := range int8(w.scope.Sources) {
		s := w.sources[j]
		if s.fate != up || w.record.skipped&(1<<j) != 0 {
			continue
		}
		for _, c := range s.calls {
			if c.done && (c.orderNum > n || !w.replicas[i].executed[c.orderNum-1].is(c.message.MessageID)) {
				if w.scope.Level == Stable {
					w.fail("I5: C%d has accepted %s as %d, and epoch %d starts at %d", j+1, called(c.message.MessageID),
						c.orderNum, p.Epoch(), n+1)
				} else if by := w.survives(s, c.epoch, n+1); by != "" {
					w.fail("I5: C%d has accepted %s as %d in epoch %d; epoch %d starts at %d, though %s", j+1,
						called(c.message.MessageID), c.orderNum, c.epoch, p.Epoch(), n+1, by)
				}
			}
		}
	}
}

// survives says who holds the message that a source knows to be ordered as k in an epoch; "" if
// that died.
func (w *world) survives(s *source, e epoch, k orderNum) string {
	for _, r := range unsealAll(s.state.PendingRemoteOrder()) {
		if r.Epoch != e || k < r.First || k > r.Last() {
			continue
		}
		id := r.Entries[k-r.First].Message()
		for n := range int8(w.scope.Replicas) {
			if w.alive(n) && w.inSync(n) {
				if _, ok := w.replicas[n].history().Has(id); ok {
					return fmt.Sprintf("S%d holds %s", n+1, called(id))
				}
			}
		}
		if owner := sourceOf(id.Session); id.SeqNum > 0 && w.alive(node(owner)) && w.record.skipped&(1<<owner) == 0 {
			return fmt.Sprintf("C%d lives, which sent %s", owner+1, called(id))
		}
		return ""
	}
	return "nobody would tell that source's announcements"
}

// lost: a source is told that a reply which it has accepted isn't in the order any more (I5).
func (w *world) lost(j int8, err error) {
	if !w.record.restored && (w.scope.Level == Stable || w.record.skipped == 0 && w.scope.Faults.Deaths == 0) {
		w.fail("I5: C%d is told: %w, and no source was lost", j+1, err)
	}
	w.say("C%d is told: %v", j+1, err)
	w.s(j).told = true
	w.end(node(j), gone)
}

// unrest says what is still to come; "" if all is done that can be.
func (w *world) unrest() string {
	p := w.replicas[w.record.primary]
	switch {
	case w.record.restored:
		return "" // who refuses what isn't the group's waits for its store
	case p.fate != up:
		return "" // there is no further epoch in this scope, or nobody to lead it
	case p.primary == nil:
		peers, sessions := p.takeover.Waiting()
		return fmt.Sprintf("S%d waits for %v %v", w.record.primary+1, peers, sessions)
	case !p.open:
		return fmt.Sprintf("S%d's gate stays closed", w.record.primary+1)
	}
	for j := range int8(w.scope.Sources) {
		for _, c := range w.sources[j].calls {
			if !c.done && w.alive(node(j)) {
				return fmt.Sprintf("C%d waits for the reply to %s", j+1, called(c.message.MessageID))
			}
		}
	}
	for j := range int8(w.scope.Sources) {
		if w.alive(node(j)) && w.sources[j].read.asked {
			return fmt.Sprintf("C%d waits for what it reads", j+1)
		}
	}
	for i := range int8(w.scope.Replicas) {
		if r := w.replicas[i]; w.inSync(i) && (r.fate != up || r.history().Last() != p.primary.Last()) {
			return fmt.Sprintf("S%d is in-sync, and is left behind", i+1)
		}
	}
	return ""
}
