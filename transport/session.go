package transport

import (
	"crypto/rand"
	"errors"
	"slices"
	"time"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// session is the unit of at-most-once: this source on the connection. Client.mu guards it.
type session struct {
	nonce  orderstate.Nonce
	number uint64        // the orderNum of its opening; 0 while it isn't open
	token  uint64        // proves to the primary that a request is of this session
	begun  chan struct{} // closed when the session is open, or over
	over   error         // why it has ended
	ended  chan struct{} // closed when it has
	before *session      // which has ended, while it has calls in flight

	source *orderstate.Source
	told   orderstate.Epoch // whose start it has taken last, and so all that was known of those before
	frames frames
	reads  map[*call]struct{} // read-only calls in flight
	// announced is the last orderNum of the announcements received in the acknowledged epoch.
	announced orderstate.OrderNum
	// waiting are the calls that hold a reply (R1, R1b).
	waiting []*call
	// calls with which two primaries have died, in the order in which they are issued, each alone
	suspects []*call
	line     []chan struct{} // of calls that wait for room, in the order in which they came; each has room for one
	// question is what was asked last, and when (R1).
	question question
	asked    time.Duration
	// said is what replicas were told last of the calls that have ended; sayDue: sayLazily runs,
	// since there is more to tell.
	said      *pb.Ended
	sayLazily *time.Timer
	sayDue    bool
}

func newSession() *session {
	s := &session{begun: make(chan struct{}), ended: make(chan struct{}), source: orderstate.NewSource(),
		frames: newFrames(), reads: map[*call]struct{}{}}
	_, _ = rand.Read(s.nonce[:]) // never fails, says its documentation
	return s
}

// unlessDone is nil if no call of the session is in flight, nor of those before it.
func (s *session) unlessDone() *session {
	if s == nil {
		return nil
	}
	s.before = s.before.unlessDone()
	for range s.inFlight {
		return s
	}
	return s.before
}

// inFlight are the calls that haven't ended.
func (s *session) inFlight(yield func(*call) bool) {
	for k := range s.reads {
		if !yield(k) {
			return
		}
	}
	s.frames.inFlight(yield)
}

// replicaID is how acknowledgements and required sets name a replica.
func replicaID(m election.Member) orderstate.Replica { return orderstate.Replica(m.String()) }

// newEpoch acknowledges an epoch (R9): replies not yet accepted are dropped, their calls go to the
// new primary at once, and every replica gets this source's answer (R12).
func (c *Client) newEpoch(s *session, epoch orderstate.Epoch, p election.Member) {
	before := c.primary
	if !s.source.NewEpoch(epoch) {
		return
	}
	c.primary = p
	s.announced = 0
	if !before.IsZero() && before != p {
		c.counts.failovers.Add(1)
		c.cfg.log.Info("another primary", "primary", p.String(), "epoch", uint64(epoch), "was", before.String())
	}
	for of := s; of != nil; of = of.before {
		for k := range of.inFlight {
			k.fence(epoch)
		}
	}
	s.before = s.before.unlessDone()
	c.examine(s)
	for _, l := range c.links {
		if l.session == s && l.up {
			l.reflect(l.member == before) // whose frames the RPCs carried
		}
	}
	c.broadcast()
}

// start learns where the acknowledged epoch starts. A LostError ends the session (I5).
func (c *Client) start(s *session, e *pb.EpochStart, earlier []orderstate.Start) error {
	err := s.source.Start(orderstate.Epoch(e.GetEpoch()), orderstate.OrderNum(e.GetFirstOrderNum()),
		orderstate.OrderNum(e.GetStable()), earlier)
	var fenced *orderstate.FencedError
	var lost *orderstate.LostError
	switch {
	case err == nil:
		s.told = orderstate.Epoch(e.GetEpoch())
		c.learned(s)
		return nil
	case errors.As(err, &fenced):
		return nil // old news; and NewEpoch comes before the start of its epoch
	case errors.As(err, &lost):
		c.counts.lost.Add(1)
		c.loss = statusLost(lost)
		c.cfg.log.Error("the session is lost", "session", s.number, "err", err)
		c.endSession(s, err)
		return err
	default:
		return malformed("%w", err)
	}
}

// learned is called when the stable point, pendingRemoteOrder or the acknowledgements may have
// moved.
func (c *Client) learned(s *session) {
	c.sweep(s)
	c.examine(s)
}

// sweep forgets frames that nobody will need, and lets calls in that wait for their room.
func (c *Client) sweep(s *session) {
	bytes := s.frames.bytes
	s.frames.sweep(s.source.Stable(), func() uint64 { return c.framesHeld(s) })
	if s.frames.bytes < bytes {
		s.makeRoom()
	}
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

// framesHeld is up to where every member of the required set has acknowledged the session's frames;
// 0 if the set isn't known, or one of its members has no stream.
func (c *Client) framesHeld(s *session) uint64 {
	number, members := s.source.Required()
	if number == 0 {
		return 0
	}
	held := s.frames.next() - 1
	for _, m := range members {
		i := slices.IndexFunc(c.links, func(l *link) bool { return l.up && l.session == s && l.id == m })
		if i < 0 {
			return 0
		}
		held = min(held, c.links[i].held)
	}
	return held
}

// examine decides about the replies that wait.
func (c *Client) examine(s *session) {
	if len(s.waiting) == 0 {
		return
	}
	now := c.cfg.elapsed()
	kept := s.waiting[:0]
	for _, k := range s.waiting {
		if k.verdict = c.decide(k, now); k.verdict == verdictWait {
			kept = append(kept, k)
		} else {
			k.signal()
		}
	}
	clear(s.waiting[len(kept):])
	s.waiting = kept
}

// disowned ends the session when the primary says on its stream that it doesn't know it (R11), or
// when no replica is left that does.
func (c *Client) disowned(l *link, s *session) {
	if c.session != s {
		return
	}
	l.unknown = true
	known := func(l *link) bool { return !l.unknown }
	if l.name == c.primary.Name || !slices.ContainsFunc(c.links, known) {
		c.endSession(s, errUnknownSession)
	}
}

// endSession ends a session; another one is opened in its place.
func (c *Client) endSession(s *session, why error) {
	if s.over != nil {
		return
	}
	s.over = why
	if s.number == 0 {
		close(s.begun)
	}
	close(s.ended)
	lost := errors.As(why, new(*orderstate.LostError)) || errors.As(why, new(*replacedError))
	for k := range s.inFlight {
		if lost {
			k.stop()
		}
	}
	c.examine(s)
	next := newSession()
	next.before = s.unlessDone()
	next.source.NewEpoch(s.source.Epoch())
	c.session = next
	for _, l := range c.links {
		l.unknown = false
		if l.restart != nil {
			l.restart()
		}
	}
	c.broadcast()
}
