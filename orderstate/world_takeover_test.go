package orderstate

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

func (w *world) crash(name, _, _ string) error {
	if r := w.replicas[Replica(name)]; r != nil {
		r.dead = true
		return nil
	}
	if s := w.sources[name]; s != nil {
		s.dead, w.excused = true, true
		return nil
	}
	return fmt.Errorf("%w: %s crashes", errWorld, name)
}

// elect is R8 and the first step of R12.
func (w *world) elect(name, _, _ string) error {
	r := w.replicas[Replica(name)]
	if r == nil || !w.mayStand(r) {
		return fmt.Errorf("%w: %s stands for election", errWorld, name)
	}
	delete(w.inSync, w.primary)
	w.epoch, w.primary = w.epoch+1, r.name
	t, err := r.backup.Elected(w.epoch, w.peers(r), w.level != "stable")
	if err != nil {
		return fmt.Errorf("an in-sync replica can't take over: %w", err)
	}
	r.takeover = t
	w.say("%s is elected in epoch %d", name, w.epoch)
	w.tellEpoch(r, w.peers(r), sorted(maps.Keys(w.sources)))
	return nil
}

func (w *world) tellEpoch(r *replica, peers []Replica, sources []string) {
	epoch := r.takeover.epoch
	for _, peer := range peers {
		w.send(string(r.name), string(peer), fmt.Sprint("epoch ", epoch), func() bool {
			return w.peerAnswers(w.replicas[peer], r, epoch)
		})
	}
	for _, to := range sources {
		w.send(string(r.name), to, fmt.Sprint("epoch ", epoch), func() bool {
			return w.sourceAnswers(w.sources[to], r, epoch)
		})
	}
}

// tell: who takes over, or has taken over, tells the epoch, or its start, again.
func (w *world) tell(name, _, _ string) error {
	r := w.replicas[Replica(name)]
	if r == nil || r.dead || r.takeover == nil {
		return fmt.Errorf("%w: %s tells its epoch", errWorld, name)
	}
	if r.primary != nil {
		w.tellStart(r)
		return nil
	}
	peers, sessions := r.takeover.Waiting()
	var sources []string
	for _, n := range sessions {
		for _, to := range sorted(maps.Keys(w.sources)) {
			if w.sources[to].session == n {
				sources = append(sources, to)
			}
		}
	}
	w.tellEpoch(r, peers, sources)
	return nil
}

func (w *world) mayStand(r *replica) bool {
	return !r.dead && w.inSync[r.name] && r.takeover == nil && r.primary == nil && w.primary != r.name
}

func (w *world) peers(r *replica) []Replica {
	return slices.DeleteFunc(sorted(maps.Keys(w.inSync)), func(p Replica) bool { return p == r.name })
}

func (w *world) peerAnswers(p, r *replica, epoch Epoch) bool {
	if p.backup == nil || p.primary != nil {
		return true
	}
	known, err := p.backup.Answer(epoch)
	if err != nil {
		w.say("%s: %v", p.name, err)
		return true
	}
	starts, messages := slices.Clone(p.backup.History().Starts()), slices.Collect(maps.Values(p.backup.h.messages.held))
	rs := runs(known, p.backup.h)
	w.say("%s answers epoch %d with %s", p.name, epoch, w.list(rs))
	w.send(string(p.name), string(r.name), fmt.Sprint("answer ", epoch), func() bool {
		if r.primary != nil || r.takeover.Epoch() != epoch {
			return true
		}
		if err := r.takeover.PeerKnows(starts, rs); err != nil {
			panic(fmt.Sprintf("%s: of %s: %v", r.name, p.name, err))
		}
		w.logAll(r, messages)
		r.takeover.PeerAnswered(p.name)
		return true
	})
	return true
}

// logAll gives a takeover what came with an answer; the second time for sessions that the first has
// made known.
func (w *world) logAll(r *replica, messages []Message) {
	for range 2 {
		for _, m := range messages {
			r.takeover.Message(m)
		}
	}
}

func (w *world) sourceAnswers(s *source, r *replica, epoch Epoch) bool {
	if s.state.NewEpoch(epoch) {
		s.at = epoch
		for _, c := range s.calls {
			c.replies = nil
		}
	} else if s.state.Epoch() != epoch {
		return true
	}
	var rs []Run
	for _, a := range s.state.PendingRemoteOrder() {
		rs = append(rs, w.unseal(a))
	}
	messages := s.messages()
	w.say("%s answers epoch %d with %s", s.name, epoch, w.list(rs))
	w.send(s.name, string(r.name), fmt.Sprint("answer ", epoch), func() bool {
		if r.primary != nil || r.takeover.Epoch() != epoch {
			return true
		}
		if err := r.takeover.SessionKnows(rs); err != nil {
			panic(fmt.Sprintf("%s: of %s: %v", r.name, s.name, err))
		}
		w.logAll(r, messages)
		r.takeover.SessionAnswered(s.session)
		return true
	})
	return true
}

