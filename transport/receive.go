package transport

import (
	"errors"
	"fmt"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// This file has what a replica says on its stream. Everything is bounded before it is kept.

const (
	maxReplicas = 1 << 10 // in a required set
	maxStarts   = 1 << 10 // epochs in an EpochStart
	maxID       = 256     // bytes of a replica's id
)

// errSession ends a stream whose session has ended, or isn't the one that was opened.
var errSession = errors.New("transport: the stream is of another session")

// errOpened ends a stream that was welcomed before the session was open; the next Welcome will open
// it.
var errOpened = errors.New("transport: the gate of the epoch is open: ask for the session again")

// receive takes one message. An error ends the stream.
func (c *Client) receive(l *link, s *session, msg *pb.AttachResponse) error {
	n, err := parseNews(msg.NewEpoch, msg.EpochStart, msg.RequiredSet)
	if err != nil {
		return err
	}
	runs, err := wire.RunsFromProto(msg.SourceOrderInfo)
	if err != nil {
		return malformed("%w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.session != s || s.over != nil {
		return errSession
	}
	l.asked = 0
	switch {
	case msg.Welcome != nil && l.up:
		return malformed("a second Welcome")
	case msg.Welcome == nil && !l.up:
		return malformed("a message before the Welcome")
	case msg.Welcome != nil:
		if err := c.welcome(l, s, msg.Welcome); err != nil {
			return err
		}
	}
	if err := c.take(s, n); err != nil {
		return err
	}
	c.marked(msg.Mark)
	if n.start != nil && s.number == 0 {
		return errOpened
	}
	for _, run := range runs {
		if err := s.announce(run); err != nil {
			return err
		}
	}
	if msg.StableEpoch != 0 {
		s.source.LearnStable(orderstate.Epoch(msg.StableEpoch), orderstate.OrderNum(msg.Stable))
	}
	if a := msg.Acknowledgement; a != nil {
		s.source.Acknowledge(l.id, orderstate.Epoch(a.Epoch), orderstate.OrderNum(a.OrderNum))
	}
	if msg.FramesUpTo >= s.frames.next() {
		return malformed("seqNum %d is acknowledged, which was never sent", msg.FramesUpTo)
	}
	l.acknowledged(msg.FramesUpTo)
	c.learned(s)
	return nil
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

// welcome takes the first message of a stream. What it says of the group's primary comes before
// this source sends anything on the stream.
func (c *Client) welcome(l *link, s *session, w *pb.Welcome) error {
	speaker := election.Member{Name: w.Replica, Incarnation: w.Incarnation}
	n, err := parseNews(w.Primary, w.EpochStart, w.RequiredSet)
	switch {
	case err != nil:
		return err
	case w.Session == 0 || w.Token == 0 || w.Group == 0 || speaker.Validate() != nil || w.Level < 0 ||
		w.Level > pb.Level_LEVEL_STABLE:
		return malformed("a Welcome by %v to session %d of group %d at level %d", speaker, w.Session, w.Group, w.Level)
	case w.Group != c.group || w.Replica != l.name:
		return fmt.Errorf("transport: %s's address %s is answered by %s of group %x; the store has %s of group "+
			"%x there"+
			" (do several replicas advertise one address?)", l.name, l.addr, w.Replica, w.Group, l.name, c.group)
	case s.number != 0 && w.Session != s.number:
		return errSession
	}
	c.level = w.Level
	l.most = w.MaxRequest
	l.member, l.id, l.number = speaker, replicaID(speaker), w.Session
	if n.epoch == s.source.Epoch() && n.primary != speaker && n.primary != c.primary {
		n.epoch = 0 // a backup's word of who leads, which it may be about to learn anew
	}
	if err := c.take(s, n); err != nil {
		return err
	}
	// R11: the session is open when the primary of the acknowledged epoch says so, once its gate is
	// open.
	if e := s.source.Epoch(); s.number == 0 && n.primary == speaker && n.epoch == e && n.start != nil &&
		orderstate.Epoch(n.start.Epoch) == e {
		c.adopt(s, w.Session, w.Token)
	}
	l.up, l.problem, l.unknown = true, nil, false
	l.question, l.queued, l.held, l.sent, l.hail = nil, 0, 0, 0, false
	l.ended = s.said
	l.reflect(true)
	c.broadcast()
	return nil
}

// adopt takes the session's number and token. A stream that was welcomed to another one, whose
// opening was lost, begins anew.
func (c *Client) adopt(s *session, number, token uint64) {
	s.number, s.token, c.adopted = number, token, true
	close(s.begun)
	for _, l := range c.links {
		if l.up && l.session == s && l.number != number {
			l.restart()
		}
	}
	c.cfg.log.Info("a session is open", "session", number, "group", c.group)
}

// news is what a Welcome, or any later message, says of the group's primary.
type news struct {
	epoch    orderstate.Epoch // another one; 0: no
	primary  election.Member  // of that epoch
	fence    int64            // as the primary has read it since its election
	start    *pb.EpochStart
	earlier  []orderstate.Start
	set      *pb.RequiredSet
	required []orderstate.Replica
}

func parseNews(newEpoch *pb.NewEpoch, start *pb.EpochStart, set *pb.RequiredSet) (n news, err error) {
	if newEpoch != nil {
		n.epoch, n.fence = orderstate.Epoch(newEpoch.Epoch), newEpoch.Fence
		n.primary = election.Member{Name: newEpoch.Primary, Incarnation: newEpoch.Incarnation}
		if n.epoch == 0 || n.primary.Validate() != nil {
			return n, malformed("epoch %d of %q", n.epoch, newEpoch.Primary)
		}
	}
	if n.start = start; start != nil {
		if len(start.Earlier) > maxStarts || start.Epoch == 0 || start.FirstOrderNum == 0 {
			return n, malformed("epoch %d starts at %d, after %d others", start.Epoch, start.FirstOrderNum,
				len(start.Earlier))
		}
		n.earlier = wire.StartsFromProto(start.Earlier)
	}
	if n.set = set; set != nil {
		if len(set.Replicas) > maxReplicas {
			return n, malformed("a required set of %d", len(set.Replicas))
		}
		for _, r := range set.Replicas {
			if r == "" || len(r) > maxID {
				return n, malformed("a replica's id has %d bytes", len(r))
			}
			n.required = append(n.required, orderstate.Replica(r))
		}
	}
	return n, nil
}

// take learns the news, in the order in which they hold.
func (c *Client) take(s *session, n news) error {
	if n.epoch != 0 {
		if err := c.trust.JudgeMark(election.Mark{Group: c.group, Epoch: uint64(n.epoch), Fence: n.fence}); err != nil {
			return err
		}
		if n.epoch == s.source.Epoch() && !c.primary.IsZero() && n.primary != c.primary {
			return fmt.Errorf(
				"transport: epoch %d is %v's, and %v has it, too: the store was restored from before, and has "+
					"elected again", n.epoch, c.primary, n.primary,
			)
		}
		c.newEpoch(s, n.epoch, n.primary)
	}
	if n.start != nil {
		if err := c.start(s, n.start, n.earlier); err != nil {
			return err
		}
	}
	if n.set != nil {
		s.source.Require(orderstate.Epoch(n.set.Epoch), n.set.Number, n.required)
	}
	return nil
}
