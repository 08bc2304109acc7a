package source

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/trust"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// This file has a stream from its beginning to its end, and what a replica says on it. Everything
// is bounded before it is kept.

const (
	maxReplicas = 1 << 10 // in a required set
	maxStarts   = 1 << 10 // epochs in an EpochStart
	maxID       = 256     // bytes of a replica's id
)

// Begin begins a stream, with its first message. restart ends it.
func (l *Link) Begin(restart context.CancelFunc) *pb.Hello {
	src := l.source
	src.mu.Lock()
	defer src.mu.Unlock()
	s := src.session
	l.session, l.restart = s, restart
	return &pb.Hello{Protocol: wire.Protocol, Nonce: s.nonce[:], Session: s.number, Group: src.group.id,
		Mark: src.group.mark, ToldEpoch: uint64(s.told)}
}

// StreamEnd is how a stream has ended. That it ended in order, and that the session is unknown,
// must be the replica's own word: a bare status could come from anything on the way.
type StreamEnd struct {
	Err     error
	InOrder bool // the replica has ended it, which lives
	Refused bool // the replica doesn't let this client in
	Unknown bool // the replica doesn't know the session of the Hello
}

// End is called when a stream has ended.
func (l *Link) End(e StreamEnd) {
	src := l.source
	src.mu.Lock()
	defer src.mu.Unlock()
	s := l.session
	if l.up {
		if e.InOrder {
			src.parts(l.peer.member)
		}
		src.lookAgain()
	}
	l.cursor.calm()
	l.restart, l.session, l.up, l.problem, l.refused = nil, nil, false, e.Err, e.Refused
	if l.gone != nil {
		close(l.gone)
		l.gone = nil
		l.stop()
	}
	if e.Unknown {
		l.disowned(s)
	}
	if src.refused() != nil {
		src.broadcast()
	}
	if bad := new(malformedError); errors.As(e.Err, &bad) {
		src.counts.malformed.Add(1)
		src.log.Error("a stream was cut", "replica", l.Name, "addr", l.Addr, "err", e.Err)
	}
}

// parts notes that a replica has ended its stream in order: what breaks off with it has broken off
// for that reason.
func (src *Source) parts(m election.Member) {
	const most = 1 << 10
	if len(src.parted) >= most {
		clear(src.parted)
	}
	src.parted[m] = true
}

// disowned ends the session when the primary says on its stream that it doesn't know it (R11), or
// when no replica is left that does.
func (l *Link) disowned(s *session) {
	if l.source.session != s {
		return
	}
	l.unknown = true
	known := func(l *Link) bool { return !l.unknown }
	if l.Name == l.source.primary.Name || !slices.ContainsFunc(l.source.links, known) {
		s.end(errUnknownSession)
	}
}

// Receive takes one message. An error ends the stream.
func (l *Link) Receive(msg *pb.AttachResponse) error {
	if w := msg.Welcome; w != nil && w.Protocol != wire.Protocol { // the rest may mean something else
		return errProtocol("the replica "+l.Name, w.Protocol)
	}
	n, err := parseNews(msg.NewEpoch, msg.EpochStart, msg.RequiredSet)
	if err != nil {
		return err
	}
	runs, err := wire.RunsFromProto(msg.SourceOrderInfo)
	if err != nil {
		return malformed("%w", err)
	}
	l.source.mu.Lock()
	defer l.source.mu.Unlock()
	s := l.session
	if s.over != nil {
		return errSession
	}
	l.hailed = 0
	switch {
	case msg.Welcome != nil && l.up:
		return malformed("a second Welcome")
	case msg.Welcome == nil && !l.up:
		return malformed("a message before the Welcome")
	case msg.Welcome != nil:
		if err := l.welcome(s, msg.Welcome); err != nil {
			return err
		}
	}
	if err := s.take(n); err != nil {
		return err
	}
	s.of.group.marked(msg.Mark)
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
		s.source.Acknowledge(l.peer.id, orderstate.Epoch(a.Epoch), orderstate.OrderNum(a.OrderNum))
	}
	if msg.FramesUpTo >= s.frames.next() {
		return malformed("seqNum %d is acknowledged, which was never sent", msg.FramesUpTo)
	}
	l.acknowledged(msg.FramesUpTo)
	s.learned()
	return nil
}