func (s *source) messages() []Message {
	messages := make([]Message, len(s.calls))
	for i, c := range s.calls {
		messages[i] = c.message
	}
	return messages
}

// giveUp: the takeover waits no longer for a session; A has passed, so its source accepts nothing
// of an older epoch any more (R10).
func (w *world) giveUp(name, whom, _ string) error {
	r, s := w.replicas[Replica(name)], w.sources[whom]
	if r == nil || r.takeover == nil || r.primary != nil || s == nil {
		return fmt.Errorf("%w: %s gives %s up", errWorld, name, whom)
	}
	w.excused = w.excused || w.level != "stable"
	s.at = max(s.at, r.takeover.Epoch())
	r.takeover.SessionAnswered(s.session)
	return nil
}

// evict: the primary, or who is taking over, takes a replica out of in-sync: etcd first (R13).
func (w *world) evict(name, whom, _ string) error {
	r, out := w.replicas[Replica(name)], Replica(whom)
	if r == nil || r.dead || w.primary != r.name || out == r.name || w.replicas[out] == nil {
		return fmt.Errorf("%w: %s evicts %s", errWorld, name, whom)
	}
	delete(w.inSync, out)
	switch {
	case r.primary != nil:
		if _, member := r.primary.Acknowledged(out); !member {
			return nil
		}
		if moved := r.primary.Release(out); moved.Stable {
			w.say("%s: stable up to %d", name, r.primary.Stable())
		}
		w.requires(r)
	default:
		r.takeover.Evicted(out)
	}
	return nil
}

// oldStore puts a replica in-sync that was evicted, as a store does that was restored from before.
func (w *world) oldStore(whom, _, _ string) error {
	r := w.replicas[Replica(whom)]
	if r == nil || w.inSync[r.name] {
		return fmt.Errorf("%w: an old store has %s in-sync", errWorld, whom)
	}
	w.inSync[r.name], w.oldStored, w.excused = true, true, true
	return nil
}

// requires tells the sources the required set.
func (w *world) requires(r *replica) {
	number, members := r.primary.Required()
	epoch := r.primary.Epoch()
	w.say("%s: required set %d is %v", r.name, number, members)
	for _, to := range sorted(maps.Keys(w.sources)) {
		s := w.sources[to]
		w.send(string(r.name), to, fmt.Sprint("required ", members), func() bool {
			s.state.Require(epoch, number, members)
			w.handOver(s)
			return true
		})
	}
}

