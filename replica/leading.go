package replica

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/internal/clock"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// leading is the primary: FIG. 7, 8 and 9.
type leading struct {
	m       *member
	primary *orderstate.Primary
	tail    *orderstate.Tail // what a takeover found ordered, and isn't executed yet; nil without one
	start   *pb.EpochStart   // of its epoch
	roster  roster

	gate      bool          // calls may be ordered (R12.4)
	authority time.Duration // up to this reading of the clock it may transmit (R10)
	wall      *clock.Steady // what is recorded as a turn's time
	push      chan struct{} // capacity 1: a null message is due

	// requests between the front door and their turn; a channel where a copy waits
	arriving map[orderstate.MessageID]chan struct{}
	asking   map[*attachment]struct{} // whose sources wait for what is to become stable
	crowded  int                      // how many openings wait for a session to end

	stoodAt    orderstate.OrderNum // what was executed when it moved last, or when no backup was ahead
	stoodSince time.Duration       // when that was
	warned     time.Duration       // when it has last warned of a large state
}

// leads makes this incarnation its group's primary, with what a takeover has left.
func (m *member) leads(p *orderstate.Primary, tail *orderstate.Tail, peers others) *leading {
	l := &leading{
		m: m, primary: p, tail: tail, wall: clock.NewSteady(m.r.wall, m.r.clock), push: make(chan struct{}, 1),
		start: &pb.EpochStart{
			Epoch: uint64(p.Epoch()), FirstOrderNum: uint64(p.First()), Stable: uint64(p.Stable()),
			Earlier: wire.StartsToProto(p.History().Starts()),
		},
		arriving: map[orderstate.MessageID]chan struct{}{}, asking: map[*attachment]struct{}{},
	}
	l.roster = roster{m: m, l: l, peers: peers}
	m.role, m.leader = l, m.self
	now := m.r.clock()
	for _, s := range p.History().Sessions() {
		if m.sources.bySession[s] != nil {
			continue
		}
		// Who has had no stream here for long may have had one at the former primary: it has a
		// little to come.
		since, ok := m.sources.absent[s]
		if least := now - (sessionTimeout - sessionGrace); !ok {
			since = now
		} else if since < least {
			since = least
		}
		m.sources.absent[s] = since
	}
	m.after(moved{rare: true, begun: true}) // what is up to N may be executed
	return l
}

func (*leading) public() Role                   { return Leading }
func (l *leading) epoch() orderstate.Epoch      { return l.primary.Epoch() }
func (l *leading) history() *orderstate.History { return l.primary.History() }
func (l *leading) stable() orderstate.OrderNum  { return l.primary.Stable() }
func (*leading) wasInSync() bool                { return true }
func (l *leading) others() others               { return l.roster.peers }
func (*leading) logs() *following               { return nil }

// over says whether the incarnation has ended.
func (l *leading) over() bool { return l.m.role != role(l) }

// mayLeave says whether a reply may be sent (R11). At Stable, a member that can't hear the session
// can't acknowledge to its source either (R1b): so the reply waits until all members have
// acknowledged here, and says so by its stable point. So does what a read-only method has seen at
// Stable, which nobody acknowledges to its source.
func (l *leading) mayLeave(s orderstate.Session, k orderstate.OrderNum, stable, reads bool) bool {
	if !l.primary.MayLeave(s, k) {
		return false
	}
	return !stable || l.primary.Stable() >= k || !reads && l.primary.Attached(s)
}

// arrived: a request that admit judged fresh has had its turn, or never will have it.
func (l *leading) arrived(id orderstate.MessageID) {
	if done := l.arriving[id]; done != nil {
		close(done)
	}
	delete(l.arriving, id)
}