// welcome takes the first message of a stream. What it says of the group's primary comes before
// this source sends anything on the stream.
func (l *Link) welcome(s *session, w *pb.Welcome) error {
	src := l.source
	speaker := election.Member{Name: w.Replica, Incarnation: w.Incarnation}
	n, err := parseNews(w.Primary, w.EpochStart, w.RequiredSet)
	switch group := src.group.id; {
	case err != nil:
		return err
	case w.Session == 0 || w.Token == 0 || w.Group == 0 || speaker.Validate() != nil || w.Level < 0 ||
		w.Level > pb.Level_LEVEL_STABLE:
		return malformed("a Welcome by %v to session %d of group %d at level %d", speaker, w.Session, w.Group, w.Level)
	case w.Group != group || w.Replica != l.Name:
		return fmt.Errorf("transport: %s's address %s is answered by %s of group %x; the store has %s of group "+
			"%x there (do several replicas advertise one address?)", l.Name, l.Addr, w.Replica, w.Group, l.Name, group)
	case s.number != 0 && w.Session != s.number:
		return errSession
	}
	src.level = w.Level
	l.peer = peer{speaker, orderstate.Replica(speaker.String()), w.MaxRequest}
	l.number = w.Session
	if n.epoch == s.source.Epoch() && n.primary != speaker && n.primary != src.primary {
		n.epoch = 0 // a backup's word of who leads, which it may be about to learn anew
	}
	if err := s.take(n); err != nil {
		return err
	}
	// R11: the session is open when the primary of the acknowledged epoch says so, once its gate is
	// open.
	if e := s.source.Epoch(); s.number == 0 && n.primary == speaker && n.epoch == e && n.start != nil &&
		orderstate.Epoch(n.start.Epoch) == e {
		s.adopt(w.Session, w.Token)
	}
	l.up, l.problem, l.refused, l.unknown = true, nil, false, false
	l.cursor.held, l.cursor.sent = 0, 0
	out := &l.sender
	out.question, out.queued, out.hail, out.ended = nil, 0, false, s.telling.last
	l.reflect(true)
	src.broadcast()
	return nil
}

// adopt takes the session's number and token. A stream that was welcomed to another one, whose
// opening was lost, begins anew.
func (s *session) adopt(number, token uint64) {
	src := s.of
	s.number, s.token, src.group.adopted = number, token, true
	close(s.begun)
	for _, l := range src.links {
		if l.up && l.session == s && l.number != number {
			l.restart()
		}
	}
	src.log.Info("a session is open", "session", number, "group", src.group.id)
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
func (s *session) take(n news) error {
	src := s.of
	if n.epoch != 0 {
		mark := trust.Mark{Group: src.group.id, Epoch: uint64(n.epoch), Fence: n.fence}
		if err := src.group.trust.JudgeMark(mark); err != nil {
			return err
		}
		if n.epoch == s.source.Epoch() && !src.primary.IsZero() && n.primary != src.primary {
			return fmt.Errorf(
				"transport: epoch %d is %v's, and %v has it, too: the store was restored from before, and has "+
					"elected again", n.epoch, src.primary, n.primary,
			)
		}
		s.newEpoch(n.epoch, n.primary)
	}
	if n.start != nil {
		if err := s.start(n.start, n.earlier); err != nil {
			return err
		}
	}
	if n.set != nil {
		s.source.Require(orderstate.Epoch(n.set.Epoch), n.set.Number, n.required)
	}
	return nil
}