// fix is R12.3.
func (w *world) fix(name, _, _ string) error {
	r := w.replicas[Replica(name)]
	if r == nil || r.dead || r.takeover == nil || r.primary != nil {
		return fmt.Errorf("%w: %s fixes N", errWorld, name)
	}
	if peers, sessions := r.takeover.Waiting(); len(peers)+len(sessions) > 0 {
		w.say("%s waits for %v %v", name, peers, sessions)
		return nil
	}
	p, tail, err := r.takeover.Fix(w.max)
	if fenced := (*FencedError)(nil); errors.As(err, &fenced) {
		w.say("%s: %v", name, err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("an in-sync replica can't take over: %w", err)
	}
	r.primary, r.backup = p, nil
	w.say("%s: epoch %d starts at %d", name, p.Epoch(), p.First())
	w.executeAll(r, tail)
	w.tellStart(r)
	return nil
}

// tellStart tells the peers where the epoch starts, with the order and the messages up to there.
func (w *world) tellStart(r *replica) {
	p := r.primary
	epoch, first, push, starts, messages := p.Epoch(), p.First(), p.Push(p.Stable()), slices.Clone(p.h.Starts()),
		slices.Collect(maps.Values(p.h.messages.held))
	_, members := p.Required()
	for _, m := range members {
		b := w.replicas[m]
		w.send(string(r.name), string(m), fmt.Sprint("start ", epoch), func() bool {
			if b.backup == nil || b.primary != nil {
				return true
			}
			if _, err := b.backup.Start(epoch, first, starts); err != nil {
				if d := (*DivergedError)(nil); errors.As(err, &d) && w.inSync[b.name] {
					panic(fmt.Sprintf("%s is in-sync: %v", b.name, err))
				}
				w.say("%s: %v", b.name, err)
				return true
			}
			for _, m := range messages {
				b.backup.Message(m)
			}
			w.received(b, push)
			w.execute(b)
			w.attachAll(b)
			return true
		})
	}
}

// gate is R12.4: once every in-sync peer holds what is up to N, calls are taken, and the sessions
// learn N.
func (w *world) gate(name, _, _ string) error {
	r := w.replicas[Replica(name)]
	if r == nil || r.dead || r.primary == nil {
		return fmt.Errorf("%w: %s opens its gate", errWorld, name)
	}
	p := r.primary
	if !p.Held() {
		w.say("%s keeps its gate closed", name)
		return nil
	}
	epoch, first, stable, starts := p.Epoch(), p.First(), p.Stable(), slices.Clone(p.History().Starts())
	for _, to := range sorted(maps.Keys(w.sources)) {
		s := w.sources[to]
		w.send(name, to, fmt.Sprint("start ", epoch), func() bool {
			s.state.NewEpoch(epoch)
			s.at = max(s.at, epoch)
			err := s.state.Start(epoch, first, stable, starts)
			if fenced := (*FencedError)(nil); errors.As(err, &fenced) {
				return true
			}
			if err != nil {
				w.end(s, err)
				return true
			}
			w.handOver(s)
			for _, c := range s.calls {
				if !c.done {
					w.issue(s, c.message)
				}
			}
			return true
		})
	}
	return nil
}

// reconnect: a source's stream to a replica is a new one: it reflects all, and sends all again.
func (w *world) reconnect(name, to, _ string) error {
	s, r := w.sources[name], w.replicas[Replica(to)]
	if s == nil || s.dead || s.told != nil || r == nil {
		return fmt.Errorf("%w: %s connects to %s", errWorld, name, to)
	}
	list, now := s.state.Multicast(0)
	s.reflected[r.name] = now
	w.send(name, to, "all", func() bool {
		if r.primary != nil {
			return true
		}
		for _, m := range s.messages() {
			r.backup.Message(m)
		}
		for _, a := range list {
			w.received(r, w.unseal(a))
		}
		w.execute(r)
		return true
	})
	return nil
}

// join is R13, grow: a joiner with a backup's snapshot is counted in.
func (w *world) join(name, primary, donor string) error {
	r, d := w.replicas[Replica(primary)], w.replicas[Replica(donor)]
	if r == nil || r.dead || r.primary == nil || d == nil || d.dead || w.replicas[Replica(name)] != nil ||
		w.primary != r.name || d.history().epochs.newest() != w.epoch {
		return fmt.Errorf("%w: %s joins", errWorld, name)
	}
	r.primary.Require(Replica(name))
	w.requires(r)
	h, k := d.history(), OrderNum(len(d.executed))
	joined := &replica{
		name: Replica(name), executed: slices.Clone(d.executed), joining: k,
		backup: must1(NewBackup(must1(NewHistory(k, h.TimeAt(k), h.Starts(), h.SessionStates(k))), w.epoch,
			r.primary.First())),
	}
	w.replicas[joined.name] = joined
	w.say("%s joins with %s's snapshot at %d", name, donor, k)
	// The log after it: what the donor holds is the order of the epoch that it follows.
	log := Run{Envelope: Envelope{Epoch: w.epoch, EpochFirst: r.primary.First(), First: k + 1}}
	for _, o := range h.Above(k) {
		log.Entries = append(log.Entries, o.OrderInfo)
	}
	log.Count = len(log.Entries)
	w.received(joined, log)
	for range 2 {
		for _, m := range h.messages.held {
			joined.backup.Message(m)
		}
	}
	w.execute(joined)
	w.attachAll(joined)
	return nil
}

// admit puts a joiner in-sync, if it may be.
func (w *world) admit(name, primary, _ string) error {
	r, j := w.replicas[Replica(primary)], w.replicas[Replica(name)]
	if r == nil || r.primary == nil || r.dead || j == nil || w.primary != r.name {
		return fmt.Errorf("%w: %s admits %s", errWorld, primary, name)
	}
	if k, ok := r.primary.Acknowledged(j.name); ok && k >= r.primary.Last() && r.primary.Stable() >= j.joining {
		w.inSync[j.name] = true
		w.say("%s is in-sync", name)
	} else {
		w.say("%s holds %d, of %d; its snapshot is at %d, stable is %d", name, k, r.primary.Last(), j.joining,
			r.primary.Stable())
	}
	return nil
}

// expire ends a session.
func (w *world) expire(name, whom, _ string) error {
	r, s := w.replicas[Replica(name)], w.sources[whom]
	if r == nil || r.primary == nil || s == nil {
		return fmt.Errorf("%w: %s expires %s", errWorld, name, whom)
	}
	if o, v, _ := r.primary.Expire(s.session, w.tick()); v == Fresh {
		w.say("%s ends %s's session as %d", name, whom, o.OrderNum)
		w.executeOne(r, Ordered{OrderInfo: o})
	}
	return nil
}