// room waits while what is ordered is at the log's bound, and refuses when that lasts: the backups
// don't acknowledge, and etcd, without which they can't be evicted, is away. While less than half
// is free, a session beyond its share waits alone.
func (l *leading) room(ctx context.Context, s orderstate.Session) error {
	var used, own int
	free := func() bool {
		if l.over() {
			return true
		}
		used = l.primary.History().Logged()
		if l.primary.Last()-l.primary.History().CutAt() >= maxLog || used >= maxLogBytes {
			own = 0
			return false
		}
		if used < maxLogBytes/2 {
			return true
		}
		own = l.primary.History().Of(s).Logged
		return own == 0 || own <= (maxLogBytes-used)/8
	}
	if free() {
		return nil
	}
	waiting, cancel := context.WithTimeout(ctx, reconcileTimeout)
	defer cancel()
	err := l.m.awaitProgress(waiting, free)
	switch {
	case err == nil && !l.over():
		return nil
	case ctx.Err() == nil && waiting.Err() != nil && own > 0:
		return errShare(
			"%d bytes of requests are kept for the session, of %d for all; at most a sixteenth is while the log is "+
				"more than half full", own, used,
		)
	case ctx.Err() == nil && waiting.Err() != nil:
		return errLogFull()
	default:
		return gaveUp(ctx)
	}
}

// inShare says why a request can't be ordered now: too many replies of its session are kept, which
// nobody has declared to have. It is asked in the request's turn, so that nothing comes between.
func (l *leading) inShare(m orderstate.Message) error {
	outstanding := l.primary.History().Of(m.Session).Outstanding
	// A source that keeps the bound by the distance of its seqNums has no more ordered, whatever
	// came first.
	crowded := outstanding > maxOutstanding || outstanding == maxOutstanding &&
		m.AnsweredUpTo <= l.primary.History().AnsweredUpTo(m.Session)
	beyond := l.m.machine.Beyond(m.Session)
	switch {
	case !crowded && !beyond:
		return nil
	case l.primary.Judge(m.MessageID, m.AnsweredUpTo) != orderstate.Fresh:
		return nil // it isn't ordered anyway
	case crowded:
		return errShare(
			"%d calls of the session are answered, and it hasn't declared that it has the replies; at most %d may be",
			outstanding, maxOutstanding,
		)
	}
	l.m.machine.Declared(m.Session, m.AnsweredUpTo, nil) // what it says itself counts, though it isn't ordered yet
	if l.m.machine.Beyond(m.Session) {
		return errReplies
	}
	return nil
}

// now is the time that a primary records for a turn, in microseconds since 1970.
func (l *leading) now() int64 { return l.wall.Next(l.primary.History().LastTime()) }

// ownTurn takes a turn for an entry of the group's own (a session's opening, its expiry): order
// runs with mu, which ownTurn takes.
func (l *leading) ownTurn(
	ctx context.Context, order func(now int64) (orderstate.OrderInfo, bool),
) (orderstate.OrderInfo, error) {
	if err := l.m.machine.Take(ctx); err != nil {
		return orderstate.OrderInfo{}, err
	}
	defer l.m.machine.End()
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.over() || !l.gate {
		return orderstate.OrderInfo{}, errNotPrimary
	}
	o, push := order(l.now())
	l.m.after(moved{Moved: orderstate.Moved{Push: push}})
	return o, nil
}

// forget cuts the log at what is executed, stable, and not kept for a joiner. A joiner for which
// too much is kept is dropped.
func (l *leading) forget(executed orderstate.OrderNum) {
	upTo := min(executed, l.roster.keptAbove())
	if upTo < min(executed, l.primary.Stable()) && l.halfFull() {
		l.roster.dropPinning()
		upTo = executed
	}
	l.primary.Executed(upTo)
}

// halfFull says whether the log is at half of one of its bounds.
func (l *leading) halfFull() bool {
	return l.primary.Last()-l.primary.History().CutAt() >= maxLog/2 || l.primary.History().Logged() >= maxJoinBytes
}

// required is the required set as it travels.
func (l *leading) required() *pb.RequiredSet {
	number, members := l.primary.Required()
	set := &pb.RequiredSet{Epoch: uint64(l.primary.Epoch()), Number: number}
	for _, m := range members {
		set.Replicas = append(set.Replicas, string(m))
	}
	return set
}

