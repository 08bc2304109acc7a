package source

import (
	"errors"
	"slices"
	"time"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// maxFlying bounds the calls that haven't ended, so that a replica, which lets 1,000 RPCs of a
// session wait, refuses none; an attempt that was cut may still wait there.
const maxFlying = 900

// askEvery is how often the primary is asked the same.
const askEvery = 20 * time.Millisecond

// newEpoch acknowledges an epoch (R9): replies not yet accepted are dropped, their calls go to the
// new primary at once, and every replica gets this source's answer (R12).
func (s *session) newEpoch(epoch orderstate.Epoch, p election.Member) {
	src := s.of
	before := src.primary
	if !s.source.NewEpoch(epoch) {
		return
	}
	src.primary = p
	s.announced = 0
	if !before.IsZero() && before != p {
		src.counts.failovers.Add(1)
		src.log.Info("another primary", "primary", p.String(), "epoch", uint64(epoch), "was", before.String())
	}
	for of := s; of != nil; of = of.before {
		for k := range of.inFlight {
			if k.try.epoch < epoch {
				k.stop()
			}
		}
	}
	s.before = s.before.unlessDone()
	s.examine()
	for _, l := range src.links {
		if l.session == s && l.up {
			l.reflect(l.peer.member == before) // whose frames the RPCs carried
		}
	}
	src.broadcast()
}

// start learns where the acknowledged epoch starts. A LostError ends the session (I5).
func (s *session) start(e *pb.EpochStart, earlier []orderstate.Start) error {
	err := s.source.Start(orderstate.Epoch(e.GetEpoch()), orderstate.OrderNum(e.GetFirstOrderNum()),
		orderstate.OrderNum(e.GetStable()), earlier)
	var fenced *orderstate.FencedError
	var lost *orderstate.LostError
	switch {
	case err == nil:
		s.told = orderstate.Epoch(e.GetEpoch())
		s.learned()
		return nil
	case errors.As(err, &fenced):
		return nil // old news; and NewEpoch comes before the start of its epoch
	case errors.As(err, &lost):
		s.of.counts.lost.Add(1)
		s.of.loss = errLost(lost)
		s.of.log.Error("the session is lost", "session", s.number, "err", err)
		s.end(err)
		return err
	default:
		return malformed("%w", err)
	}
}

// announce is FIG. 9's second loop for one announcement.
func (s *session) announce(run orderstate.Announcement) error {
	if err := s.source.Receive(run); err != nil {
		return malformed("%w", err)
	}
	if run.Epoch == s.source.Epoch() {
		s.announced = max(s.announced, run.Last())
	}
	return nil
}

// learned is called when the stable point, pendingRemoteOrder or the acknowledgements may have
// moved: frames are forgotten that nobody will need, which makes room for calls, and replies may be
// handed over.
func (s *session) learned() {
	bytes := s.frames.bytes
	s.frames.sweep(s.source.Stable(), s.framesHeld)
	if s.frames.bytes < bytes {
		s.makeRoom()
	}
	s.examine()
}

// framesHeld is up to where every member of the required set has acknowledged the session's frames;
// 0 if the set isn't known, or one of its members has no stream.
func (s *session) framesHeld() uint64 {
	number, members := s.source.Required()
	if number == 0 {
		return 0
	}
	held := s.frames.next() - 1
	for _, m := range members {
		i := slices.IndexFunc(s.of.links, func(l *Link) bool { return l.up && l.session == s && l.peer.id == m })
		if i < 0 {
			return 0
		}
		held = min(held, s.of.links[i].cursor.held)
	}
	return held
}

// end ends the session; another one is opened in its place.
func (s *session) end(why error) {
	if s.over != nil {
		return
	}
	src := s.of
	s.over = why
	if s.number == 0 {
		close(s.begun)
	}
	close(s.ended)
	if errors.As(why, new(*orderstate.LostError)) || errors.As(why, new(*replacedError)) {
		for k := range s.inFlight {
			k.stop()
		}
	}
	s.examine()
	next := newSession(src)
	next.before = s.unlessDone()
	next.source.NewEpoch(s.source.Epoch())
	src.session = next
	for _, l := range src.links {
		l.unknown = false
		if l.restart != nil {
			l.restart()
		}
	}
	src.broadcast()
}

// takes says whether the session may have one more call, whose request is of so many bytes: none
// while one that may end its replica is alone.
func (s *session) takes(size int, reads bool) bool {
	return len(s.suspects) == 0 && s.frames.flying+len(s.reads) < maxFlying && (reads || s.frames.fits(size))
}

// makeRoom lets whoever is first in line look again.
func (s *session) makeRoom() {
	if len(s.line) == 0 {
		return
	}
	select {
	case s.line[0] <- struct{}{}:
	default:
	}
}

// ask tells the primary that a reply waits for announcements (R1).
func (s *session) ask(order orderstate.OrderNum, now time.Duration) {
	held := s.source.HeldUpTo()
	if held >= order {
		return // R1b: acknowledgements come by themselves
	}
	q := question{s.source.Epoch(), held, now}
	if last := s.question; q.epoch == last.epoch && q.held == last.held && now-last.at < askEvery {
		return
	}
	if s.askPrimary(&pb.WaitingFor{Epoch: uint64(q.epoch), HeldUpTo: uint64(q.held)}) {
		s.question = q
	}
}

// askPrimary sends a question, if the primary has a stream of the session.
func (s *session) askPrimary(q *pb.WaitingFor) bool {
	l := s.of.toPrimary()
	if l == nil || l.session != s {
		return false
	}
	l.sender.ask(q)
	return true
}

// envelopes are those of destOrderInfo that HeldUpTo doesn't say already: announcements above a
// gap. A header has room for a few (R5); the streams carry them all.
func (s *session) envelopes(held orderstate.OrderNum) (runs []orderstate.Announcement) {
	const few = 16
	if s.announced <= held {
		return nil
	}
	all, _ := s.source.Multicast(0)
	for _, a := range all {
		if a.Epoch == s.source.Epoch() && a.First > held && len(runs) < few {
			runs = append(runs, orderstate.Announcement{Envelope: a.Envelope})
		}
	}
	return runs
}

// leave takes the call out of its session's flight.
func (k *call) leave(how ending) {
	s := k.session
	if len(s.suspects) > 0 { // who may be alone now, or none is left
		k.trust()
		s.of.broadcast()
		defer s.makeRoom() // whichever way it leaves
	}
	if k.reads() {
		delete(s.reads, k)
		s.makeRoom()
		return
	}
	var order orderstate.OrderNum
	if k.reply.header != nil {
		order = k.reply.header.OrderNum
	}
	if k.retained.reply = k.reply.size; how == endAbandoned {
		k.retained.reply = lazyEnded // who knows
	}
	s.frames.end(k.retained, how, order, s.source.Stable())
	s.tellOfEnds()
	s.makeRoom()
}

// trust takes the call out of the suspects (poison.go).
func (k *call) trust() {
	k.session.suspects = slices.DeleteFunc(k.session.suspects, func(other *call) bool { return other == k })
}

// dropWaiting takes the call out of those that hold a reply.
func (k *call) dropWaiting() {
	s := k.session
	if i := slices.Index(s.waiting, k); i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
	}
}