// tellRequired pushes the required set on the sessions' streams (R1b).
func (l *leading) tellRequired() {
	set, mark := l.required(), l.m.sealedMark()
	for a := range l.m.sources.attached {
		if a.bound {
			out := a.out.say()
			out.RequiredSet, out.Mark = set, mark
		}
	}
}

// expireSessions orders the end of sessions that have had no stream for too long (R11). While an
// opening waits for one to end, that is not so long. It takes mu.
func (l *leading) expireSessions() {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if !l.gate {
		return
	}
	now, limit := l.m.r.clock(), sessionTimeout
	if l.crowded > 0 {
		limit = authority
	}
	var over []orderstate.Session
	for s, since := range l.m.sources.absent {
		if now-since > limit {
			over = append(over, s)
		}
	}
	if len(over) == 0 {
		return
	}
	if l.crowded > 0 { // no more than are waited for
		slices.SortFunc(over, func(a, b orderstate.Session) int {
			return cmp.Compare(l.m.sources.absent[a],
				l.m.sources.absent[b])
		})
		over = over[:min(len(over), l.crowded)]
	}
	for _, s := range over {
		delete(l.m.sources.absent, s)
	}
	l.m.goes(func() {
		for _, s := range over {
			l.expire(s)
		}
	})
}

// expire orders the end of a session, unless its source has come back meanwhile.
func (l *leading) expire(s orderstate.Session) {
	_, _ = l.ownTurn(l.m.ctx, func(at int64) (orderstate.OrderInfo, bool) {
		if l.m.sources.bySession[s] != nil {
			return orderstate.OrderInfo{}, false
		}
		o, v, moved := l.primary.Expire(s, at)
		if v == orderstate.Fresh {
			l.m.own(o)
		}
		return o, moved.Push
	})
}

// awaitSession waits while the group has as many sessions as it may have, and refuses when that
// lasts. Those that have had no stream for longest end meanwhile (expireSessions).
func (l *leading) awaitSession(ctx context.Context) error {
	room := func() bool { return l.over() || l.primary.History().OpenSessions() < maxSessions }
	if room() {
		return nil
	}
	l.crowded++
	waiting, cancel := context.WithTimeout(ctx, reconcileTimeout)
	defer cancel()
	err := l.m.awaitProgress(waiting, room)
	l.crowded--
	if err != nil && ctx.Err() == nil && waiting.Err() != nil {
		return status.Errorf(codes.ResourceExhausted,
			"understudy: the group has %d sessions, one for each ClientConn, and may have no more: close some, or "+
				"share them", maxSessions)
	}
	return err
}

// outrun says whether this primary executes nothing, for as long as it wouldn't bear of a backup,
// while one has got further: whoever was elected, or called, waits for a handler that hangs here
// only. Nobody loses anything when it ends: the others hold all that it has ordered. It takes mu.
func (l *leading) outrun() bool {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	ahead := false
	for _, p := range l.roster.peers {
		if p.stage.isMember() && p.stream != nil && p.stream.executed > l.m.machine.Executed() {
			ahead = true
		}
	}
	now := l.m.r.clock()
	if !ahead || l.m.machine.Executed() != l.stoodAt {
		l.stoodAt, l.stoodSince = l.m.machine.Executed(), now
	}
	return now-l.stoodSince > executeSilence && l.primary.Stable() >= l.primary.Last()
}

// errReplies says that a session must have its replies first.
var errReplies = errors.New("replica: too many replies are kept for the session")

// tells is what a follower is told now: if there is nothing else, it is a heartbeat.
func (l *leading) tells(f *follower) *pb.FollowResponse {
	f.out.message().Stable = uint64(l.primary.Stable())
	out, _ := f.out.take()
	if l.m.bells.waiting > 0 || !l.gate {
		out.Acknowledge = uint64(l.primary.Last())
	}
	return out
}
